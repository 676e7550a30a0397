"""Single steps of the protocol as tests take them, each asserting what it expects to find.

Invariant: `age` and `set_watermark` change Redis directly; everything else goes through the cache.
"""

from __future__ import annotations

from exai.cache.conversations import ConversationCache
from exai.cache.entry import watermark_key
from exai.cache.records import Hit, Miss, PreloadedPage
from exai.models import Commit, Message
from tests.integration.cache.stored import Stored
from tests.support.valkey import Valkey


async def fill(cache: ConversationCache, stored: Stored) -> None:
    found, source = await cache.read_through(stored.key, stored.load)
    assert (found.messages, source) == (tuple(stored.messages[-50:]), "database")
    await cache.wait_settled()


async def apply(
    cache: ConversationCache,
    stored: Stored,
    delta: tuple[Message, ...] | None,
    *,
    base_revision: int | None = None,
    preloaded: PreloadedPage | None = None,
) -> bool:
    base_revision = stored.revision - 1 if base_revision is None else base_revision
    commit = Commit(stored.conversation(), base_revision, stored.revision, stored.server_epoch, delta)
    return await cache.apply(commit, preloaded=preloaded)


async def miss(cache: ConversationCache, stored: Stored) -> Miss:
    found = await cache.read(stored.key)
    assert isinstance(found, Miss)
    return found


async def hit(cache: ConversationCache, stored: Stored) -> Hit:
    found = await cache.read(stored.key)
    assert isinstance(found, Hit)
    return found


async def expect_current(cache: ConversationCache, stored: Stored) -> Hit:
    """Assert a hit that equals the answer of the database."""
    found = await hit(cache, stored)
    page = stored.page()
    assert (found.conversation, found.messages, found.complete) == (page.conversation, page.messages, page.complete)
    return found


def age(valkey: Valkey, key: str, by_s: int) -> None:
    """Make an entry or a watermark so much older."""
    valkey.do("HINCRBY", key, "asof", -by_s * 1_000_000)


def set_watermark(valkey: Valkey, generation: str) -> None:
    seconds, micros = valkey.do("TIME")
    asof = int(seconds) * 1_000_000 + int(micros)
    valkey.do("HSET", watermark_key(0), "gen", generation, "xmin", 1, "epoch", "epoch-1", "asof", asof)
