"""Conversations as a library: chat turns, appends, reads and lists over Postgres, the cache and the providers."""

from exai.conversations.chat import ChatService
from exai.conversations.requests import AppendRequest, ChatRequest, ChatResult, RunningTurn
from exai.conversations.store import ConversationStore
from exai.conversations.transfer import Transfer
from exai.db.conversations import ConversationPage

__all__ = [
    "AppendRequest",
    "ChatRequest",
    "ChatResult",
    "ChatService",
    "ConversationPage",
    "ConversationStore",
    "RunningTurn",
    "Transfer",
]
