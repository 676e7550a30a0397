"""A daemon under attack: its memory before, at most and afterwards, and how another owner fares meanwhile.

Invariant: memory and counts are always judged, times only by `make attack`, which sets EXAI_ATTACK_TIMES.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.daemon import ROOT, Daemon

MB = 1_000_000
PEAK_TIMES, PEAK_BYTES = 2.0, 400 * MB
"""Memory under attack may be twice what it was before, or this much."""

SETTLED_TIMES, SETTLED_BYTES = 1.25, 60 * MB
"""Memory afterwards may be so much more than before."""

SETTLE_LIMIT_S = 60.0
CALL_LIMIT_S = 0.3
SAMPLE_S = 0.02
BYSTANDER_LIMIT_S = 60.0

ALICE_TOKEN = "alice-token-of-16-or-more"
MALLORY_TOKEN = "mallory-token-of-16-or-more"
TOKENS = json.dumps({"alice": ALICE_TOKEN, "mallory": MALLORY_TOKEN})


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
        return int(shown.stdout) * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Seen:
    """What an attack did. Bytes are resident memory; `took_s`, `queued_s` and `refused` are of alice's calls meanwhile.

    `queued_s` is the part of each duration in which the daemon or alice was ready to run and other processes of the
    machine, such as the attacker, had the processors: not an effect of the attack on the daemon.
    """

    start_bytes: int
    peak_bytes: int = 0
    settled_bytes: int = 0
    took_s: list[float] = field(default_factory=list)
    queued_s: list[float] = field(default_factory=list)
    refused: int = 0

    def _own_s(self) -> list[float]:
        """The durations without the time in the queue for a processor, the shortest first."""
        return sorted(max(took - queued, 0.0) for took, queued in zip(self.took_s, self.queued_s, strict=True))

    @property
    def p99_s(self) -> float:
        """Of these durations."""
        ordered = self._own_s() or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]

    def summary(self) -> str:
        ordered = self._own_s() or [0.0]
        return (
            f"memory {self.start_bytes // MB} -> {self.peak_bytes // MB} -> {self.settled_bytes // MB} MB; "
            f"alice {len(ordered)} calls, p50 {statistics.median(ordered):.3f} s, p99 {self.p99_s:.3f} s, "
            f"worst {ordered[-1]:.3f} s, and up to {max(self.queued_s, default=0.0):.3f} s for a processor, "
            f"refused {self.refused}"
        )

    def check(self) -> None:
        """Assert that memory was bounded and came back, and that alice was served."""
        said = self.summary()
        assert self.peak_bytes <= max(PEAK_TIMES * self.start_bytes, PEAK_BYTES), said
        assert self.settled_bytes <= self.settled_limit, said
        assert self.took_s, "alice made no call"
        assert not self.refused, said
        if os.environ.get("EXAI_ATTACK_TIMES"):
            assert self.p99_s <= CALL_LIMIT_S, said

    @property
    def settled_limit(self) -> float:
        return max(SETTLED_TIMES * self.start_bytes, self.start_bytes + SETTLED_BYTES)


class Target:
    """A daemon with the owners alice and mallory; the attacker is mallory, or a client without a token."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.port = daemon.port

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self.daemon.process.pid)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Seen]:
        """Attack inside the block; afterwards the measurements are complete, and `check` asserts on them."""
        bystander = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.bystander",
            str(self.port),
            ALICE_TOKEN,
            str(self.daemon.process.pid),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert bystander.stdin is not None
        assert bystander.stdout is not None
        try:
            async with asyncio.timeout(BYSTANDER_LIMIT_S):
                assert await bystander.stdout.readline() == b"ready\n"
            seen = Seen(self.resident_bytes)
            with _Sampler(self, seen):
                yield seen
            bystander.stdin.close()
            async with asyncio.timeout(BYSTANDER_LIMIT_S):
                told = json.loads(await bystander.stdout.read())
        finally:
            if bystander.returncode is None:
                bystander.kill()
            await bystander.wait()
        seen.took_s, seen.queued_s, seen.refused = told["took_s"], told["queued_s"], told["refused"]
        seen.settled_bytes = await self.settled(seen.settled_limit)
        print(f"\n  {seen.summary()}")

    async def settled(self, limit_bytes: float) -> int:
        """Wait until memory is down to this or a minute has passed; return it."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while self.resident_bytes > limit_bytes and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return self.resident_bytes


class _Sampler:
    """Looks at the memory all the time, from a thread, so that a busy test misses nothing."""

    def __init__(self, target: Target, seen: Seen) -> None:
        self._target, self._seen = target, seen
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            has_ended = self._ended.wait(SAMPLE_S)
            self._seen.peak_bytes = max(self._seen.peak_bytes, self._target.resident_bytes)
            if has_ended:
                return
