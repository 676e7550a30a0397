"""Changes by another daemon are noticed at the next poll; both share only a database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest

from exai.conversations import AppendRequest, ChatRequest
from exai.conversations.changes import ChangePoller, Notice, Notices
from exai.db.conversations import ConversationRepository
from exai.db.driver.pool import connect
from exai.db.lifecycle import ConversationUpdate
from exai.models import LOCAL_OWNER, Commit, ContinuationId, Conversation, ConversationId, NewMessage, Owner
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.database import conversation_of

WAIT_S = 15.0
POLL_S = 0.1


class Other:
    """The ears of another daemon."""

    def __init__(self, rig: Rig) -> None:
        self.heard: list[Notice] = []
        self.is_wanting = True
        self.notices = Notices()
        self.notices.listen(self.heard.append, lambda: self.is_wanting)
        self.watch = ChangePoller(ConversationRepository(rig.app.database), self.notices, rig.app.recorder)

    async def hears(self) -> list[tuple[str, str, bool]]:
        """What the next look brings."""
        self.heard.clear()
        await self.watch.look()
        return sorted((each.owner, each.continuation_id, each.is_listed) for each in self.heard)


async def test_changes_by_others_are_heard_once_with_what_they_do_to_the_list(rig: Rig) -> None:
    """New, renamed and deleted ones change the list; each look costs one round trip."""
    service, other = rig.app.conversations, Other(rig)
    assert await other.hears() == []
    made = await service.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "a")]))
    chat = await rig.app.chat.run(ChatRequest(Owner("alice"), "Hello?"))
    rig.reset()
    assert await other.hears() == sorted([("local", made.continuation_id, True), ("alice", chat.continuation_id, True)])
    assert rig.cost() == (1, 0)
    assert await other.hears() == []
    for _ in range(3):
        await service.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "b")], made.continuation_id))
    assert await other.hears() == [("local", made.continuation_id, False)]
    await service.change(LOCAL_OWNER, made.continuation_id, ConversationUpdate(title="new"))
    assert await other.hears() == [("local", made.continuation_id, True)]
    await service.delete(LOCAL_OWNER, made.continuation_id)
    assert await other.hears() == [("local", made.continuation_id, True)]


async def test_first_subscriber_receives_the_changes_since_the_last_poll(rig: Rig) -> None:
    """Without subscribers polls are rare; the first poll of a subscriber reaches back to the last one."""
    service, other = rig.app.conversations, Other(rig)
    other.is_wanting = False
    assert await other.hears() == []
    rig.reset()
    assert await other.hears() == []
    assert rig.cost() == (0, 0)
    made = await service.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "a")]))
    other.is_wanting = True
    assert await other.hears() == [("local", made.continuation_id, True)]


async def test_changes_after_a_recovery_of_the_database_are_heard(rig: Rig) -> None:
    """Their transaction ids may be below that of the last look; here a rewritten table stands for the server epoch."""
    service, other = rig.app.conversations, Other(rig)
    made = await service.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "a")]))
    await other.hears()
    rewritten = "alter table messages add column other double precision default random()"
    await service.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "b")], made.continuation_id))
    # As if the server had given out a hundred ids that it has forgotten.
    lower = "update conversations set changed_xid = (changed_xid::text::bigint - 100)::text::xid8"
    connection = await connect(rig.app.database.address, timeout_s=5)
    for statement in (rewritten, lower):
        await connection.execute(statement)
    await connection.close()
    assert ("local", made.continuation_id, True) in await other.hears()
    assert await other.hears() == []


def test_a_revision_is_one_notice_from_any_source() -> None:
    """Here and by a look at the same moment; that the list changed is never lost."""
    heard: list[Notice] = []
    notices = Notices()
    notices.listen(heard.append, lambda: True)
    conversation = Conversation(
        ConversationId("c"), ContinuationId("c"), LOCAL_OWNER, None, {}, 1, 5, datetime.now(UTC), datetime.now(UTC)
    )
    commit = Commit(conversation, 4, 5, "epoch", is_listed=True)
    notices.notify(commit.key, 5, is_listed=False)
    notices.announce(replace(commit, is_repeated=True))
    notices.announce(commit)
    notices.notify(commit.key, 5, is_listed=True)
    notices.notify(commit.key, 4, is_listed=True)
    notices.announce(replace(commit, base_revision=5))
    assert [each.is_listed for each in heard] == [False, True]


async def test_a_defect_of_the_watch_ends_the_application(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    """Otherwise subscribers would receive no notices, without an error."""

    def fail(notice: Notice) -> NoReturn:
        raise ZeroDivisionError(notice.continuation_id)

    with pytest.raises(ZeroDivisionError) as caught:
        async with open_rig(postgres_url, redis_url, tmp_path) as rig:
            other = ConversationRepository(rig.app.database)
            rig.app.notices.listen(fail, lambda: True)
            async with asyncio.timeout(WAIT_S):
                while True:
                    await conversation_of(other, "by another daemon")
                    await asyncio.sleep(POLL_S)
    assert "conversation-watch" in "".join(caught.value.__notes__)
