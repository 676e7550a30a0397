"""Uploads on their way to disk: their names, and how slowly they may arrive."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.types import Message

from exai.web.uploading import CHUNK_S, LEAST_BYTES_PER_S, name_on_disk, take_upload


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("\u6587" * 200 + ".jsonl.gz", ".jsonl.gz"),
        ("\U0001f600" * 250 + ".zip", ".zip"),
        ("x" * 10_000 + ".json", ".json"),
        ("x." + "y" * 10_000, ""),
        ("\\..\\..\\" + "\u6587" * 300, ""),
        ("..", "file"),
        ("a\0\ud800.zip", ".zip"),
    ],
)
def test_names_fit_the_file_system_and_keep_their_ending(tmp_path: Path, name: str, ending: str) -> None:
    shown = name_on_disk(name)
    (tmp_path / shown).write_bytes(b"")

    assert shown.endswith(ending)
    assert [each.name for each in tmp_path.iterdir()] == [shown]


class Slow:
    """An upload of which one more part of `size_bytes` arrives in each second of its own clock, without an end."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.parts = size_bytes, 0

    def now(self) -> float:
        return float(self.parts)

    async def receive(self) -> Message:
        self.parts += 1
        return {"type": "http.request", "body": b"x" * self.size_bytes, "more_body": True}


async def test_uploads_that_trickle_are_refused(tmp_path: Path) -> None:
    """One that is fast enough goes on, up to the limit of its size."""
    slow, fast = Slow(1), Slow(LEAST_BYTES_PER_S)
    late = await take_upload(slow.receive, tmp_path / "a", 10**6, slow.now)
    large = await take_upload(fast.receive, tmp_path / "b", LEAST_BYTES_PER_S * 200, fast.now)

    assert late is not None
    assert (late.status, slow.parts) == (408, CHUNK_S + 1)
    assert large is not None
    assert (large.status, fast.parts) == (413, 201)
