"""Published encoders of videos and images, of the library ``transformers``: clips or frames -> features.

A model is a folder as ``save_pretrained`` writes it, or a repository of the Hugging Face Hub with such files. Its
weights run in the library; its pictures are made here as the processor's file says (:mod:`.preprocessing`). Code in a
repository is never run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitad.config.names import FeaturePrecision, RowsOf
from bitad.data.feature_folder import FeatureSettings, Stored
from bitad.inference.encoders import CLIP_STRIDE, Chunk, Encoder, playing_order
from bitad.inference.preprocessing import PROCESSOR_FILES, Preprocessing, read_preprocessing
from bitad.runtime.files import read_json
from bitad.runtime.log import log, shortlist
from bitad.runtime.signatures import sha256_of
from bitad.timeline import Direction
from bitad.video.reader import VideoReader
from bitad.weights.hub import FOLDER_PREFIX, HubName, hub_file, optional_hub_file

_CONFIG = "config.json"
_WEIGHTS, _SHARDS, _OLD_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
# Frames decoded at full size at a time.
_FRAMES_AT_A_TIME = 8


@dataclass(frozen=True)
class Family:
    """How models of one type are used.

    Args:
        rows: (model, pictures ``[N, T, 3, h, w]``) -> a vector of each tubelet, ``[N, t, C]``.
        vector: what that vector is.
        channels: C, from the model's configuration.
        frames: of a clip, from the configuration; None: the model takes single pictures.
        tubelet: frames of one token, from the configuration.
        any_length: whether clips may have any number of tubelets.
        picture_size: that the model needs, from the configuration; None: any.
        unused: modules that take no part.
    """

    rows: Callable[[Any, Tensor], Tensor]
    vector: str
    channels: Callable[[Any], int]
    frames: Callable[[Any], int] | None = None
    tubelet: Callable[[Any], int] = lambda config: 1
    any_length: bool = False
    picture_size: Callable[[Any], Any] | None = None
    unused: tuple[str, ...] = ()


def _over_space(tokens: Tensor, tubelets: int) -> Tensor:
    return tokens.unflatten(1, (tubelets, -1)).mean(2)


def _videomae(model: Any, pictures: Tensor) -> Tensor:
    tokens = model(pixel_values=pictures).last_hidden_state
    return _over_space(tokens, pictures.shape[1] // model.config.tubelet_size)


def _vjepa2(model: Any, pictures: Tensor) -> Tensor:
    tokens = model.get_vision_features(pictures)
    return _over_space(tokens, pictures.shape[1] // model.config.tubelet_size)


def _vivit(model: Any, pictures: Tensor) -> Tensor:
    tokens = model(pixel_values=pictures).last_hidden_state[:, 1:]
    return _over_space(tokens, pictures.shape[1] // model.config.tubelet_size[0])


def _timesformer(model: Any, pictures: Tensor) -> Tensor:
    tokens: Tensor = model(pixel_values=pictures).last_hidden_state[:, 1:]  # frame after frame of each place
    return tokens.unflatten(1, (-1, pictures.shape[1])).mean(1)


def _xclip(model: Any, pictures: Tensor) -> Tensor:
    frames = model.visual_projection(model.vision_model(pixel_values=pictures.flatten(0, 1)).pooler_output)
    tokens: Tensor = model.mit(frames.unflatten(0, pictures.shape[:2]))[0]  # version 5.0 gives a tuple
    return tokens


def _class_token(model: Any, pictures: Tensor) -> Tensor:
    token: Tensor = model(pixel_values=pictures.flatten(0, 1)).last_hidden_state[:, 0]
    return token.unflatten(0, pictures.shape[:2])


def _pooled_picture(model: Any, pictures: Tensor) -> Tensor:
    vector: Tensor = model(pixel_values=pictures.flatten(0, 1)).pooler_output
    return vector.unflatten(0, pictures.shape[:2])


def _joint_embedding(model: Any, pictures: Tensor) -> Tensor:
    output = model.get_image_features(pixel_values=pictures.flatten(0, 1))
    vector: Tensor = output if isinstance(output, Tensor) else output.pooler_output  # versions differ
    return vector.unflatten(0, pictures.shape[:2])


_PATCHES = "mean of patch tokens"
_CLASS = "class token"
_POOLED = "pooled patch tokens"
_JOINT = "embedding shared with text"


def _width(config: Any) -> int:
    return int(config.hidden_size)


def _projection(config: Any) -> int:
    return int(config.projection_dim)


def _image_size(config: Any) -> Any:
    return getattr(config, "vision_config", config).image_size


# By `model_type` in config.json.
FAMILIES = {
    "videomae": Family(
        _videomae,
        _PATCHES,
        _width,
        frames=lambda config: config.num_frames,
        tubelet=lambda config: config.tubelet_size,
        picture_size=_image_size,
    ),
    "vjepa2": Family(
        _vjepa2,
        _PATCHES,
        _width,
        frames=lambda config: config.frames_per_clip,
        tubelet=lambda config: config.tubelet_size,
        any_length=True,
        unused=("predictor",),
    ),
    "vivit": Family(
        _vivit,
        _PATCHES,
        _width,
        frames=lambda config: config.num_frames,
        tubelet=lambda config: config.tubelet_size[0],
        picture_size=_image_size,
        unused=("pooler",),
    ),
    "timesformer": Family(
        _timesformer,
        _PATCHES,
        _width,
        frames=lambda config: config.num_frames,
        picture_size=_image_size,
    ),
    "xclip": Family(
        _xclip,
        _JOINT,
        _projection,
        frames=lambda config: config.vision_config.num_frames,
        picture_size=_image_size,
        unused=("text_model", "prompts_generator"),
    ),
    "dinov2": Family(_class_token, _CLASS, _width),
    "dinov2_with_registers": Family(_class_token, _CLASS, _width),
    "dinov3_vit": Family(_class_token, _CLASS, _width),
    "vit": Family(_class_token, _CLASS, _width, picture_size=_image_size, unused=("pooler",)),
    "clip": Family(_joint_embedding, _JOINT, _projection, picture_size=_image_size, unused=("text_model",)),
    "clip_vision_model": Family(_pooled_picture, _CLASS, _width, picture_size=_image_size),
    "siglip": Family(
        _joint_embedding,
        _JOINT,
        lambda config: _width(config.vision_config),
        picture_size=_image_size,
        unused=("text_model",),
    ),
    "siglip_vision_model": Family(_pooled_picture, _POOLED, _width, picture_size=_image_size),
}


@dataclass(frozen=True)
class _Clips(Chunk):
    """A chunk of clips.

    Args:
        starts: first frame of each clip.
        real: frames of each clip that there are; the others repeat the last one played.
    """

    starts: NDArray[np.int64]
    real: int


class PublishedEncoder(Encoder):
    """Rows of clips, of tubelets, or of single frames.

    A clip is ``clip_frames`` frames, every ``frame_step``-th of the video. With ``rows="clip"`` row i averages the
    tubelets of the clip that begins at frame ``stride_frames * i``. With ``rows="tubelet"`` each tubelet is a row,
    clips follow one another, and the last one ends with the video: of what two clips share, the earlier one's rows
    stay. No clip goes beyond the video. A shorter video is one clip, whose last frame played is repeated; rows of
    repeated frames alone are left out.

    In reverse playback the frames of each clip are reversed. Rows are in forward order.
    """

    directions: tuple[Direction, ...] = ("forward", "reverse")

    def __init__(
        self,
        model: Any,
        family: Family,
        preprocessing: Preprocessing,
        *,
        source: str,
        sha256: str,
        stride_frames: int | None = None,
        clip_frames: int | None = None,
        frame_step: int = 1,
        rows: RowsOf = "clip",
        clips: int = 8,
    ) -> None:
        config = model.config
        self.family = family
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.source = source
        self.sha256 = sha256
        self.rows: RowsOf = rows
        self.frame_step = frame_step
        self.clips = clips
        self.tubelet = family.tubelet(config)
        own_frames = 1 if family.frames is None else family.frames(config)
        self.clip_frames = own_frames if clip_frames is None else clip_frames
        self._require_sound(own_frames)
        if rows == "tubelet":
            step = self.tubelet * frame_step
            if stride_frames not in (None, step):
                raise ValueError(
                    f"a stride of {stride_frames} frames; rows of tubelets are {step} frames apart: leave out --stride"
                )
            self.stride_frames = step
            self.offset_frames = frame_step * (self.tubelet - 1) / 2
            self._reach = frame_step * (self.tubelet - 1) + 1  # frames from a row's first to its last
        else:
            self.stride_frames = CLIP_STRIDE if stride_frames is None else stride_frames
            self.offset_frames = frame_step * (self.clip_frames - 1) / 2
            self._reach = frame_step * (self.clip_frames - 1) + 1
        if self.stride_frames < 1:
            raise ValueError(f"a stride of {stride_frames} frames; it must be at least 1")
        self._before: tuple[Chunk, Tensor] | None = None

    def _require_sound(self, own_frames: int) -> None:
        kind = self.model.config.model_type
        if self.clips < 1:
            raise ValueError(f"a batch of {self.clips} clips; it must be at least 1")
        if self.frame_step < 1:
            raise ValueError(f"--frame-step {self.frame_step}: it must be at least 1")
        if self.family.frames is None and (
            self.rows == "tubelet" or self.clip_frames != 1 or self.frame_step != 1
        ):
            raise ValueError(
                f"{self.source} ({kind}) takes single frames; leave out --rows, --clip-frames and --frame-step"
            )
        if self.clip_frames != own_frames and not self.family.any_length:
            raise ValueError(f"{self.source} ({kind}) takes clips of {own_frames} frames, not {self.clip_frames}")
        if self.clip_frames < 1 or self.clip_frames % self.tubelet:
            raise ValueError(
                f"clips of {self.clip_frames} frames; {self.source} ({kind}) takes a multiple of {self.tubelet}"
            )
        if getattr(self.model.config, "attention_type", None) == "space_only":
            raise ValueError(f"{self.source} ({kind}) has attention_type=space_only, which is not supported")
        size = self.preprocessing.picture_size
        if self.family.picture_size is not None:
            wanted = self.family.picture_size(self.model.config)
            wanted = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted, wanted)
            if wanted != size:
                raise ValueError(
                    f"{self.source}: its processor makes pictures of {size[0]}x{size[1]} pixels, and the network takes "
                    f"{wanted[0]}x{wanted[1]}; correct the processor's file"
                )
        if size[0] != size[1]:
            raise ValueError(f"{self.source}: pictures of {size[0]}x{size[1]} pixels are not square")

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def steps(self, frames: int) -> int:
        return max(0, frames - self._reach) // self.stride_frames + 1

    def chunks(self, frames: int) -> Iterator[Chunk]:
        steps = self.steps(frames)
        per_clip = 1 if self.rows == "clip" else self.clip_frames // self.tubelet
        first_rows = np.arange(0, steps, per_clip).clip(max=max(0, steps - per_clip))
        real = min(self.clip_frames, -(-frames // self.frame_step))
        if self.rows == "tubelet":
            real = min(real, steps * self.tubelet)  # played from the end too, tubelets begin with a row
        within = self.frame_step * np.arange(real)
        for i in range(0, len(first_rows), self.clips):
            starts = self.stride_frames * first_rows[i : i + self.clips]
            stop = min(per_clip * (i + len(starts)), steps)
            yield _Clips(np.unique(starts[:, None] + within), per_clip * i, stop, starts, real)

    def pictures(self, reader: VideoReader, chunks: Sequence[Chunk]) -> Iterator[Tensor]:
        """Scaled and cropped frames ``[n, 3, h, w]``; frames at full size are held a few at a time."""
        held: dict[int, Tensor] = {}
        for chunk in chunks:
            numbers = reader.index.nearest(chunk.frames).tolist()
            missing = sorted(set(numbers) - held.keys())
            for i in range(0, len(missing), _FRAMES_AT_A_TIME):
                some = missing[i : i + _FRAMES_AT_A_TIME]
                held |= zip(some, self.preprocessing.scale_and_crop(reader.read(some)), strict=True)
            held = {number: held[number] for number in numbers}
            yield torch.stack([held[number] for number in numbers])

    def encode(self, pictures: Tensor, chunk: Chunk, direction: Direction) -> Tensor:
        assert isinstance(chunk, _Clips)
        if self.family.frames is None:  # a picture has no playing direction
            if self._before is None or self._before[0] is not chunk:
                self._before = chunk, self._encode(pictures, chunk, "forward")
            return self._before[1]
        return self._encode(pictures, chunk, direction)

    def _encode(self, pictures: Tensor, chunk: _Clips, direction: Direction) -> Tensor:
        order = self.frame_step * playing_order(chunk.real, self.clip_frames, direction)
        places = np.searchsorted(chunk.frames, chunk.starts[:, None] + order)  # [N, T]
        clips = self.preprocessing.normalise(pictures)[torch.from_numpy(places).to(pictures.device)]
        tubelets = self.family.rows(self.model, clips).float()  # [N, t, C]
        if self.rows == "clip":
            return tubelets.mean(1)
        tubelets = tubelets[:, : max(1, chunk.real // self.tubelet)]
        if direction == "reverse":
            tubelets = tubelets.flip(1)
        shared = len(chunk.starts) * tubelets.shape[1] - (
            chunk.stop - chunk.first
        )  # of the video's last two clips
        return torch.cat([tubelets[:-1].flatten(0, 1), tubelets[-1, shared:]])

    def settings(self, direction: Direction, precision: FeaturePrecision, stored: Stored) -> FeatureSettings:
        config = self.model.config
        return FeatureSettings(
            feature_stride_frames=self.stride_frames,
            feature_offset_frames=self.offset_frames,
            feature_channels=self.family.channels(config),
            direction=direction,
            model=config.model_type,
            clip_frames=self.clip_frames,
            window_steps=None,
            window_overlap=None,
            pixels=self.preprocessing.picture_size[0],
            precision=precision,
            stored=stored,
            checkpoint=self.source,
            checkpoint_sha256=self.sha256,
            rows=self.rows,
            tubelet_frames=self.tubelet,
            frame_step=self.frame_step,
            vector=self.family.vector,
            preprocessing=str(self.preprocessing),
        )


def load_published_encoder(
    name: str,
    *,
    stride_frames: int | None = None,
    clip_frames: int | None = None,
    frame_step: int = 1,
    rows: RowsOf = "clip",
    clips: int = 8,
) -> PublishedEncoder:
    """The encoder of a model of ``transformers``.

    Args:
        name: a folder, or ``hf:OWNER/NAME[@REVISION]`` of the Hugging Face Hub, downloaded once.
        stride_frames: frames from one row to the next; None: 4, or those of a tubelet.
        clip_frames: None: the model's.
        frame_step: frames of the video from one frame of a clip to the next.
        rows: ``"clip"`` or ``"tubelet"``.
        clips: how many go through the network at once; of models of images, frames.

    Raises:
        ValueError: ``transformers`` is missing, the model or its type is not known, access to it must be asked for, its
            files lack weights, or the settings do not fit it.
        FileNotFoundError: the folder, or a file in it, is missing.
        ConnectionError: the model is not in the cache and cannot be downloaded.
    """
    if find_spec("transformers") is None:
        raise ValueError("--encoder needs the package transformers: pip install 'bitad[encoders]'")
    folder, source = _folder_of(name)
    family = FAMILIES[_model_type(folder, source)]
    weights = _weights_in(folder, source)
    preprocessing = read_preprocessing(folder, of_videos=family.frames is not None)
    model = _load_model(folder, family, source)
    used = [folder / _CONFIG, *(folder / one for one in PROCESSOR_FILES), *weights]
    encoder = PublishedEncoder(
        model,
        family,
        preprocessing,
        source=source,
        sha256=_sha256_of_files(used),
        stride_frames=stride_frames,
        clip_frames=clip_frames,
        frame_step=frame_step,
        rows=rows,
        clips=clips,
    )
    if family.frames is None:
        log.info("%s sees single frames: its features of both playing directions are the same", source)
    return encoder


def _folder_of(name: str) -> tuple[Path, str]:
    """The folder of a model's files, downloaded if need be, and its name for messages."""
    text = name.removeprefix(FOLDER_PREFIX)
    if name == text or text.startswith((".", "~", os.sep)):
        folder = Path(text).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder of a model; a model of the Hugging Face Hub is {FOLDER_PREFIX}OWNER/NAME"
            )
        return folder, folder.resolve().name
    try:
        hub = replace(HubName.of(text), prefix=FOLDER_PREFIX)
    except ValueError:
        hub = None
    if hub is None or hub.file is not None:
        form = f"{FOLDER_PREFIX}OWNER/NAME or {FOLDER_PREFIX}OWNER/NAME@REVISION"
        raise ValueError(f"{name!r} is not a name of a model; give {form}, or a folder")
    config = hub_file(replace(hub, file=_CONFIG)).path
    pinned = replace(hub, revision=config.parent.name)  # a commit: its branch may move while files are downloaded
    for file in PROCESSOR_FILES:
        optional_hub_file(replace(pinned, file=file))
    if optional_hub_file(replace(pinned, file=_WEIGHTS)) is None:
        index = optional_hub_file(replace(pinned, file=_SHARDS))
        for file in [_OLD_WEIGHTS] if index is None else _shards(index):
            hub_file(replace(pinned, file=file))
    return config.parent, str(hub)


def _model_type(folder: Path, source: str) -> str:
    path = folder / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{source} has no {_CONFIG}; give a folder that save_pretrained has written")
    content = read_json(path)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in FAMILIES:
        raise ValueError(
            f"{source} is a model of type {kind}, which is not supported; known: {', '.join(FAMILIES)}"
        )
    return str(kind)


def _weights_in(folder: Path, source: str) -> list[Path]:
    for file in (_WEIGHTS, _SHARDS, _OLD_WEIGHTS):
        path = folder / file
        if path.is_file():
            shards = [folder / shard for shard in _shards(path)] if file == _SHARDS else [path]
            if missing := [shard.name for shard in shards if not shard.is_file()]:
                raise FileNotFoundError(f"{source} lacks files of its weights: {shortlist(missing)}")
            return shards
    raise FileNotFoundError(f"{source} has no weights ({_WEIGHTS}, {_SHARDS} or {_OLD_WEIGHTS})")


def _shards(index: Path) -> list[str]:
    content = read_json(index)
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise ValueError(f"{index} is damaged: it has no weight_map")
    names = sorted({str(name) for name in content["weight_map"].values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} is damaged: {outside[0]} is not a file beside it")
    return names


def _load_model(folder: Path, family: Family, source: str) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, found = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # of the library, of its readers, and of PyTorch
        cause: BaseException = error
        while isinstance(cause, ImportError) and cause.__cause__ is not None:  # a package of another build
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ValueError(f"{source} cannot be loaded: {reason}") from None
    lacking = sorted(name for name in found["missing_keys"] if not name.startswith(family.unused))
    if lacking:
        raise ValueError(f"{source} lacks weights of a {model.config.model_type}: {shortlist(lacking)}")
    for module in family.unused:
        if hasattr(model, module):
            setattr(model, module, None)
    return model.float().requires_grad_(False)


def _sha256_of_files(paths: Sequence[Path]) -> str:
    """The hash of several files: of their names and hashes."""
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in paths if path.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
