"""What is saved comes back; what is no checkpoint is refused in one line, whatever its bytes are."""

from __future__ import annotations

import io
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CHANNELS, CLASSES, config_of, feature_data, video_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitad.config.schema import Config
from bitad.inference.detect import detect_videos
from bitad.models.build import build_network
from bitad.runtime.distributed import Ranks
from bitad.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bitad.weights.files import FORMAT


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return config_of(feature_data(tmp_path_factory.mktemp("features") / "data"))


@pytest.fixture(scope="module")
def checkpoint(config: Config) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(
        config=config,
        classes=CLASSES,
        model=build_network(config, len(CLASSES)).state_dict(),
        epoch=3,
        rate_hz=4.0,
        evaluation={"average_map": 0.25, "tiou": [0.3, 0.5]},
        training={"step": 6, "rng": [{"cpu": torch.get_rng_state()}]},
    )


@pytest.fixture(scope="module")
def saved(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.pt"
    save_checkpoint(checkpoint, path)
    return path


def refusal(path: Path, kind: type[Exception] = ValueError) -> str:
    """The message with which a file is refused: one line that names the file."""
    with pytest.raises(kind) as refused:
        load_checkpoint(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_checkpoint_comes_back_as_it_was(checkpoint: Checkpoint, saved: Path) -> None:
    back = load_checkpoint(saved)
    assert back.config == checkpoint.config
    assert (back.classes, back.epoch, back.rate_hz) == (checkpoint.classes, checkpoint.epoch, checkpoint.rate_hz)
    assert back.evaluation == checkpoint.evaluation
    assert back.model.keys() == checkpoint.model.keys()
    assert all(torch.equal(back.model[name], tensor) for name, tensor in checkpoint.model.items())
    assert back.training is not None
    assert back.training["step"] == 6
    assert checkpoint.training is not None
    assert torch.equal(back.training["rng"][0]["cpu"], checkpoint.training["rng"][0]["cpu"])
    assert [file.name for file in saved.parent.iterdir()] == ["last.pt"]


def test_its_detector_gives_what_the_saved_one_gave(checkpoint: Checkpoint, saved: Path) -> None:
    original = build_network(checkpoint.config, len(CLASSES)).eval()
    original.load_state_dict(checkpoint.model)
    again = load_checkpoint(saved).network()
    assert not again.training
    inputs, mask = torch.randn(1, CHANNELS, 32), torch.ones(1, 32, dtype=torch.bool)
    assert torch.equal(
        original((inputs,), mask).predictions[0].logits, again((inputs,), mask).predictions[0].logits
    )
    assert torch.equal(
        original((inputs,), mask).predictions[0].distances, again((inputs,), mask).predictions[0].distances
    )


def test_a_run_directory_stands_for_its_best_and_else_its_last(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert "has no best.pt or last.pt yet" in refusal(tmp_path, FileNotFoundError)
    save_checkpoint(replace(checkpoint, epoch=9), tmp_path / "last.pt")
    assert load_checkpoint(tmp_path).epoch == 9
    save_checkpoint(replace(checkpoint, epoch=4), tmp_path / "best.pt")
    assert load_checkpoint(tmp_path).epoch == 4


def test_a_missing_file_is_refused_with_what_to_give(tmp_path: Path) -> None:
    assert "run directory or a file of weights" in refusal(tmp_path / "none.pt", FileNotFoundError)


class Harmful:
    """Unpickled without care, it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[list[str]]]:
        return subprocess.check_call, (["touch", str(self.marker)],)


def test_nothing_in_a_file_is_ever_run(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "config": Harmful(tmp_path / "ran")}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    assert "new.pt needs " in refusal(tmp_path / "new.pt")
    assert "not a readable checkpoint" in refusal(tmp_path / "old.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"w": torch.zeros(2)}}, {"w": torch.zeros(2)}, [1, 2], torch.zeros(3), {"format": "other 2"}],
    ids=["project", "weights", "list", "tensor", "format"],
)
def test_files_of_no_known_project_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    message = refusal(tmp_path / "foreign.pt")
    assert "weights of no known project" in message or "not named weights" in message


def test_a_checkpoint_that_its_run_replaces_meanwhile_is_read_as_it_was(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "last.pt", tmp_path / "newer.pt"
    save_checkpoint(checkpoint, path)
    others = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in checkpoint.model.items()
    }
    save_checkpoint(replace(checkpoint, model=others, epoch=4), newer)

    class Replacing(zipfile.ZipFile):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            if newer.exists():
                newer.replace(path)

    monkeypatch.setattr(zipfile, "ZipFile", Replacing)
    read = load_checkpoint(path)
    assert not newer.exists()
    assert read.epoch == checkpoint.epoch
    assert all(torch.equal(read.model[name], tensor) for name, tensor in checkpoint.model.items())
    assert load_checkpoint(path).epoch == 4


NO_CHECKPOINTS = [b"", b"hello\n", b"PK\x03\x04", b"\x80\x02", b".", bytes(1000), b"\x80\x02."]


@pytest.mark.parametrize("content", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints_at_all_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bytes.pt").write_bytes(content)
    assert "not a readable checkpoint" in refusal(tmp_path / "bytes.pt")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_files_cut_short_are_refused(saved: Path, tmp_path: Path, share: float) -> None:
    whole = saved.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
    assert "not a readable checkpoint" in refusal(tmp_path / "cut.pt")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), change=st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_of_no_consequence(
    checkpoint: Checkpoint, saved: Path, tmp_path: Path, share: float, change: int
) -> None:
    content = bytearray(saved.read_bytes())
    content[int(share * len(content))] ^= change
    (tmp_path / "changed.pt").write_bytes(content)
    try:
        back = load_checkpoint(tmp_path / "changed.pt")
    except ValueError:
        refusal(tmp_path / "changed.pt")
        return
    assert back.config == checkpoint.config  # the byte was between the parts of the file
    assert all(torch.equal(back.model[name], tensor) for name, tensor in checkpoint.model.items())


def test_a_record_marked_as_a_folder_is_damage_and_not_memory_as_it_was(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        name = next(name for name in archive.namelist() if "/data/" in name)
    entry = content.rindex(name.encode())  # in the directory at the end, whose entries end with the name
    content[entry - 8] |= 0x10
    (tmp_path / "marked.pt").write_bytes(content)
    assert f"{name} is marked as a folder; the file is damaged" in refusal(tmp_path / "marked.pt")


def test_a_damaged_name_of_a_record_is_said_in_one_line(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        name = archive.namelist()[-1]
    content[content.rindex(name.encode()) + len(name) - 1] = ord("\n")  # in the directory at the end
    (tmp_path / "renamed.pt").write_bytes(content)
    assert f"{name[:-1]}\\n in it is damaged" in refusal(tmp_path / "renamed.pt")


def test_a_configuration_that_no_longer_runs_is_refused_by_the_file_that_holds_it(
    saved: Path, tmp_path: Path
) -> None:
    content = torch.load(saved, weights_only=True)
    content["config"]["training"]["learning_rate"] = 1
    torch.save(content, tmp_path / "older.pt")
    assert "training.learning_rate: unknown key" in refusal(tmp_path / "older.pt")


def test_a_failed_save_leaves_the_old_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint, path)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(replace(checkpoint, training={"stream": io.BytesIO().getbuffer()}), path)
    assert load_checkpoint(path).epoch == checkpoint.epoch
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_weights_that_do_not_fit_the_configuration_are_refused_in_one_line(checkpoint: Checkpoint) -> None:
    broken = replace(checkpoint, model={name: w for name, w in checkpoint.model.items() if name != "head.scales"})
    with pytest.raises(ValueError, match=r"1 missing: head\.scales") as refused:
        broken.network()
    assert "\n" not in str(refused.value)


def test_a_detector_of_features_refuses_videos_in_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    video_data(tmp_path / "data", training=1, test=0)
    with pytest.raises(ValueError, match="takes pre-computed features, not videos") as refused:
        detect_videos(checkpoint, {}, Ranks(0, 1, torch.device("cpu")))
    assert "\n" not in str(refused.value)


def test_operating_points_come_back_and_a_checkpoint_of_an_earlier_version_has_none(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    points = {"subset": "test", "classes": ["alpha"], "scores": [0.1], "recall": [[0.5]], "detections": [[1.25]]}
    for name in ("best.pt", "best.safetensors"):
        save_checkpoint(replace(checkpoint, operating_points=points), tmp_path / name)
        assert load_checkpoint(tmp_path / name).operating_points == points
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    del content["operating_points"]
    torch.save(content, tmp_path / "earlier.pt")
    assert load_checkpoint(tmp_path / "earlier.pt").operating_points is None
