"""What a store of conversations offers, in the process (`open_app`) or at a daemon (`exai.client`)."""

from exai.store.protocols import Chats, Conversations, Files, Store

__all__ = ["Chats", "Conversations", "Files", "Store"]
