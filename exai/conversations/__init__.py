"""Conversations as a library: chat turns, appends, reads and lists over Postgres, the cache and the providers."""

from exai.conversations.requests import AppendRequest, ChatRequest, ChatResult, ConversationPage
from exai.conversations.service import ConversationService

__all__ = ["AppendRequest", "ChatRequest", "ChatResult", "ConversationPage", "ConversationService"]
