"""Requests of clients that cannot reach a daemon: they store rows in the database, and daemons answer them there."""
