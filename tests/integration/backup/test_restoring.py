"""A restored database holds what the other one held: every row, every byte, and everything that services return."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from exai.app import App, open_app
from exai.conversations.requests import AppendRequest
from exai.db.backup.catalogue import NOT_COPIED, in_order
from exai.db.backup.snapshot import read_tables
from exai.db.ledger import UsageQuery
from exai.db.search import SearchQuery
from exai.errors import NotFound
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage, Owner
from exai.settings.load import load_settings
from tests.integration.backup.conftest import Side
from tests.support.checkpoints import store_checkpoint
from tests.support.database import opened
from tests.support.everything import use
from tests.support.migrations import before, downgrade, run, session, value
from tests.support.schema_text import schema_text

Rows = Callable[[str], Awaitable[dict[str, list[str]]]]

OTHER = Owner("other\\owner")
TEXT = "a\\b\tc\nd\re\x0b\x0c\x08 'quoted' \\N \\. äöü 😀 \u2028"
FILES = {"small.txt": b"small", "empty.txt": b"", "large.bin": bytes(range(256)) * 20_000}


async def fill(side: Side, **settings: str) -> None:
    """Store one row at least in every table that can have one, and texts that no format may change."""
    async with opened(side.url) as database:
        await use(database)
    async with open_app(load_settings(side.variables(**settings), None)) as app:
        files = await app.files.put(LOCAL_OWNER, [FileContent(name, data) for name, data in FILES.items()])
        await app.files.put(OTHER, [FileContent("theirs.txt", FILES["large.bin"])])
        name = await append(app, LOCAL_OWNER, TEXT, "two", "three words")
        await app.files.link(LOCAL_OWNER, name, [file.id for file in files])
        await app.conversations.fork(LOCAL_OWNER, name, at_seq=2)
        await append(app, OTHER, "their words")
        for owner in (LOCAL_OWNER, OTHER):
            await store_checkpoint(app.checkpoints, TEXT, owner=owner)
            await app.checkpoints.copy(owner, "thread", "copy")
    await run(
        side.url,
        "insert into exai.quarantine (table_name, reason, row) values ('files', 'test', '{\"owner\": \"local\"}')",
        "insert into exai.content_texts (owner, sha256, source, text, note)"
        " select owner, sha256, 'local', e'a\\\\b\\tc', 'x' from exai.contents where owner = 'local' limit 1",
        "insert into public.requests (owner, tool, arguments) values ('local', 'chat', '{\"prompt\": \"waits\"}')",
        "insert into exai.remote_files (key_id, file_id) values ('key', 'file')",
        """select monitoring.insert_metric('turn', '{"labels": {"owner": "local"}, "value": 1.1234567890123456}')""",
        "insert into exai.purged_turns (owner, started_at, turn_id, conversation_id, continuation_id, tool, state,"
        " model, is_estimated)"
        " values ('local', now(), gen_random_uuid(), gen_random_uuid(), 'gone', 'chat', 'finished', 'm', true)",
        "insert into monitoring.metrics_processing_log (batch_id, status) values (gen_random_uuid(), 'stored')",
    )


async def append(app: App, owner: Owner, *contents: str) -> ContinuationId:
    appended = await app.conversations.append(AppendRequest(owner, [NewMessage("user", each) for each in contents]))
    return appended.continuation_id


async def seen(side: Side, owner: Owner, **settings: str) -> dict[str, Any]:
    """Everything that the services return of one owner."""
    async with open_app(load_settings(side.variables(**settings), None)) as app:
        listed = (await app.conversations.list(owner)).conversations
        pages = {each.continuation_id: (await app.conversations.read(owner, each.continuation_id)) for each in listed}
        files = (await app.files.list(owner)).files
        report = await app.ledger.report(UsageQuery(owner, "conversation"))
        hits = (await app.conversations.search(SearchQuery(owner, "words"))).hits
        exported = {name: [part async for part in app.transfer.export(owner, name)] for name in pages}
        return {
            "headers": listed,
            "pages": {name: page.messages for name, page in pages.items()},
            "files": {file.id: (file.name, (await app.files.read(owner, file.id))[1]) for file in files},
            "linked": {n: {f.id for f in (await app.files.list(owner, continuation_id=n)).files} for n in pages},
            "usage": report.total,
            "hits": sorted((hit.continuation_id, hit.seq) for hit in hits),
            "exports": exported,
            "checkpoints": (await app.checkpoints.list(owner)).checkpoints,
        }


@pytest.fixture(params=["plain", "encrypted"])
def sealing(request: pytest.FixtureRequest, source: Side) -> list[str]:
    """The options of a backup with and without a passphrase."""
    if request.param == "plain":
        return []
    (source.home / "passphrase").write_text("correct horse\n")
    return ["--passphrase-file", str(source.home / "passphrase")]


@pytest.mark.direct
async def test_every_row_and_byte_comes_back(source: Side, target: Side, rows_of: Rows, sealing: list[str]) -> None:
    """Into a database without anything, with everything that services return, forks and their ancestry among it."""
    await fill(source)
    shown = [await seen(source, owner) for owner in (LOCAL_OWNER, OTHER)]
    # A running application would index it.
    await run(
        source.url,
        "insert into exai.unindexed_messages (conversation_id, first_seq, last_seq)"
        " select id, 1, 2 from public.conversations limit 1",
        "insert into monitoring.erased_owners (digest) values ('the digest of a name')",
    )
    rows = await rows_of(source.url)
    backup = str(source.home / "backup")
    status, out = await source.exai("backup", backup, *sealing)
    assert status == 0, out
    status, out = await source.exai("backup", "--verify", backup, *sealing)
    assert (status, "is what was written" in out) == (0, True), out
    stored = b"".join(path.read_bytes() for path in (source.home / "backup").rglob("*") if path.is_file())
    assert (b"quoted" in stored) is False
    status, out = await target.exai("restore", backup, *sealing)
    assert status == 0, out
    found = await rows_of(target.url)
    # Without a key of the application there is no row of a key.
    assert {name for name, lines in rows.items() if not lines} == {"exai.encryption_keys"}
    assert found == rows
    async with session(source.url) as one, session(target.url) as other:
        assert await schema_text(one) == await schema_text(other)
    assert [await seen(target, owner) for owner in (LOCAL_OWNER, OTHER)] == shown
    async with open_app(load_settings(target.variables(), None)) as app:
        (_, name, *_) = [each.continuation_id for each in (await app.conversations.list(LOCAL_OWNER)).conversations]
        again = await append_to(app, name, "after the restoration")
        assert (await app.conversations.read(LOCAL_OWNER, name)).messages[-1].seq == again


async def append_to(app: App, name: ContinuationId, content: str) -> int:
    appended = await app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", content)], continuation_id=name)
    )
    return appended.last_seq


async def test_a_backup_has_every_table_of_the_catalogue(source: Side) -> None:
    """A new table is copied, or named with a reason; the order lets every foreign key be checked."""
    async with session(source.url) as connection:
        tables = await read_tables(connection)
        everything = await connection.fetch(
            "select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname in ('public', 'exai', 'monitoring') and c.relkind in ('r', 'p') and not c.relispartition"
        )
    assert {table.name for table in tables} == {row["name"] for row in everything} - {"exai.alembic_version"}
    assert NOT_COPIED.keys() <= {table.name for table in tables}
    done: set[str] = set()
    for table in in_order(tables):
        assert table.referenced <= done | {table.name}
        done.add(table.name)


async def test_files_go_into_another_store_and_rows_to_another_owner(source: Side, target: Side) -> None:
    """From a directory into the database and back; the names hold characters that the format escapes."""
    await fill(source, EXAI_FILES__STORE="directory")
    shown = {owner: await seen(source, owner) for owner in (LOCAL_OWNER, OTHER)}
    backup = str(source.home / "backup")
    assert (await source.exai("backup", backup))[0] == 0
    status, out = await target.exai("restore", backup, "--owner", f"{OTHER}=new\\name", "--owner", "local=me")
    assert status == 0, out
    for old, new in ((LOCAL_OWNER, Owner("me")), (OTHER, Owner("new\\name"))):
        found = await seen(target, new)
        assert found["files"] == shown[old]["files"]
        assert found["exports"] == shown[old]["exports"]
        assert found["hits"] == shown[old]["hits"] != []
        assert found["checkpoints"] == shown[old]["checkpoints"] != ()
    assert await value(target.url, "select array_agg(distinct store) from exai.contents") == ["postgres"]
    async with session(target.url) as connection:
        for table in await read_tables(connection):
            query = f"select t::text from {table.schema}.\"{table.table}\" t where t::text ~ '\\mlocal\\M'"
            if table.name not in ("exai.content_texts", "exai.adopted_tables"):
                assert await connection.fetch(query) == [], table.name
    status, out = await target.exai("backup", str(target.home / "back"))
    assert status == 0, out


async def test_both_commands_are_recorded_where_they_worked(source: Side, target: Side) -> None:
    """As events of the page; a restore that failed leaves nothing."""
    await fill(source)
    backup = str(source.home / "backup")
    assert (await source.exai("backup", backup))[0] == 0
    assert (await source.exai("backup", backup))[0] == 1
    assert (await source.exai("restore", backup))[0] == 3
    assert await runs(source) == [{"command": "backup", "outcome": o} for o in ("ok", "invalid_argument")]
    assert (await target.exai("restore", backup))[0] == 0
    # The backup was recorded after the snapshot that it copied.
    assert await runs(target) == [{"command": "restore", "outcome": "ok"}]


async def runs(side: Side) -> list[Any]:
    """Return the labels of the recorded backups and restorations, oldest first."""
    command = "data->'labels'->>'command' in ('backup', 'restore')"
    query = f"select data->'labels' as labels from monitoring.metrics_raw where {command} order by id"
    async with session(side.url) as connection:
        return [json.loads(row["labels"]) for row in await connection.fetch(query)]


async def test_an_unknown_owner_to_rename_is_an_error(source: Side, target: Side, rows_of: Rows) -> None:
    """A misspelled name must not end in rows of the wrong owner."""
    await fill(source)
    backup = str(source.home / "backup")
    await source.exai("backup", backup)
    status, out = await target.exai("restore", backup, "--owner", "locale=me")
    assert (status, "names owners without a row in the backup: locale" in out) == (1, True), out
    assert await value(target.url, "select count(*) from public.conversations") == 0
    assert (await target.exai("restore", backup))[0] == 0
    assert await rows_of(target.url) == await rows_of(source.url)


@pytest.mark.parametrize("is_migrated", [False, True])
async def test_a_backup_of_an_older_revision_is_migrated(target: Side, source: Side, *, is_migrated: bool) -> None:
    """It is restored into the revision that it was made at; also where the empty database is newer."""
    older = before("expand_monitoring")
    await fill(source)
    await run(
        source.url,
        "truncate monitoring.metrics_raw, monitoring.metrics_1min, monitoring.metrics_1hour,"
        " monitoring.metrics_processing_log",
    )
    exported = (await seen(source, LOCAL_OWNER))["exports"]
    await run(source.url, "truncate public.requests", "truncate exai.checkpoint_threads cascade")
    await downgrade(source.url, older)
    backup = str(source.home / "backup")
    status, out = await source.exai("backup", backup)
    assert status == 0, out
    if is_migrated:
        assert (await target.exai("migrate"))[0] == 0
    status, out = await target.exai("restore", backup)
    assert status == 0, out
    assert (await seen(target, LOCAL_OWNER))["exports"] == exported


async def test_a_database_with_rows_is_refused(source: Side) -> None:
    """With the cure, before anything is changed."""
    async with open_app(load_settings(source.variables(), None)) as app:
        name = await append(app, LOCAL_OWNER, "one")
    backup = str(source.home / "backup")
    await source.exai("backup", backup)
    status, out = await source.exai("restore", backup)
    assert (status, "it already holds rows (in exai.unindexed_messages, public.conversations, " in out) == (3, True), (
        out
    )
    async with open_app(load_settings(source.variables(), None)) as app:
        assert len((await app.conversations.read(LOCAL_OWNER, name)).messages) == 1
        with pytest.raises(NotFound):
            await app.conversations.read(OTHER, name)
