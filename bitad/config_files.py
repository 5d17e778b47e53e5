"""How a configuration is read.

A configuration is a YAML file (or the name of one of ours, such as ``playroom``) that may stand on another one by
``base:``, changed by dotted overrides from the command line. It becomes one :class:`~bitad.config.Config`; unknown
keys, wrong types and impossible combinations are all reported at once, by path, before anything is loaded.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitad.config import Config
from bitad.yaml_files import YamlError, parse_yaml, read_yaml

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names every fault by its path."""


def presets() -> list[str]:
    """The names of the configurations that come with the package."""
    root = resources.files("bitad") / "presets"
    with resources.as_file(root) as folder:
        return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        source: a YAML file, or the name of one of :func:`presets`.
        overrides: ``key.sub=value`` each; the value is read as YAML.

    Raises:
        FileNotFoundError: if there is no such file or preset.
        ConfigError: naming every fault by its path.
    """
    return parse_config(_overridden(_read_yaml(_find(source)), overrides), str(source))


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with some keys changed, as on the command line. Raises as :func:`load_config`."""
    return parse_config(_overridden(config.model_dump(mode="json"), overrides), "with overrides")


def _overridden(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        document = _merge(document, _parse_override(override))
    return document


def parse_config(document: dict[str, Any], origin: str) -> Config:
    """A mapping -> :class:`Config`; ``origin`` says in messages where it comes from."""
    config, faults = _validated(document)
    unknown = [fault["loc"] for fault in faults if isinstance(fault, dict) and fault["type"] == "extra_forbidden"]
    if unknown:  # a second look without them finds what they hid: combinations are judged where all keys are known
        _, others = _validated(_without(document, unknown))
        faults = [*(fault for fault in faults if isinstance(fault, dict) and fault["loc"] in unknown), *others]
    if config is None or faults:
        told = dict.fromkeys(fault if isinstance(fault, str) else _describe(fault) for fault in faults)
        raise ConfigError(f"configuration {origin}: " + "; ".join(told))
    return config


def _validated(document: dict[str, Any]) -> tuple[Config | None, list[dict[str, Any] | str]]:
    """The configuration, if any, and all that is wrong: keys and values as pydantic tells it, combinations in words."""
    combinations: list[str] = []
    try:
        config = Config.model_validate(document, context=combinations)
    except ValidationError as error:
        return None, [*(dict(fault) for fault in error.errors()), *combinations]
    return config, list(combinations)


def _without(document: dict[str, Any], paths: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """The document without the keys at these paths; a path that is none of keys alone stays."""
    heads = {path[0] for path in paths if len(path) == 1}
    kept = {}
    for key, value in document.items():
        below = [path[1:] for path in paths if len(path) > 1 and path[0] == key]
        if key not in heads:
            kept[key] = _without(value, below) if below and isinstance(value, dict) else value
    return kept


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two mappings of a configuration differ, by path, with both values."""
    for key, new in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", old, new


def _describe(fault: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "as a whole"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown key"
    if fault["type"] == "missing":
        return f"{path}: missing"
    if fault["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: {message} (is {_SHORT.repr(fault['input'])})"


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    packaged = Path(str(resources.files("bitad") / "presets" / f"{source}.yaml"))
    if packaged.is_file():
        return packaged
    raise FileNotFoundError(f"no configuration '{source}': neither a file nor one of ours ({', '.join(presets())})")


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file with the files it stands on (``base:``, relative to it or a preset) merged below it.

    ``above`` are the files that stand on this one. A base must be a ``.yaml`` file: a configuration of someone else's
    names it, and must not have others read.
    """
    if above and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{above[-1]}: base {path} is no .yaml file; name a configuration")
    if path.resolve() in above:
        raise ConfigError(f"{path} stands on itself: follow the `base:` of {', '.join(str(p) for p in above)}")
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds {type(document).__name__}, not a mapping of keys to values")
    base = document.pop("base", None)
    if base is None:
        return document
    beside = path.parent / str(base)
    below = beside if beside.is_file() else _find(str(base))
    return _merge(_read_yaml(below, (*above, path.resolve())), document)


def _parse_override(override: str) -> dict[str, Any]:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override '{override}' is not of the form key.sub=value")
    try:
        nested: Any = parse_yaml(value)
    except YamlError as error:
        raise ConfigError(f"override '{override}': the value is not YAML: {error}") from None
    if isinstance(nested, str):
        nested = _number(nested)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def _number(text: str) -> float | str:
    """YAML 1.1 reads 1e-4 as a string; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
