"""Seeded runs: daemons, servers and the ways between them break while users work, and no promise is broken.

EXAI_FAULT_SEEDS is how many seeds are run, EXAI_FAULT_FIRST the first of them, EXAI_FAULT_SECONDS how long things break
in each. `make fault` runs many long ones; without any of these a few short ones are part of the suite.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import re
from pathlib import Path

import pytest

from tests.fault.cluster import Cluster, open_cluster
from tests.fault.nemesis import Nemesis, undo
from tests.fault.workload import Workload
from tests.support.backend import FaultServer

SEEDS = int(os.environ.get("EXAI_FAULT_SEEDS", "1"))
FIRST = int(os.environ.get("EXAI_FAULT_FIRST", "1"))
SECONDS = float(os.environ.get("EXAI_FAULT_SECONDS", "3"))

BOUND_S = 2.0
SLACK_S = 0.1
"""Redis measures the bound with a clock that is corrected now and then, we with one that is not."""

LIVE_LIMIT_S = 60.0
"""Everything works again by then; most of it is the breaker of the cache, which may wait 20 s before it looks again."""

SHOWN = 20


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
async def test_no_promise_is_broken(
    seed: int, postgres_server: FaultServer, valkey_server: FaultServer, tmp_path: Path
) -> None:
    """Promises 4 to 8, and every operation again once everything was healed."""
    rng = random.Random(f"cluster {seed}")
    pooled = rng.random() < 0.3
    pauses = tuple(rng.choice((0.0, 0.0, 0.05, 0.5)) for _ in range(7))
    async with open_cluster(postgres_server, valkey_server, tmp_path, pooled=pooled, pauses=pauses) as cluster:
        workload, nemesis = Workload(cluster, seed), Nemesis(cluster, seed)
        print(f"\nseed {seed}: {'pooled, ' if pooled else ''}{', '.join(nemesis.kinds)}")
        await workload.prepare()
        await broken_for(SECONDS, workload, nemesis)
        await undo(cluster)
        await cluster.heal()
        await workload.live(LIVE_LIMIT_S)
        for member in cluster.members:
            member.check_alive()
        stale = await own_findings(cluster)
        history = await workload.history(BOUND_S, SLACK_S)
    violations = await asyncio.to_thread(history.check)
    print(f"  {len(history.events)} events: {dict(sorted(workload.seen.items()))}")
    print(f"  faults: {dict(sorted(nemesis.done.items()))}")
    replay = f"EXAI_FAULT_FIRST={seed} EXAI_FAULT_SEEDS=1 EXAI_FAULT_SECONDS={SECONDS:g}"
    found = "\n".join(str(violation) for violation in violations[:SHOWN])
    assert not violations, f"{len(violations)} promises broken ({replay}):\n{found}"
    assert not workload.unexpected, f"errors that no client may receive ({replay}): {workload.unexpected[:SHOWN]}"
    assert not stale, f"daemons found their own cache wrong ({replay}): {stale}"


async def broken_for(seconds: float, workload: Workload, nemesis: Nemesis) -> None:
    """Let users work while things break, for about that long."""
    enough, over = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, enough.set)

    async def break_and_mend() -> None:
        await nemesis.run(enough)
        over.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(workload.run(over))
        group.create_task(break_and_mend())


async def own_findings(cluster: Cluster) -> list[str]:
    """Differences between cache and database that the daemons found by comparing them now and then."""

    def metrics(port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    texts = [await asyncio.to_thread(metrics, member.daemon.port) for member in cluster.members if member.daemon]
    return [line for text in texts for line in re.findall(r"^exai_cache_stale_total.* [1-9].*$", text, re.MULTILINE)]
