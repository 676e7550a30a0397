"""EXAI stores LLM conversations in Postgres and serves them over MCP."""

__version__ = "0.1.0"
