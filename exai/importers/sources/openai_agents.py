"""Databases of the OpenAI Agents SDK's SQLite sessions, read without changing them.

Only tables are read: a view in an uploaded database could run for ever.

The key of a message is the number of its row. Branches of `AdvancedSQLiteSession` share the rows before them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from exai.importers.reading.documents import JsonRecord, SourceDocument, record_of
from exai.importers.reading.naming import name_of_conversation, name_of_fork
from exai.importers.reading.responses import item_content, role_and_kind
from exai.importers.reading.threads import EMPTY
from exai.importers.reading.times import time_of
from exai.importers.records import ForkPoint, PassedOver, SourceConversation, SourceItem, SourceMessage

KIND: Final = "openai-agents"
MESSAGES: Final = "agent_messages"
SESSIONS: Final = "agent_sessions"
STRUCTURE: Final = "message_structure"
MAIN: Final = "main"
PAGE_ROWS: Final = 200

ROWS: Final = (
    "select id, message_data, created_at, id from agent_messages where session_id = ? and id > ? order by id limit ?"
)
OF_BRANCH: Final = (
    "select m.id, m.message_data, m.created_at, s.sequence_number from message_structure s "
    "join agent_messages m on m.id = s.message_id "
    "where s.session_id = ? and s.branch_id = ? and s.sequence_number > ? order by s.sequence_number limit ?"
)


def read(document: SourceDocument) -> Iterator[SourceItem]:
    """Yield the sessions of a database."""
    path = document.bundle.path(document.name)
    if path is None:
        yield document.damaged("", "is a database in an archive; unpack the archive and import the database")
        return
    try:
        with closing(open_database(path)) as database:
            yield from _sessions(document, database)
    except sqlite3.Error as error:
        yield document.damaged("", f"cannot be read on as a database ({error})")


def tables_of(path: Path) -> set[str]:
    """Return the names of a database's tables; none if it is no database."""
    try:
        with closing(open_database(path)) as database:
            return _tables(database)
    except sqlite3.Error:
        return set()


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("select name, sql from sqlite_master where type = 'table'")
    return {_text(name) for name, sql in rows if not _text(sql).lower().startswith("create virtual")}


def open_database(path: Path) -> sqlite3.Connection:
    """Open a database for reading. Raises `sqlite3.Error`."""
    place = quote(str(path.absolute()))
    try:
        database = sqlite3.connect(f"file:{place}?mode=ro", uri=True, check_same_thread=False)
        database.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # A write-ahead log cannot be opened on a read-only medium.
        database = sqlite3.connect(f"file:{place}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    database.text_factory = bytes
    database.execute("pragma trusted_schema = off")
    return database


@dataclass(frozen=True, slots=True)
class _Database:
    """An open database with what is known of it."""

    document: SourceDocument
    connection: sqlite3.Connection
    has_branches: bool
    bytes_per_row: int


def _sessions(document: SourceDocument, connection: sqlite3.Connection) -> Iterator[SourceItem]:
    tables = _tables(connection)
    if MESSAGES not in tables:
        yield document.damaged("", f"has no table {MESSAGES}")
        return
    total = connection.execute("select count(*) from agent_messages").fetchone()[0]
    size = document.bundle.size_bytes(document.name)
    database = _Database(document, connection, STRUCTURE in tables, size // max(1, total))
    times: dict[str, tuple[Any, Any]] = {}
    if SESSIONS in tables:
        rows = connection.execute("select session_id, created_at, updated_at from agent_sessions order by 2, 1")
        times = {_text(name): (created_at, updated_at) for name, created_at, updated_at in rows}
    for (name,) in connection.execute("select distinct session_id from agent_messages"):
        times.setdefault(_text(name), (None, None))
    for session, (created_at, updated_at) in times.items():
        conversation = SourceConversation(
            name_of_conversation(session),
            None,
            (KIND,),
            time_of(_text(created_at)),
            time_of(_text(updated_at)),
            {"imported_from": KIND},
            None,
            document.place(f"session {session}"),
        )
        yield from _session(database, session, conversation)


def _session(database: _Database, session: str, conversation: SourceConversation) -> Iterator[SourceItem]:
    branches: Sequence[str] = ()
    if database.has_branches:
        statement = "select branch_id from message_structure where session_id = ? group by branch_id order by min(id)"
        branches = [_text(row[0]) for row in database.connection.execute(statement, (session,))]
    keys: list[str] = []
    has_main = MAIN in branches
    for row in _rows(database, session, MAIN if has_main else None):
        if not keys:
            yield conversation
        keys.append(str(row[0]))
        yield _message(database, row, conversation.name)
    if not keys:
        yield PassedOver(EMPTY)
    for branch in branches if has_main else ():
        if branch != MAIN:
            yield from _branch(database, session, branch, conversation, keys)


def _branch(
    database: _Database, session: str, branch: str, conversation: SourceConversation, keys: Sequence[str]
) -> Iterator[SourceItem]:
    """Yield a branch as a fork: what it shares with the main one at the beginning is inherited."""
    name = name_of_fork(conversation.name, branch)
    shared, is_shared = 0, True
    for row in _rows(database, session, branch):
        if is_shared and shared < len(keys) and keys[shared] == str(row[0]):
            shared += 1
            continue
        if is_shared:
            is_shared = False
            fork = ForkPoint(conversation.name, keys[shared - 1]) if shared else None
            metadata = {**conversation.metadata, "branch_of": conversation.name, "branch": branch}
            yield replace(conversation, name=name, metadata=metadata, fork=fork)
        yield _message(database, row, name)


def _rows(database: _Database, session: str, branch: str | None) -> Iterator[tuple[int, bytes, Any, int]]:
    """Yield rows in order, some at a time: all of a session, or those of one branch."""
    after = -1
    while True:
        if branch is None:
            found = database.connection.execute(ROWS, (session, after, PAGE_ROWS))
        else:
            found = database.connection.execute(OF_BRANCH, (session, branch, after, PAGE_ROWS))
        rows = found.fetchall()
        for row in rows:
            yield row
            database.document.meter.read_bytes += database.bytes_per_row
        if len(rows) < PAGE_ROWS:
            return
        after = rows[-1][3]


def _message(database: _Database, row: tuple[int, bytes, Any, int], conversation: str) -> SourceItem:
    number, data, created_at, _ = row
    record = record_of(database.document, data if isinstance(data, bytes) else str(data).encode(), f"row {number}")
    if not isinstance(record, JsonRecord):
        return record
    role, kind = role_and_kind(record.facts)
    content = item_content(record.facts)
    return SourceMessage(
        conversation,
        str(number),
        role,
        content.text,
        time_of(_text(created_at)),
        record.text,
        kind,
        content.files,
        record.where,
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
