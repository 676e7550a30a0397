"""Sessions and what they share, independent of the transport and of what the server offers."""
