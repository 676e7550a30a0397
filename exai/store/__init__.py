"""What a store of conversations offers, in the process (`open_app`) or at a daemon (`exai.client`)."""

from exai.store.protocols import Chats, Checkpoints, Conversations, Files, Store

__all__ = ["Chats", "Checkpoints", "Conversations", "Files", "Store"]
