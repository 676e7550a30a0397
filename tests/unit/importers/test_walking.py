"""JSON texts of any size are read in parts, also if parts of them are damaged."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exai.importers.reading import walking
from exai.importers.reading.lines import read_json_lines
from exai.importers.reading.walking import Begun, BrokenOff, Ended, Part, Shape, parse, walk

INNER = Shape("inner", "[")
OUTER = Shape("outer", members={"inner": INNER})
ROOT = Shape("root", "[", items=OUTER)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def _read(text: bytes, shapes: Any = (ROOT, OUTER), limit: int = 10_000_000, chunk: int = 262_144) -> list[Any]:
    class Small(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(chunk, size) if size and size > 0 else chunk)

    return list(walk(Small(text), shapes, limit))


def test_descended_containers_are_read_in_parts() -> None:
    steps = _read(b' [ {"a": 1, "inner": ["x", {"y": [1, 2]}], "b": {"inner": []}}, 7 ]')

    assert [(type(each).__name__, getattr(each, "key", None), getattr(each, "raw", None)) for each in steps] == [
        ("Begun", 0, None),
        ("Begun", 0, None),
        ("Part", "a", b"1"),
        ("Begun", "inner", None),
        ("Part", 0, b'"x"'),
        ("Part", 1, b'{"y": [1, 2]}'),
        ("Ended", None, None),
        ("Part", "b", b'{"inner": []}'),
        ("Ended", None, None),
        ("Part", 1, b"7"),
        ("Ended", None, None),
    ]


@given(value=st.lists(st.dictionaries(st.sampled_from(["a", "b", "inner"]), JSON)), chunk=st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_parts_are_those_of_the_text_however_it_is_cut(value: list[dict[str, Any]], chunk: int) -> None:
    steps = _read(json.dumps(value).encode(), chunk=chunk)
    found: list[dict[str, Any]] = []
    inner: list[Any] | None = None
    for step in steps:
        if isinstance(step, Begun) and step.shape is OUTER:
            found.append({})
        elif isinstance(step, Begun) and step.shape is INNER:
            inner = []
        elif isinstance(step, Ended) and step.shape is INNER:
            found[-1]["inner"] = inner
            inner = None
        elif isinstance(step, Part):
            assert step.raw is not None
            if inner is not None:
                inner.append(parse(step.raw))
            else:
                found[-1][step.key] = parse(step.raw)
        assert not isinstance(step, BrokenOff)

    assert found == value


@given(text=st.binary(max_size=60) | st.text(alphabet='[]{}",:\\ax1 \n').map(str.encode), chunk=st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_with_all_containers_closed(text: bytes, chunk: int) -> None:
    steps = _read(text, chunk=chunk)

    assert sum(isinstance(each, Begun) for each in steps) == sum(isinstance(each, Ended) for each in steps)


def test_a_truncated_text_keeps_what_is_complete() -> None:
    steps = _read(b'[{"a": 1, "inner": ["x", "y')

    assert [each.raw for each in steps if isinstance(each, Part)] == [b"1", b'"x"']
    assert [each.reason for each in steps if isinstance(each, BrokenOff)] == ["the text ends in the middle"]


def test_a_part_beyond_the_limit_is_passed_without_being_kept() -> None:
    steps = _read(b'[{"a": "%s", "b": 2}]' % (b"x" * 5_000), limit=1_000)

    assert [(each.key, each.raw) for each in steps if isinstance(each, Part)] == [("a", None), ("b", b"2")]


def test_places_are_lines_and_bytes_of_the_text() -> None:
    steps = _read(b'[\n {"a":\n 1},\n {"b": 2}\n]', chunk=3)

    assert [each.where for each in steps if isinstance(each, Part)] == ["line 3, byte 10", "line 4, byte 21"]


def test_containers_may_be_nested_100_000_deep() -> None:
    deep = Shape("deep", "[")
    deep.items = deep
    steps = _read(b"[" * 100_000 + b"]" * 100_000, (deep,))

    assert len(steps) == 200_000
    assert len(_read(b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]")) == 5
    with pytest.raises(ValueError, match="too deeply"):
        parse(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize("text", ["NaN", '"\\ud800"', "123456789012345678901234567890", '"a\tb"'])
def test_values_that_other_programs_write_are_read(text: str) -> None:
    assert parse(text.encode()) is not None


def test_lines_are_numbered_and_long_ones_are_passed() -> None:
    lines = list(read_json_lines(io.BytesIO(b"a\n\n" + b"x" * 3_000_000 + b"\nb"), 1_000))

    assert [(each.number, each.raw, each.has_end) for each in lines] == [
        (1, b"a", True),
        (3, None, True),
        (4, b"b", False),
    ]
    assert lines[1].head == b"x" * 4_096


def test_chunks_are_small() -> None:
    assert walking.CHUNK_BYTES <= 1_048_576
