"""Which values make sense alone in a configuration: the types of the fields in :mod:`bitad.config`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

_SMALLEST, LARGEST = 1e-12, 1e12
_NAME_BYTES = 200  # file systems allow 255, and a run appends its variant and seed


def _computable(value: float) -> float:
    if not _SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(
            f"single precision cannot compute with {value:g}; use a value from {_SMALLEST:g} to {LARGEST:g}"
        )
    return value


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)} must be [smallest, largest]")
    return limits


def _more_than_nothing(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] == 0:
        raise ValueError(f"{list(limits)} leaves nothing; the largest share must be more than 0")
    return limits


def _distinct(thresholds: tuple[float, ...]) -> tuple[float, ...]:
    if twice := sorted({one for one in thresholds if thresholds.count(one) > 1}):
        raise ValueError(f"{', '.join(f'{one:g}' for one in twice)} counts twice in the average; give it once")
    return thresholds


def _path(value: object) -> object:
    if value is None:
        raise ValueError("no path is given; name a file or folder")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Path):
        raise ValueError(f"{_as_yaml(value)} is no path; name a file or folder")
    text = str(value)
    if "\0" in text or not text.strip() or not _is_encodable(text):
        raise ValueError(f"{text!r} is no path; name a file or folder")
    return value if isinstance(value, Path) else text


def _text(value: object) -> object:
    # `experiment=1` is a number in YAML, but experiments are named by strings.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{_as_yaml(value)} is no name; give one, in quotes if it is that")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"{value!r} is no name; give one")
    return value


def _as_yaml(value: object) -> str:
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else repr(value)


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _of_a_folder(name: str) -> str:
    if not name.strip() or any(letter in "/\\" or not letter.isprintable() for letter in name):
        raise ValueError(f"{name!r} cannot begin a folder's name; give one without / and \\ and line ends")
    if len(name.encode(errors="replace")) > _NAME_BYTES:
        raise ValueError(f"'{name[:40]}...' is too long to begin a folder's name; use {_NAME_BYTES} bytes at most")
    return name


Share = Annotated[float, Field(ge=0, le=1)]
# Of all, nothing would be left.
ShareBelowAll = Annotated[float, Field(ge=0, lt=1)]
ShareAboveNothing = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_computable)]
LearningRate = Annotated[Positive, Field(le=1000)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Layers = Annotated[int, Field(ge=0, le=1000)]
Workers = Annotated[int, Field(ge=0, le=4096)]
# fp32: single; bf16, fp16: autocast, the latter with scaled losses.
Precision = Literal["fp32", "bf16", "fp16"]
# What PyTorch takes for a seed, of any process of a run.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, BeforeValidator(_text)]
FolderName = Annotated[Name, AfterValidator(_of_a_folder)]
Place = Annotated[Path, BeforeValidator(_path)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ascending), AfterValidator(_more_than_nothing)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
Thresholds = Annotated[tuple[ShareAboveNothing, ...], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A frozen part of the configuration that knows exactly its own keys."""

    # A file of YAML cannot say that a number is infinite and have it read back.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """Python's ``True`` would count as 1."""
        assert info.field_name is not None
        takes_numbers = re.search(r"\b(int|float)\b", str(cls.model_fields[info.field_name].annotation))
        given = value if isinstance(value, list | tuple) else [value]
        if takes_numbers and any(isinstance(one, bool) for one in given):
            raise ValueError(f"{str(value).lower()} is no number")
        return value
