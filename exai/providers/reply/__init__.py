"""The reply of a provider, read without I/O: bytes to events to one answer."""
