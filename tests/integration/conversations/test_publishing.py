"""The step after every commit: the cache, then the listeners in this process."""

from __future__ import annotations

from exai.conversations import AppendRequest
from exai.models import LOCAL_OWNER, NewMessage
from tests.integration.conversations.conftest import Rig


async def test_listeners_are_notified_after_the_cache(rig: Rig) -> None:
    """A listener that reads at once must not get the older page."""
    applied: list[float] = []
    rig.app.notices.listen(lambda _: applied.append(rig.app.recorder.value("cache_applies_total")), lambda: True)
    before = rig.app.recorder.value("cache_applies_total")
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "one")]))
    assert applied == [before + 1]


async def test_a_repeated_request_is_published_but_not_announced_again(rig: Rig) -> None:
    """The first attempt may have ended between the commit and the cache."""
    request = AppendRequest(LOCAL_OWNER, [NewMessage("user", "one")], idempotency_key="key")
    await rig.app.conversations.append(request)
    heard: list[object] = []
    rig.app.notices.listen(heard.append, lambda: False)
    before = rig.app.recorder.value("cache_applies_total")
    assert (await rig.app.conversations.append(request)).duplicate
    assert rig.app.recorder.value("cache_applies_total") == before + 1
    assert heard == []


async def test_a_change_that_redis_missed_is_acknowledged_with_a_least_revision(rig: Rig) -> None:
    """This process then accepts no older entry, although Redis is back and still has one."""
    stored = await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "one")]))
    await rig.app.conversations.read(LOCAL_OWNER, stored.continuation_id)
    await rig.app.cache.wait_settled()
    heard: list[object] = []
    rig.app.notices.listen(heard.append, lambda: True)
    rig.cache.mode = "reset"
    await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, [NewMessage("user", "two")], stored.continuation_id))
    rig.cache.mode = "pass"
    assert rig.app.recorder.value("cache_applies_total", result="failed") == 1
    assert len(heard) == 1
    page = await rig.app.conversations.read(LOCAL_OWNER, stored.continuation_id)
    assert [message.content for message in page.messages] == ["one", "two"]
