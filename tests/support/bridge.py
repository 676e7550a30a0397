"""`exai connect` inside the test's process, on two pipes, so that many can be tried."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from typing import Any

import orjson

from exai.mcp.stdio.bridge import run_bridge

END_LIMIT_S = 40.0


def carried(url: str, data: bytes, *, patience_s: float = 8.0, headers: Mapping[str, str] | None = None) -> list[Any]:
    """Everything that a bridge writes, message by message, which reads `data` and then the end of its input.

    For a thread of its own: the daemon may live in the caller's event loop.
    """
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    bridge = threading.Thread(
        target=_run, args=(url, headers, patience_s, theirs_in, theirs_out), name="bridge", daemon=True
    )
    bridge.start()
    writer = threading.Thread(target=_write, args=(ours_out, data), name="editor", daemon=True)
    writer.start()
    with os.fdopen(ours_in, "rb") as stream:
        written = stream.read()
    bridge.join(END_LIMIT_S)
    writer.join(END_LIMIT_S)
    os.close(theirs_in)
    assert not bridge.is_alive()
    return [orjson.loads(line) for line in written.splitlines()]


async def carry(url: str, data: bytes, **options: Any) -> list[Any]:
    """`carried` beside the daemon of this event loop."""
    return await asyncio.to_thread(carried, url, data, **options)


def _run(url: str, headers: Mapping[str, str] | None, patience_s: float, stdin: int, stdout: int) -> None:
    try:
        assert run_bridge(url, headers=headers, patience_s=patience_s, stdin=stdin, stdout=stdout) == 0
    finally:
        os.close(stdout)


def _write(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
