"""After an erasure neither a table nor Redis nor a store of files holds anything of the owner; others lose nothing."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from exai.app import App, open_app
from exai.conversations.erasure import Erasure
from exai.conversations.requests import AppendRequest
from exai.db.backup.snapshot import read_tables
from exai.db.erasure import ErasureRepository
from exai.db.lifecycle import ConversationUpdate
from exai.errors import BlobError, InvalidArgument, NotFound
from exai.files.loading import FileContent
from exai.models import ContinuationId, NewMessage, Owner
from exai.monitoring.events import EventItem, encode
from exai.settings.load import load_settings
from tests.support.checkpoints import store_checkpoint
from tests.support.commands import run_exai_as_text
from tests.support.migrations import run, session, value

ROOT = Path(__file__).resolve().parents[3]
ANNA, BERT = Owner("anna-maiden"), Owner("bert")
SECRET = "xylophonist"


@pytest.fixture
def variables(postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_FILES__STORE": "directory",
    }


async def fill(app: App, owner: Owner) -> tuple[ContinuationId, ContinuationId]:
    """A conversation with files, a fork of it, and another conversation; all of it cached."""
    data = [FileContent(f"{SECRET}-{n}.txt", f"{SECRET} {owner} {n}".encode() * 9_000) for n in range(2)]
    first, second = await app.files.put(owner, data)
    names = []
    for number, files in enumerate(([first.id, second.id], [second.id])):
        messages = [NewMessage("user", f"{SECRET} of {owner}, {number}"), NewMessage("assistant", f"I see, {SECRET}")]
        made = await app.conversations.append(AppendRequest(owner, messages, title=f"{SECRET} {number}"))
        await app.files.link(owner, made.continuation_id, files)
        names.append(made.continuation_id)
    update = ConversationUpdate(tags=(SECRET,), metadata={"of": SECRET})
    await app.conversations.change(owner, names[0], update)
    for name in names:
        await app.conversations.read(owner, name)
    await store_checkpoint(app.checkpoints, f"{SECRET} of {owner}", owner=owner, thread_id=f"{SECRET}-thread")
    await app.checkpoints.get(owner, f"{SECRET}-thread")
    await app.maintenance.index_words()
    await app.cache.wait_settled()
    return names[0], names[1]


async def found(variables: dict[str, str], text: str) -> list[str]:
    """Where a text is: tables, keys and values of Redis, names and contents of files."""
    places = []
    async with session(variables["EXAI_DATABASE__URL"]) as connection:
        for table in await read_tables(connection):
            query = f'select count(*) from {table.schema}."{table.table}" t where strpos(t::text, $1) > 0'
            places += [table.name] if await connection.fetchval(query, text) else []
            places += [table.name] if await connection.fetchval(query, text.encode().hex()) else []
    async with redis.from_url(variables["EXAI_CACHE__URL"]) as client:
        async for key in client.scan_iter():
            kind = await client.type(key)
            values = [each for pair in (await client.hgetall(key)).items() for each in pair] if kind == b"hash" else []
            values += await client.zrange(key, 0, -1) if kind == b"zset" else []
            if text.encode() in key or any(text.encode() in each for each in values):
                places.append(f"redis {key.decode()}")
    for path in Path(variables["EXAI_DATA_DIR"]).rglob("*"):
        if text in path.name or (path.is_file() and text.encode() in path.read_bytes()):
            places.append(str(path))
    return places


def erasure(app: App) -> Erasure:
    return Erasure(ErasureRepository(app.database), app.files.blobs, app.cache)


async def everything_of(app: App, owner: Owner) -> Any:
    listed = (await app.conversations.list(owner)).conversations
    files = (await app.files.list(owner)).files
    return (
        listed,
        [(await app.conversations.read(owner, each.continuation_id)).messages for each in listed],
        [(file, (await app.files.read(owner, file.id))[1]) for file in files],
    )


async def test_nothing_of_an_owner_is_left_anywhere(variables: dict[str, str]) -> None:
    """Texts, names and the owner's own name; in the tables of quarantine and history too."""
    async with open_app(load_settings(variables, None)) as app:
        for owner in (ANNA, BERT):
            await fill(app, owner)
        await run(
            variables["EXAI_DATABASE__URL"],
            f"""select monitoring.insert_metric('turn', '{{"labels": {{"owner": "{ANNA}"}}, "value": 1}}')""",
            f"insert into exai.quarantine (table_name, reason, row) values ('files', 'x', '{{\"owner\": \"{ANNA}\"}}')",
            f"insert into public.requests (owner, tool, arguments)"
            f" values ('{ANNA}', 'chat', '{{\"prompt\": \"{SECRET}\"}}')",
            f"insert into exai.content_texts (owner, sha256, source, text, note)"
            f" select owner, sha256, 'local', '{SECRET} {ANNA}', '' from exai.contents where owner = '{ANNA}'",
        )
        before = await everything_of(app, BERT)
        assert {place.partition(":")[0].split("/")[0] for place in await found(variables, ANNA)} >= {
            "public.conversations",
            "public.messages",
            "public.files",
            "exai.contents",
            "exai.quarantine",
            "monitoring.metrics_raw",
            "redis exai",
            "",
        }
        erased = await erasure(app).erase(ANNA)
        assert (len(erased.rows.conversations), erased.rows.files, len(erased.rows.contents)) == (2, 2, 2)
        assert (erased.elsewhere, erased.cache_problem) == (0, None)
        assert await found(variables, ANNA) == []
        assert await everything_of(app, BERT) == before
        assert (await app.conversations.list(ANNA)).conversations == ()
        again = await erasure(app).erase(ANNA)
        assert (again.rows.conversations, sum(again.rows.rows.values())) == ([], 0)


def turn_of(owner: Owner, *, at_s: float = 0.0) -> str:
    """A batch with the end of one turn, as a daemon sends it, so many seconds from now."""
    return encode([EventItem("turn", time.time() + at_s, {"owner": owner, "model": "m"}, 1, 2.0)]).decode()


async def test_events_that_a_daemon_sends_after_an_erasure_are_not_stored(variables: dict[str, str]) -> None:
    """It holds the last seconds in memory, and longer while it cannot store them; later ones are those of a new use."""
    async with open_app(load_settings(variables, None)) as app:

        async def sent(body: str) -> int:
            answer = await app.history.store(body.encode(), str(uuid.uuid4()), "daemon")
            assert (answer.status, answer.rejected) == ("stored", 0)
            return answer.stored

        body = turn_of(ANNA)
        await erasure(app).erase(ANNA)
        assert (await sent(body), await sent(turn_of(ANNA, at_s=-3_600))) == (0, 0)
        assert await sent(turn_of(BERT)) == 1
        assert await found(variables, ANNA) == []
        assert await sent(turn_of(ANNA, at_s=60)) == 1
        await run(
            variables["EXAI_DATABASE__URL"],
            "update monitoring.erased_owners set erased_at = erased_at - interval '8 days'",
            "select monitoring.apply_retention()",
        )
        assert await value(variables["EXAI_DATABASE__URL"], "select count(*) from monitoring.erased_owners") == 0


async def test_erasure_waits_for_events_that_are_being_stored(variables: dict[str, str]) -> None:
    """They are committed after the erasure has begun, and removed by it."""
    url = variables["EXAI_DATABASE__URL"]
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    async with open_app(load_settings(variables, None)) as app, session(url) as daemon:
        async with daemon.transaction():
            await daemon.fetch("select monitoring.aggregate_metrics($1::text::jsonb)", turn_of(ANNA))
            erasing = asyncio.create_task(erasure(app).erase(ANNA))
            async with asyncio.timeout(20):
                while not await daemon.fetchval(waiting):
                    assert not erasing.done()
                    await asyncio.sleep(0.01)
        await erasing
        assert await found(variables, ANNA) == []


async def test_a_conversation_goes_with_the_files_that_only_it_has(variables: dict[str, str]) -> None:
    """What another conversation of the owner has stays, and so does the cost of its turns."""
    async with open_app(load_settings(variables, None)) as app:
        one, other = await fill(app, ANNA)
        await run(
            variables["EXAI_DATABASE__URL"],
            "update public.turns set model = 'm', cost = 0.5 where conversation_id ="
            f" (select id from public.conversations where continuation_id = '{one}')",
            f"insert into public.requests (owner, tool, arguments, state, continuation_id, finished_at) values"
            f" ('{ANNA}', 'chat', '{{\"prompt\": \"{SECRET} of {ANNA}, 0\"}}', 'done', '{one}', now()),"
            f' (\'{ANNA}\', \'chat\', \'{{"continuation_id": "{one}", "prompt": "{SECRET} of {ANNA}, 0"}}\','
            f" 'queued', null, null), ('{ANNA}', 'chat', '{{\"continuation_id\": \"{other}\"}}', 'queued', null, null)",
        )
        erased = await erasure(app).erase(ANNA, one)
        assert (len(erased.rows.conversations), erased.rows.files, len(erased.rows.contents)) == (1, 1, 1)
        (kept,) = (await app.files.list(ANNA)).files
        assert (await app.files.read(ANNA, kept.id))[1].startswith(f"{SECRET} {ANNA} 1".encode())
        assert len((await app.conversations.read(ANNA, other)).messages) == 2
        with pytest.raises(NotFound):
            await app.conversations.read(ANNA, one)
        assert await found(variables, f"{SECRET} of {ANNA}, 0") == []
    async with session(variables["EXAI_DATABASE__URL"]) as connection:
        assert await connection.fetchval("select sum(cost) from exai.purged_turns") > 0
        assert await connection.fetchval("select count(*) from public.requests") == 1


async def test_what_had_the_name_before_is_erased_with_it(variables: dict[str, str]) -> None:
    """Deleted conversations whose name was used again, and what rewinds have cut off; not one that was restored."""
    name = ContinuationId("named")
    async with open_app(load_settings(variables, None)) as app:
        for number in range(3):
            messages = [NewMessage("user", f"{SECRET} {number} {place}", key=f"{SECRET} {place}") for place in range(3)]
            await app.conversations.append(AppendRequest(ANNA, messages, continuation_id=name, create=True))
            await app.conversations.rewind(ANNA, name, to_seq=1)
            if number < 2:
                await app.conversations.delete(ANNA, name)
        assert len(await found(variables, SECRET)) > 0
        erased = await erasure(app).erase(ANNA, name)
        assert len(erased.rows.conversations) == 6
        assert await found(variables, SECRET) == []
        assert await found(variables, name) == []


async def test_forks_are_erased_only_if_asked_for(variables: dict[str, str]) -> None:
    """A fork shows the messages of its parent, so the parent cannot go alone."""
    async with open_app(load_settings(variables, None)) as app:
        one, _ = await fill(app, ANNA)
        fork = (await app.conversations.fork(ANNA, one)).continuation_id
        with pytest.raises(InvalidArgument, match=f"has forks, which show its messages: {fork}"):
            await erasure(app).erase(ANNA, one)
        assert len((await app.conversations.read(ANNA, fork)).messages) == 2
        assert len((await erasure(app).erase(ANNA, fork)).rows.conversations) == 1
        fork = (await app.conversations.fork(ANNA, one)).continuation_id
        assert len((await erasure(app).erase(ANNA, one, with_forks=True)).rows.conversations) == 2
        with pytest.raises(NotFound):
            await app.conversations.read(ANNA, fork)


async def test_a_rehearsal_counts_the_same_and_removes_nothing(variables: dict[str, str]) -> None:
    async with open_app(load_settings(variables, None)) as app:
        await fill(app, ANNA)
        before = await everything_of(app, ANNA)
        counted = await erasure(app).erase(ANNA, is_rehearsal=True)
        assert await everything_of(app, ANNA) == before
        assert (await erasure(app).erase(ANNA)).rows == counted.rows


async def test_a_store_that_fails_keeps_every_row(variables: dict[str, str]) -> None:
    """Otherwise nothing would name the bytes that are left."""
    async with open_app(load_settings(variables, None)) as app:
        await fill(app, ANNA)
        await run(variables["EXAI_DATABASE__URL"], "update exai.contents set store = 's3'")
        with pytest.raises(BlobError, match="the store 's3' is not configured"):
            await erasure(app).erase(ANNA)
        assert len((await app.conversations.list(ANNA)).conversations) == 2


async def test_another_owner_of_the_same_name_of_a_conversation_keeps_it(variables: dict[str, str]) -> None:
    """Names are unique for one owner only."""
    async with open_app(load_settings(variables, None)) as app:
        one, _ = await fill(app, ANNA)
        with pytest.raises(NotFound):
            await erasure(app).erase(BERT, one)
        assert len((await app.conversations.read(ANNA, one)).messages) == 2


async def test_the_command_asks_first_and_says_what_backups_hold(
    variables: dict[str, str], exai: Callable[..., Awaitable[tuple[int, str]]]
) -> None:
    async with open_app(load_settings(variables, None)) as app:
        one, _ = await fill(app, ANNA)
    status, out = await exai("erase", "owner", ANNA)
    assert (status, "--yes" in out) == (1, True), out
    status, out = await exai("erase", "conversation", one, "--owner", ANNA, "--dry-run")
    assert (status, "1 conversations, 1 files and 1 contents" in out) == (0, True), out
    assert "would be erased" in out
    status, out = await exai("erase", "owner", ANNA, "--yes")
    assert (status, "2 conversations, 2 files" in out) == (0, True), out
    assert "Backups that were made before still hold all of it" in out
    assert "Nothing of the owner" not in out
    assert await found(variables, ANNA) == []
    async with session(variables["EXAI_DATABASE__URL"]) as connection:
        query = "select data->'figures' as figures from monitoring.metrics_raw where type = 'command_run'"
        recorded = [json.loads(row["figures"]) for row in await connection.fetch(query)]
    assert recorded == [{"conversations": 2, "files": 2}]
    status, out = await exai("erase", "owner", ANNA, "--yes")
    assert (status, f"Nothing of the owner {ANNA} was stored; is the name correct?" in out) == (0, True), out


@pytest.fixture
def exai(variables: dict[str, str], tmp_path: Path) -> Callable[..., Awaitable[tuple[int, str]]]:
    async def command(*arguments: str) -> tuple[int, str]:
        done = await asyncio.to_thread(run_exai_as_text, *arguments, settings=variables, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return command
