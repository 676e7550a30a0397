"""Many rows at once, written by the server itself."""

from __future__ import annotations

from tests.support.migrations import run

CONVERSATION_MESSAGES = 1_000


async def bulk(url: str, messages: int) -> None:
    """Store conversations of 1,000 messages of 200 characters, with their words in the index."""
    number = messages // CONVERSATION_MESSAGES
    await run(
        url,
        f"insert into public.conversations (owner, continuation_id, title, next_seq, revision)"
        f" select 'local', 'bulk-' || n, 'number ' || n, {CONVERSATION_MESSAGES + 1}, 1"
        f"   from generate_series(1, {number}) n",
        f"insert into public.messages (conversation_id, seq, turn_id, role, content)"
        f" select c.id, s, c.id, case when s % 2 = 1 then 'user' else 'assistant' end,"
        f"        repeat(md5(c.id::text || s) || ' ', 6)"
        f"   from public.conversations c cross join generate_series(1, {CONVERSATION_MESSAGES}) s"
        f"  where c.continuation_id like 'bulk-%'",
        "insert into exai.message_words (conversation_id, seq, created_at, words)"
        " select m.conversation_id, m.seq, m.created_at, to_tsvector('simple', m.content) from public.messages m",
        "delete from exai.unindexed_messages",
    )
