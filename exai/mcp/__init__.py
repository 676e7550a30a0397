"""The MCP server: a protocol core without I/O, and the doors on it."""
