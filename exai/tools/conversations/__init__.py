"""The tools for conversations: append, read, search, change and transfer."""
