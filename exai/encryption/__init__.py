"""Encryption of stored content with keys that the database does not have."""
