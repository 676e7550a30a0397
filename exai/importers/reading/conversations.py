"""Read files that hold whole conversations as JSON: one, or a list of them, each with its messages in one container."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exai.importers.reading.documents import JsonRecord, SourceDocument, record_of, value_of
from exai.importers.reading.spool import Spool
from exai.importers.reading.threads import EMPTY, Show, Thread
from exai.importers.reading.walking import Begun, BrokenOff, Ended, Part, Shape, Step, walk
from exai.importers.records import DamagedRecord, PassedOver, SourceConversation, SourceItem

Facts = Mapping[str, Any]
"""Members of a conversation by name; those of a container in it have the name of its shape before them."""


@dataclass(frozen=True, slots=True)
class JsonLayout:
    """How a kind of source lays out conversations.

    `shapes` are what a file may begin with, `conversation` is the shape of one, and `messages` that of the container
    whose parts are messages. `add` adds one to the thread, `describe` makes the conversation of the `members` that
    were found, `active` returns the name of its newest message, and `show` reads one message.
    """

    shapes: Sequence[Shape]
    conversation: Shape
    messages: Shape
    members: frozenset[str]
    add: Callable[[Thread, str | int, JsonRecord], Iterator[SourceItem]]
    describe: Callable[[Facts], SourceConversation]
    active: Callable[[Facts, Thread], object]
    show: Show


def read_conversations(document: SourceDocument, layout: JsonLayout) -> Iterator[SourceItem]:
    """Yield the conversations of a file; parts that are damaged are reported and left out."""
    with document.open() as stream:
        steps = walk(stream, layout.shapes)
        for step in steps:
            if isinstance(step, BrokenOff):
                yield document.damaged(step.where, step.reason)
            elif isinstance(step, Part):
                yield document.damaged(step.where, "is not a conversation")
            elif isinstance(step, Begun) and step.shape is layout.conversation:
                yield from _one(document, layout, steps, step.where)


def _one(document: SourceDocument, layout: JsonLayout, steps: Iterator[Step], where: str) -> Iterator[SourceItem]:
    facts: dict[str, Any] = {}
    shapes: list[Shape] = [layout.conversation]
    has_messages = False
    with Spool() as spool:
        thread = Thread(spool)
        for step in steps:
            if isinstance(step, Begun):
                shapes.append(step.shape)
                has_messages = has_messages or step.shape is layout.messages
            elif isinstance(step, Ended):
                if shapes.pop() is layout.conversation:
                    break
            elif isinstance(step, BrokenOff):
                yield document.damaged(step.where, step.reason)
            elif shapes[-1] is layout.messages:
                record = record_of(document, step.raw, step.where)
                yield from [record] if isinstance(record, DamagedRecord) else layout.add(thread, step.key, record)
            else:
                name = ".".join((*(shape.name for shape in shapes[1:]), str(step.key)))
                if name in layout.members:
                    facts[name] = value_of(step.raw)
        if not has_messages:
            yield document.damaged(where, "is a conversation without its messages")
        elif not len(thread):
            yield PassedOver(EMPTY)
        else:
            yield from thread.items(
                document.place(where), layout.describe(facts), layout.active(facts, thread), layout.show
            )
