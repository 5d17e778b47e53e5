"""Which file is meant where a folder is named for weights: a run's, Hugging Face's, or the only one in it."""

from __future__ import annotations

from pathlib import Path

from bitad.data.detections import named
from bitad.signatures import signature_of

# Of a run of ours, and of a folder that Hugging Face's `save_pretrained` writes: the first that is there is meant.
_OF_A_RUN = ("best.pt", "last.pt")
_OF_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar"}
# What trainers write beside the weights (Hugging Face's `Trainer`).
_NO_WEIGHTS = ("optimizer.", "scheduler.", "scaler.", "training_args.", "rng_state")
_INDEX = ".index.json"


def file_in(folder: Path) -> Path:
    """The file of weights that a folder stands for.

    Raises:
        FileNotFoundError: there is none in it.
        ValueError: there are several, or the weights are in shards.
    """
    visible = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    found = [
        name for name in visible if Path(name).suffix.lower() in _SUFFIXES and not name.lower().startswith(_NO_WEIGHTS)
    ]
    for names, others_too in ((_OF_A_RUN, True), (_OF_HUGGING_FACE, False)):
        if (here := [name for name in names if name in found]) and (others_too or set(found) <= set(names)):
            return folder / here[0]
    if indices := [name for name in visible if name.endswith(_INDEX)]:
        raise ValueError(f"{folder}: {indices[0]} is {signature_of(folder / indices[0])}")
    if (folder / ".metadata").is_file() and any(name.endswith(".distcp") for name in visible):
        raise ValueError(
            f"{folder} is a distributed checkpoint of PyTorch; make one file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth"
        )
    if len(found) > 1:
        raise ValueError(f"{folder} holds {len(found)} files of weights; name one of them: {named(found)}")
    if not found:
        raise FileNotFoundError(
            f"run {folder} has no checkpoint (best.pt or last.pt) yet, and no other file of weights is in it; train it "
            "first, or name a file"
        )
    return folder / found[0]
