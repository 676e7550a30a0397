"""Requests to a store at a daemon: what is encoded and decoded is equal, and what is not known is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest

from exai.conversations import AppendRequest, MetadataPatch, RecordPatch
from exai.db.checkpoints.records import ChannelHistory, ChannelValue, CheckpointPage, CheckpointRecord, TaskWrite
from exai.db.conversations import ConversationPage
from exai.db.filters import ListFilter
from exai.errors import InvalidArgument
from exai.files.loading import FileContent
from exai.models import (
    ContinuationId,
    Conversation,
    ConversationId,
    FileId,
    Message,
    NewMessage,
    Owner,
    Page,
    PendingTurn,
    StoredFile,
)
from exai.store import wire

OWNER = Owner("alice")
AT = datetime(2026, 3, 4, 5, 6, 7, 891_011, UTC)
CONVERSATION = Conversation(
    ConversationId("c"),
    ContinuationId("a/b c"),
    OWNER,
    None,
    {"deep": [{"x": None}], "big": 2**63 - 1},
    2,
    3,
    AT,
    AT,
    tags=("one", "two"),
    pending=(PendingTurn("chat", None, AT),),
)
FILE = StoredFile(FileId("f"), "ab", 2, "text/plain", "n", AT)
BYTES = bytes(range(256))
RECORD = CheckpointRecord(
    "thread",
    "1",
    *("msgpack", BYTES, "msgpack", b""),
    facts={"step": 1},
    versions={"ch": "1"},
    values=(ChannelValue("ch", "1", "bytes", BYTES),),
    writes=(TaskWrite("task", -1, "ch", "bytes", BYTES, "path", "1"),),
)
VALUES = [
    (
        "conversations.read",
        Page(CONVERSATION, (Message(1, "user", "a\r\n\u2028😀", AT), Message(2, "tool", "", AT)), 1, "cache"),
    ),
    ("conversations.list", ConversationPage((CONVERSATION,), "next")),
    ("conversations.delete", CONVERSATION),
    ("files.put", (FILE,)),
    ("files.read_range", (FILE, bytes(range(256)))),
    ("files.link", 3),
    ("files.delete", None),
    ("checkpoints.get", RECORD),
    ("checkpoints.list", CheckpointPage((RECORD, RECORD), None)),
    ("checkpoints.ancestry", (ChannelHistory("ch", RECORD.writes, RECORD.values[0]), ChannelHistory("no", (), None))),
    ("chat.cancel", True),
    ("chat.result", None),
]


@pytest.mark.parametrize(("operation", "value"), VALUES, ids=[name for name, _ in VALUES])
def test_a_decoded_result_equals_the_encoded_one(operation: str, value: object) -> None:
    assert wire.decode(wire.OPERATIONS[operation].result, orjson.loads(wire.encode(value))) == value


def test_decoded_parameters_equal_the_encoded_ones() -> None:
    messages = [NewMessage("user", "x", "step", {"a": [1, 2.5, None]}, "key", AT, '{"\\ud800": 1}')]
    also = [RecordPatch(ContinuationId("r"), MetadataPatch({"x": None}, ["y"]))]
    request = AppendRequest(OWNER, messages, title="T", files=[FileId("f")], tags=["t"], also=also, created_at=AT)
    assert _parameters("conversations.append", request=request) == {"request": request}
    only = ListFilter(tags=["x"], metadata={"a": 1}, since=AT)
    assert _parameters("conversations.list", owner=OWNER, only=only) == {"owner": OWNER, "only": only}
    contents = [FileContent("n", b"\0\xff")]
    assert _parameters("files.put", owner=OWNER, contents=contents) == {"owner": OWNER, "contents": contents}


@pytest.mark.parametrize(
    ("operation", "given", "field"),
    [
        ("conversations.append", {"request": {"owner": "a", "messages": [], "colour": 1}}, "colour"),
        (
            "conversations.append",
            {"request": {"owner": "a", "messages": [{"role": "user", "content": "x", "colour": 1}]}},
            "messages[0].colour",
        ),
        (
            "conversations.append",
            {"request": {"owner": "a", "messages": [{"role": "king", "content": ""}]}},
            "messages[0].role",
        ),
        ("conversations.append", {"request": {"owner": "a"}}, "messages"),
        ("conversations.append", {}, "request"),
        ("conversations.list", {"owner": "a", "only": {"colour": 1}}, "only.colour"),
        ("conversations.list", {"owner": "a", "limits": 1}, "limits"),
        ("conversations.list", {"owner": "a", "limit": "many"}, "limit"),
        ("files.put", {"owner": "a", "contents": [{"name": "n", "data": "no base64"}]}, "contents[0].data"),
    ],
)
def test_unknown_and_wrong_parameters_are_refused_by_name(operation: str, given: dict[str, Any], field: str) -> None:
    """A field that an older daemon ignored would make another request of it."""
    with pytest.raises(InvalidArgument) as refused:
        wire.decode_parameters(wire.OPERATIONS[operation], given)
    assert refused.value.field == field


def test_fields_of_a_later_daemon_are_left_out_of_a_result() -> None:
    given = orjson.loads(wire.encode(CONVERSATION))
    assert wire.decode(Conversation, {**given, "colour": "red"}) == CONVERSATION


def test_a_price_is_exact() -> None:
    assert orjson.loads(wire.encode({"usd": Decimal("0.10")})) == {"usd": "0.10"}


@pytest.mark.parametrize("value", [{1, 2}, object(), 1j])
def test_a_value_that_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        wire.encode(value)


def _parameters(operation: str, **given: Any) -> dict[str, Any]:
    return wire.decode_parameters(wire.OPERATIONS[operation], orjson.loads(wire.encode(given)))
