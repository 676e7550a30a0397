"""Redis: the one cache of conversations, by the protocol that `exai.cache.conversations` states."""
