"""Sessions and the server that owns them, independent of the transport."""
