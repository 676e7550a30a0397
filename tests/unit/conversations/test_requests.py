"""What is refused before any I/O, each with the field's path and a cure."""

from __future__ import annotations

import pytest

from exai.conversations.requests import (
    ChatRequest,
    check_files,
    check_messages,
    check_names,
    check_number,
    content_hash,
)
from exai.conversations.titles import OPENING_CHARS
from exai.errors import InvalidArgument
from exai.models import LOCAL_OWNER, FileId, NewMessage
from exai.settings.load import LimitSettings

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


def test_what_no_limit_was_meant_for_is_refused_by_its_size() -> None:
    """300 MB in one message, as somebody's whole mailbox may be."""
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


@pytest.mark.parametrize("names", [("", None, None), (None, "", None), (None, None, ""), (None, "k" * 201, None)])
def test_empty_or_overlong_names_are_refused(names: tuple[str | None, str | None, str | None]) -> None:
    """An empty key would make every keyless call the same request."""
    with pytest.raises(InvalidArgument):
        check_names(*names)


@pytest.mark.parametrize("number", [-1, 2**63, 2**70])
def test_numbers_that_no_message_can_have_are_refused(number: int) -> None:
    """JSON goes beyond what Postgres counts with, and an error of the database would say that EXAI is broken."""
    with pytest.raises(InvalidArgument):
        check_number("before_seq", number)


@pytest.mark.parametrize("file_id", ["x", "", "urn:uuid:e8a10000-0000-4000-8000-000000000000", "E" * 32])
def test_what_is_no_id_of_a_stored_file_is_refused(file_id: str) -> None:
    """Python reads more spellings of a UUID than Postgres does."""
    with pytest.raises(InvalidArgument):
        check_files([FileId(file_id)], LIMITS)


def test_hash_depends_on_content_and_not_on_key_order() -> None:
    """Two requests with one key are the same exactly when their content is."""
    assert content_hash("a", {"x": 1, "y": 2}) == content_hash("a", {"y": 2, "x": 1})
    assert content_hash("a", "b") != content_hash("ab", "")


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("What is two and two?", "What is two and two?"),
        ("\n \t\nFirst\tline\x1b[1m  goes\n\nsecond", "First line [1m goes"),
        ("\x00\nSaid", "Said"),
        ("\x00", None),
        ("word " * 100, "word " * 14 + "word…"),
        ("Read " + "x" * 100, "Read " + "x" * 74 + "…"),
        ("x" * 80, "x" * 80),
        ("\n" * 2_000_000 + "late", "late"),
    ],
)
def test_new_conversation_is_called_by_how_its_question_begins(prompt: str, title: str | None) -> None:
    """One line, short, and nothing in it that a terminal would obey."""
    assert ChatRequest(LOCAL_OWNER, prompt).title_or_opening == title
    assert title is None or len(title) <= OPENING_CHARS


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("ක්\u200dරමලේඛනය ගැන", "ක්\u200dරමලේඛනය ගැන"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👨\u200d👩\u200d👧 trip", "👨\u200d👩\u200d👧 trip"),
        ("❤\ufe0f and 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", None),
        ("\u0601\u0661 price", None),
        ("\U0001faff\U0001fae9 new", None),
        ("soft\u00adhyphen\ufeff", "softhyphen"),
        ("\u202eevil\u2066 order", "evil order"),
        ("\u200d\u200c\nthe second line", "the second line"),
        ("a\x1b[31mb\x9bc\u2028d", "a [31mb c"),
        ("x" * 78 + "👩\u200d💻" * 3, "x" * 78 + "…"),
        ("x" * 78 + "e\u0301" * 3, "x" * 78 + "…"),
        ("x" * 78 + "🇩🇪" * 3, "x" * 78 + "…"),
        ("x" * 78 + "👍🏽" * 3, "x" * 78 + "…"),
    ],
)
def test_a_title_keeps_what_a_letter_is_made_of(prompt: str, title: str | None) -> None:
    """Joiners, variations and tags stay, also at the end; what is not seen or turns text round does not."""
    assert ChatRequest(LOCAL_OWNER, prompt).title_or_opening == (prompt if title is None else title)


def test_given_title_is_kept() -> None:
    """Whoever names a conversation knows why."""
    assert ChatRequest(LOCAL_OWNER, "Hello", title="Greetings").title_or_opening == "Greetings"
