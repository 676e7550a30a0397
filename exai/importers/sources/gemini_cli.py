"""Sessions of Gemini CLI: one JSON object, or JSON Lines that are replayed.

A later record of a message replaces an earlier one, `$set` can give all messages anew, and `$rewindTo` removes a
message and all after it; what was removed or replaced by other messages is kept as a fork.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

import orjson

from exai.importers.reading.contents import call_text, read_content, readable
from exai.importers.reading.conversations import Facts, JsonLayout, read_conversations
from exai.importers.reading.documents import JsonRecord, SourceDocument, mapping_of, records_of_lines, text_of
from exai.importers.reading.naming import key_of_record, name_of_conversation
from exai.importers.reading.spool import Place, Spool
from exai.importers.reading.threads import EMPTY, Thread
from exai.importers.reading.times import time_of
from exai.importers.reading.walking import Shape, parse
from exai.importers.records import PassedOver, SourceConversation, SourceItem, SourceMessage
from exai.models import Role

KIND: Final = "gemini-cli"
MESSAGES: Final = Shape("messages", "[")
CONVERSATION: Final = Shape("conversation", members={"messages": MESSAGES})
MEMBERS: Final = frozenset(("sessionId", "startTime", "lastUpdated", "summary", "kind", "directories"))
ROLES: Final[Mapping[str, Role]] = {
    "user": "user",
    "gemini": "assistant",
    "model": "assistant",
    "assistant": "assistant",
}
CONTEXT: Final = "<session_context>"
MAX_KIND_CHARS: Final = 100


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the session of one file."""
    if PurePosixPath(document.name).suffix.lower() == ".json":
        describe = partial(_describe, document)
        active = _last
        return read_conversations(
            document,
            JsonLayout((CONVERSATION,), CONVERSATION, MESSAGES, MEMBERS, _add, describe, active, _show),
        )
    return _replayed(document)


def _last(_: Facts, thread: Thread) -> str | None:
    return thread.last


def _add(thread: Thread, _: str | int, record: JsonRecord) -> Iterator[SourceItem]:
    name = text_of(record.facts.get("id")) or key_of_record(record.raw)
    left_out = thread.add(name, thread.last, record, time=time_of(record.facts.get("timestamp")))
    if left_out is not None:
        yield left_out


@dataclass(slots=True)
class _Replay:
    """The messages so far: all by id, with their parents, and those that are in the conversation now."""

    spool: Spool
    places: dict[str, tuple[Place, str]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    current: dict[str, None] = field(default_factory=dict)

    def put(self, record: JsonRecord) -> None:
        """Add a message at the end, or replace the one with its id."""
        name = text_of(record.facts.get("id")) or key_of_record(record.raw)
        self.places[name] = (self.spool.put(record.raw), record.where)
        if name not in self.parents:
            self.parents[name] = next(reversed(self.current), None)
        self.current[name] = None

    def rewind(self, name: str) -> None:
        """Remove a message and all after it; all, if it is not known."""
        kept: dict[str, None] = {}
        for each in self.current if name in self.current else ():
            if each == name:
                break
            kept[each] = None
        self.current = kept

    def renew(self, records: Iterator[JsonRecord]) -> None:
        """Take these messages instead of those so far."""
        self.current = {}
        for record in records:
            name = text_of(record.facts.get("id")) or key_of_record(record.raw)
            self.parents[name] = next(reversed(self.current), None)
            self.put(record)


def _replayed(document: SourceDocument) -> Iterator[SourceItem]:
    facts: dict[str, Any] = {}
    with Spool() as spool:
        replay = _Replay(spool)
        for record in records_of_lines(document, lambda _: None):
            if not isinstance(record, JsonRecord):
                yield record
                continue
            rewound, changed = record.facts.get("$rewindTo"), record.facts.get("$set")
            if isinstance(rewound, str):
                replay.rewind(rewound)
            elif isinstance(record.facts.get("type"), str) and "sessionId" not in record.facts:
                replay.put(record)
            else:
                given = mapping_of(changed) if changed is not None else record.facts
                facts |= {name: value for name, value in given.items() if name in MEMBERS}
                messages = given.get("messages")
                if isinstance(messages, list) and (messages or changed is not None):
                    replay.renew(_records(messages, record.where))
        if not replay.places:
            yield PassedOver(EMPTY)
            return
        thread = Thread(spool)
        for name, (place, where) in replay.places.items():
            raw = spool.get(place)
            message = JsonRecord(raw, parse(raw), where)
            time = time_of(message.facts.get("timestamp"))
            left_out = thread.add(name, replay.parents.get(name), message, time=time)
            if left_out is not None:
                yield left_out
        active = next(reversed(replay.current), None)
        yield from thread.items(document.place(""), _describe(document, facts), active, _show)


def _records(messages: list[Any], where: str) -> Iterator[JsonRecord]:
    for each in messages:
        if isinstance(each, Mapping):
            yield JsonRecord(readable_json(each), each, where)


def readable_json(value: Mapping[str, Any]) -> bytes:
    """Return an object as JSON, also one with texts that are not valid Unicode."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return readable(value).encode("utf-8", "replace")


def _describe(document: SourceDocument, facts: Facts) -> SourceConversation:
    path = PurePosixPath(document.name)
    name = text_of(facts.get("sessionId")) or path.name.partition(".")[0]
    metadata: dict[str, Any] = {"imported_from": KIND}
    directories = facts.get("directories")
    if isinstance(directories, list) and directories and isinstance(directories[0], str):
        metadata["cwd"] = directories[0]
    parent = path.parent.name
    is_subagent = facts.get("kind") == "subagent"
    if is_subagent and parent not in ("chats", ""):
        metadata["subagent_of"] = parent
    return SourceConversation(
        name_of_conversation(name),
        text_of(facts.get("summary")),
        (KIND, "subagent") if is_subagent else (KIND,),
        time_of(facts.get("startTime")),
        time_of(facts.get("lastUpdated")),
        metadata,
    )


def _show(record: JsonRecord, conversation: str, key: str) -> SourceMessage:
    facts = record.facts
    kind = str(facts.get("type") or facts.get("role") or "")
    content = read_content(facts.get("content") or facts.get("parts") or facts.get("displayContent"))
    texts, files = [content.text], list(content.files)
    calls = facts.get("toolCalls")
    for each in calls if isinstance(calls, list) else ():
        call = mapping_of(each)
        texts.append(call_text(call))
        result = read_content(call.get("result") or call.get("resultDisplay"))
        texts.append(result.text)
        files += result.files
    role: Role = ROLES.get(kind, "system")
    shown_kind = "message" if kind in ROLES else kind[:MAX_KIND_CHARS] or "message"
    if role == "user" and content.text.lstrip().startswith(CONTEXT):
        shown_kind = "meta"
    return SourceMessage(
        conversation,
        key,
        role,
        "\n\n".join(each for each in texts if each.strip()),
        time_of(facts.get("timestamp")),
        record.text,
        shown_kind,
        tuple(files),
        record.where,
    )
