"""HTTP routes beside MCP: health, metrics, and the page with the two routes of its own."""
