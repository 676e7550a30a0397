"""Conversations are deleted when their time has come: their own, their owner's, or that of all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from exai.app import App, open_app
from exai.conversations.requests import AppendRequest
from exai.conversations.retention import PAUSE_S, Retention
from exai.db.lifecycle import ConversationUpdate
from exai.errors import DatabaseError, InvalidArgument, NotFound
from exai.models import ContinuationId, NewMessage, Owner
from exai.settings.load import load_settings
from tests.support.counters import Counters
from tests.support.migrations import run, value

ANNA, BERT, CARL = Owner("anna"), Owner("bert"), Owner("carl")
PAST = "2020-01-01T00:00:00+02:00"


@pytest.fixture
def variables(postgres_url: str, redis_url: str) -> dict[str, str]:
    return {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url}


async def begun(app: App, owner: Owner, age_days: float = 0, url: str = "") -> ContinuationId:
    name = (await app.conversations.append(AppendRequest(owner, [NewMessage("user", "words")]))).continuation_id
    if age_days:
        at = (datetime.now(UTC) - timedelta(days=age_days)).isoformat()
        await run(url, f"update public.conversations set updated_at = '{at}' where continuation_id = '{name}'")
    return name


async def kept(app: App, owner: Owner) -> set[ContinuationId]:
    return {each.continuation_id for each in (await app.conversations.list(owner)).conversations}


async def test_a_time_is_set_read_moved_and_removed(variables: dict[str, str]) -> None:
    """It is in the header, so in every answer about the conversation, cached or not, and in that of a fork."""
    async with open_app(load_settings(variables, None)) as app:
        name = await begun(app, ANNA)
        at = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
        changed = await app.conversations.change(ANNA, name, ConversationUpdate(expires_at="2031-02-03T06:05:06+02:00"))
        assert changed.expires_at == at
        for _ in range(2):
            page = await app.conversations.read(ANNA, name)
            assert page.conversation.expires_at == at
            await app.cache.wait_settled()
        assert page.source == "cache"
        assert (await app.conversations.list(ANNA)).conversations[0].expires_at == at
        assert (await app.conversations.fork(ANNA, name)).expires_at == at
        again = await app.conversations.change(ANNA, name, ConversationUpdate(title="x"))
        assert again.expires_at == at
        removed = await app.conversations.change(ANNA, name, ConversationUpdate(expires_at=""))
        assert removed.expires_at is None
        assert (await app.conversations.read(ANNA, name)).conversation.expires_at is None


@pytest.mark.parametrize(
    "text", ["tomorrow", "2031-02-03", "2031-02-03T04:05:06", "infinity", "0001-01-01T00:00:00+01:00"]
)
async def test_what_is_no_time_is_refused(variables: dict[str, str], text: str) -> None:
    async with open_app(load_settings(variables, None)) as app:
        name = await begun(app, ANNA)
        with pytest.raises(InvalidArgument, match="expires_at"):
            await app.conversations.change(ANNA, name, ConversationUpdate(expires_at=text))


async def test_an_expired_conversation_is_hidden_and_removed_a_week_later(variables: dict[str, str]) -> None:
    """Without any setting; what was deleted otherwise still waits for `exai prune`."""
    url = variables["EXAI_DATABASE__URL"]
    async with open_app(load_settings(variables, None)) as app:
        name, other, deleted = [await begun(app, ANNA) for _ in range(3)]
        await app.conversations.change(ANNA, name, ConversationUpdate(expires_at=PAST))
        await app.conversations.change(ANNA, other, ConversationUpdate(expires_at="2999-01-01T00:00:00Z"))
        await app.conversations.delete(ANNA, deleted)
        await app.conversations.read(ANNA, name)
        assert await app.maintenance.retain() == (1, 0)
        assert await kept(app, ANNA) == {other}
        assert await app.maintenance.retain() == (0, 0)
        restored = await app.conversations.restore(ANNA, name)
        assert restored.expires_at is not None
        assert await app.maintenance.retain() == (1, 0)
        await run(url, "update public.conversations set deleted_at = deleted_at - interval '8 days'")
        assert await app.maintenance.retain() == (0, 1)
        with pytest.raises(NotFound):
            await app.conversations.restore(ANNA, name)
        assert (await app.conversations.restore(ANNA, deleted)).continuation_id == deleted


async def test_owners_have_times_of_their_own(variables: dict[str, str]) -> None:
    """0 means never; a time of its own comes first; all deleted conversations are removed after a week."""
    url = variables["EXAI_DATABASE__URL"]
    settings = {"EXAI_RETENTION__IDLE_DAYS": "100", "EXAI_RETENTION__OWNERS": '{"bert": 10, "carl": 0}'}
    async with open_app(load_settings({**variables, **settings}, None)) as app:
        names = {
            (owner, days): await begun(app, owner, days, url) for owner in (ANNA, BERT, CARL) for days in (20, 200)
        }
        pinned = await begun(app, BERT)
        await app.conversations.change(BERT, pinned, ConversationUpdate(expires_at="2999-01-01T00:00:00Z"))
        await run(url, f"update public.conversations set updated_at = '2020-01-01' where continuation_id = '{pinned}'")
        assert await app.maintenance.retain() == (3, 0)
        assert await kept(app, ANNA) == {names[ANNA, 20]}
        assert await kept(app, BERT) == {pinned}
        assert await kept(app, CARL) == {names[CARL, 20], names[CARL, 200]}
        await run(url, "update public.conversations set deleted_at = deleted_at - interval '8 days'")
        assert await app.maintenance.retain() == (0, 3)
        assert await value(url, "select count(*) from public.messages") == 4


async def test_a_rehearsal_counts_what_a_prune_would_do(variables: dict[str, str]) -> None:
    """Deleted conversations whose forks go with them, and idle ones by the shortest time that holds for each."""
    url = variables["EXAI_DATABASE__URL"]
    settings = {"EXAI_RETENTION__IDLE_DAYS": "100", "EXAI_RETENTION__OWNERS": '{"bert": 10, "carl": 0}'}
    async with open_app(load_settings({**variables, **settings}, None)) as app:
        for owner in (ANNA, BERT, CARL):
            for days in (5, 20, 200):
                await begun(app, owner, days, url)
        due, root, kept_root = [await begun(app, ANNA) for _ in range(3)]
        await app.conversations.change(ANNA, due, ConversationUpdate(expires_at=PAST))
        fork = (await app.conversations.fork(ANNA, root)).continuation_id
        last = (await app.conversations.fork(ANNA, fork)).continuation_id
        await app.conversations.fork(ANNA, kept_root)
        for name in (root, fork, last, kept_root):
            await app.conversations.delete(ANNA, name)
        assert await app.maintenance.rehearse() == (0, 1 + 1 + 2)
        await run(url, "update public.conversations set deleted_at = deleted_at - interval '8 days'")
        assert await app.maintenance.rehearse() == (3, 4)
        assert await app.maintenance.rehearse(idle_days=15) == (3, 1 + 2 + 2 + 2)
        with pytest.raises(InvalidArgument, match="idle_days"):
            await app.maintenance.rehearse(idle_days=0)
        before = await value(url, "select count(*) from public.conversations where deleted_at is null")
        assert await app.maintenance.prune(idle_days=15) == 3
        assert await value(url, "select count(*) from public.conversations where deleted_at is null") == before - 7


async def test_another_program_may_set_the_time(variables: dict[str, str]) -> None:
    """A dashboard changes the row; caches see it, and a time that no client can represent is none."""
    url = variables["EXAI_DATABASE__URL"]
    async with open_app(load_settings(variables, None)) as app:
        name = await begun(app, ANNA)
        before = (await app.conversations.read(ANNA, name)).conversation.revision
        for time in ("infinity", "2031-01-01 00:00:00+00"):
            await run(url, f"update public.conversations set expires_at = '{time}' where continuation_id = '{name}'")
        (listed,) = (await app.conversations.list(ANNA)).conversations
        assert listed.revision == before + 2
        assert listed.expires_at == datetime(2031, 1, 1, tzinfo=UTC)


class Failing:
    async def retain(self) -> tuple[int, int]:
        raise DatabaseError("database", "is away")


async def test_the_daemon_goes_on_after_a_failure() -> None:
    """Soon after the start, then every ten minutes."""
    pauses: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            raise Enough

    failing: Any = Failing()
    counters = Counters()
    with pytest.raises(Enough):
        await Retention(failing, counters, sleep=sleep, rand=lambda: 0.5).run()
    assert pauses[1:] == [PAUSE_S, PAUSE_S]
    assert counters["retention_failed_total"] == 2
