"""Other projects' checkpoints -> our parameter names, and loading that says in one line what does not fit.

A format is recognised by its parameter names and translated by a table of renamings; whatever reads weights goes
through :func:`read_weights` and :func:`load_weights`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Format = Literal["bitad", "opentad", "videomae"]

# (pattern, replacement), applied in order to names without the prefixes of wrappers.
_VIT_NAMES = (
    (r"patch_embed\.projection\.", "patch_embed."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.0."),
    (r"\.mlp\.layers\.1\.", ".mlp.2."),
    (r"\.adapter\.dwconv\.", ".adapter.depthwise."),
    (r"\.adapter\.conv\.", ".adapter.pointwise."),
    (r"\.adapter\.down_proj\.", ".adapter.down."),
    (r"\.adapter\.up_proj\.", ".adapter.up."),
)
_PYRAMID_NAMES = (
    (r"^projection\.", "pyramid."),
    (r"^neck\.fpn_norms\.", "pyramid.norms."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.attn\.(query|key|value)_conv\.conv\.", r".attn.\1.depthwise."),
    (r"\.attn\.(query|key|value)_norm\.", r".attn.\1.norm."),
    (r"\.attn\.(query|key|value)\.(weight|bias)$", r".attn.\1.pointwise.\2"),
)
_HEAD_NAMES = (
    (r"^rpn_head\.cls_convs\.", "head.classification.convs."),
    (r"^rpn_head\.reg_convs\.", "head.regression.convs."),
    (r"^rpn_head\.cls_head\.", "head.classification.output."),
    (r"^rpn_head\.reg_head\.", "head.regression.output."),
)
_OPENTAD_BACKBONE = "backbone.model.backbone."
# Belong to a classifier or to the training, or are never used in a forward pass.
_VIT_UNUSED = re.compile(r"^(fc_norm|norm|cls_head)\.")
_OPENTAD_UNUSED = re.compile(r"^rpn_head\.loss_normalizer$")


def read_weights(path: Path) -> dict[str, Any]:
    """Reads a ``.safetensors`` file, or a PyTorch file, as it stands, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights. PyTorch files are read with ``weights_only=True``: nothing in them is run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a readable file of weights ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named weights")
    return content


def from_opentad(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """An OpenTAD checkpoint of AdaTAD or ActionFormer -> the weights of a :class:`~bitad.models.detector.Detector`.

    Takes ``state_dict_ema`` where there is one, else ``state_dict``, else ``checkpoint`` as the names themselves.

    Raises:
        ValueError: if the names are not OpenTAD's.
    """
    names = _unwrap(checkpoint, "state_dict_ema", "state_dict")
    if recognise(names) != "opentad":
        raise ValueError(
            f"not a checkpoint of OpenTAD's ActionFormer: its first weight is {next(iter(names), 'none')!r}"
        )
    vit = {name.removeprefix(_OPENTAD_BACKBONE): w for name, w in names.items() if name.startswith(_OPENTAD_BACKBONE)}
    ours = {f"backbone.vit.{name}": weight for name, weight in _vit(vit).items()}
    scales: dict[int, Tensor] = {}
    for name, weight in names.items():
        if name.startswith(_OPENTAD_BACKBONE) or _OPENTAD_UNUSED.match(name):
            continue
        if level := re.fullmatch(r"rpn_head\.scale\.(\d+)\.scale", name):
            scales[int(level[1])] = weight
        else:
            # LayerScale: [1, C, 1] there, [C] here.
            ours[_rename(name, _PYRAMID_NAMES + _HEAD_NAMES)] = weight.flatten() if name.endswith(".scale") else weight
    if scales:
        ours["head.scales"] = torch.stack([scales[level] for level in sorted(scales)])
    return ours


def from_videomae(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """A VideoMAE file as mmaction2 writes it -> the weights of a :class:`~bitad.models.videomae.VisionTransformer`.

    The classifier and its norm are left out; adapters are kept where the file has them.

    Raises:
        ValueError: if the names are not VideoMAE's.
    """
    names = {name.removeprefix("backbone."): weight for name, weight in _unwrap(checkpoint, "state_dict").items()}
    if recognise(names) != "videomae":
        raise ValueError(f"not a VideoMAE file in mmaction2's form: its first weight is {next(iter(names), 'none')!r}")
    return _vit(names)


def recognise(names: Iterable[str]) -> Format:
    """The project whose parameter names these are, wrappers' prefixes removed.

    Raises:
        ValueError: for names of no known project.
    """
    names = list(names)
    if any(name.startswith(("rpn_head.", "projection.")) for name in names):
        return "opentad"
    if any(name.endswith("patch_embed.projection.weight") for name in names):
        return "videomae"
    if any(name.startswith(("pyramid.", "patch_embed.", "blocks.", "backbone.vit.")) for name in names):
        return "bitad"
    raise ValueError(
        f"weights of no known project: the first is {next(iter(names), 'none')!r}; known are BiTAD's own, "
        "OpenTAD's ActionFormer and AdaTAD, and mmaction2's VideoMAE"
    )


def convert(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of any known project under our names: a detector's or a backbone's.

    Raises:
        ValueError: for weights of no known project.
    """
    names = _unwrap(checkpoint, "state_dict_ema", "state_dict")
    match recognise(names):
        case "opentad":
            return from_opentad(checkpoint)
        case "videomae":
            return from_videomae(checkpoint)
        case "bitad":
            return names


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str, may_lack: str = r"(?!)") -> None:
    """Loads all of ``weights`` into all of ``module``, or nothing.

    Args:
        module: what to fill.
        weights: by our names.
        source: where they come from, for the message.
        may_lack: a pattern of names that ``weights`` need not have, such as ``r"\\.adapter\\."``; none by default.

    Raises:
        ValueError: one line with the names that are missing, left over, or of another shape.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in weights and not re.search(may_lack, name)]
    unexpected = [name for name in weights if name not in wanted]
    reshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    defects = [
        f"{len(found)} {kind}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for kind, found in (("missing", missing), ("not in the network", unexpected), ("of another shape", reshaped))
        if found
    ]
    if defects:
        raise ValueError(f"weights of {source} do not fit the network; {'; '.join(defects)}")
    module.load_state_dict(dict(weights), strict=False)  # strictness is what was checked above


def load_backbone(vit: nn.Module, path: Path) -> None:
    """Loads a pre-trained VideoMAE file into a transformer; its adapters stay as they are unless the file has them.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`, :func:`convert` and :func:`load_weights`.
    """
    load_weights(vit, convert(read_weights(path)), source=str(path), may_lack=r"\.adapter\.")


def _unwrap(checkpoint: Mapping[str, Any], *keys: str) -> dict[str, Tensor]:
    """The named tensors inside a checkpoint: the first of ``keys`` that it has, without DDP's ``module.``."""
    inner = next((checkpoint[key] for key in keys if key in checkpoint), checkpoint)
    return {name.removeprefix("module."): w for name, w in inner.items() if isinstance(w, Tensor)}


def _vit(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmaction2's names of the transformer and AdaTAD's of its adapters -> ours."""
    ours = {}
    for name, weight in names.items():
        if _VIT_UNUSED.match(name):
            continue
        # Convolutions over time there; over time and place, and a linear map, here.
        if name.endswith(".adapter.dwconv.weight"):
            weight = weight.unsqueeze(-1)
        elif name.endswith(".adapter.conv.weight"):
            weight = weight.squeeze(-1)
        ours[_rename(name, _VIT_NAMES)] = weight
    return ours


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name
