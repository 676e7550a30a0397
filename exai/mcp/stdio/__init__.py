"""`exai connect`: MCP over standard input and output, relayed to a daemon."""
