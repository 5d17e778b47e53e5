"""Imports from a clone of OpenTAD, with stand-ins for the other projects that it imports.

Layers of mmcv, mmengine and mmaction are replaced by PyTorch's, their registry and configuration by a few lines.
Packages of OpenTAD that import all its models are replaced by empty ones, so that only the named files are read: its
code for NMS, which must be compiled, is not needed. Call this only in a process of its own: the stand-ins stay.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bitad.models.vit import sinusoid_table

EXPERIMENT = Path("configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_adapter.py")
# Without their own __init__, which would import every model, or mmaction.
_EMPTY = (
    "opentad",
    "opentad.cores",
    "opentad.datasets",
    "opentad.datasets.transforms",
    "opentad.models",
    "opentad.models.backbones",
    "opentad.models.dense_heads",
    "opentad.models.detectors",
    "opentad.models.losses",
    "opentad.models.necks",
    "opentad.models.projections",
    "opentad.models.utils",
    "opentad.utils",
)


class Settings(dict[str, Any]):
    """A section of a configuration, whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Settings:
    """A configuration with changes; sections are merged key by key."""
    result = Settings(
        {key: merged(value, {}) if isinstance(value, dict) else value for key, value in base.items()}
    )
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def read_settings(path: Path) -> Settings:
    """A configuration of OpenTAD, with the files that it is based on."""
    own = {key: value for key, value in runpy.run_path(str(path)).items() if not key.startswith("__")}
    result = Settings()
    for base in own.pop("_base_", []):
        result = merged(result, read_settings(path.parent / base))
    return merged(result, own)


class Registry:
    """Classes by name; in place of mmengine's registries, which share it."""

    classes: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(self, name: str) -> None:
        self.name = name

    def register_module(self) -> Callable[[type], type]:
        def register(registered: type) -> type:
            self.classes[registered.__name__] = registered
            return registered

        return register

    def build(self, settings: Mapping[str, Any]) -> Any:
        arguments = dict(settings)
        return self.classes[arguments.pop("type")](**arguments)


class Compose:
    """Steps that change the same results, one after another."""

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self.steps = [Registry("transforms").build(step) for step in steps]

    def __call__(self, results: Any) -> Any:
        for step in self.steps:
            results = step(results)
        return results


def import_from(clone: Path, module: str) -> Any:
    """A module of OpenTAD by its name in the package."""
    if "opentad" not in sys.modules:
        for name, content in _stand_ins().items():
            vars(_new_module(name)).update(content)
        for name in _EMPTY:
            _new_module(name).__path__ = [str(clone / name.replace(".", "/"))]
        vars(sys.modules["opentad.models.backbones"])["BackboneWrapper"] = None
    return importlib.import_module(f"opentad.{module}")


def _new_module(name: str) -> ModuleType:
    sys.modules[name] = module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # PyTorch looks for it
    return module


def _stand_ins() -> dict[str, dict[str, Any]]:
    """The imports from other projects, as far as AdaTAD uses them."""

    class Module(nn.Module):
        def __init__(self, init_cfg: object = None) -> None:
            super().__init__()

    class PatchEmbed(Module):
        def __init__(self, in_channels: int, embed_dims: int, kernel_size: Any, stride: Any, **_: object) -> None:
            super().__init__()
            self.projection = nn.Conv3d(in_channels, embed_dims, kernel_size, stride)

        def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
            x = self.projection(x)
            return x.flatten(2).transpose(1, 2), tuple(x.shape[2:])

    class FeedForward(Module):
        def __init__(self, embed_dims: int, feedforward_channels: int, **_: object) -> None:
            super().__init__()
            widen = nn.Sequential(nn.Linear(embed_dims, int(feedforward_channels)), nn.GELU(), nn.Dropout(0.0))
            self.layers = nn.Sequential(widen, nn.Linear(int(feedforward_channels), embed_dims), nn.Dropout(0.0))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers(x)
            return out

    class DropPath(nn.Module):
        def __init__(self, probability: float) -> None:
            super().__init__()
            self.keep = 1 - probability

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return x
            return x / self.keep * torch.bernoulli(x.new_full((len(x), 1, 1), self.keep))

    def constant(module: Any, value: float, bias: float = 0.0) -> None:
        nn.init.constant_(module.weight, value)
        nn.init.constant_(module.bias, bias)

    def truncated_normal(module: Any, std: float = 1.0, bias: float = 0.0) -> None:
        nn.init.trunc_normal_(module.weight, std=std)
        nn.init.constant_(module.bias, bias)

    def norm(settings: dict[str, Any], dim: int) -> tuple[str, nn.Module]:
        return "norm", nn.LayerNorm(dim, eps=settings["eps"])

    # What AdaTAD's code imports without use for it here.
    unused = {
        "einops": ("rearrange", "reduce"),
        "opentad.models.utils.post_processing": (
            "batched_nms",
            "convert_to_seconds",
            "load_predictions",
            "save_predictions",
        ),
        "pandas": (),
        "scipy": (),
        "torchvision": (),
    }
    return {
        "mmcv": {},
        "mmcv.cnn": {"build_norm_layer": norm},
        "mmcv.cnn.bricks": {"DropPath": DropPath},
        "mmcv.cnn.bricks.transformer": {"FFN": FeedForward, "PatchEmbed": PatchEmbed},
        "mmengine": {},
        "mmengine.dataset": {"Compose": Compose},
        "mmengine.registry": {
            "Registry": Registry,
            "MODELS": Registry("models"),
            "TRANSFORMS": Registry("transforms"),
            "build_from_cfg": None,
        },
        "mmengine.model": {"BaseModule": Module, "ModuleList": type("ModuleList", (nn.ModuleList,), {})},
        "mmengine.model.weight_init": {"constant_init": constant, "trunc_normal_init": truncated_normal},
        "mmaction": {},
        "mmaction.utils": {"ConfigType": dict, "OptConfigType": dict},
        "mmaction.models": {},
        "mmaction.models.backbones": {},
        "mmaction.models.backbones.vit_mae": {"get_sinusoid_encoding": sinusoid_table},
        **{name: dict.fromkeys(names) for name, names in unused.items()},
    }
