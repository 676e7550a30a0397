"""Search by keyed hashes of words."""

from __future__ import annotations

import pytest

from exai.conversations import AppendRequest
from exai.db.search import SearchQuery
from exai.errors import InvalidArgument, NotConfigured
from exai.models import LOCAL_OWNER, NewMessage, Owner
from tests.integration.conversations.conftest import Rig
from tests.integration.encryption.conftest import OpenRig
from tests.support.migrations import value


async def found(rig: Rig, query: str, owner: Owner = LOCAL_OWNER) -> list[str]:
    """The snippets of a search's hits."""
    return [hit.snippet for hit in (await rig.app.conversations.search(SearchQuery(owner, query))).hits]


async def stored(rig: Rig, *texts: str, owner: Owner = LOCAL_OWNER) -> None:
    """Append each text to a conversation of its own, with a title."""
    for text in texts:
        request = AppendRequest(owner, [NewMessage("user", text)], title=f"about {text[:20]}")
        await rig.app.conversations.append(request)


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        ("harbour", 2),
        ("HARBOUR lights", 1),
        ('"lights of the harbour"', 1),
        ('"harbour of the lights"', 0),
        ("harbour -lights", 1),
        ("lights or müller", 2),
        ("muller", 1),
        ("parseConfigFile", 1),
        ("config", 1),
        ("東京タワー", 1),
        ("京タ", 1),
    ],
)
async def test_words_phrases_and_alternatives_are_found(rig: Rig, query: str, hits: int) -> None:
    """With the query language of a search without keys, but for beginnings of words."""
    await stored(
        rig,
        "The lights of the harbour",
        "A harbour by day",
        "Grüße, Müller",
        "call parseConfigFile()",
        "東京タワーです",
    )
    page = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, query))
    assert len([hit for hit in page.hits if hit.kind != "title" and not hit.missing]) == hits
    assert all("**" in hit.snippet for hit in page.hits)


async def test_message_is_found_at_once_and_then_with_one_round_trip(rig: Rig) -> None:
    """What waits to be indexed is indexed before the search, because the database cannot look through it."""
    await stored(rig, "The lights of the harbour")
    assert await found(rig, "harbour") == ["The lights of the **harbour**"]
    rig.reset()
    assert await found(rig, "lights") == ["The **lights** of the harbour"]
    assert rig.cost() == (1, 0)


async def test_words_of_one_owner_are_not_those_of_another(rig: Rig, postgres_url: str) -> None:
    """Neither in a search nor in the index."""
    other = Owner("other")
    await stored(rig, "harbour")
    await stored(rig, "harbour", owner=other)
    assert len(await found(rig, "harbour")) == len(await found(rig, "harbour", other)) == 1
    owners = "m.conversation_id in (select c.id from public.conversations c where c.owner in ('local', 'other'))"
    words = "select count(distinct w.lexeme) from exai.message_words m cross join unnest(m.words) w"
    assert await value(postgres_url, f"{words} where m.seq = 1 and {owners}") == 2


async def test_beginning_of_a_word_is_refused(rig: Rig) -> None:
    """It has no hash, and no hit would look as if there were none."""
    with pytest.raises(InvalidArgument, match="Write whole words"):
        await found(rig, "harb*")


async def test_search_that_is_off_stores_no_words(with_keys: OpenRig, postgres_url: str) -> None:
    """And is refused with the setting that allows it."""
    async with with_keys("k1", search="off") as rig:
        await stored(rig, "harbour")
        with pytest.raises(NotConfigured, match="EXAI_STORE__SEARCH=words"):
            await found(rig, "harbour")
        await rig.app.maintenance.index_words()
    assert await value(postgres_url, "select count(*) from exai.message_words where length(words) > 0") == 0
    assert await value(postgres_url, "select count(*) from exai.unindexed_messages") == 0


async def test_missing_words_are_named_as_in_the_query(rig: Rig) -> None:
    """Not by their hashes."""
    await stored(rig, "The lights of the harbour")
    page = await rig.app.conversations.search(SearchQuery(LOCAL_OWNER, "harbour submarine"))
    assert page.matched == "some"
    assert page.hits[0].missing == ("submarine",)
