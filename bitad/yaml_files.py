"""YAML as configurations are written in it: values as they are typed, no key twice, and bounded.

YAML 1.1 reads ``12:30`` as 750, ``010`` as 8, ``no`` as false and ``1e-4`` as text. Here a value is a number only where
Python writes the number like that, and a truth value only as ``true`` or ``false``. All else is text, and the type of
its key says what it means: a name of ``007`` is that, and a rate of ``1e-4`` is 0.0001.

This module does not import torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

# A configuration has some hundred values in a few kilobytes.
_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
# What YAML's errors quote of a text, but for names of its own syntax.
_QUOTED = re.compile(r"'(?!<).{2,}'")


class YamlError(ValueError):
    """A text that is not YAML of ours; the message is one line, without the text's own lines."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError: it cannot be read.
        YamlError: as :func:`parse_yaml`, or it is larger than a configuration can be.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise YamlError(f"larger than {_MOST_BYTES // 2**20} MiB, which no configuration is")
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise YamlError(f"no text: {error.reason} at byte {error.start}") from None


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Aliases (``*name``) and merges (``<<``) are allowed as long as they do not repeat so much that the content explodes.

    Raises:
        YamlError: it is not YAML, a mapping has a key twice, or it has too many values. The message says the line, but
            not what stands there: a file named by mistake, or by someone else, may hold secrets.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(loader, root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = ", ".join(said for said in (error.context, error.problem) if said)
        raise YamlError(where + _QUOTED.sub("'...'", problem)) from None
    except RecursionError:
        raise YamlError("nested too deeply") from None
    except yaml.reader.ReaderError as error:
        raise YamlError(f"character {error.position + 1} of it is one that YAML does not allow") from None
    except Exception as error:  # a value that its own tag contradicts raises whatever YAML's constructors lead to
        raise YamlError(f"a value is not what its tag says ({type(error).__name__})") from None


class _Loader(yaml.SafeLoader):
    """Takes values as they are typed."""


def _as_typed(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool | int | float | str:
    """A number or truth value that is written as Python writes it, in small letters; else the text itself.

    Infinity and NaN are written as YAML writes them: ``.inf``, ``-.inf``, ``.nan``.
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


for _sort in ("bool", "int", "float", "timestamp", "value"):
    _Loader.add_constructor(f"{_TAG}{_sort}", _as_typed)


def _check(loader: _Loader, root: yaml.Node) -> None:
    """Refuse keys that occur twice, of which only the last would be kept, and what aliases would make huge."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            raise YamlError(f"line {node.start_mark.line + 1}: an alias stands within what it stands for")
        if id(node) not in sizes:
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                _check_keys(loader, node)
                inner = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                inner = node.value
            # An alias counts as what it stands for.
            sizes[id(node)] = 1 + sum(size(part, above | {id(node)}) for part in inner)
            if sizes[id(node)] > _MOST_VALUES:
                raise YamlError(
                    f"line {node.start_mark.line + 1}: more than {_MOST_VALUES:,} values, by aliases or not"
                )
        return sizes[id(node)]

    size(root, frozenset())


def _check_keys(loader: _Loader, node: yaml.MappingNode) -> None:
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue  # a key that no mapping can have, which the constructor says
        key = "<<" if key_node.tag == f"{_TAG}merge" else loader.construct_object(key_node)
        line = key_node.start_mark.line + 1
        if key in lines:
            raise YamlError(f"key {key!r} occurs twice, in lines {lines[key]} and {line}; keep one")
        lines[key] = line
