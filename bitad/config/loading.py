"""Reads configurations.

A configuration is a YAML file or a preset. It may extend another one by ``base:``, and dotted overrides change it.
Unknown keys, wrong types and impossible combinations are all reported at once, by path.

YAML 1.1 reads ``12:30`` as 750, ``010`` as 8, ``no`` as false and ``1e-4`` as text. Here a value is a number only if
Python writes the number in the same way, and a truth value only if it is ``true`` or ``false``. All else is text, which
the type of the key interprets: a name of ``007`` stays that name, and a rate of ``1e-4`` is 0.0001.

A warm-up from a preset or the defaults that is longer than the schedule is shortened. If one file or command line sets
both, :mod:`bitad.config.rules` refuses them.
"""

from __future__ import annotations

import difflib
import logging
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import ValidationError

from bitad.config.names import RENAMED_KEYS
from bitad.config.rules import broken_rules
from bitad.config.schema import FIELDS_ALONE, KINDS, Config, Section, TrainingConfig, tag_of
from bitad.runtime.log import log_once

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


# A configuration has some hundred values in a few kilobytes.
_MAX_BYTES = 2**20
_MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
# Text that YAML's errors quote, except names of its own syntax.
_QUOTED = re.compile(r"'(?!<).{2,}'")


class YamlError(ValueError):
    """A text that cannot be read as YAML; the message is one line and does not quote the text."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError: it cannot be read.
        YamlError: as :func:`parse_yaml`, or it is larger than a configuration can be.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise YamlError(f"larger than {_MAX_BYTES // 2**20} MiB, too large for a configuration")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise YamlError(f"not text: {error.reason} at byte {error.start}") from None


def parse_yaml(text: str) -> Any:
    """The content of a YAML text. Aliases (``*name``) and merges (``<<``) are allowed up to a total number of values.

    Raises:
        YamlError: it is not YAML, a mapping has a key twice, or it has too many values. The message names the line but
            does not quote it: a file given by mistake, or by someone else, may hold secrets.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_node(loader, root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(where + _QUOTED.sub("'...'", problem)) from None
    except RecursionError:
        raise YamlError("nested too deeply") from None
    except yaml.reader.ReaderError as error:
        raise YamlError(f"character {error.position + 1} is not allowed in YAML") from None
    except Exception as error:  # YAML's constructors raise many types for a value that contradicts its tag
        raise YamlError(f"a value contradicts its tag ({type(error).__name__})") from None


class _Loader(yaml.SafeLoader):
    """Reads numbers and truth values only as Python writes them."""


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool | int | float | str:
    """A number or truth value as Python writes it, in small letters; otherwise the text itself.

    Infinity and NaN are written as in YAML: ``.inf``, ``-.inf``, ``.nan``.
    """
    text: str = loader.construct_scalar(node)
    if text in ("true", "false"):
        return text == "true"
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    for number in (int, float):
        try:
            value: int | float = number(text)
            if str(value) == text:
                return value
        except ValueError:  # also an integer of thousands of digits
            continue
    return text


for _type in ("bool", "int", "float", "timestamp", "value"):
    _Loader.add_constructor(f"{_TAG}{_type}", _scalar)


def _check_node(loader: _Loader, root: yaml.Node) -> None:
    """Refuses keys that occur twice, of which YAML would keep the last one, and documents that aliases make huge."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: frozenset[int]) -> int:
        line = node.start_mark.line + 1
        if id(node) in above:
            raise YamlError(f"line {line}: an alias contains itself")
        if id(node) not in sizes:
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                _check_keys(loader, node)
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            # An alias counts as the values it repeats.
            sizes[id(node)] = 1 + sum(size(part, above | {id(node)}) for part in inner)
            if sizes[id(node)] > _MAX_VALUES:
                raise YamlError(f"line {line}: more than {_MAX_VALUES:,} values, counting those repeated by aliases")
        return sizes[id(node)]

    size(root, frozenset())


def _check_keys(loader: _Loader, node: yaml.MappingNode) -> None:
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # the constructor refuses it
        key = "<<" if key_node.tag == f"{_TAG}merge" else loader.construct_object(key_node)
        line = key_node.start_mark.line + 1
        if key in lines:
            raise YamlError(f"key {key!r} occurs twice, in lines {lines[key]} and {line}; keep one")
        lines[key] = line


_SCHEDULE = ("epochs", "schedule_epochs")
_WARM_UP = "warmup_epochs"
_WARM_UP_SHARE = 0.1  # of the schedule, after shortening


def _with_fitting_warm_up(document: dict[str, Any], above: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The document with a warm-up that fits its schedule, if ``above`` sets the schedule but not the warm-up.

    Args:
        document: with the keys of ``above`` merged into it.
        above: the file or the command line that comes last.
        notes: replaced by a line that describes the change, if there is one.
    """
    training, set_last = document.get("training", {}), above.get("training", {})
    if not isinstance(training, dict) or not isinstance(set_last, dict) or _WARM_UP in set_last:
        return document
    if _WARM_UP in training and not any(key in set_last for key in _SCHEDULE):
        return document
    values = {key: training.get(key, TrainingConfig.model_fields[key].default) for key in (*_SCHEDULE, _WARM_UP)}
    schedule, warm_up = values["schedule_epochs"] or values["epochs"], values[_WARM_UP]
    if not _is_number(schedule) or not _is_number(warm_up) or not 1 <= schedule <= warm_up:
        return document
    fitting = round(schedule * _WARM_UP_SHARE, 10)
    notes[:] = [
        f"training.{_WARM_UP} is {fitting:g}, a tenth of the schedule of {schedule:g} epochs, instead of {warm_up:g}, "
        "which is longer than the schedule"
    ]
    return {**document, "training": {**training, _WARM_UP: fitting}}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# The rules of this section do not apply to a network that is already trained.
_TRAINING_ONLY = frozenset({"training"})
_MAX_BASES = 30
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names every fault by its path."""


def presets() -> list[str]:
    """The names of the configurations that come with the package."""
    with resources.as_file(resources.files("bitad.config") / "presets") as folder:
        return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = (), notes: list[str] | None = None) -> Config:
    """Reads a configuration.

    Args:
        source: a YAML file, or the name of one of :func:`presets`.
        overrides: ``key.sub=value`` each; the value is read as YAML.
        notes: receives a line for each automatic change (see :mod:`bitad.config.loading`).

    Raises:
        FileNotFoundError: there is no such file or preset.
        ConfigError: names every fault by its path.
    """
    notes = [] if notes is None else notes
    return _overridden(_read_file(_find(source), notes), overrides, str(source), notes=notes)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration of a trained network with some keys changed, as on the command line.

    Rules of the training are not applied, as in :func:`parse_config`. Raises as :func:`load_config`.
    """
    return _overridden(config.model_dump(mode="json"), overrides, "with overrides", unchecked=_TRAINING_ONLY)


def parse_config(document: dict[str, Any], origin: str) -> Config:
    """The configuration of a trained network; ``origin`` names its source in messages.

    Rules of the training are not applied, so that a network trained by an earlier version can be tested.
    """
    return _validated(_with_current_keys(document, origin, warn=False), origin, [], _TRAINING_ONLY)


def _overridden(
    document: dict[str, Any],
    overrides: Sequence[str],
    origin: str,
    *,
    unchecked: Collection[str] = (),
    notes: list[str] | None = None,
) -> Config:
    """A document with the keys of overrides, as a configuration.

    Args:
        unchecked: sections whose rules are not applied.
        notes: as :func:`load_config`; None: nothing is changed automatically.

    Raises:
        ConfigError: names every override that cannot be read, every key that two of them set, and all other faults.
    """
    faults, unread, set_by = list[str](), set(unchecked), dict[str, str]()
    changes: dict[str, Any] = {}
    for override in overrides:
        try:
            change = _with_current_keys(_parse_override(override), f"override '{override}'")
        except ConfigError as error:
            faults.append(str(error))
            unread.add(override.partition("=")[0])
            continue
        for path in _paths_set(change):
            # An override of a section also sets every key within it.
            twice = [one for one in set_by if f"{one}.".startswith(f"{path}.") or f"{path}.".startswith(f"{one}.")]
            faults += [
                f"overrides '{set_by[one]}' and '{override}' both set {max(one, path)}; give one" for one in twice
            ]
            unread.update(twice)
            set_by[path] = override
        changes = _merge(changes, change)
    document = _merge(document, changes)
    if notes is not None:
        document = _with_fitting_warm_up(document, changes, notes)
    return _validated(document, origin, faults, unread)


def _paths_set(change: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, dict):
            yield from _paths_set(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _validated(document: dict[str, Any], origin: str, faults: Sequence[str], unread: Collection[str]) -> Config:
    """A mapping -> :class:`Config`.

    Args:
        faults: those already known.
        unread: the paths whose values are unknown.
    """
    try:
        config = Config.model_validate(document, context=FIELDS_ALONE)
        found, broken = list(faults), broken_rules(config, unread)
    except ValidationError as error:
        found = [*faults, *(_describe(fault) for fault in error.errors())]
        broken = _broken_by_valid_values(document, error.errors(), unread)
    if found or broken:
        raise ConfigError(f"configuration {origin}: {'; '.join(dict.fromkeys([*found, *broken]))}")
    return config


def _broken_by_valid_values(document: Any, faults: Sequence[ErrorDetails], unread: Collection[str]) -> list[str]:
    """The rules broken by those values of a document that have no fault themselves."""
    unread = set(unread)
    for _ in range(4):  # the value put in for a missing section may lack keys itself
        # Text, numbers and paths can all be read from "1"; an existing faulty value is removed.
        missing = {_path_to(document, fault): fault["type"] == "missing" for fault in faults}
        for path, is_missing in missing.items():
            value: Any = {} if path == ("data",) else "1"
            document = _replaced(document, path, *([value] if is_missing else []))
        unread.update(".".join(map(str, path)) for path in missing)
        try:
            return broken_rules(Config.model_validate(document, context=FIELDS_ALONE), unread)
        except ValidationError as error:
            faults = error.errors()
    return []


def _path_to(document: Any, fault: ErrorDetails) -> tuple[int | str, ...]:
    """The keys of a document that lead to a faulty or missing value."""
    location = fault["loc"]
    keys: list[int | str] = []  # the rest of the location are indices of lists, or types
    for part in location:
        if not isinstance(document, dict) or part not in document:
            break
        document = document[part]
        keys.append(part)
    return location if fault["type"] == "missing" and len(keys) == len(location) - 1 else tuple(keys)


def _replaced(document: Any, path: Sequence[int | str], *value: Any) -> Any:
    """The document with a value at this path, or without any."""
    if not path:
        return value[0] if value else {}
    key, *below = path
    if below and not isinstance(document.get(key), dict):  # an outer section was removed
        return document
    changed = {name: one for name, one in document.items() if name != key or below}
    if below:
        changed[key] = _replaced(document[key], below, *value)
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
            return f"{path}: unknown key{_suggestion(sections[-1], path, dotted='.' in str(location[-1]))}"
        case "missing":
            return f"{path}: missing"
        case "model_type":
            keys = [".".join(map(str, (*location, key))) for key in sections[-1].model_fields][:3]
            given = _SHORT.repr(fault["input"])
            return f"{path or 'it'}: a section of keys ({', '.join(keys)}, ...), not a value (is {given})"
        case "value_error":
            return f"{path}: {message}"
        case _:
            return f"{path}: {message} (is {_SHORT.repr(fault['input'])})"


def _sections_along(location: Sequence[int | str]) -> tuple[list[type[Section]], list[int | str]]:
    """The sections along a fault's location, and the location without the names of types in it."""
    sections: list[type[Section]] = [Config]
    path: list[int | str] = []
    found: list[type[Section]] = []
    for part in location:
        if part in KINDS:
            continue
        if of_type := [section for section in found if tag_of(section) == part]:
            sections[-1:] = of_type
            continue
        path.append(part)
        field = sections[-1].model_fields.get(str(part))
        found = [] if field is None else _sections_in(field.annotation)
        sections += found[:1]
    return sections, path


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for one in get_args(annotation) for section in _sections_in(one)]


def _suggestion(section: type[Section], path: str, *, dotted: bool) -> str:
    """The keys that an unknown one may stand for: a similar one in its section, else the same name elsewhere."""
    within, dot, key = path.rpartition(".")
    paths = list(dict.fromkeys(_all_paths(Config)))  # sections of several types share keys
    if path in paths:
        if dotted:
            return "; in a file, write each part of its path as a key of its own"
        return f"; only another {within}.type has it"
    near = [f"{within}{dot}{one}" for one in difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.7)]
    near = near or [one for one in paths if one.rpartition(".")[2] == key]
    near = near or difflib.get_close_matches(path, paths, n=1, cutoff=0.7)
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
    raise FileNotFoundError(f"no configuration '{source}': neither a file nor a preset ({', '.join(presets())})")


def _preset(name: str | Path) -> Path | None:
    path = Path(str(resources.files("bitad.config") / "presets" / f"{name}.yaml"))
    return path if path.is_file() else None


def _read_file(path: Path, notes: list[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file merged over the files that it is based on (``base:``, relative to it or a preset).

    ``above`` are the files that are based on this one; ``notes`` as :func:`load_config`.
    """
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path} holds {held}, not a mapping of keys to values")
    document = _with_current_keys(document, str(path))
    base = document.pop("base", None)
    if base is None:
        return document
    above = (*above, path.resolve())
    merged = _merge(_read_file(_base(path, base, above), notes, above), document)
    return _with_fitting_warm_up(merged, document, notes)


def _with_current_keys(document: dict[str, Any], origin: str, *, warn: bool = True) -> dict[str, Any]:
    """The document with the former keys of :data:`RENAMED_KEYS` renamed; ``warn`` logs them.

    Raises:
        ConfigError: a key is given under both names.
    """
    for old, new in RENAMED_KEYS.items():
        section, _, key = old.partition(".")
        held = document.get(section)
        if not isinstance(held, dict) or key not in held:
            continue
        new_key = new.partition(".")[2]
        if new_key in held:
            raise ConfigError(f"{origin}: {old} is the former name of {new}, and both are given; keep {new}")
        if warn:
            line = f"{origin}: {old} is now called {new}; the next release does not read the former name"
            log_once(line, logging.WARNING)
        document = {**document, section: {new_key if one == key else one: value for one, value in held.items()}}
    return document


def _base(path: Path, base: Any, above: tuple[Path, ...]) -> Path:
    """The file that ``path`` names as its ``base``: only ``.yaml`` files, so that no other file is read."""
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {_SHORT.repr(base)} is not the name of a configuration")
    beside = path.parent / base
    found = beside if beside.is_file() else _preset(base)
    if found is None:
        raise FileNotFoundError(
            f"{path}: base: no configuration '{base}': neither a file beside it nor a preset ({', '.join(presets())})"
        )
    if any(one.suffix.lower() not in (".yaml", ".yml") for one in (found, found.resolve())):
        raise ConfigError(f"{path}: base {found} is not a .yaml file; give a configuration")
    if found.resolve() in above:
        chain = ", ".join(map(str, (*above, found.resolve())))
        raise ConfigError(f"{path}: base {found} is itself based on {path.name}: {chain}")
    if len(above) > _MAX_BASES:
        raise ConfigError(f"{path}: more than {_MAX_BASES} bases in a chain; use fewer files")
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
