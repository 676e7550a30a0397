"""The MCP server: a protocol core without I/O, and its transports."""
