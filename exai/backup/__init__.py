"""Backups of everything that EXAI stores, in a directory, and their restoration into an empty database."""
