"""Statements that serve several callers at once."""
