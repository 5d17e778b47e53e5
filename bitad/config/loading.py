"""Reads configurations.

A configuration is a YAML file or a preset. It may extend another one by ``base:``, and dotted overrides change it.
Unknown keys, wrong types and impossible combinations are all reported at once, by path.

Paths in a user's file are relative to that file; those of presets and overrides, and ``output``, to the working
directory.

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
import os
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import ValidationError

from bitad.config.names import MAPPING_KEYS, RENAMED_KEYS, WEIGHTS_BY_NAME
from bitad.config.rules import broken_rules
from bitad.config.schema import FIELDS_ALONE, Config, DataConfig, Section, TrainingConfig, given_path
from bitad.config.text import flat
from bitad.runtime.log import did_you_mean, log_once

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_PRESETS = Path(__file__).parent / "presets"
# A configuration has some hundred values in a few kilobytes.
_MAX_BYTES = 2**20
_MAX_VALUES = 100_000
_MAX_BASES = 30
_WARM_UP_SHARE = 0.1  # of the schedule, after shortening
_COMMAND_LINE, _DEFAULT = "command line", "default"
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
    return sorted(path.relative_to(_PRESETS).with_suffix("").as_posix() for path in _PRESETS.rglob("*.yaml"))


def preset_descriptions() -> dict[str, str]:
    """The first line of each preset, which says what it is."""
    lines = {
        name: (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0] for name in presets()
    }
    return {name: line.removeprefix("#").strip() for name, line in lines.items()}


@dataclass(frozen=True)
class _Layer:
    """The values of a configuration that one origin sets: a preset, a file or the command line."""

    origin: str
    values: Document


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        source: a YAML file, or the name of one of :func:`presets`.
        overrides: ``key.sub=value`` each; the value is read as YAML.

    Raises:
        FileNotFoundError: there is no such file or preset.
        ConfigError: names every fault by its path.
    """
    return _load(source, overrides)[0]


def load_run_config(directory: Path) -> Config:
    """The configuration of a run directory, whose paths are absolute.

    Those of earlier versions are relative to the working directory.

    Raises:
        FileNotFoundError: the directory is no run.
        ConfigError: as :func:`load_config`.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        folder = directory.parent
        run = (
            folder
            if directory.is_file() and (folder / "config.yaml").is_file()
            else "a folder that `bitad train` wrote"
        )
        raise FileNotFoundError(f"{directory} is not a run directory: it has no config.yaml; give {run}")
    return _validated(_merged(_read_layers(path, is_run=True)), str(path), [], ())


def require_annotations(data: DataConfig) -> None:
    """Raises FileNotFoundError if the annotation file or the list of classes does not exist."""
    for key, path in (("annotations", data.annotations), ("classes", data.classes)):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; correct data.{key}")


def explain_config(source: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """Reads a configuration, as :func:`load_config`, and tells where its values come from.

    Returns:
        the configuration, and by the path of each value ``default``, ``preset NAME``, a file, ``command line``, or the
        reason of a warm-up that was shortened.
    """
    config, layers = _load(source, overrides)
    return config, {path: _origin(path, layers) for path in flat(config.model_dump(mode="json"))}


def _load(source: str | Path, overrides: Sequence[str]) -> tuple[Config, list[_Layer]]:
    changes, faults, unread = _read_overrides(overrides)
    layers = _with_fitting_warm_up([*_read_layers(_find(source)), _Layer(_COMMAND_LINE, changes)])
    return _validated(_merged(layers), str(source), faults, unread), layers


def _origin(path: str, layers: Sequence[_Layer]) -> str:
    parts = path.split(".")
    for layer in reversed(layers):
        values: Any = layer.values
        for depth, part in enumerate(parts, start=1):
            if part not in values:
                break
            values = values[part]
            if depth == len(parts):
                return layer.origin
            if not isinstance(values, dict):  # it replaces the section of lower layers
                return _DEFAULT
    return _DEFAULT


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration of a trained network with some keys changed. Raises as :func:`load_config`."""
    changes, faults, unread = _read_overrides(overrides)
    document = _merge(config.model_dump(mode="json"), changes)
    return _validated(document, "with overrides", faults, {*unread, "training"})


def parse_config(document: Document, origin: str) -> Config:
    """The configuration of a trained network, also of one that today's rules of training refuse."""
    return _validated(_with_current_keys(document, origin, warn=False), origin, [], {"training"})


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError for overrides that no configuration can have: of another form, or of unknown keys."""
    changes, faults, _ = _read_overrides(overrides)
    sections = {path.rpartition(".")[0] for path in _PATHS}
    for path in flat(changes):
        while path not in _PATHS and path.rpartition(".")[0] not in sections:
            path = path.rpartition(".")[0]  # the key that is unknown, not one within it
        if path not in _PATHS:
            faults.append(f"{path}: unknown key{_suggestion(path, is_dotted=False)}")
    if faults:
        raise ConfigError(f"configuration with overrides: {'; '.join(dict.fromkeys(faults))}")


def _read_overrides(overrides: Sequence[str]) -> tuple[Document, list[str], set[str]]:
    """The values of overrides, their faults, and the paths that could not be read."""
    faults, unread, set_by = list[str](), set[str](), dict[str, str]()
    changes: Document = {}
    for override in overrides:
        try:
            change = _parse_override(override)
        except ConfigError as error:
            faults.append(str(error))
            unread.add(override.partition("=")[0])
            continue
        for path in flat(change):
            for other in set_by:
                # An override of a section also sets every key within it.
                if f"{other}.".startswith(f"{path}.") or f"{path}.".startswith(f"{other}."):
                    both = f"'{set_by[other]}' and '{override}'"
                    faults.append(f"overrides {both} both set {max(other, path)}; give one")
                    unread.add(other)
            set_by[path] = override
        changes = _merge(changes, change)
    return changes, faults, unread


def _merge(below: Document, above: Document, path: str = "") -> Document:
    """Sections are merged key by key; the mapping of a key of ``MAPPING_KEYS`` is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old, is_section = merged.get(key), f"{path}{key}" not in MAPPING_KEYS
        if is_section and isinstance(old, dict) and isinstance(value, dict):
            value = _merge(old, value, f"{path}{key}.")
        merged[key] = value
    return merged


def _merged(layers: Sequence[_Layer]) -> Document:
    empty: Document = {}
    return reduce(_merge, (layer.values for layer in layers), empty)


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two mappings of a configuration differ, by path, with both values."""
    for key, new in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and f"{path}{key}" not in MAPPING_KEYS:
            yield from differences(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", old, new


def _with_fitting_warm_up(layers: list[_Layer]) -> list[_Layer]:
    """Layers with a warm-up that fits the schedule, if the last one sets the schedule alone."""
    training, last = _merged(layers).get("training", {}), layers[-1].values.get("training", {})
    if not isinstance(training, dict) or not isinstance(last, dict) or "warmup_epochs" in last:
        return layers
    if "warmup_epochs" in training and not {"epochs", "schedule_epochs"} & last.keys():
        return layers
    values = {**TrainingConfig().model_dump(), **training}
    schedule, warm_up = values["schedule_epochs"] or values["epochs"], values["warmup_epochs"]
    if not {type(schedule), type(warm_up)} <= {int, float} or not 1 <= schedule <= warm_up:
        return layers
    fitting = round(schedule * _WARM_UP_SHARE, 10)
    why = f"a tenth of the schedule of {schedule:g} epochs"
    log_once(
        f"training.warmup_epochs is {fitting:g}, {why}, instead of {warm_up:g}, which is longer than the schedule"
    )
    return [*layers, _Layer(why, {"training": {"warmup_epochs": fitting}})]


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


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_holds_path, get_args(annotation)))


def _keys_of_paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if _holds_path(field.annotation):
            yield f"{prefix}{name}"
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from _keys_of_paths(inner, f"{prefix}{name}.")


_PATHS = list(dict.fromkeys(_all_paths(Config)))  # sections of several types share keys
KEYS_OF_PATHS = [key for key in _keys_of_paths(Config) if key != "output"]


def _find(source: str | Path, folder: Path = Path(), where: str = "") -> Path:
    for path in (folder / source, _PRESETS / f"{source}.yaml"):
        if path.is_file():
            return path
    names, given, near = presets(), Path(source), list[str]()
    with suppress(OSError, ValueError):  # a folder that cannot be listed has no similar files
        near = [str(given.parent / path.name) for path in sorted((folder / given).parent.glob("*.y*ml"))]
    raise FileNotFoundError(
        f"{where}no configuration '{source}': neither a file nor a preset ({', '.join(names)})"
        f"{did_you_mean(str(source), [*near, *names])}"
    )


def _read_layers(path: Path, above: tuple[Path, ...] = (), *, is_run: bool = False) -> list[_Layer]:
    """The values of a YAML file and of its ``base:``, lowest first.

    Args:
        above: the files that are based on this one.
        is_run: relative paths are relative to the working directory.
    """
    with path.open("rb") as file:
        document = _parse_yaml(file.read(_MAX_BYTES + 1), f"{path} is")
    if not isinstance(document, dict):
        held = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path} holds {held}, not a mapping of keys to values")
    document = _with_current_keys(document, str(path))
    base = document.pop("base", None)
    if path.is_relative_to(_PRESETS):
        origin = f"preset {path.relative_to(_PRESETS).with_suffix('').as_posix()}"
    else:
        origin = str(path)
        if not is_run:
            document = _with_paths(document, lambda key, value: _beside(path, key, value))
    layer = _Layer(origin, document)
    if base is None:
        return [layer]
    above = (*above, path.resolve())
    return _with_fitting_warm_up([*_read_layers(_base(path, base, above), above, is_run=is_run), layer])


def _beside(file: Path, key: str, value: str) -> str:
    """A path in a file, which is relative to the file's folder; where only the working directory has it, to that."""
    beside = _without_detours(file.parent / value)
    if os.path.exists(beside) or not os.path.exists(value):
        return beside
    log_once(
        f"{file}: {key}: {value} is read from the working directory, because there is no {beside}; paths in a file are "
        "relative to the file, and the next release reads them only there",
        logging.WARNING,
    )
    return value


def _without_detours(path: Path) -> str:
    """``folder/../file`` -> ``file``, unless ``folder`` is a link to elsewhere."""
    short = os.path.normpath(path)
    return short if os.path.realpath(short) == os.path.realpath(path) else str(path)


def absolute_paths(config: Config) -> Config:
    """The configuration with absolute paths, which means the same in every working directory."""
    document = config.model_dump(mode="json")
    document["output"] = _without_detours(config.output.absolute())
    document = _with_paths(document, lambda _, value: _without_detours(Path(value).absolute()))
    return Config.model_validate(document, context=FIELDS_ALONE)


def without_folders(config: Config) -> Config:
    """The configuration with only the last part of each path, to be given away; names of weights stay."""
    document = _with_paths(config.model_dump(mode="json"), lambda _, value: Path(value).name)
    document["output"] = Config.model_fields["output"].default
    return Config.model_validate(document, context=FIELDS_ALONE)


def _with_paths(document: Document, change: Callable[[str, str], str]) -> Document:
    """A document with its paths changed, except ``output`` and names of weights."""
    document = copy.deepcopy(document)
    for key in KEYS_OF_PATHS:
        *sections, last = key.split(".")
        section: Any = document
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            value = section[last]
            change_one = partial(_with_path_changed, change=partial(change, key))
            section[last] = [*map(change_one, value)] if isinstance(value, list) else change_one(value)
    return document


def _with_path_changed(value: Any, *, change: Callable[[str], str]) -> Any:
    with suppress(ValueError):  # none, or a fault that is reported later
        path = str(given_path(value))
        return value if path.startswith(WEIGHTS_BY_NAME) else change(path)
    return value


def _base(path: Path, base: Any, above: tuple[Path, ...]) -> Path:
    """The ``base`` of a file. It must be a ``.yaml`` file, so that no other file is read."""
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: {_SHORT.repr(base)} is not the name of a configuration")
    found = Path(_without_detours(_find(base, path.parent, f"{path}: base: ")))
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
