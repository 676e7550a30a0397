"""WebSocket and Streamable HTTP on one port."""
