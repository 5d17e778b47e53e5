"""How a configuration is read.

A configuration is a YAML file (or the name of one of ours, such as ``playroom``) that may be based on another one by
``base:``, changed by dotted overrides from the command line. It becomes one :class:`~bitad.config.Config`; unknown
keys, wrong types and impossible combinations are all reported at once, by path, before anything is loaded.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from bitad.config import FIELDS_ALONE, KINDS, Config
from bitad.config_rules import broken_rules
from bitad.config_types import Section
from bitad.yaml_files import YamlError, parse_yaml, read_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# The sections that say how a network learns, and nothing of what it is or sees.
_OF_TRAINING = frozenset({"training"})
_MOST_BASES = 30
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
    return _changed(_read_yaml(_find(source)), overrides, str(source))


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration of a trained network with some keys changed, as on the command line.

    Rules of the training are not applied, as in :func:`parse_config`. Raises as :func:`load_config`.
    """
    return _changed(config.model_dump(mode="json"), overrides, "with overrides", without=_OF_TRAINING)


def parse_config(document: dict[str, Any], origin: str) -> Config:
    """The configuration of a trained network; ``origin`` says in messages where it comes from.

    Rules of the training are not applied: a network that an earlier version has trained under others can be tested.
    """
    return _parsed(document, origin, [], _OF_TRAINING)


def _changed(
    document: dict[str, Any], overrides: Sequence[str], origin: str, *, without: Collection[str] = ()
) -> Config:
    """A document with the keys of overrides, as a configuration.

    Args:
        without: sections whose rules are not applied.

    Raises:
        ConfigError: naming every override that cannot be read, every key that two of them set, and all else.
    """
    faults, unread, set_by = list[str](), set(without), dict[str, str]()
    for override in overrides:
        try:
            change = _parse_override(override)
        except ConfigError as error:
            faults.append(str(error))
            unread.add(override.partition("=")[0])
            continue
        for path in _paths_set(change):
            # A key within a section that another override sets as a whole is set twice too.
            twice = [one for one in set_by if f"{one}.".startswith(f"{path}.") or f"{path}.".startswith(f"{one}.")]
            faults += [
                f"overrides '{set_by[one]}' and '{override}' both set {max(one, path)}; give one" for one in twice
            ]
            unread.update(twice)
            set_by[path] = override
        document = _merge(document, change)
    return _parsed(document, origin, faults, unread)


def _paths_set(change: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, dict):
            yield from _paths_set(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _parsed(document: dict[str, Any], origin: str, faults: Sequence[str], unread: Collection[str]) -> Config:
    """A mapping -> :class:`Config`.

    Args:
        faults: those that are known already.
        unread: the paths whose values are not known for sure.
    """
    try:
        config = Config.model_validate(document, context=FIELDS_ALONE)
        told, broken = list(faults), broken_rules(config, unread)
    except ValidationError as error:
        told = [*faults, *(_describe(fault) for fault in error.errors())]
        broken = _broken_among_the_sound(document, error.errors(), unread)
    if told or broken:
        raise ConfigError(f"configuration {origin}: {'; '.join(dict.fromkeys([*told, *broken]))}")
    return config


def _broken_among_the_sound(document: Any, faults: Sequence[ErrorDetails], unread: Collection[str]) -> list[str]:
    """The rules that are broken by those values of a document that have no fault."""
    unread = set(unread)
    for _ in range(4):  # what stands for a missing section may lack keys itself
        # Text, numbers and paths can all be read from "1"; what is there is left out.
        missing = {_place(document, fault): fault["type"] == "missing" for fault in faults}
        for path, is_missing in missing.items():
            value: Any = {} if path == ("data",) else "1"
            document = _with(document, path, *([value] if is_missing else []))
        unread.update(".".join(map(str, path)) for path in missing)
        try:
            return broken_rules(Config.model_validate(document, context=FIELDS_ALONE), unread)
        except ValidationError as error:
            faults = error.errors()
    return []


def _place(document: Any, fault: ErrorDetails) -> tuple[int | str, ...]:
    """The keys of a document to a value that has a fault, or is missing."""
    location = fault["loc"]
    keys = _keys(document, location)
    return location if fault["type"] == "missing" and len(keys) == len(location) - 1 else keys


def _keys(document: Any, location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The part of a fault's location that is keys of the document; then follow places in lists, or types."""
    keys: list[int | str] = []
    for part in location:
        if not isinstance(document, dict) or part not in document:
            break
        document = document[part]
        keys.append(part)
    return tuple(keys)


def _with(document: Any, path: Sequence[int | str], *value: Any) -> Any:
    """The document with a value at this path, or without any."""
    if not path:
        return value[0] if value else {}
    key, *below = path
    if below and not isinstance(document.get(key), dict):  # it was left out as a whole
        return document
    changed = {name: one for name, one in document.items() if name != key or below}
    if below:
        changed[key] = _with(document[key], below, *value)
    elif value:
        changed[key] = value[0]
    return changed


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two mappings of a configuration differ, by path, with both values."""
    for key, new in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", old, new


def _describe(fault: ErrorDetails) -> str:
    sections, location = _sections_along(fault["loc"])
    path, message = ".".join(map(str, location)), str(fault["msg"]).removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key{_suggestion(sections[-1], path)}"
        case "missing":
            return f"{path}: missing"
        case "model_type":
            keys = [".".join(map(str, (*location, key))) for key in sections[-1].model_fields][:3]
            given = _SHORT.repr(fault["input"])
            given = _SHORT.repr(fault["input"])
            return f"{path or 'it'}: a section of keys ({', '.join(keys)}, ...), not a value (is {given})"
        case "value_error":
            return f"{path}: {message}"
        case _:
            return f"{path}: {message} (is {_SHORT.repr(fault['input'])})"


def _sections_along(location: Sequence[int | str]) -> tuple[list[type[Section]], list[int | str]]:
    """The sections that a fault's location goes through, and the location without the names of types in it."""
    sections: list[type[Section]] = [Config]
    kept: list[int | str] = []
    for part in location:
        if part in KINDS:
            continue
        kept.append(part)
        field = sections[-1].model_fields.get(str(part))
        sections += [] if field is None else _sections_in(field.annotation)[:1]
    return sections, kept


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for one in get_args(annotation) for section in _sections_in(one)]


def _suggestion(section: type[Section], path: str) -> str:
    """The keys that an unknown one may stand for: like it in its section, else of its name elsewhere."""
    within, dot, key = path.rpartition(".")
    if path in _all_paths(Config):
        return "; in a file, write each part of its path as a key of its own"
    near = [f"{within}{dot}{one}" for one in difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.7)]
    if not near:
        paths = list(_all_paths(Config))
        near = [one for one in paths if one.rpartition(".")[2] == key] or difflib.get_close_matches(
            path, paths, n=1, cutoff=0.7
        )
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _all_paths(section: type[Section], path: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{path}{name}"
        for below in _sections_in(field.annotation):
            yield from _all_paths(below, f"{path}{name}.")


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if (packaged := _preset(source)) is not None:
        return packaged
    raise FileNotFoundError(f"no configuration '{source}': neither a file nor one of ours ({', '.join(presets())})")


def _preset(name: str | Path) -> Path | None:
    path = Path(str(resources.files("bitad") / "presets" / f"{name}.yaml"))
    return path if path.is_file() else None


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file merged over the files that it is based on (``base:``, relative to it or a preset).

    ``above`` are the files that are based on this one.
    """
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path} holds {held}, not a mapping of keys to values")
    base = document.pop("base", None)
    if base is None:
        return document
    above = (*above, path.resolve())
    return _merge(_read_yaml(_base(path, base, above), above), document)


def _base(path: Path, base: Any, above: tuple[Path, ...]) -> Path:
    """The file that ``path`` names as its ``base``.

    A configuration of someone else's may name it, and must not have other files read: only ``.yaml`` files are, also
    behind a link.
    """
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {_SHORT.repr(base)} is no name of a configuration")
    beside = path.parent / base
    found = beside if beside.is_file() else _preset(base)
    if found is None:
        raise FileNotFoundError(
            f"{path}: base: no configuration '{base}': neither a file beside it nor one of ours "
            f"({', '.join(presets())})"
        )
    if any(one.suffix.lower() not in (".yaml", ".yml") for one in (found, found.resolve())):
        raise ConfigError(f"{path}: base {found} is no .yaml file; name a configuration")
    if found.resolve() in above:
        chain = ", ".join(map(str, (*above, found.resolve())))
        raise ConfigError(f"{path}: base {found} is based on {path.name} itself, in a circle: {chain}")
    if len(above) > _MOST_BASES:
        raise ConfigError(f"{path}: base follows base more than {_MOST_BASES} times; use fewer files")
    return found


def _parse_override(override: str) -> dict[str, Any]:
    key, sign, value = override.partition("=")
    if not sign or not all(key.split(".")):
        raise ConfigError(f"override '{override}' is not of the form key.sub=value")
    try:
        nested: Any = parse_yaml(value)
    except YamlError as error:
        raise ConfigError(f"override '{override}': the value is not YAML: {error}") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
