"""Configurations as text: YAML with a comment for each value, and the JSON schema that editors use."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bitad.config.names import MAPPING_KEYS
from bitad.runtime.files import atomic_write

# The name of the JSON schema beside the configurations that name it.
SCHEMA_FILE = "bitad.schema.json"

_NO_WRAPPING = 2**31


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots between them; the mapping of a key of ``MAPPING_KEYS`` is a value."""
    values: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in MAPPING_KEYS:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def commented_yaml(values: Mapping[str, tuple[Any, str]]) -> str:
    """Nested YAML of dotted keys, each with a value and a comment, which may be empty."""
    lines: list[str] = []
    sections: list[str] = []
    for dotted, (value, comment) in values.items():
        *path, key = dotted.split(".")
        for depth, section in enumerate(path):
            if sections[: depth + 1] != path[: depth + 1]:
                sections = path[: depth + 1]
                lines.append(f"{'  ' * depth}{section}:")
        sections = path
        dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=_NO_WRAPPING)
        text = dumped.removesuffix("\n...\n").strip()
        lines.append(f"{'  ' * len(path)}{key}: {text}" + (f"  # {comment}" if comment else ""))
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file. Comments of :mod:`bitad.config.schema` describe the keys."""
    from bitad.config.schema import Config

    schema = Config.model_json_schema()
    sections = {"Config": schema, **schema["$defs"]}
    for (section, key), comment in _comments().items():
        if section in sections and key in sections[section].get("properties", {}):
            sections[section]["properties"][key]["description"] = comment
    for section in sections.values():
        section.pop("required", None)  # the file named by `base` may have the key
        section["description"] = re.sub(r":\w+:`([\w.]+)`", r"\1", section["description"]).replace("``", "`")
    schema["properties"]["base"] = {
        "type": "string",
        "description": "the file or preset that this configuration changes",
    }
    schema["anyOf"] = [{"required": ["base"]}, {"required": ["name", "data"]}]
    return schema


def schema_text() -> str:
    """The JSON schema of a configuration file as a document."""
    return json.dumps(json_schema(), indent=2) + "\n"


def write_schema(path: Path) -> None:
    """Write the JSON schema of a configuration file; replace that of another version."""
    with atomic_write(path) as partial:
        partial.write_text(schema_text(), encoding="utf-8")


def _comments() -> dict[tuple[str, str], str]:
    """The comment of each key, behind it or above it, by class and key."""
    from bitad.config import schema

    source = Path(schema.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[tuple[str, str], str] = {}
    for section in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        for field in section.body:
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            above, line = list[str](), field.lineno - 1
            while line in comments and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, comments[line])
                line -= 1
            if text := comments.get(field.end_lineno or 0) or " ".join(above):
                found[section.name, field.target.id] = text
    return found
