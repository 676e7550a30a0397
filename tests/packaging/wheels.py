"""What the tests of the wheel share."""

from __future__ import annotations

LIMIT_S = 300
"""Longest installation or command, in seconds; the registry may be slow."""
