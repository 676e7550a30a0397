"""The features of MCP: tools, resources, prompts and tasks."""
