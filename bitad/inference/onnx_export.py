"""Detectors as ONNX files, for programs without PyTorch.

A file has one network or two, for windows of one length, padded or not. It takes what the networks take, features or
frames in the view of each, and gives logits and distances at the points of the pyramid. Its metadata says the rest:
inputs, outputs, window, levels, classes and the clock.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import bitad
from bitad.config.loading import override_config, without_folders
from bitad.config.schema import Config
from bitad.models.build import OwnRandomNumbers
from bitad.models.network import Network
from bitad.models.vit import Block
from bitad.runtime.files import check_file
from bitad.timeline import View
from bitad.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMAT = "bitad onnx 1"  # `format` in the metadata
MAX_DIFFERENCE = 1e-4  # of a logit, or of a distance in strides, from PyTorch's
_TIMED_RUNS = 7
_CLOCK = (
    "step g of a video, in forward time, is at (first_frame + stride_frames * g) / fps seconds; where fps is null, it "
    "is the video's; where stride_frames is null, the video's frame rate or length decides. In a view whose clock is "
    "reverse, step g of a window is its step V - 1 - g in forward time, where V is the number of real steps. A point "
    "at position p of a level of stride s with the distances (a, b) is the segment from p - s * a to p + s * b in "
    "steps of the window's view"
)


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how it compares with PyTorch on this machine's CPU.

    Args:
        files: the ``.onnx`` file, and of networks of more than 2 GB their weights.
        difference: the largest difference of a logit, or of a distance in strides, at real points.
        pytorch_s, onnxruntime_s: seconds for a window, the median of several.
        threads: of both.
    """

    files: tuple[Path, ...]
    difference: float
    pytorch_s: float
    onnxruntime_s: float
    threads: int

    def lines(self) -> list[str]:
        """What the command prints."""
        size = sum(file.stat().st_size for file in self.files)
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return [
            f"{self.files[0]}: {size / 1e6:.1f} MB",
            f"  CPU time of a window, {threads}: PyTorch {1e3 * self.pytorch_s:.1f} ms, ONNX Runtime "
            f"{1e3 * self.onnxruntime_s:.1f} ms",
            f"  largest difference from PyTorch: {self.difference:.1e}",
        ]


def require_packages() -> None:
    """Raises ValueError if a package for the export is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(f"--to onnx needs {', '.join(missing)}: pip install 'bitad[onnx]'")


def export_onnx(checkpoint: Checkpoint, out: Path, *, steps: int | None = None) -> OnnxExport:
    """Writes a detector as an ONNX file, and compares it with PyTorch.

    Args:
        checkpoint: of one network or two.
        out: the file, ``.onnx``.
        steps: T, grid steps of the windows; None: those of its training.

    Raises:
        ValueError: a package is missing, the network cannot have such windows, or the results differ.
    """
    require_packages()
    if out.suffix != ".onnx":
        raise ValueError(f"--out {out}: give a name that ends in .onnx")
    check_file(out)
    checkpoint = _without_compiling(checkpoint)
    config = checkpoint.config
    steps = _checked_steps(config, steps)
    with OwnRandomNumbers():
        network = checkpoint.network()
    model, signature = _Exported(network).eval(), _Signature.of(config, steps)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        file = Path(folder) / out.name
        program = _exported(model, signature)
        program.model.metadata_props.update(_metadata(checkpoint, network, signature))
        program.save(file)
        difference, seconds = _compared(model, file, signature)
        if not difference <= MAX_DIFFERENCE:
            raise ValueError(
                f"{out} is not written: its results differ from PyTorch's by {difference:.1e}, more than "
                f"{MAX_DIFFERENCE:g}; please report this network"
            )
        written = sorted(Path(folder).iterdir(), key=lambda path: len(path.name))  # the weights' name is longer
        for path in reversed(written):
            os.replace(path, out.parent / path.name)
    return OnnxExport(
        tuple(out.parent / path.name for path in written), difference, *seconds, torch.get_num_threads()
    )


def _without_compiling(checkpoint: Checkpoint) -> Checkpoint:
    backbone = checkpoint.config.model.backbone
    if backbone is None or not backbone.compile:
        return checkpoint
    return replace(checkpoint, config=override_config(checkpoint.config, ["model.backbone.compile=false"]))


def _checked_steps(config: Config, steps: int | None) -> int:
    trained = config.window.steps
    if steps is None or steps == trained:
        return trained
    if config.design.fusion:
        raise ValueError(
            f"--steps {steps}: the fusion of this pair was made for windows of {trained} steps; leave it out"
        )
    if steps < 1 or steps % config.clip_steps:
        raise ValueError(f"--steps {steps} is not a multiple of the {config.clip_steps} steps of a clip")
    return steps


class _Exported(nn.Module):
    """A network as a function of tensors alone: mask and views -> mask of points, logits and distances of each view."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, Block):
                module.chunk_bytes = None  # all clips at a time

    def forward(self, mask: Tensor, *views: Tensor) -> tuple[Tensor, ...]:
        predictions = self.network(views, mask).predictions
        tensors = (tensor for one in predictions for tensor in (one.logits, one.distances))
        return predictions[0].mask, *tensors


@dataclass(frozen=True)
class _Signature:
    """The inputs and outputs of an exported network.

    Args:
        kind: ``frames`` or ``features``.
        views: of the networks.
        shape: of a window in a view.
        steps: T.
    """

    kind: str
    views: tuple[View, ...]
    shape: tuple[int, ...]
    steps: int

    @classmethod
    def of(cls, config: Config, steps: int) -> _Signature:
        backbone = config.model.backbone
        if backbone is None:
            assert config.data.feature_channels is not None  # the configuration has seen to it
            return cls("features", config.views, (config.data.feature_channels, steps), steps)
        shape = (steps * config.window.frames_per_step, backbone.pixels, backbone.pixels, 3)
        return cls("frames", config.views, shape, steps)

    @property
    def endings(self) -> list[str]:
        """What the names of inputs and outputs end in, by view."""
        if len(self.views) == 1:
            return [""]
        names = self.views if len(set(self.views)) == len(self.views) else ("first", "second")
        return [f"_{name.replace('-', '_')}" for name in names]

    @property
    def inputs(self) -> list[str]:
        return ["mask", *(f"{self.kind}{ending}" for ending in self.endings)]

    @property
    def outputs(self) -> list[str]:
        return ["real_points", *(f"{name}{ending}" for ending in self.endings for name in ("logits", "distances"))]

    @property
    def batch(self) -> str | int:
        """The first axis of all: free for one network on features, else 1.

        The clips of frames are divided by their number, and the exporter cannot keep the axis of a pair free.
        """
        return "batch" if self.kind == "features" and len(self.views) == 1 else 1

    def example(self, real: int) -> tuple[Tensor, ...]:
        """A mask with ``real`` real steps, and a random window in each view, padded as in a batch of BiTAD."""
        generator = torch.Generator().manual_seed(0)
        mask = torch.arange(self.steps)[None] < real
        views = []
        for _ in self.views:
            if self.kind == "features":
                views.append(torch.randn(1, *self.shape, generator=generator) * mask[:, None])
            else:
                frames = torch.randint(256, (1, *self.shape), dtype=torch.uint8, generator=generator)
                last = real * self.shape[0] // self.steps
                frames[:, last:] = frames[:, last - 1 : last]
                views.append(frames)
        return mask, *views


def _exported(model: nn.Module, signature: _Signature) -> Any:
    """The network as an ONNX program."""
    from torch.export import Dim

    example, shapes = signature.example(signature.steps), None
    if signature.batch != 1:
        batch = {0: Dim("batch", min=1, max=4096)}
        shapes = (batch, tuple(batch for _ in signature.views))
        example = tuple(torch.cat([one, one]) for one in example)  # an axis of length 1 would stay so
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            verbose=False,
            input_names=signature.inputs,
            output_names=signature.outputs,
            dynamic_shapes=shapes,
        )
    assert program is not None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, PyTorch's exporter does not tell of its own workings and of packages that are not needed."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _metadata(checkpoint: Checkpoint, network: Network, signature: _Signature) -> dict[str, str]:
    config, steps = checkpoint.config, signature.steps
    strides = network.detectors[0].head.strides
    length = network.detectors[0].pyramid.padded_length(steps)
    points, count = sum(length // stride for stride in strides), len(checkpoint.classes)
    first, per_class = signature.batch, [count] if config.model.head.type == "trident" else []
    inputs: dict[str, Any] = {
        "mask": {"shape": [first, steps], "type": "bool", "is": "true at the V real steps, which come first"}
    }
    outputs: dict[str, Any] = {
        "real_points": {
            "shape": [first, points],
            "type": "bool",
            "is": "false in the padding, where values mean nothing",
        }
    }
    padded = "then the last of them, RGB on 0..255" if signature.kind == "frames" else "then zeros"
    for view, clock, ending in zip(signature.views, config.clocks, signature.endings, strict=True):
        kind = {"frames": "uint8", "features": "float32"}[signature.kind]
        order = "forward order, which the network reverses" if view == "reversed-features" else "the view's order"
        inputs[f"{signature.kind}{ending}"] = {
            "shape": [first, *signature.shape],
            "type": kind,
            "view": view,
            "is": f"the real {signature.kind} in {order}, {padded}",
        }
        outputs[f"logits{ending}"] = {"shape": [first, points, count], "type": "float32", "clock": clock}
        outputs[f"distances{ending}"] = {
            "shape": [first, points, *per_class, 2],
            "type": "float32",
            "clock": clock,
            "is": "to the start and to the end, in strides of the point",
        }
    data, window = config.data, config.window
    first_frame, stride = 0.0, float(window.stride_frames)
    if signature.kind == "features":
        first_frame, stride = data.feature_offset_frames, data.feature_stride_frames
    # Where it depends on the video, its frame rate or length decides.
    depends = window.layout == "resized" or (signature.kind == "frames" and window.steps_per_second is not None)
    windows = {
        "steps": steps,
        "layout": window.layout,
        "steps_per_second": checkpoint.rate_hz,
        "stride_frames": None if depends else stride,
        "first_frame": first_frame,
        "fps": data.feature_fps if signature.kind == "features" else None,
        "frames_per_step": window.frames_per_step,
    }
    content = {
        "classes": checkpoint.classes,
        "window": windows,
        "inputs": inputs,
        "outputs": outputs,
        "levels": [{"stride": stride, "points": length // stride} for stride in strides],
        "clock": _CLOCK,
        "config": without_folders(config).model_dump(mode="json"),
    }
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in content.items()}
    return {"format": FORMAT, "bitad": bitad.__version__, **texts}


def _compared(model: nn.Module, file: Path, signature: _Signature) -> tuple[float, tuple[float, float]]:
    """The largest difference between PyTorch and a file at three paddings, and the seconds that each takes."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    difference = 0.0
    with torch.no_grad():
        for real in {1, -(-signature.steps // 2), signature.steps}:
            example = signature.example(real)
            mask, *expected = [one.numpy() for one in model(*example)]
            own_mask, *found = _run(session, signature, example)
            if not np.array_equal(own_mask, mask):
                return float("inf"), (0.0, 0.0)
            errors = (np.abs(one - other)[mask].max() for one, other in zip(expected, found, strict=True))
            difference = max(difference, *map(float, errors))
        example = signature.example(signature.steps)
        seconds = (_seconds(lambda: model(*example)), _seconds(lambda: _run(session, signature, example)))
    return difference, seconds


def _run(session: InferenceSession, signature: _Signature, example: Sequence[Tensor]) -> list[NDArray[Any]]:
    inputs = {name: one.numpy() for name, one in zip(signature.inputs, example, strict=True)}
    results: list[NDArray[Any]] = session.run(signature.outputs, inputs)
    return results


def _seconds(function: Callable[[], object]) -> float:
    """The median time of a function that has run before."""
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
