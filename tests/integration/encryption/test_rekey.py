"""Rekeying: from plain text to a key, from key to key and back, while applications serve."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.rekeying import Rekeyed, Rekeying
from exai.db.lifecycle import ConversationUpdate
from exai.db.search import SearchQuery
from exai.errors import ConfigError
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, FileSource, NewMessage
from tests.integration.conversations.conftest import Rig
from tests.integration.encryption.conftest import OpenRig, key
from tests.support.checkpoints import store_checkpoint
from tests.support.daemon import environment
from tests.support.migrations import run, value

CHART = b"depths of the harbour\n" * 100
SOURCE = FileSource("/charts/chart.txt", "a machine", "a digest", len(CHART), 1, 2, "1-10")
KEYS = "select coalesce(string_agg(name, ',' order by name), '') from exai.encryption_keys"
FORMS = """
select coalesce(string_agg(distinct coalesce(substring(x.content from '^\\$exai1\\$([a-z0-9]+)\\$'), 'plain'), ','
                           order by coalesce(substring(x.content from '^\\$exai1\\$([a-z0-9]+)\\$'), 'plain')), '')
  from (select content from public.messages union all select title from public.conversations where title is not null
        union all select metadata ->> '$exai' from public.conversations where metadata <> '{}'
        union all select metadata ->> '$exai' from public.turns
                   where metadata <> '{}' and not metadata ? 'conversation'
        union all select c.encoding from exai.contents c
                   where exists (select from public.files f where f.owner = c.owner and f.sha256 = c.sha256)
        union all select note from exai.content_texts union all select name from public.files
        union all select coalesce(source ->> '$exai', source ->> 'path') from public.conversation_files
        union all select '$exai1$' || key_name || '$' from exai.checkpoints
        union all select facts ->> '$exai' from exai.checkpoints
        union all select '$exai1$' || key_name || '$' from exai.checkpoint_blobs
        union all select '$exai1$' || key_name || '$' from exai.checkpoint_writes) x
"""


def quiet(done: Rekeyed) -> None:
    """Show no progress."""


async def rekeyed(rig: Rig, newest: str | None) -> Rekeyed:
    """Rekey everything."""
    work = Rekeying(rig.app.database, rig.app.files, rig.app.cache.erasure, rig.app.maintenance)
    return await work.run(newest, quiet)


async def filled(rig: Rig) -> ContinuationId:
    """Store a conversation with a title, metadata, a chat turn, a fork, and a change with a key."""
    messages = [NewMessage("user", f"harbour {number}", metadata={"n": number}) for number in range(3)]
    name = (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages, title="the title"))).continuation_id
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Hello?", continuation_id=name, idempotency_key="chat"))
    await change(rig, name)
    await store_checkpoint(rig.app.checkpoints, "harbour")
    await rig.app.checkpoints.copy(LOCAL_OWNER, "thread", "copy")
    await rig.app.conversations.fork(LOCAL_OWNER, name, at_seq=2, idempotency_key="fork")
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("chart.txt", CHART)])
    sources, chart = {file.id: SOURCE}, [NewMessage("user", "the chart")]
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, chart, name, files=(file.id,), sources=sources))
    return name


async def change(rig: Rig, name: ContinuationId) -> object:
    """Change the conversation, once."""
    change = ConversationUpdate(title="new title", metadata={"a": 1})
    changed = await rig.app.conversations.change(LOCAL_OWNER, name, change, idempotency_key="change")
    return changed.title, changed.metadata


async def seen(rig: Rig, name: ContinuationId) -> object:
    """Everything that a client sees of a conversation, and its fork."""
    pages = []
    for each in (await rig.app.conversations.list(LOCAL_OWNER)).conversations:
        page = await rig.app.conversations.read(LOCAL_OWNER, each.continuation_id)
        pages.append((page.conversation, page.messages))
    found = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "harbour"))
    listed = await rig.app.files.list_read(LOCAL_OWNER, name, SOURCE.machine, 10)
    files = [(file, file.source, (await rig.app.files.read(LOCAL_OWNER, file.id))[1]) for file in listed]
    assert len(files) == 1
    hits = sorted((hit.continuation_id, hit.seq, hit.snippet, hit.title) for hit in found.hits)
    newest = [await rig.app.checkpoints.get(LOCAL_OWNER, thread_id) for thread_id in ("thread", "copy")]
    checkpoints = (await rig.app.checkpoints.list(LOCAL_OWNER)).checkpoints
    assert len(checkpoints) == 2
    named = [(file.id, file.name, file.sha256, *rest) for file, *rest in files]
    return name, pages, hits, found.unread, named, newest, checkpoints


async def test_everything_goes_from_plain_to_a_key_to_another_and_back(with_keys: OpenRig, postgres_url: str) -> None:
    """Clients see the same, revisions included, and the keys that are not needed any more may be removed."""
    async with with_keys() as rig:
        name = await filled(rig)
        expected = await seen(rig, name)
        await rig.app.maintenance.index_words()
    steps: Sequence[tuple[tuple[str, ...], str | None, str]] = (
        (("k1",), "k1", "k1"),
        (("k2", "k1"), "k2", "k2"),
        (("plain", "k2"), None, "plain"),
    )
    for names, newest, form in steps:
        async with with_keys(*names) as rig:
            await seen(rig, name)
            done = await rekeyed(rig, newest)
            assert (done.is_complete, done.unread, done.cache_problem) == (True, 0, None)
            assert done.replaced > 0
            assert await seen(rig, name) == expected
            if form == "plain":
                # Its hash was stored before encryption began.
                assert await change(rig, name) == ("new title", {"a": 1})
        assert await value(postgres_url, FORMS) == form
        assert await value(postgres_url, KEYS) == ("" if newest is None else newest)
    async with with_keys() as rig:
        assert await seen(rig, name) == expected


async def test_cache_holds_no_entry_of_before(with_keys: OpenRig) -> None:
    """A page that was cached before, in plain text, is gone."""
    async with with_keys() as rig:
        name = await filled(rig)
        await rig.app.conversations.read(LOCAL_OWNER, name)
        await rig.app.cache.wait_settled()
    async with with_keys("k1") as rig:
        assert (await rig.app.conversations.read(LOCAL_OWNER, name)).source == "cache"
        await rekeyed(rig, "k1")
        assert (await rig.app.conversations.read(LOCAL_OWNER, name)).source == "database"


async def test_unreadable_row_stays_and_keeps_its_key(with_keys: OpenRig, postgres_url: str) -> None:
    """It is named, and not bound to the place to which it was moved."""
    async with with_keys("k1") as rig:
        await filled(rig)
    await run(postgres_url, "update public.messages m set content = (select min(x.content) from public.messages x)")
    async with with_keys("k2", "k1") as rig:
        done = await rekeyed(rig, "k2")
        assert not done.is_complete
        assert done.unread > 0
        assert "content of message" in done.unreadable[0]
    assert await value(postgres_url, KEYS) == "k1,k2"


async def test_rows_stored_meanwhile_are_kept_and_rekeyed(with_keys: OpenRig, postgres_url: str) -> None:
    """An older application appends during the passes, to the same conversation."""
    async with with_keys("k1") as older:
        name = await filled(older)
        async with with_keys("k2", "k1") as newer:
            texts = [f"meanwhile {number}" for number in range(30)]

            async def append() -> None:
                for text in texts:
                    request = AppendRequest(LOCAL_OWNER, [NewMessage("user", text)], name)
                    await older.app.conversations.append(request)

            await asyncio.gather(append(), rekeyed(newer, "k2"))
            done = await rekeyed(newer, "k2")
            assert done.is_complete
            page = await newer.app.conversations.read(LOCAL_OWNER, name)
            assert [each.content for each in page.messages][6:] == texts
            assert [each.seq for each in page.messages] == list(range(1, 37))
    assert await value(postgres_url, FORMS) == "k2"


async def killed_and_repeated(settings: Mapping[str, str], url: str, partly: str) -> bytes:
    """Run the command, kill it when `partly` counts a row, run it again, and return the output of that."""
    command = (sys.executable, "-m", "exai", "rekey")
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, env=environment(settings), **pipes)
    async with asyncio.timeout(30):
        while await value(url, partly) == 0 and process.returncode is None:
            await asyncio.sleep(0)
    if process.returncode is None:
        os.kill(process.pid, signal.SIGKILL)
    await process.communicate()
    process = await asyncio.create_subprocess_exec(*command, env=environment(settings), **pipes)
    out, err = await process.communicate()
    assert process.returncode == 0, err
    return out


async def test_killed_rekeying_is_repeated(with_keys: OpenRig, postgres_url: str, redis_url: str) -> None:
    """The command, killed in the middle, and begun again."""
    async with with_keys("k1") as rig:
        for number in range(20):
            messages = [NewMessage("user", f"{number} {place}") for place in range(150)]
            await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages))
    settings = {
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_STORE__KEYS": f"{key('k2')},{key('k1')}",
    }
    partly = "select count(*) from public.messages where content like '$exai1$k2$%'"
    out = await killed_and_repeated(settings, postgres_url, partly)
    assert b"rows are now encrypted with the key k2" in out
    assert b"remove the others from EXAI_STORE__KEYS" in out
    assert await value(postgres_url, partly) == 3_001
    assert await value(postgres_url, KEYS) == "k2"


async def test_killed_rekeying_of_contents_is_repeated(
    with_keys: OpenRig, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Killed between two contents, or between the bytes of one and its rows; every file is read as before."""
    contents = {f"{number}.bin": bytes([number]) * 1_500_000 for number in range(24)}
    async with with_keys() as rig:
        await rig.app.files.put(LOCAL_OWNER, [FileContent(name, data) for name, data in contents.items()])
    settings = {
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_STORE__KEYS": key("k1"),
        "EXAI_DATA_DIR": str(tmp_path),
    }
    partly = "select count(*) from exai.contents where encoding like '$exai1$%'"
    out = await killed_and_repeated(settings, postgres_url, partly)
    assert b"`exai prune` removes their former bytes" in out
    assert await value(postgres_url, partly) == 24
    async with with_keys("k1") as rig:
        listed = (await rig.app.files.list(LOCAL_OWNER)).files
        assert {file.name: (await rig.app.files.read(LOCAL_OWNER, file.id))[1] for file in listed} == contents


async def test_key_that_was_removed_too_early_is_named(with_keys: OpenRig) -> None:
    """Before the rekeying has ended."""
    async with with_keys("k1") as rig:
        await filled(rig)
    async with with_keys("k2", "k1"):
        pass
    with pytest.raises(ConfigError, match="lacks keys with which content of this database is encrypted: k1"):
        async with with_keys("k2"):
            raise AssertionError("it started")
