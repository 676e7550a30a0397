"""The forms of a reply's body, in pieces of any size."""

from __future__ import annotations

import json

import pytest

from exai.providers.reply.bodies import MAX_DOCUMENT_BYTES, Body
from exai.providers.reply.sse import EventTooLarge

LINES = [json.dumps({"number": number, "text": "ä" * number}, ensure_ascii=False) for number in range(4)]
PRETTY = json.dumps({"choices": [{"text": "x"}]}, indent=1)


def body() -> Body:
    return Body("application/x-ndjson", "identity", max_event_bytes=1_000, max_bytes=1 << 30)


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_are_events_as_soon_as_they_are_complete(size: int, end: str) -> None:
    """A connection that breaks loses no more than the line in which it broke."""
    data = (end.join(LINES[:3]) + end + LINES[3][:8]).encode()
    reading = body()
    events = [event for at in range(0, len(data), size) for event in reading.feed(data[at : at + size])]
    assert [event.data for event in events] == LINES[:3]
    assert [event.data for event in reading.close()] == [LINES[3][:8]]
    assert not reading.is_one_document


@pytest.mark.parametrize("size", [1, 5, 1_000])
@pytest.mark.parametrize("document", [LINES[1], f"{LINES[1]}\n\n", f"\n{LINES[1]}\r\n", PRETTY, f"{PRETTY}\n"])
def test_one_document_is_known_as_one_at_its_end(size: int, document: str) -> None:
    """On one line or on several; then nothing can be missing."""
    data = document.encode()
    reading = body()
    events = [event for at in range(0, len(data), size) for event in reading.feed(data[at : at + size])]
    (event,) = [*events, *reading.close()]
    assert json.loads(event.data) == json.loads(document)
    assert reading.is_one_document


def test_document_of_many_lines_is_limited() -> None:
    """Its lines are no values of their own, so that it is held until its end."""
    reading = body()
    reading.feed(b'{"a": [\n')
    with pytest.raises(EventTooLarge):
        for _ in range(MAX_DOCUMENT_BYTES // 65_536 + 1):
            reading.feed(b"1,\n" * 21_846)
