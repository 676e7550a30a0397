"""Checks the promises of the store on a live database, inside a transaction that is rolled back.

Invariant: no row is left or changed. The checks work for an owner of their own, so no row of others is read, and only
rows that they have created are locked.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from asyncpg.exceptions import PostgresError

from exai.db.checkpoints.records import ChannelValue, CheckpointRecord
from exai.db.checkpoints.repository import CheckpointRepository
from exai.db.concurrency import NetworkFloor
from exai.db.conversations import ConversationRepository
from exai.db.driver.address import parse_address
from exai.db.driver.connections import Connections
from exai.db.driver.pool import Database, OneTrip, Record, connect
from exai.db.driver.statements import load_statements
from exai.db.driver.translate import MIGRATE, judge
from exai.db.files import FileRepository, NewFile
from exai.db.history import HistoryQuery, HistoryRepository
from exai.db.migrations.revision import check_revision
from exai.db.records import AppendStart, TurnEnd, TurnStart
from exai.db.search import SearchQuery, SearchRepository
from exai.db.turns import TurnRepository
from exai.errors import ExaiError, NotFound
from exai.models import ContinuationId, ConversationId, ConversationKey, Finding, NewMessage, Owner, Recorder, TurnId
from exai.settings.load import DatabaseSettings

LIMITS: Final = """
select pg_catalog.count(pg_catalog.set_config(l.name, l.value, true))::int
  from (values ('statement_timeout'::text, '4s'::text), ('lock_timeout'::text, '1s'::text)) l(name, value)"""

PLENTY_BYTES: Final = 1_048_576
LEASE_S: Final = 60.0
WORD: Final = "quokkaparade"
"""A word of the checks' own message, which no other text of their owner has."""

METRIC: Final = "exai_validate"
SHA256: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

PARTITIONS: Final = """
select pg_catalog.count(*)::int from pg_catalog.pg_inherits i
 where i.inhparent = pg_catalog.to_regclass('monitoring.metrics_raw')"""


class _Broken(Exception):
    """A promise that does not hold, with the observed result."""


class _InTransaction(Database):
    """Runs the service's own statements on one connection, in its open transaction."""

    def __init__(self, connection: OneTrip, settings: DatabaseSettings, recorder: Recorder, url: str) -> None:
        async def given() -> OneTrip:
            return connection

        connections = Connections(given, 1)
        network = NetworkFloor(connections.clock)
        super().__init__(connections, load_statements(), settings, recorder, parse_address(url), network=network)
        self._connection = connection

    async def fetch(self, name: str, *args: object) -> list[Record]:
        """Run one statement; a failure leaves the transaction to be rolled back to its savepoint."""
        rows: list[Record] = await self._connection.fetch(self._statements[name].text, *args)
        return rows


class _Checks:
    """The promises, one method each, in the order in which they are checked; later ones use what earlier ones made."""

    def __init__(self, database: Database, connection: OneTrip) -> None:
        self._database, self._connection = database, connection
        self._conversations, self._turns = ConversationRepository(database), TurnRepository(database)
        self._files, self._history = FileRepository(database), HistoryRepository(database)
        self._checkpoints = CheckpointRepository(database)
        self._owner = Owner(f"exai-validate-{uuid.uuid4()}")
        self._new = ConversationId(str(uuid.uuid4()))
        self._key = ConversationKey(self._owner, ContinuationId(self._new))

    async def schema(self) -> str:
        """Tables and functions of this release are there."""
        return f"revision {await check_revision(self._database)}"

    async def append(self) -> str:
        """Any number of messages is one statement, numbered from 1 without gaps."""
        await self._append("append", f"the {WORD} began", "two", "three")
        contents = await self._contents()
        _expect(contents == [(1, f"the {WORD} began"), (2, "two"), (3, "three")], contents)
        return "3 messages in one statement, numbered 1 to 3"

    async def repetition(self) -> str:
        """The same request sent twice is stored once."""
        again = await self._append("append", f"the {WORD} began", "two", "three")
        _expect(again, "the second one was stored, too")
        _expect(len(await self._contents()) == 3, await self._contents())
        return "a request with a used key changes nothing"

    async def turn(self) -> str:
        """A chat turn is two statements; its answer follows its question."""
        start = TurnStart(
            owner=self._owner,
            continuation_id=self._key.continuation_id,
            new_conversation_id=ConversationId(str(uuid.uuid4())),
            turn_id=TurnId(str(uuid.uuid4())),
            request_key="turn",
            request_hash="hash",
            tool="chat",
            provider="validate",
            model="validate",
            messages=[NewMessage("user", "a question")],
            lease_s=LEASE_S,
            budget_bytes=PLENTY_BYTES,
        )
        begun = await self._turns.begin(start)
        _expect(begun.status == "started", begun.status)
        answer = [NewMessage("assistant", "an answer")]
        ended = await self._turns.finish(TurnEnd(self._owner, start.turn_id, begun.attempt, "finished", answer))
        _expect(ended.commit is not None, ended.status)
        contents = await self._contents()
        _expect(contents[3:] == [(4, "a question"), (5, "an answer")], contents)
        return "question and answer in two statements"

    async def owners(self) -> str:
        """An owner reads nothing of another one."""
        stranger = ConversationKey(Owner(f"{self._owner}-other"), self._key.continuation_id)
        try:
            await self._conversations.read_page(stranger)
        except NotFound:
            return "another owner does not find the conversation"
        raise _Broken("another owner can read the conversation")

    async def search(self) -> str:
        """A stored message is found at once, before it is indexed."""
        page = await SearchRepository(self._database).search(SearchQuery(self._owner, WORD), limit=5)
        _expect(len(page.hits) == 1, f"{len(page.hits)} results")
        return "an acknowledged message is found before it is indexed"

    async def files(self) -> str:
        """N files are one statement; a content is stored once, and linking it twice is one link."""
        new = [
            NewFile(str(uuid.uuid4()), SHA256, 0, "text/plain", name, str(uuid.uuid4()), data=b"")
            for name in ("a.txt", "a.txt", "b.txt")
        ]
        stored = await self._files.put(self._owner, "postgres", new)
        ids = [each.id for each in stored if each is not None]
        _expect(len(ids) == 3 and len(set(ids)) == 2, f"{len(set(ids))} files of {len(ids)}")
        linked = [(await self._files.link(self._owner, self._key.continuation_id, ids)).linked for _ in range(2)]
        _expect(linked == [2, 0], f"links made: {linked}")
        return "3 files in one statement, equal ones stored once, linked once"

    async def checkpoints(self) -> str:
        """A checkpoint is read with its values as it was stored, and only by its owner."""
        value = ChannelValue("channel", "1", "bytes", WORD.encode())
        put = CheckpointRecord(
            WORD, "1", "bytes", b"\0", "bytes", b"", versions={"channel": "1"}, values=(value,), facts={"step": 1}
        )
        await self._checkpoints.put(self._owner, put, None)
        found = await self._checkpoints.read(self._owner, WORD, "", None)
        _expect(found is not None and found.checkpoint == put, found)
        stranger = Owner(f"{self._owner}-other")
        _expect(await self._checkpoints.read(stranger, WORD, "", None) is None, "another owner can read the thread")
        return "a checkpoint is read as it was stored, by its owner"

    async def orphans(self) -> str:
        """`cleanup_orphaned_files` leaves files that are young or in use."""
        removed = await self._files.cleanup_orphans(100 * 365 * 86_400.0)
        _expect(not removed, f"{len(removed)} files would be removed")
        return "cleanup_orphaned_files removes no young file"

    async def metrics(self) -> str:
        """A batch of metrics is stored once, summed up by minute and hour, and can be read back."""
        batch, body = str(uuid.uuid4()), orjson.dumps([{"type": METRIC, "data": {"value": value}} for value in (1, 2)])
        statuses = [(await self._history.store(body, batch, "validate")).status for _ in range(2)]
        _expect(statuses == ["stored", "duplicate"], statuses)
        recent = await self._history.recent(METRIC)
        _expect(len(recent) == 2, f"{len(recent)} recent rows")
        since = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        for step_s in (60, 3_600):
            asked = HistoryQuery(METRIC, since, since + timedelta(hours=3), step_s)
            found = [(point.count, point.sum) for point in await self._history.read(asked)]
            _expect(found == [(2, 3.0)], f"sums by {step_s} s: {found}")
        return "stored once per batch, sums by minute and hour agree"

    async def partitions(self) -> str:
        """Raw metrics have partitions, so that a day can be dropped."""
        found = await self._connection.fetchval(PARTITIONS)
        _expect(found >= 2, f"{found} partitions")
        return f"{found} partitions of monitoring.metrics_raw"

    async def _append(self, key: str, *contents: str) -> bool:
        """Append messages; returns whether a request with this key had been served before."""
        result = await self._conversations.append(
            AppendStart(
                owner=self._owner,
                continuation_id=None,
                new_conversation_id=self._new,
                turn_id=TurnId(str(uuid.uuid4())),
                request_key=key,
                request_hash="hash",
                tool="append",
                messages=[NewMessage("user", content) for content in contents],
            )
        )
        _expect(result.commit is not None, result.status)
        return result.status == "duplicate"

    async def _contents(self) -> list[tuple[int, str]]:
        page = await self._conversations.read_page(self._key)
        return [(message.seq, message.content) for message in page.messages]


CHECKS: Final[tuple[tuple[str, Callable[[_Checks], Awaitable[str]]], ...]] = (
    ("schema", _Checks.schema),
    ("append", _Checks.append),
    ("repetition", _Checks.repetition),
    ("chat turn", _Checks.turn),
    ("owners", _Checks.owners),
    ("search", _Checks.search),
    ("files", _Checks.files),
    ("checkpoints", _Checks.checkpoints),
    ("orphaned files", _Checks.orphans),
    ("metrics", _Checks.metrics),
    ("partitions", _Checks.partitions),
)
LEFT: Final = """
select pg_catalog.count(*)::int
  from public.conversations c where c.owner operator(pg_catalog.=) $1::text"""


async def validate(settings: DatabaseSettings, url: str, recorder: Recorder) -> list[Finding]:
    """Check every promise; returns one finding each. Raises `DatabaseError` if the database cannot be reached."""
    connection = await connect(parse_address(url), timeout_s=settings.connect_timeout_s)
    try:
        transaction = connection.transaction(isolation="read_committed")
        await transaction.start()
        try:
            await connection.fetchval(LIMITS)
            checks = _Checks(_InTransaction(connection, settings, recorder, url), connection)
            found = [await _checked(name, check, checks, connection) for name, check in CHECKS]
        finally:
            await transaction.rollback()
        left = await connection.fetchval(LEFT, checks._owner)
        found.append(
            Finding("nothing is left", "fail", f"{left} conversations remain")
            if left
            else Finding("nothing is left", "ok", "everything was rolled back")
        )
        return found
    finally:
        connection.terminate()


async def _checked(
    name: str, check: Callable[[_Checks], Awaitable[str]], checks: _Checks, connection: OneTrip
) -> Finding:
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        seen = await check(checks)
    except Exception as error:  # noqa: BLE001 - any error means that the promise does not hold
        await savepoint.rollback()
        return Finding(name, "fail", _reason(error), MIGRATE if name == "schema" else "")
    await savepoint.commit()
    return Finding(name, "ok", seen)


def _reason(error: Exception) -> str:
    if isinstance(error, ExaiError | _Broken):
        return str(error)
    if isinstance(error, PostgresError):
        # The operator of the database asks: the server's own words help more than those for a caller.
        return f"{error} ({getattr(error, 'sqlstate', '')})"
    verdict = judge(error, "sent")
    return type(error).__name__ if verdict is None else str(verdict.error)


def _expect(holds: object, seen: Any) -> None:
    if not holds:
        raise _Broken(f"seen: {seen}")
