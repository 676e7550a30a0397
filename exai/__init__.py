"""EXAI stores LLM conversations in Postgres and serves them over MCP."""
