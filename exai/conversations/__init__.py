"""Conversations as a library: chat turns, appends, reads and lists over Postgres, the cache and the providers."""

from exai.conversations.requests import AppendRequest, ChatRequest, ChatResult
from exai.conversations.service import ConversationService
from exai.db.conversations import ConversationPage

__all__ = ["AppendRequest", "ChatRequest", "ChatResult", "ConversationPage", "ConversationService"]
