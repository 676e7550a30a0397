"""Invalid values are refused before any I/O, each with the field's path and a cure."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf, nan
from typing import Any
from uuid import UUID

import pytest

from exai.errors import InvalidArgument
from exai.models import FileId, NewMessage
from exai.settings.load import LimitSettings
from exai.validation import (
    MAX_KEY_CHARS,
    check_file_ids,
    check_json,
    check_messages,
    check_number,
    check_optional_name,
    check_text,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMITS = LimitSettings(message_bytes=2_048, append_bytes=4_096, append_messages=3)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ([NewMessage("user", "x")] * 4, "messages"),
        ([NewMessage("user", "fine"), NewMessage("user", "nul\x00")], "messages[1].content"),
        ([NewMessage("user", "\ud800")], "messages[0].content"),
        ([NewMessage("user", "x" * 2_049)], "messages[0].content"),
        ([NewMessage("user", "é" * 1_025)], "messages[0].content"),
        ([NewMessage("user", "x" * 2_000)] * 3, "messages"),
        ([NewMessage("user", "x", metadata={"a": "\x00"})], "messages[0].metadata"),
        ([NewMessage("user", "x", metadata={"a": object()})], "messages[0].metadata"),
        ([NewMessage("user", "x", metadata={"a": float("nan")})], "messages[0].metadata"),
        ([NewMessage("user", "x", metadata={"a": "\ud800"})], "messages[0].metadata"),
        ([NewMessage("user", "x", kind="\x00")], "messages[0].kind"),
        ([NewMessage("user", "x", kind="\ud800")], "messages[0].kind"),
        ([NewMessage("nobody", "x")], "messages[0].role"),  # type: ignore[arg-type]
    ],
)
def test_unstorable_messages_are_refused_by_field(messages: list[NewMessage], field: str) -> None:
    """Postgres text holds no NUL and no surrogates; jsonb holds no NaN; sizes are EXAI's own limits."""
    with pytest.raises(InvalidArgument) as caught:
        check_messages(messages, LIMITS)
    assert caught.value.field == field
    assert caught.value.cure


def test_message_of_extreme_size_is_refused_by_its_size() -> None:
    """300 MB in one message, such as a whole mailbox."""
    with pytest.raises(InvalidArgument, match="is 300,000,000 bytes; the limit is") as caught:
        check_messages([NewMessage("user", "short"), NewMessage("user", "x" * 300_000_000)], LIMITS)
    assert caught.value.field == "messages[1].content"


def test_deep_metadata_is_refused_not_a_recursion_error() -> None:
    """Ten thousand levels are more than any JSON reader survives."""
    deep: dict[str, object] = {}
    for _ in range(10_000):
        deep = {"a": deep}
    with pytest.raises(InvalidArgument, match="metadata"):
        check_messages([NewMessage("user", "x", metadata=deep)], LIMITS)


@pytest.mark.parametrize("name", ["", "k" * 201])
def test_empty_or_overlong_names_are_refused(name: str) -> None:
    """An empty key would make every keyless call the same request."""
    with pytest.raises(InvalidArgument):
        check_optional_name("idempotency_key", name, MAX_KEY_CHARS)


@pytest.mark.parametrize("number", [-1, 2**63, 2**70])
def test_numbers_that_no_message_can_have_are_refused(number: int) -> None:
    """JSON numbers exceed the types of Postgres, and a database error would look like a defect."""
    with pytest.raises(InvalidArgument):
        check_number("before_seq", number)


@pytest.mark.parametrize("file_id", ["x", "", "urn:uuid:e8a10000-0000-4000-8000-000000000000", "E" * 32])
def test_what_is_no_id_of_a_stored_file_is_refused(file_id: str) -> None:
    """Python reads more spellings of a UUID than Postgres does."""
    with pytest.raises(InvalidArgument):
        check_file_ids([FileId(file_id)], LIMITS)


@pytest.mark.parametrize("text", ["", "plain", "Zürich 東京 🙂", "\x01\x7f\ufffe", "\\u0000"])
def test_storable_text_passes(text: str) -> None:
    """Control characters other than NUL are text."""
    check_text("content", text, 100)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff y", "\ude00\ud83d"])
def test_text_postgres_cannot_hold_is_refused_by_field(text: str) -> None:
    """A NUL, and halves of surrogate pairs, which JSON lets through."""
    with pytest.raises(InvalidArgument) as caught:
        check_messages([NewMessage("user", "fine"), NewMessage("user", text)], LIMITS)
    assert caught.value.field == "messages[1].content"


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x\0"},
        {"a\0": 1},
        {"a": [{"b": ["\0"]}]},
        {"a": "\ud800"},
        {"a": object()},
        {"a": 2**70},
        {1: 2},
        {"a": {1, 2}},
        {"a": b""},
        {"a": [NOON]},
        {"a": UUID(int=1)},
        {"a": -inf},
        {"a": (nan,)},
    ],
)
def test_metadata_postgres_cannot_hold_is_refused(value: dict[Any, Any]) -> None:
    """jsonb refuses NUL, and plain JSON has no objects, huge integers or numeric keys."""
    with pytest.raises(InvalidArgument) as caught:
        check_json("metadata", value, 1_000)
    assert caught.value.field == "metadata"


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    r"""The six characters \u0000 are text like any other."""
    assert check_json("metadata", {"a": "\\u0000"}, 1_000) == b'{"a":"\\\\u0000"}'


def test_metadata_has_a_size_limit() -> None:
    """It is returned with every page."""
    with pytest.raises(InvalidArgument):
        check_json("metadata", {"a": "x" * LIMITS.metadata_bytes}, LIMITS.metadata_bytes)
