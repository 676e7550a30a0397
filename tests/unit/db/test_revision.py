"""The revision that a process needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from exai.db.migrations import revision


def test_a_newer_release_beside_a_running_process_does_not_change_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its checkout may be updated while it runs; it still fits its own database."""
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "0001_first.py").touch()
    monkeypatch.setattr(revision, "scripts_directory", lambda: tmp_path)
    revision.known_revisions.cache_clear()
    try:
        assert revision.expected_revision() == "0001"
        (versions / "0002_second.py").touch()
        assert revision.expected_revision() == "0001"
    finally:
        revision.known_revisions.cache_clear()
