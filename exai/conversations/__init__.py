"""Conversations as a library: chat turns, appends, reads and lists over Postgres, the cache and the providers."""

from exai.conversations.chat import ChatService
from exai.conversations.requests import Appended, AppendRequest, ChatRequest, ChatResult, Rewound, RunningTurn
from exai.conversations.store import ConversationStore
from exai.conversations.transfer import Transfer
from exai.db.conversations import ConversationPage
from exai.db.patches import MetadataPatch, RecordPatch
from exai.db.records import FoundMessage

__all__ = [
    "AppendRequest",
    "Appended",
    "ChatRequest",
    "ChatResult",
    "ChatService",
    "ConversationPage",
    "ConversationStore",
    "FoundMessage",
    "MetadataPatch",
    "RecordPatch",
    "Rewound",
    "RunningTurn",
    "Transfer",
]
