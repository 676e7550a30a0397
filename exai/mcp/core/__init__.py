"""JSON-RPC and MCP without I/O."""
