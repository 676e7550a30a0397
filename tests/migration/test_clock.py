"""Times of older rows never set updated_at ahead of the clock."""

from __future__ import annotations

from exai.db.conversations import ConversationRepository
from exai.db.migrations.migrate import upgrade
from exai.models import LOCAL_OWNER, ContinuationId, ConversationKey
from tests.support.database import appending, opened
from tests.support.migrations import run, value
from tests.support.older import LIKE_SUPABASE

LOCAL_TIME = (
    "update conversations set updated_at = now() + interval '8 hours'",
    "update messages set created_at = created_at + interval '8 hours'",
)
AHEAD = "select count(*) from conversations where updated_at > clock_timestamp()"


async def test_rows_with_local_times_do_not_set_the_time_of_later_messages(empty_postgres_url: str) -> None:
    """Tables without a zone held the time of a place eight hours ahead."""
    url = empty_postgres_url
    await run(url, LIKE_SUPABASE)
    await run(
        url,
        "insert into conversations (continuation_id) values ('old')",
        "insert into messages (conversation_id, role, content) select id, 'user', 'one' from conversations"
        " where continuation_id = 'old'",
        *LOCAL_TIME,
    )
    assert await value(url, AHEAD) > 0
    kept = await value(url, "select max(created_at) from messages")
    await upgrade(url)
    assert await value(url, AHEAD) == 0
    async with opened(url) as database:
        repository = ConversationRepository(database)
        await repository.append(appending("old", "two"))
        page = await repository.read_page(ConversationKey(LOCAL_OWNER, ContinuationId("old")))
    assert [message.content for message in page.messages] == ["one", "two"]
    assert page.messages[1].created_at <= await value(url, "select clock_timestamp()") < kept
