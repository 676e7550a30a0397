"""A long run: rounds of faults and of calm, after each of which no promise is broken and no resource has grown.

`make soak` runs it for EXAI_SOAK_SECONDS, an hour by default. Daemon 0 is never ended, so that its memory, descriptors
and threads are those of one process over the whole time. Its resources and the duration of its calls are sampled in the
calm of each round; the second quarter of the rounds is compared with the last, by medians.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fault.cluster import Cluster, Member, open_cluster
from tests.fault.nemesis import FAULTS, REST_S, undo
from tests.fault.test_seeds import BOUND_S, LIVE_LIMIT_S, SLACK_S, own_findings
from tests.fault.workload import Workload
from tests.support.backend import FaultServer

SECONDS = float(os.environ.get("EXAI_SOAK_SECONDS", "3600"))
FAULTS_S = 15.0
CALM_S = 10.0
PROBES = 100
CONTENTS_OF_A_ROUND = 1_000_000
LEAST_ROUNDS = 8

ENDING = ("daemon_killed", "daemon_stopped")
"""The faults that end daemons; here they draw from all but the first."""

GROWTH_BYTES = 8 * 1024 * 1024
"""More than the pages by which the memory of a Python process differs from one minute to the next."""

GROWTH_HANDLES = 3
SLOWER = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of one process, and the medians of its calls in milliseconds."""

    memory_bytes: int
    descriptors: int
    threads: int
    read_ms: float
    append_ms: float


@pytest.mark.heavy
async def test_resources_and_promises_over_a_long_run(
    postgres_server: FaultServer, valkey_server: FaultServer, tmp_path: Path
) -> None:
    end = time.monotonic() + SECONDS
    samples: list[Sample] = []
    seen: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    async with open_cluster(postgres_server, valkey_server, tmp_path, pauses=(0.0, 0.0, 0.05)) as cluster:
        first = cluster.members[0]
        for number in itertools.count(1):
            if time.monotonic() > end and number > LEAST_ROUNDS:
                break
            workload = Workload(cluster, number, number * CONTENTS_OF_A_ROUND)
            await workload.prepare()
            faults += await _broken(cluster, workload, random.Random(f"soak {number}"))
            await _calm(cluster, workload)
            samples.append(await _sample(first, workload.names[0]))
            await _check(cluster, workload, number)
            seen += workload.seen
            print(f"round {number}: {samples[-1]}", flush=True)
            assert first.life == 1
    print(f"{len(samples)} rounds: {dict(sorted(seen.items()))}\nfaults: {dict(sorted(faults.items()))}")
    early, late = (_medians(samples[at : at + len(samples) // 4]) for at in (len(samples) // 4, len(samples) * 3 // 4))
    print(f"second quarter: {early}\nlast quarter:   {late}")
    assert late.memory_bytes - early.memory_bytes < GROWTH_BYTES
    assert late.descriptors - early.descriptors <= GROWTH_HANDLES
    assert late.threads - early.threads <= GROWTH_HANDLES
    assert late.read_ms < early.read_ms * SLOWER
    assert late.append_ms < early.append_ms * SLOWER


async def _broken(cluster: Cluster, workload: Workload, rng: random.Random) -> Counter[str]:
    """Let users work while things break; then repair everything. Returns the faults by name."""
    enough, over, done = asyncio.Event(), asyncio.Event(), Counter[str]()
    asyncio.get_running_loop().call_later(FAULTS_S, enough.set)
    others = copy.copy(cluster)
    others.members = cluster.members[1:]

    async def break_and_mend() -> None:
        while not enough.is_set():
            kind = rng.choice(sorted(FAULTS))
            done[kind] += 1
            await FAULTS[kind](others if kind in ENDING else cluster, rng)
            await asyncio.sleep(rng.expovariate(1 / REST_S))
        over.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(workload.run(over))
        group.create_task(break_and_mend())
    await undo(cluster)
    await cluster.heal()
    return done


async def _calm(cluster: Cluster, workload: Workload) -> None:
    """Wait until every operation succeeds again, and let users work for a while."""
    await workload.live(LIVE_LIMIT_S)
    enough = asyncio.Event()
    asyncio.get_running_loop().call_later(CALM_S, enough.set)
    await workload.run(enough)
    for member in cluster.members:
        member.check_alive()


async def _check(cluster: Cluster, workload: Workload, number: int) -> None:
    """Compare what users saw with what is stored; then forget both, so that the test's own memory is bounded."""
    stale = await own_findings(cluster)
    history = await workload.history(BOUND_S, SLACK_S)
    violations = await asyncio.to_thread(history.check)
    assert not violations, f"round {number}: " + "\n".join(map(str, violations[:20]))
    assert not workload.unexpected, f"round {number}: {workload.unexpected[:20]}"
    assert not stale, f"round {number}: {stale}"
    cluster.provider.received.clear()
    cluster.forgotten.clear()
    for member in cluster.members:
        member.to_redis.applied.clear()
    async with cluster.admin() as connection:
        await connection.execute("delete from public.turns")
        await connection.execute("delete from public.conversations")


async def _sample(member: Member, name: str) -> Sample:
    assert member.daemon is not None
    reads, appends = [], []
    for _ in range(PROBES):
        start = time.perf_counter()
        await member.call("conversation_get", continuation_id=name)
        reads.append((time.perf_counter() - start) * 1_000)
    scratch = (await member.call("conversation_append", messages=[{"role": "user", "content": "probe"}]))[
        "continuation_id"
    ]
    for _ in range(PROBES):
        start = time.perf_counter()
        message = {"role": "user", "content": "probe"}
        await member.call("conversation_append", continuation_id=scratch, messages=[message])
        appends.append((time.perf_counter() - start) * 1_000)
    process = Path("/proc", str(member.daemon.process.pid))
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Sample(
        memory_bytes=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        read_ms=round(statistics.median(reads), 3),
        append_ms=round(statistics.median(appends), 3),
    )


def _medians(samples: list[Sample]) -> Sample:
    def median(name: str) -> float:
        return statistics.median(getattr(each, name) for each in samples)

    return Sample(
        int(median("memory_bytes")),
        int(median("descriptors")),
        int(median("threads")),
        median("read_ms"),
        median("append_ms"),
    )
