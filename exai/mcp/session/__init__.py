"""Sessions and their shared state, independent of the transport and of the features of the server."""
