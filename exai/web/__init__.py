"""HTTP routes beside MCP: health, metrics and the page that says how to connect."""
