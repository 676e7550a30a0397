"""Threads of a LangGraph checkpointer, read through its own saver without changing the database.

The messages of a thread are those of the channel `messages` in the newest checkpoint of its graph. Only classes that
LangGraph lists as safe are made of what a database holds: a checkpoint may name any class.

The key of a message is its id, or its number if it has none.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from exai.importers.reading.bundles import ReadMeter
from exai.importers.reading.contents import read_content
from exai.importers.reading.documents import SourceDocument
from exai.importers.reading.naming import name_of_conversation
from exai.importers.reading.threads import EMPTY
from exai.importers.reading.times import time_of
from exai.importers.records import DamagedRecord, PassedOver, SourceConversation, SourceItem, SourceMessage
from exai.importers.sources.openai_agents import open_database
from exai.items import dump_item
from exai.models import Role

KIND: Final = "langgraph"
TABLES: Final = frozenset(("checkpoints", "writes"))
"""What a database of LangGraph's SQLite saver has."""

CHANNEL: Final = "messages"
ROLES: Final[Mapping[str, Role]] = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
THREADS: Final = (
    "select thread_id, min(checkpoint_id) as first from checkpoints where checkpoint_ns = '' "
    "group by thread_id order by min(checkpoint_id)"
)
MISSING: Final = "needs a package of LangGraph: install langgraph-checkpoint-{} to read it"


@dataclass(frozen=True, slots=True)
class _Threads:
    """The threads of a database and what reads them; `place` begins the place of a record in reports."""

    saver: Any
    found: Sequence[tuple[str, str]]
    place: str
    meter: ReadMeter
    size_bytes: int = 0


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the threads of a SQLite database."""
    path = document.bundle.path(document.name)
    if path is None:
        yield document.damaged("", "is a database in an archive; unpack the archive and import the database")
        return
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError:
        yield document.damaged("", MISSING.format("sqlite"))
        return
    try:
        with closing(open_database(path)) as database:
            database.text_factory = str
            saver = SqliteSaver(database, serde=_serializer())
            # The database is not written to.
            saver.is_setup = True
            found = [(str(name), str(first)) for name, first in database.execute(THREADS)]
            size_bytes = document.bundle.size_bytes(document.name)
            yield from _threads(_Threads(saver, found, document.place(""), document.meter, size_bytes))
    except sqlite3.Error as error:
        yield document.damaged("", f"cannot be read on as a database ({error})")


def read_address(address: str, meter: ReadMeter) -> Iterator[SourceItem]:
    """Yield the threads of a Postgres database."""
    place = "the database"
    try:
        from langgraph.checkpoint.postgres import PostgresSaver
    except ImportError:
        yield DamagedRecord(place, MISSING.format("postgres"))
        return
    # The driver comes with the saver.
    failure: type[Exception] = sys.modules["psycopg"].Error
    try:
        with PostgresSaver.from_conn_string(address) as saver:
            saver.serde = _serializer()
            found = [(row["thread_id"], row["first"]) for row in saver.conn.execute(THREADS)]
            yield from _threads(_Threads(saver, found, place, meter))
    except failure as error:
        # Its text may hold the address.
        yield DamagedRecord(place, f"cannot be read on ({type(error).__name__})")


def _serializer() -> Any:
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    return JsonPlusSerializer(allowed_msgpack_modules=None)


def _threads(threads: _Threads) -> Iterator[SourceItem]:
    for name, first in threads.found:
        where = f"{threads.place}, thread {name}"
        try:
            yield from _thread(threads.saver, name, first, where)
        except (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError) as error:
            yield DamagedRecord(where, f"cannot be read ({type(error).__name__})")
        threads.meter.read_bytes += threads.size_bytes // max(1, len(threads.found))


def _thread(saver: Any, name: str, first: str, where: str) -> Iterator[SourceItem]:
    config = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
    newest = saver.get_tuple(config)
    messages = [] if newest is None else _messages(saver, newest)
    if newest is None or not messages:
        yield PassedOver(EMPTY)
        return
    begun = saver.get_tuple({"configurable": {**config["configurable"], "checkpoint_id": first}})
    conversation = name_of_conversation(name)
    yield SourceConversation(
        conversation,
        None,
        (KIND,),
        time_of(begun.checkpoint.get("ts")) if begun is not None else None,
        time_of(newest.checkpoint.get("ts")),
        {"imported_from": KIND},
        None,
        where,
    )
    for number, message in enumerate(messages, 1):
        yield _message(message, number, conversation, f"{where}, message {number}")


def _messages(saver: Any, newest: Any) -> Sequence[Any]:
    """Return the messages of a checkpoint; those of a channel that stores what was added are put together."""
    checkpoint = newest.checkpoint
    messages = checkpoint["channel_values"].get(CHANNEL)
    if messages is None and CHANNEL in checkpoint["channel_versions"]:
        history = saver.get_delta_channel_history(config=newest.config, channels=[CHANNEL])[CHANNEL]
        seed = history.get("seed")
        messages = _folded([getattr(seed, "value", seed) or [], *(write[2] for write in history["writes"])])
    else:
        messages = getattr(messages, "value", messages)
    return messages if isinstance(messages, list) else []


def _folded(added: Sequence[Any]) -> list[Any]:
    """Return messages in the order in which they came; a later one with the id of an earlier one takes its place."""
    found: dict[Any, Any] = {}
    for given in added:
        for message in given if isinstance(given, list) else [given]:
            key = getattr(message, "id", None) or len(found)
            if getattr(message, "type", None) == "remove":
                found.pop(key, None)
            else:
                found[key] = message
    return list(found.values())


def _message(message: Any, number: int, conversation: str, where: str) -> SourceItem:
    from langchain_core.messages import BaseMessage, message_to_dict

    if not isinstance(message, BaseMessage):
        return DamagedRecord(where, f"is no message, but a {type(message).__name__}")
    content = read_content(message.content)
    calls = [f"{call['name']}({dump_item(call['args'])})" for call in getattr(message, "tool_calls", ())]
    return SourceMessage(
        conversation,
        message.id or str(number),
        ROLES.get(message.type, "user"),
        "\n".join(filter(None, [content.text, *calls])),
        None,
        dump_item(message_to_dict(message)),
        "message",
        content.files,
        where,
    )
