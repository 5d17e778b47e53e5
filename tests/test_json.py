"""JSON is read as by Python's own parser, but a repeated key is an error."""

from __future__ import annotations

import gc
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitad.runtime.files import NotJsonError, RepeatedKeyError, parse_json

FLOATS = st.floats(allow_nan=False) | st.builds(
    lambda digits, exponent: f"{digits}e{exponent}", st.integers(0, 10**25), st.integers(-340, 320)
).map(float)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS | st.sampled_from([":", '":', "\\", '\\":']),
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS | st.sampled_from(["a:", '"', ":"]), inner),
)


def bits(content: Any) -> Any:
    """The same with floats as their bytes, so that NaN equals NaN, and 0.0 not -0.0."""
    if isinstance(content, float):
        return "nan" if math.isnan(content) else struct.pack("d", content)
    if isinstance(content, list):
        return [bits(one) for one in content]
    return (
        {key: bits(one) for key, one in content.items()} if isinstance(content, dict) else (content, type(content))
    )


@given(VALUES, st.booleans())
@example([1e308, 5e-324, -0.0, 2**63, -(2**64), 10**400, math.inf, -math.inf, math.nan], True)
def test_what_is_written_is_read(content: Any, ascii_only: bool) -> None:
    for indent in (None, 1):
        text = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
        assert bits(parse_json(text, "x")) == bits(json.loads(text)) == bits(content)
        assert bits(parse_json(text.encode(), "x")) == bits(content)


@given(st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example("0.1000000000000000055511151231257827")
@example("2.4703282292062328e-324")
@example("1e999")
@example("-0")
@example("01")
def test_a_number_is_the_nearest_float(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(NotJsonError):
            parse_json(text, "x")
    else:
        assert bits(parse_json(text, "x")) == bits(expected)


@example("\x001")  # as bytes it would be a number in UTF-16
@example("1\x00")
@given(st.text('{}[]":,\\ua1e.-+ \n\x00NIt', max_size=12))
def test_what_is_no_json_is_refused(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(NotJsonError, match=r"^x: not JSON: "):
            parse_json(text, "x")
    else:
        try:
            assert bits(parse_json(text, "x")) == bits(expected)
        except (RepeatedKeyError, NotJsonError):
            assert text.count(":") > 1 or "\\u" in text


@given(
    st.dictionaries(TEXTS, TEXTS, min_size=1).map(lambda content: list(content.items())),
    st.integers(0),
    VALUES,
    VALUES,
)
def test_a_repeated_key_is_named_wherever_it_is(
    pairs: list[tuple[str, str]], which: int, other: Any, around: Any
) -> None:
    repeated = pairs[which % len(pairs)][0]
    rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs]
    text = f"[{json.dumps(around)}, {{{', '.join([*rows, f'{json.dumps(repeated)}:{json.dumps(other)}'])}}}]"
    with pytest.raises(RepeatedKeyError, match=r"^x: key .* occurs more than once in "):
        parse_json(text, "x")
    assert parse_json(f"[{json.dumps(around)}, {{{', '.join(rows)}}}]", "x")[1] == dict(pairs)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_encodings_of_json_are_read(encoding: str) -> None:
    assert parse_json('{"ä": ["한국어", 1.5]}'.encode(encoding), "x") == {"ä": ["한국어", 1.5]}


def test_deep_content_is_read_or_refused() -> None:
    deep = parse_json("[" * 400 + "]" * 400, "x")
    for _ in range(399):
        (deep,) = deep
    with pytest.raises(NotJsonError, match="recursion"):
        parse_json("[" * 10**6, "x")


@pytest.mark.parametrize("text", ["[1, {}]", '{"a": 1, "a": 2}', "[", "nul"])
@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before(text: str, enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        parse_json(text, "x")
    except ValueError:
        pass
    finally:
        was_enabled = gc.isenabled()
        gc.enable()
    assert was_enabled == enabled
