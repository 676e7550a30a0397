"""Every transition of a conversation's state in Redis: empty, leased, cached, uncovered; and of the watermark."""

from __future__ import annotations

import pytest

from exai.cache.conversations import ConversationCache
from exai.cache.entry import cache_keys
from exai.cache.records import Loaded, PreloadedPage, Unavailable, Wait
from exai.models import LOCAL_OWNER, Commit, ContentPart, ContinuationId, ConversationId, ConversationKey, Owner
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import age, apply, expect_current, fill, hit, miss, set_watermark
from tests.integration.cache.stored import NAME, NOW, Stored
from tests.support.counters import Counters
from tests.support.valkey import Valkey

KEYS = cache_keys(ConversationKey(LOCAL_OWNER, NAME), 1)

AT = '"2026-01-02T03:04:05.678901+00:00"'
MESSAGES = [
    f'[1,"user",null,{AT},"message",null,{{}}]',
    f'[1,"user",["text"],{AT},"message",null,{{}}]',
    f'[1,"user","text",{AT},"message",null,[]]',
    f'[1,"user","text",{AT},"message",null,null]',
    f'[1,"user","text",{AT},null,null,{{}}]',
    f'[1,"user","text",{AT},"message",7,{{}}]',
    f'[1,7,"text",{AT},"message",null,{{}}]',
    f'["1","user","text",{AT},"message",null,{{}}]',
    f'[true,"user","text",{AT},"message",null,{{}}]',
    '[1,"user","text",0,"message",null,{}]',
    '[1,"user","text","2026-01-02T03:04:05","message",null,{}]',
    f'[1,"user","text",{AT},"message",null,{{}},null,"more"]',
    f'[1,"user","text",{AT},"message",null]',
    '{"seq":1}',
    "null",
]
HEADERS = [
    f'["id",7,{{}},[],1,{AT},{AT},null,null]',
    f'["id",null,[],[],1,{AT},{AT},null,null]',
    f'["id",null,{{}},"ab",1,{AT},{AT},null,null]',
    f'["id",null,{{}},[1],1,{AT},{AT},null,null]',
    f'["id",null,{{}},[],"1",{AT},{AT},null,null]',
    f'["id",null,{{}},[],1,"2026-01-02",{AT},null,null]',
    f"[7,null,{{}},[],1,{AT},{AT},null,null]",
    f'["id",null,{{}},[],1,{AT},{AT},null,"1"]',
    "{}",
]
BROKEN = [("page", "not JSON"), *(("page", text) for text in MESSAGES), *(("header", text) for text in HEADERS)]


@pytest.fixture
async def cache(cache_at: OpenCache, valkey: Valkey) -> ConversationCache:
    return await cache_at(valkey.url)


class TestEmpty:
    async def test_first_reader_gets_the_lease_and_the_next_waits(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """Invariant 2: at most one live lease."""
        first = await miss(cache, stored)
        assert await cache.read(stored.key) == Wait(first.token)

    async def test_lease_ends_by_itself(self, cache: ConversationCache, stored: Stored, valkey: Valkey) -> None:
        """A reader that dies must not keep others from filling for longer than the lease."""
        await miss(cache, stored)
        assert 0 < valkey.do("PTTL", KEYS.lease) <= 3_000

    async def test_released_lease_can_be_had_again(self, cache: ConversationCache, stored: Stored) -> None:
        """A read that failed gives its lease back."""
        await cache.release(stored.key, await miss(cache, stored))
        await miss(cache, stored)

    async def test_only_the_holder_can_release(self, cache: ConversationCache, stored: Stored, valkey: Valkey) -> None:
        """A reader whose lease has gone to another must not end that one's."""
        late = await miss(cache, stored)
        valkey.do("DEL", KEYS.lease)
        holder = await miss(cache, stored)
        await cache.release(stored.key, late)
        assert await cache.read(stored.key) == Wait(holder.token)

    async def test_change_to_what_is_not_cached_stores_nothing(self, cache: ConversationCache, stored: Stored) -> None:
        """A writer without a lease never stores."""
        assert await apply(cache, stored, stored.append("one"))
        await miss(cache, stored)


class TestLeased:
    async def test_page_read_under_the_lease_is_stored(self, cache: ConversationCache, stored: Stored) -> None:
        """FILL with its token alive."""
        assert await cache.fill(stored.key, await miss(cache, stored), stored.page())
        await expect_current(cache, stored)

    async def test_change_ends_the_lease(self, cache: ConversationCache, stored: Stored) -> None:
        """Invariant 3: a page read before a change is not stored after it."""
        token, old = await miss(cache, stored), stored.page()
        await apply(cache, stored, stored.append("new"))
        assert not await cache.fill(stored.key, token, old)
        await miss(cache, stored)

    @pytest.mark.parametrize("command", [("DEL", KEYS.lease), ("FLUSHALL",)])
    async def test_lost_lease_is_refused(
        self, cache: ConversationCache, stored: Stored, valkey: Valkey, command: tuple[str, ...]
    ) -> None:
        """Expired, evicted, or gone with a restart: all look the same."""
        token = await miss(cache, stored)
        valkey.do(*command)
        assert not await cache.fill(stored.key, token, stored.page())
        await miss(cache, stored)

    async def test_writer_with_the_lease_stores_the_page_of_its_statement(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """The warm path: it saves the next reader's miss."""
        token = await miss(cache, stored)
        delta = stored.append("new")
        await apply(cache, stored, delta, preloaded=PreloadedPage(token, tuple(stored.messages), complete=True))
        await expect_current(cache, stored)

    async def test_writer_whose_lease_was_ended_stores_nothing(self, cache: ConversationCache, stored: Stored) -> None:
        """Another writer came between its statement and its turn at Redis."""
        token = await miss(cache, stored)
        delta, page, header = stored.append("mine"), tuple(stored.messages), stored.conversation()
        await apply(cache, stored, stored.append("theirs"))
        commit = Commit(header, 1, 2, stored.server_epoch, delta)
        await cache.apply(commit, preloaded=PreloadedPage(token, page, complete=True))
        await miss(cache, stored)

    async def test_writer_stores_no_page_that_is_cut_short(self, cache: ConversationCache, stored: Stored) -> None:
        """A prompt's budget may end a history early; that is not the newest page."""
        token = await miss(cache, stored)
        delta = stored.append("new")
        await apply(cache, stored, delta, preloaded=PreloadedPage(token, delta, complete=False))
        await miss(cache, stored)


class TestCached:
    async def test_change_on_the_cached_revision_is_added(self, cache: ConversationCache, stored: Stored) -> None:
        """APPLY at E.rev = base: the entry moves on with the conversation."""
        await fill(cache, stored)
        for number in range(3):
            await apply(cache, stored, stored.append(f"question {number}", f"answer {number}"))
            await expect_current(cache, stored)

    async def test_first_message_of_an_empty_conversation_is_added(
        self, cache: ConversationCache, recorder: Counters
    ) -> None:
        """An empty conversation is cached like any other."""
        stored = Stored(size=0)
        await fill(cache, stored)
        await expect_current(cache, stored)
        await apply(cache, stored, stored.append("first"))
        await expect_current(cache, stored)

    async def test_header_alone_can_change(self, cache: ConversationCache, stored: Stored) -> None:
        """An empty delta is not the same as none."""
        await fill(cache, stored)
        stored.revision += 1
        await apply(cache, stored, ())
        await expect_current(cache, stored)

    async def test_page_is_cut_to_its_newest_messages(self, cache: ConversationCache) -> None:
        """Invariant 1: exactly the newest page; then older messages exist."""
        stored = Stored(size=49)
        await fill(cache, stored)
        assert (await expect_current(cache, stored)).complete
        await apply(cache, stored, stored.append("one", "two", "three"))
        found = await expect_current(cache, stored)
        assert (found.messages[0].seq, len(found.messages), found.complete) == (3, 50, False)

    async def test_gap_removes_the_entry(self, cache: ConversationCache, stored: Stored) -> None:
        """A change whose predecessor never arrived."""
        await fill(cache, stored)
        stored.append("never told")
        await apply(cache, stored, stored.append("told"))
        await miss(cache, stored)

    async def test_edit_removes_the_entry(self, cache: ConversationCache, stored: Stored) -> None:
        """A change that is no addition has no delta."""
        await fill(cache, stored)
        stored.edit("other words")
        await apply(cache, stored, None)
        await miss(cache, stored)

    async def test_repeated_change_leaves_a_newer_entry(self, cache: ConversationCache, stored: Stored) -> None:
        """A retried request whose conversation has moved on."""
        await fill(cache, stored)
        delta = stored.append("one")
        await apply(cache, stored, delta)
        header = stored.conversation()
        await apply(cache, stored, stored.append("two"))
        for conversation in (header, stored.conversation()):
            await cache.apply(Commit(conversation, 1, 2, stored.server_epoch, delta))
            await expect_current(cache, stored)

    async def test_other_incarnation_removes_the_entry(self, cache: ConversationCache, stored: Stored) -> None:
        """After a failover the same revision may mean something else."""
        await fill(cache, stored)
        stored.server_epoch = "epoch-2"
        await apply(cache, stored, stored.append("one"))
        await miss(cache, stored)

    async def test_other_conversation_of_the_same_name_removes_the_entry(
        self, cache: ConversationCache, stored: Stored
    ) -> None:
        """A conversation was erased, and its continuation id taken again: revisions start anew."""
        await fill(cache, stored)
        stored.id = ConversationId("0198c0de-0000-7000-8000-000000000002")
        stored.messages.clear()
        stored.revision = 0
        await apply(cache, stored, stored.append("first"))
        await miss(cache, stored)

    async def test_evicted_entry_is_a_miss(self, cache: ConversationCache, stored: Stored, valkey: Valkey) -> None:
        """Eviction is always allowed."""
        await fill(cache, stored)
        valkey.do("DEL", KEYS.entry)
        await miss(cache, stored)

    async def test_entry_ends_when_idle(self, cache_at: OpenCache, stored: Stored, valkey: Valkey) -> None:
        """24 hours by default, a tenth of it jitter, counted anew by every change."""
        cache = await cache_at(valkey.url, idle_hours=2)
        await fill(cache, stored)
        assert 6_400 <= valkey.do("TTL", KEYS.entry) <= 7_200
        valkey.do("EXPIRE", KEYS.entry, 100)
        await apply(cache, stored, stored.append("one"))
        assert 6_400 <= valkey.do("TTL", KEYS.entry) <= 7_200

    async def test_reader_that_knows_better_replaces_the_entry(self, cache: ConversationCache, stored: Stored) -> None:
        """`min_revision` makes an older entry a miss, and the fill of that miss replaces it."""
        await fill(cache, stored)
        stored.append("never told")
        found, source = await cache.read_through(stored.key, stored.load, min_revision=stored.revision)
        assert (found.conversation.revision, source) == (2, "database")
        await expect_current(cache, stored)

    @pytest.mark.parametrize(("field", "text"), BROKEN)
    async def test_entry_that_cannot_be_read_is_replaced(
        self,
        cache: ConversationCache,
        stored: Stored,
        valkey: Valkey,
        recorder: Counters,
        field: str,
        text: str,
    ) -> None:
        """A broken entry neither stays for a day nor reaches a caller."""
        await fill(cache, stored)
        valkey.do("HSET", KEYS.entry, field, text)
        await fill(cache, stored)
        await expect_current(cache, stored)
        assert recorder["cache_undecodable_total"] == 1


class TestSizes:
    async def test_larger_page_is_not_stored_and_its_lease_not_kept(
        self, cache_at: OpenCache, valkey: Valkey, recorder: Counters
    ) -> None:
        """An entry holds at most so many bytes."""
        cache, stored = await cache_at(valkey.url, entry_max_bytes=1_024), Stored(size=0)
        stored.append("x" * 2_000)
        for _ in range(2):
            await fill(cache, stored)
        assert recorder["cache_fills_total", "unfit"] == 2
        assert valkey.do("KEYS", "exai:*") == []

    @pytest.mark.parametrize("size_bytes", [1_550, 2_500])
    async def test_entry_that_becomes_too_large_is_removed(
        self, cache_at: OpenCache, valkey: Valkey, size_bytes: int
    ) -> None:
        """A truncated entry would be served as the newest page, which is longer in the database."""
        cache, stored = await cache_at(valkey.url, entry_max_bytes=2_048), Stored(size=4)
        await fill(cache, stored)
        await apply(cache, stored, stored.append("x" * size_bytes))
        await miss(cache, stored)

    async def test_entry_that_moves_on_by_a_message_each_time_stays_as_large_as_it_is(
        self, cache_at: OpenCache, valkey: Valkey
    ) -> None:
        """The oldest message goes as a new one comes."""
        cache, stored = await cache_at(valkey.url, entry_max_bytes=16_384), Stored(size=50)
        await fill(cache, stored)
        for number in range(100):
            await apply(cache, stored, stored.append(f"{number} " + "x" * 100))
            await expect_current(cache, stored)

    @pytest.mark.parametrize("part", [ContentPart(0, 9_000_000), None])
    async def test_page_that_was_cut_is_not_stored(
        self, cache_at: OpenCache, valkey: Valkey, recorder: Counters, part: ContentPart | None
    ) -> None:
        """The database hands over no more than an answer can hold, and that is not the page."""
        cache, stored = await cache_at(valkey.url), Stored(size=60)

        async def load() -> Loaded:
            messages = tuple(stored.messages[-3:]) if part is None else (stored.messages[0],)
            return Loaded(stored.conversation(), messages, part is not None, stored.server_epoch, part=part)

        await cache.read_through(stored.key, load)
        await cache.wait_settled()
        assert recorder["cache_fills_total", "unfit"] == 1
        assert valkey.do("KEYS", "exai:*") == []

    async def test_text_that_json_cannot_hold_is_not_cached(self, cache: ConversationCache, stored: Stored) -> None:
        """Half a surrogate pair: the read is answered, nothing is stored; as a change it removes the entry."""
        await fill(cache, stored)
        await apply(cache, stored, stored.append("\ud800"))
        await fill(cache, stored)
        await miss(cache, stored)


class TestCoverage:
    """CACHED and UNCOVERED: by the entry's own time, or by the watermark."""

    async def test_entry_serves_for_the_bound_after_its_fill_without_any_pass(
        self, cache_at: OpenCache, stored: Stored, valkey: Valkey
    ) -> None:
        """Rule a; afterwards it is a miss, and a fill replaces it."""
        cache = await cache_at(valkey.url)
        await fill(cache, stored)
        await hit(cache, stored)
        age(valkey, KEYS.entry, 61)
        await fill(cache, stored)
        await hit(cache, stored)

    async def test_licence_of_its_generation_covers_an_old_entry(
        self, cache: ConversationCache, stored: Stored, valkey: Valkey
    ) -> None:
        """Rule b: `asof` of the watermark counts like the entry's own."""
        set_watermark(valkey, "g1")
        await fill(cache, stored)
        age(valkey, KEYS.entry, 3_600)
        assert (await hit(cache, stored)).age_s < 60
        age(valkey, KEYS.watermark, 61)
        await miss(cache, stored)

    async def test_licence_of_another_generation_covers_nothing(
        self, cache: ConversationCache, stored: Stored, valkey: Valkey
    ) -> None:
        """A lost watermark begins a new generation."""
        set_watermark(valkey, "g1")
        await fill(cache, stored)
        age(valkey, KEYS.entry, 3_600)
        set_watermark(valkey, "g2")
        await miss(cache, stored)

    async def test_entry_filled_without_a_licence_is_not_covered_by_the_next(
        self, cache: ConversationCache, stored: Stored, valkey: Valkey
    ) -> None:
        """It carries the generation of its READ: none."""
        await fill(cache, stored)
        age(valkey, KEYS.entry, 3_600)
        set_watermark(valkey, "g1")
        await miss(cache, stored)

    async def test_each_reader_applies_its_own_bound(self, cache_at: OpenCache, stored: Stored, valkey: Valkey) -> None:
        """A watermark has a time and no expiry: a daemon with a longer bound does not lengthen another's."""
        patient, strict = await cache_at(valkey.url), await cache_at(valkey.url, max_staleness_s=10)
        await fill(patient, stored)
        age(valkey, KEYS.entry, 30)
        await hit(patient, stored)
        await miss(strict, stored)


class TestUncovered:
    async def test_uncovered_entry_can_be_read_with_its_age(
        self, cache: ConversationCache, stored: Stored, valkey: Valkey
    ) -> None:
        """For answers marked as stale while the database is away; a failed read leaves the entry for it."""
        await fill(cache, stored)
        age(valkey, KEYS.entry, 300)

        async def down() -> Loaded:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await cache.read_through(stored.key, down)
        found = await cache.read_uncovered(stored.key)
        assert found is not None
        assert (found.messages, 300 <= found.age_s < 330) == (tuple(stored.messages), True)

    async def test_too_old_or_absent_is_nothing(self, cache: ConversationCache, stored: Stored, valkey: Valkey) -> None:
        """At most ten minutes by default."""
        assert await cache.read_uncovered(stored.key) is None
        await fill(cache, stored)
        age(valkey, KEYS.entry, 601)
        assert await cache.read_uncovered(stored.key) is None


class TestOwners:
    async def test_same_continuation_id_of_two_owners_is_two_conversations(self, cache: ConversationCache) -> None:
        """Isolation: the owner is part of the key."""
        mine, theirs = Stored(1, owner=Owner("me")), Stored(2, owner=Owner("they"))
        await fill(cache, mine)
        await fill(cache, theirs)
        assert ((await hit(cache, mine)).messages, (await hit(cache, theirs)).messages) == (
            tuple(mine.messages),
            tuple(theirs.messages),
        )

    async def test_names_that_would_run_together_do_not(self, cache: ConversationCache) -> None:
        """`a:b` + `c` and `a` + `b:c`; braces must not move the hash tag."""
        one = Stored(1, owner=Owner("a:b"), name=ContinuationId("c"))
        other = Stored(2, owner=Owner("a"), name=ContinuationId("b:c"))
        odd = Stored(3, owner=Owner("{x}"), name=ContinuationId("}{ \n%3A\0"))
        for each in (one, other, odd):
            await fill(cache, each)
        for each in (one, other, odd):
            await expect_current(cache, each)


class TestOff:
    async def test_cache_that_is_off_says_so_and_reads_the_database(self, cache_at: OpenCache, stored: Stored) -> None:
        """Promise 10: a disabled part is shown as off."""
        cache = await cache_at(None)
        assert (await cache.status()).state == "off"
        assert await cache.read(stored.key) == Unavailable("off")
        await fill(cache, stored)
        await fill(cache, stored)
        assert await apply(cache, stored, stored.append("one"))
        assert await cache.read_uncovered(stored.key) is None


def test_times_survive_to_the_microsecond() -> None:
    """What these tests compare includes times; a value without microseconds would not show a loss."""
    assert NOW.microsecond
