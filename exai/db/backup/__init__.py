"""Copies whole tables out of one snapshot of a database, and into an empty one."""
