"""Reads configurations.

A configuration is a YAML file or a preset. It may extend another one by ``base:``, and dotted overrides change it.
Unknown keys, wrong types and impossible combinations are all reported at once, by path.

YAML 1.1 reads ``12:30`` as 750, ``010`` as 8, ``no`` as false and ``1e-4`` as text. Here a value is a number only if
Python writes the number in the same way, and a truth value only if it is ``true`` or ``false``. All else is text, which
the type of the key interprets.

A warm-up from a preset or the defaults that is longer than the schedule is shortened, unless one file or command line
sets both.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import logging
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import ValidationError

from bitad.config.names import RENAMED_KEYS
from bitad.config.rules import broken_rules
from bitad.config.schema import FIELDS_ALONE, Config, Section, TrainingConfig
from bitad.runtime.log import log_once

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_PRESETS = Path(__file__).parent / "presets"
# A configuration has some hundred values in a few kilobytes.
_MAX_BYTES = 2**20
_MAX_VALUES = 100_000
_MAX_BASES = 30
_WARM_UP_SHARE = 0.1  # of the schedule, after shortening
_TAG = "tag:yaml.org,2002:"
# Text that YAML's errors quote, except names of its own syntax.
_QUOTED = re.compile(r"'(?!<).{2,}'")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
Document = dict[str, Any]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names every fault by its path."""


def presets() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(str(path.relative_to(_PRESETS).with_suffix("")) for path in _PRESETS.rglob("*.yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        source: a YAML file, or the name of one of :func:`presets`.
        overrides: ``key.sub=value`` each; the value is read as YAML.

    Raises:
        FileNotFoundError: there is no such file or preset.
        ConfigError: names every fault by its path.
    """
    return _overridden(_read_file(_find(source)), overrides, str(source))


def load_run_config(directory: Path) -> Config:
    """The configuration of a run directory; FileNotFoundError if it is none, and errors as :func:`load_config`."""
    if not (directory / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{directory} is not a run directory: it has no config.yaml; give a folder that `bitad train` wrote"
        )
    return load_config(directory / "config.yaml")


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration of a trained network with some keys changed. Raises as :func:`load_config`."""
    return _overridden(config.model_dump(mode="json"), overrides, "with overrides", is_trained=True)


def parse_config(document: Document, origin: str) -> Config:
    """The configuration of a trained network, also of one that today's rules of training refuse."""
    return _validated(_with_current_keys(document, origin, warn=False), origin, [], {"training"})


def _overridden(document: Document, overrides: Sequence[str], origin: str, *, is_trained: bool = False) -> Config:
    faults, unread, set_by = list[str](), set[str](), dict[str, str]()
    changes: Document = {}
    for override in overrides:
        try:
            change = _parse_override(override)
        except ConfigError as error:
            faults.append(str(error))
            unread.add(override.partition("=")[0])
            continue
        for path in _paths_set(change):
            for other in set_by:
                # An override of a section also sets every key within it.
                if f"{other}.".startswith(f"{path}.") or f"{path}.".startswith(f"{other}."):
                    both = f"'{set_by[other]}' and '{override}'"
                    faults.append(f"overrides {both} both set {max(other, path)}; give one")
                    unread.add(other)
            set_by[path] = override
        changes = _merge(changes, change)
    document = _merge(document, changes)
    if is_trained:
        return _validated(document, origin, faults, {*unread, "training"})
    return _validated(_with_fitting_warm_up(document, changes), origin, faults, unread)


def _paths_set(change: Document, path: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, dict):
            yield from _paths_set(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _merge(below: Document, above: Document) -> Document:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two mappings of a configuration differ, by path, with both values."""
    for key, new in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", old, new


def _with_fitting_warm_up(document: Document, above: Mapping[str, Any]) -> Document:
    """A document with a warm-up that fits its schedule, if ``above``, merged into it, sets the schedule alone."""
    training, last = document.get("training", {}), above.get("training", {})
    if not isinstance(training, dict) or not isinstance(last, dict) or "warmup_epochs" in last:
        return document
    if "warmup_epochs" in training and not {"epochs", "schedule_epochs"} & last.keys():
        return document
    values = {**TrainingConfig().model_dump(), **training}
    schedule, warm_up = values["schedule_epochs"] or values["epochs"], values["warmup_epochs"]
    if not {type(schedule), type(warm_up)} <= {int, float} or not 1 <= schedule <= warm_up:
        return document
    fitting = round(schedule * _WARM_UP_SHARE, 10)
    log_once(
        f"training.warmup_epochs is {fitting:g}, a tenth of the schedule of {schedule:g} epochs, instead of "
        f"{warm_up:g}, which is longer than the schedule"
    )
    return {**document, "training": {**training, "warmup_epochs": fitting}}


def _validated(document: Document, origin: str, faults: Sequence[str], unread: Collection[str]) -> Config:
    """A mapping -> :class:`Config`; ``faults`` are already known, values at the paths ``unread`` are not."""
    document, unread = copy.deepcopy(document), set(unread)
    errors: list[ErrorDetails] = []
    broken: list[str] = []
    for _ in range(4):  # the value put in for a missing section may lack keys itself
        try:
            config = Config.model_validate(document, context=FIELDS_ALONE)
        except ValidationError as error:
            errors = errors or error.errors()
            unread.update(_replace_faulty(document, fault) for fault in error.errors())
        else:
            broken = broken_rules(config, unread)
            break
    found = [*faults, *map(_describe, errors), *broken]
    if found:
        raise ConfigError(f"configuration {origin}: {'; '.join(dict.fromkeys(found))}")
    return config


def _replace_faulty(section: dict[Any, Any], fault: ErrorDetails) -> str:
    """Remove a faulty value from a document, or insert a missing one; return its path."""
    location = _location(fault)
    depth = 0
    while depth < len(location) - 1 and isinstance(section.get(location[depth]), dict):
        section = section[location[depth]]
        depth += 1
    key = location[depth]
    if fault["type"] == "missing":
        section[key] = {} if key == "data" else "1"  # of which text, numbers and paths can all be read
    else:
        section.pop(key, None)
    return ".".join(map(str, location[: depth + 1]))


def _describe(fault: ErrorDetails) -> str:
    location, given = _location(fault), _SHORT.repr(fault["input"])
    path, message = ".".join(map(str, location)), fault["msg"].removeprefix("Value error, ")
    match fault["type"]:
        case "extra_forbidden":
            message = f"unknown key{_suggestion(path, is_dotted='.' in str(location[-1]))}"
        case "missing":
            message = "missing"
        case "model_type":
            keys = ", ".join(_paths_in(path)[:3])
            message = f"a section of keys ({keys}, ...), not a value (is {given})"
        case "value_error":
            pass
        case _:
            message = f"{message} (is {given})"
    return f"{path}: {message}"


def _location(fault: ErrorDetails) -> list[int | str]:
    """The location of a fault without pydantic's tags of unions, such as ``<name>``."""
    is_key = fault["type"] == "extra_forbidden"  # the last part, whatever its form
    tags = {part for part in fault["loc"][: -1 if is_key else None] if re.fullmatch("<[a-z]+>", str(part))}
    return [part for part in fault["loc"] if part not in tags]


def _suggestion(path: str, *, is_dotted: bool) -> str:
    """The keys that an unknown one may mean: a similar one in its section, else the same elsewhere."""
    within, dot, key = path.rpartition(".")
    if path in _PATHS:
        if is_dotted:
            return "; in a file, write each part of its path as a key of its own"
        return f"; only another {within}.type has it"
    keys = [one.rpartition(".")[2] for one in _paths_in(within)]
    near = [f"{within}{dot}{one}" for one in difflib.get_close_matches(key, keys, n=1, cutoff=0.7)]
    near = near or [one for one in _PATHS if one.rpartition(".")[2] == key]
    near = near or difflib.get_close_matches(path, _PATHS, n=1, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _paths_in(section: str) -> list[str]:
    return [path for path in _PATHS if path.rpartition(".")[0] == section]


def _all_paths(annotation: Any, path: str = "") -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        for name, field in annotation.model_fields.items():
            yield f"{path}{name}"
            yield from _all_paths(field.annotation, f"{path}{name}.")
    for inner in get_args(annotation):
        yield from _all_paths(inner, path)


_PATHS = list(dict.fromkeys(_all_paths(Config)))  # sections of several types share keys


def _find(source: str | Path, folder: Path = Path(), where: str = "") -> Path:
    for path in (folder / source, _PRESETS / f"{source}.yaml"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{where}no configuration '{source}': neither a file nor a preset ({', '.join(presets())})"
    )


def _read_file(path: Path, above: tuple[Path, ...] = ()) -> Document:
    """A YAML file merged over its ``base:``; ``above`` are the files that are based on this one."""
    with path.open("rb") as file:
        document = _parse_yaml(file.read(_MAX_BYTES + 1), f"{path} is")
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path} holds {held}, not a mapping of keys to values")
    document = _with_current_keys(document, str(path))
    base = document.pop("base", None)
    if base is None:
        return document
    above = (*above, path.resolve())
    return _with_fitting_warm_up(_merge(_read_file(_base(path, base, above), above), document), document)


def _base(path: Path, base: Any, above: tuple[Path, ...]) -> Path:
    """The ``base`` of a file. It must be a ``.yaml`` file, so that no other file is read."""
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {_SHORT.repr(base)} is not the name of a configuration")
    found = _find(base, path.parent, f"{path}: base: ")
    if any(one.suffix.lower() not in (".yaml", ".yml") for one in (found, found.resolve())):
        raise ConfigError(f"{path}: base {found} is not a .yaml file; give a configuration")
    if found.resolve() in above:
        raise ConfigError(f"{path}: base {found} is itself based on {path.name}; name another file")
    if len(above) > _MAX_BASES:
        raise ConfigError(f"{path}: more than {_MAX_BASES} bases in a chain; use fewer files")
    return found


def _with_current_keys(document: Document, origin: str, *, warn: bool = True) -> Document:
    """The document with the former keys of :data:`RENAMED_KEYS` renamed; ``warn`` logs them."""
    for old, new in RENAMED_KEYS.items():
        (section, key), new_key = old.split("."), new.partition(".")[2]
        held = document.get(section)
        if not isinstance(held, dict) or key not in held:
            continue
        if new_key in held:
            raise ConfigError(f"{origin}: {old} is the former name of {new}, and both are given; keep {new}")
        if warn:
            line = f"{origin}: {old} is now called {new}; the next release does not read the former name"
            log_once(line, logging.WARNING)
        document = {**document, section: {new_key if one == key else one: value for one, value in held.items()}}
    return document


def _parse_override(override: str) -> Document:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        raise ConfigError(f"override '{override}' is not of the form key.sub=value")
    value = _parse_yaml(text, f"override '{override}': the value is")
    for part in reversed(key.split(".")):
        value = {part: value}
    return _with_current_keys(value, f"override '{override}'")


def _parse_yaml(content: str | bytes, what: str) -> Any:
    """The content of a YAML text.

    Errors begin with ``what`` and do not quote the text: a file given by mistake, or by someone else, may hold secrets.
    """
    try:
        if len(content) > _MAX_BYTES:
            raise yaml.YAMLError(f"larger than {_MAX_BYTES // 2**20} MiB, too large for a configuration")
        return yaml.load(content if isinstance(content, str) else content.decode("utf-8-sig"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = where + _QUOTED.sub("'...'", ", ".join(part for part in (error.context, error.problem) if part))
    except yaml.reader.ReaderError as error:
        problem = f"character {error.position + 1} is not allowed in YAML"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = str(error)
    except RecursionError:
        problem = "nested too deeply"
    except Exception as error:  # YAML's constructors raise many types for a value that contradicts its tag
        problem = f"a value contradicts its tag ({type(error).__name__})"
    raise ConfigError(f"{what} not YAML: {problem}")


class _Loader(yaml.SafeLoader):
    """Reads numbers and truth values only as Python writes them.

    Refuses keys that occur twice, of which YAML would keep the last one, and documents that aliases make huge.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.sizes: dict[int, int] = {}  # of nodes; an alias counts as the values it repeats

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None
        line = node.start_mark.line + 1
        if not is_alias:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            inner = node.value if isinstance(node, yaml.SequenceNode) else itertools.chain(*pairs)
            self.sizes[id(node)] = 1 + sum(self.sizes[id(one)] for one in inner)
        elif id(node) not in self.sizes:
            raise yaml.YAMLError(f"line {line}: an alias contains itself")
        if self.sizes[id(node)] > _MAX_VALUES:
            raise yaml.YAMLError(
                f"line {line}: more than {_MAX_VALUES:,} values, counting those repeated by aliases"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the constructor refuses it
            key = "<<" if key_node.tag == f"{_TAG}merge" else self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise yaml.YAMLError(f"key {key!r} occurs twice, in lines {lines[key]} and {line}; keep one")
            lines[key] = line
        return node


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
