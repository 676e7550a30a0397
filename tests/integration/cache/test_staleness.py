"""Searches seeded histories for counterexamples to the promises of the cache; see `simulation`.

EXAI_TEST_CACHE_SEEDS=n searches n histories instead of the default number.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from exai.cache.redis.address import parse_address
from exai.cache.redis.scripts import Scripts, load_scripts
from exai.cache.redis.topology import Topology, open_topology
from tests.integration.cache.simulation import FAULTS, REAL_TIME, Broken, Plan, simulate
from tests.support.counters import Counters
from tests.support.valkey import Valkey

SEEDS = int(os.environ.get("EXAI_TEST_CACHE_SEEDS", "100"))
MUTANT_SEEDS = 400


@pytest.fixture
async def topology(valkey: Valkey) -> AsyncIterator[Topology]:
    opened = open_topology(parse_address(valkey.url), 5.0, Counters())
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def scripts() -> Scripts:
    return load_scripts()


class TestPromises:
    async def test_no_history_breaks_a_promise(self, topology: Topology, scripts: Scripts) -> None:
        """Promise 4: nothing older than an acknowledged change, and else nothing later than the bound."""
        reports = [await simulate(topology, scripts, seed, Plan()) for seed in range(SEEDS)]
        assert sum(report.hits for report in reports) > 5 * SEEDS
        assert frozenset[str]().union(*(report.faults for report in reports)) == frozenset(FAULTS)

    async def test_no_history_with_rewinds_and_names_used_again_breaks_a_promise(
        self, topology: Topology, scripts: Scripts
    ) -> None:
        """Promise 4: nothing of what was cut off, or of a deleted or purged conversation that had the name before."""
        plan = Plan(replaces=True)
        reports = [await simulate(topology, scripts, seed, plan) for seed in range(SEEDS)]
        assert sum(report.hits for report in reports) > 3 * SEEDS

    async def test_same_seed_gives_the_same_history(self, topology: Topology, scripts: Scripts) -> None:
        """A counterexample can be reproduced by its seed."""
        first, second = [await simulate(topology, scripts, 7, Plan()) for _ in range(2)]
        assert first == second


@dataclass(frozen=True)
class Mutant:
    """A change of one line of the protocol, the faults that reveal it, and a seed whose history does."""

    plan: Plan
    seed: int = 0


def lua(script: str, line: str, instead: str) -> Callable[[str, str], str]:
    def mutate(name: str, text: str) -> str:
        if name != script:
            return text
        assert text.count(line) == 1, f"{line!r} is not one place in {script}.lua"
        return text.replace(line, instead)

    return mutate


def mutant(seed: int, faults: str, script: str, line: str, instead: str) -> Mutant:
    return Mutant(Plan(lua(script, line, instead), faults=frozenset(faults.split(", ") if faults else ())), seed)


FILL_DATED_NOW = f"{REAL_TIME}\nredis.call('HSET', KEYS[1], 'asof', string.format('%.0f', now))\n"
FILL_OF_NOW = "redis.call('HSET', KEYS[1], 'gen', redis.call('HGET', 'exai:2:{g0}:watermark', 'gen') or '')\n"
MUTANTS = {
    "a page is stored without its lease": mutant(
        5, "", "fill", "if redis.call('GET', KEYS[2]) ~= ARGV[1] then", "if false then"
    ),
    "a change leaves the lease alive": mutant(5, "", "apply", "redis.call('DEL', lease_key)\n", ""),
    "a change is not applied": mutant(5, "", "apply", "local held =", "do return 4 end\nlocal held ="),
    "a delta is added over a gap": mutant(
        29, "die", "apply", "tonumber(entry[1]) ~= tonumber(ARGV[1]) or added < 0", "added < 0"
    ),
    "an edit leaves the old text": mutant(
        10,
        "",
        "apply",
        "if tonumber(entry[1]) ~= tonumber(ARGV[1])",
        "if added < 0 then redis.call('HSET', entry_key, 'rev', ARGV[2]) return 1 end\n"
        "if tonumber(entry[1]) ~= tonumber(ARGV[1])",
    ),
    "a delta is added to a lost history": mutant(126, "failover", "apply", "entry[2] ~= ARGV[3] or ", ""),
    "a writer stores without a lease": mutant(
        2, "", "apply", "ARGV[11] ~= '' and redis.call('GET', lease_key) == ARGV[11]", "ARGV[11] ~= ''"
    ),
    "an entry is returned without a bound": mutant(7, "die", "read", "covered + bound > now", "true"),
    "a reader accepts less than its minimum revision": mutant(
        49, "cut", "read", "tonumber(entry[1]) >= tonumber(ARGV[4])", "true"
    ),
    "a watermark covers any generation": mutant(8, "die, evict watermark", "read", "watermark[1] == entry[2]", "true"),
    "a watermark never expires": mutant(28, "die", "read", "covered = advanced\n", "covered = now\n"),
    "a watermark is advanced too far": mutant(
        8,
        "die",
        "advance",
        "redis.call('HSET', KEYS[1], 'xmin', ARGV[6], 'asof', ARGV[8])",
        "redis.call('HSET', KEYS[1], 'xmin', ARGV[6], 'asof', string.format('%.0f', ARGV[8] + 9000000))",
    ),
    "an entry has no bound of its own": mutant(
        8, "die, evict watermark", "read", "local covered = tonumber(entry[3])", "local covered = now"
    ),
    "a page is dated when stored": mutant(
        5, "die", "fill", "redis.call('PEXPIRE'", f"{FILL_DATED_NOW}redis.call('PEXPIRE'"
    ),
    "a page is of the generation when stored": mutant(
        8, "die, evict watermark", "fill", "redis.call('PEXPIRE'", f"{FILL_OF_NOW}redis.call('PEXPIRE'"
    ),
    "a reconciliation leaves leases alive": mutant(119, "die", "advance", "redis.call('DEL', KEYS[i + 1])", ""),
    "a reconciliation leaves old entries": mutant(4, "die", "advance", "    redis.call('DEL', KEYS[i])\n", ""),
    "a reconciliation advances a watermark it did not read": mutant(142, "roll back", "advance", "return {0, 0}", ""),
    "a watermark is dated at the end of the reconciliation": mutant(
        10,
        "die",
        "advance",
        "local removed = 0",
        f"{REAL_TIME}\nARGV[8] = string.format('%.0f', now)\nlocal removed = 0",
    ),
    "a new watermark is of the old generation": mutant(
        0, "die, evict watermark", "advance", "'gen', ARGV[5]", "'gen', 'first'"
    ),
    "a watermark remains after a new server epoch": mutant(4, "failover", "advance", "or watermark[3] ~= ARGV[7]", ""),
    "a reconciliation starts at the newest transaction": Mutant(Plan(cursor="xmax", faults=frozenset({"die"})), 4),
    "the cursor is not kept in Redis": Mutant(Plan(cursor="in memory", faults=frozenset({"roll back"})), 1),
    "a recovery does not change the server epoch": Mutant(
        Plan(names_recoveries=False, faults=frozenset({"die", "recover"})), 141
    ),
    "a reconciliation sees some rows only": Mutant(Plan(cursor="first row only", faults=frozenset({"die"})), 44),
    "a name's revisions begin again": Mutant(
        Plan(replaces=True, reuses=("replace",), continues_revisions=False, faults=frozenset({"die"})), 613
    ),
    "a name's revisions begin again for a process": Mutant(
        Plan(replaces=True, reuses=("replace",), continues_revisions=False, faults=frozenset({"cut"}))
    ),
    "a purge leaves no revision": Mutant(
        Plan(replaces=True, reuses=("purge",), records_removals=False, faults=frozenset({"cut"}))
    ),
    "a rewind is applied as an addition": Mutant(
        Plan(lua("apply", " or added < 0 then", " then added = math.max(added, 0)"), replaces=True, faults=frozenset())
    ),
    "a process keeps no minimum revisions": Mutant(Plan(min_revisions=False, faults=frozenset({"cut"})), 49),
}


class TestEveryLineIsNecessary:
    @pytest.mark.parametrize("name", MUTANTS)
    async def test_a_broken_promise_is_found_if(self, name: str, topology: Topology, scripts: Scripts) -> None:
        """Each line of the protocol is necessary: without it, the search finds a history that breaks a promise."""
        chosen = MUTANTS[name]
        for seed in (chosen.seed, *range(MUTANT_SEEDS)):
            try:
                await simulate(topology, scripts, seed, chosen.plan)
            except Broken:
                return
        pytest.fail(f"{MUTANT_SEEDS} histories broke no promise")
