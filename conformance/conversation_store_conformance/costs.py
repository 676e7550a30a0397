"""What loads and appends cost at several lengths. A report, not a rule: costs are no right or wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from conversation_store_conformance.store import OpenStore, Store, capabilities_of
from conversation_store_conformance.world import messages

LENGTHS = (50, 1_000, 5_000)
BATCH = 500
REPETITIONS = 5


async def measure(opener: OpenStore, place: str, lengths: Sequence[int] = LENGTHS) -> Mapping[str, Mapping[str, float]]:
    """Return the cost of an append, a whole read and a read of the newest 20, for each length of a conversation.

    Times are milliseconds, the shortest of several. Counters of the store, if it has them, are of one call.
    """
    found = {}
    async with opener(place) as store:
        for length in lengths:
            name = f"cost-{length}"
            for start in range(0, length, BATCH):
                await store.append(name, messages(*(f"message {n}" for n in range(start, min(length, start + BATCH)))))
            for call in ("append", "read", "newest"):
                if call != "newest" or "newest" in capabilities_of(store):
                    found[f"{call} at {length:,}"] = await _cost(store, call, name)
    return found


async def _cost(store: Store, call: str, name: str) -> Mapping[str, float]:
    times, counted = [], {}
    counts = "cost" in capabilities_of(store)
    for _ in range(REPETITIONS):
        before = dict(store.cost()) if counts else {}
        began = time.perf_counter()
        if call == "append":
            await store.append(name, messages("one more"))
        elif call == "read":
            await store.read(name)
        else:
            await store.newest(name, 20)
        times.append((time.perf_counter() - began) * 1_000)
        counted = {key: value - before.get(key, 0) for key, value in store.cost().items()} if counts else {}
    return {"ms": round(min(times), 3), **counted}
