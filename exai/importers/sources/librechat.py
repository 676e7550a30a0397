"""Exports of LibreChat: one conversation, whose messages name their parents or contain their answers as `children`.

Messages are read level by level without recursion; a message's record is its text without the messages in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from exai.importers.reading.contents import read_content
from exai.importers.reading.conversations import Facts
from exai.importers.reading.documents import (
    TOO_LARGE,
    JsonRecord,
    SourceDocument,
    mapping_of,
    record_of,
    text_of,
    value_of,
)
from exai.importers.reading.naming import key_of_record, name_of_conversation
from exai.importers.reading.spool import Place, Spool
from exai.importers.reading.threads import Thread
from exai.importers.reading.times import first_time
from exai.importers.reading.walking import Begun, BrokenOff, Ended, Part, Shape, Step, walk
from exai.importers.records import DamagedRecord, SourceConversation, SourceItem, SourceMessage

KIND: Final = "librechat"
MESSAGES: Final = Shape("messages", "[")
MESSAGE: Final = Shape("message", members={"children": MESSAGES})
MESSAGES.items = MESSAGE
CONVERSATION: Final = Shape("conversation", members={"messages": MESSAGES})
LIST: Final = Shape("list", "[", items=CONVERSATION)
MEMBERS: Final = ("conversationId", "title", "endpoint", "createdAt", "updatedAt", "exportAt", "options", "tags")


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the conversations of one file."""
    with document.open() as stream:
        steps = walk(stream, (LIST, CONVERSATION))
        for step in steps:
            if isinstance(step, BrokenOff):
                yield document.damaged(step.where, step.reason)
            elif isinstance(step, Part):
                yield document.damaged(step.where, "is not a conversation")
            elif isinstance(step, Begun) and step.shape is CONVERSATION:
                yield from _conversation(document, steps, step.where)


@dataclass(slots=True)
class _Open:
    """A message whose end was not read yet: its members, and those of them that are in the spool."""

    where: str
    members: list[bytes] = field(default_factory=list)
    kept: list[Place] = field(default_factory=list)
    children: list[str] = field(default_factory=list)


def _conversation(document: SourceDocument, steps: Iterator[Step], where: str) -> Iterator[SourceItem]:
    facts: dict[str, Any] = {}
    with Spool() as spool:
        reading = _Reading(document, spool, facts)
        for step in steps:
            yield from reading.take(step)
            if not reading.shapes:
                break
        if not reading.has_messages:
            yield document.damaged(where, "is a conversation without its messages")
        else:
            yield from reading.thread.items(document.place(where), _describe(facts), None, _show)


class _Reading:
    """One conversation while it is read: the containers and the messages whose ends were not read yet."""

    def __init__(self, document: SourceDocument, spool: Spool, facts: dict[str, Any]) -> None:
        self._document, self._spool, self._facts = document, spool, facts
        self.thread = Thread(spool)
        self.shapes: list[Shape] = [CONVERSATION]
        self._opened: list[_Open] = []
        self.has_messages = False

    def take(self, step: Step) -> Iterator[SourceItem]:
        """Take the next step of the text."""
        if isinstance(step, Begun):
            self.shapes.append(step.shape)
            self.has_messages = True
            if step.shape is MESSAGE:
                self._opened.append(_Open(step.where))
            elif self._opened:
                _keep(self._opened[-1], self._spool)
        elif isinstance(step, Ended):
            if self.shapes.pop() is MESSAGE:
                yield from _add(self._document, self.thread, self._spool, self._opened)
        elif isinstance(step, BrokenOff):
            yield self._document.damaged(step.where, step.reason)
        else:
            yield from self._part(step)

    def _part(self, part: Part) -> Iterator[SourceItem]:
        if self.shapes[-1] is MESSAGES:
            yield self._document.damaged(part.where, "is not a message")
        elif self.shapes[-1] is CONVERSATION and str(part.key) in MEMBERS:
            self._facts[str(part.key)] = value_of(part.raw)
        elif self.shapes[-1] is MESSAGE and part.raw is None:
            yield self._document.damaged(part.where, TOO_LARGE)
        elif self.shapes[-1] is MESSAGE and part.key != "children":
            self._opened[-1].members.append(b"%s:%s" % (_json_name(str(part.key)), part.raw))


def _json_name(name: str) -> bytes:
    return b'"%s"' % name.replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "replace")


def _keep(message: _Open, spool: Spool) -> None:
    """Move what was read of a message to the spool, since any number of messages may be in it."""
    if message.members:
        message.kept.append(spool.put(b",".join(message.members)))
        message.members = []


def _add(document: SourceDocument, thread: Thread, spool: Spool, opened: list[_Open]) -> Iterator[SourceItem]:
    """Add the innermost message, whose end was read."""
    message = opened.pop()
    members = [*(spool.get(place) for place in message.kept), *message.members]
    record = record_of(document, b"{%s}" % b",".join(members), message.where)
    if isinstance(record, DamagedRecord):
        yield record
        return
    facts = record.facts
    name = text_of(facts.get("messageId")) or key_of_record(record.raw)
    if opened:
        opened[-1].children.append(name)
    thread.claim(name, message.children)
    time = first_time(facts.get("createdAt"), facts.get("updatedAt"))
    left_out = thread.add(name, text_of(facts.get("parentMessageId")), record, time=time)
    if left_out is not None:
        yield left_out


def _describe(facts: Facts) -> SourceConversation:
    name = text_of(facts.get("conversationId")) or f"{KIND}-{key_of_record(str(facts.get('title')).encode())}"
    options = mapping_of(facts.get("options"))
    metadata = {"imported_from": KIND}
    for member, value in (("endpoint", facts.get("endpoint")), ("model", options.get("model"))):
        if (text := text_of(value)) is not None:
            metadata[member] = text
    tags = facts.get("tags")
    given = [each for each in tags if isinstance(each, str)] if isinstance(tags, list) else []
    return SourceConversation(
        name_of_conversation(name),
        text_of(facts.get("title")),
        tuple(dict.fromkeys((KIND, *given))),
        first_time(facts.get("createdAt")),
        first_time(facts.get("updatedAt")),
        metadata,
    )


def _show(record: JsonRecord, conversation: str, key: str) -> SourceMessage:
    facts = record.facts
    content = read_content(facts.get("text") or facts.get("content"))
    texts = [content.text]
    for member in ("files", "attachments"):
        files = facts.get(member)
        named = [each for each in files if isinstance(each, Mapping)] if isinstance(files, list) else []
        texts += [f"[file: {each.get('filename') or each.get('file_id')}, not in the export]" for each in named]
    is_user = facts.get("isCreatedByUser")
    if not isinstance(is_user, bool):
        is_user = str(facts.get("sender")).lower() == "user"
    return SourceMessage(
        conversation,
        key,
        "user" if is_user else "assistant",
        "\n\n".join(each for each in texts if each.strip()),
        first_time(facts.get("createdAt"), facts.get("updatedAt")),
        record.text,
        kind="error" if facts.get("error") is True else "message",
        files=content.files,
        where=record.where,
    )
