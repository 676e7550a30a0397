"""The key under which caches hold a thread of checkpoints."""

from __future__ import annotations

from exai.models import ContinuationId, ConversationKey, Owner


def thread_key(owner: Owner, thread_id: str) -> ConversationKey:
    """Return the key of a thread; no conversation has it, because no name of one contains U+0000."""
    return ConversationKey(owner, ContinuationId("\0" + thread_id))
