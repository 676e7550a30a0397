"""A writer in a process of its own: prints each batch once it is acknowledged."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from conversation_store_conformance.specs import load
from conversation_store_conformance.world import messages


async def write(given: list[Any]) -> None:
    """Open the store, wait for a line, and append batches."""
    spec, place, name, writer, batches, size = given
    async with load(spec)(place) as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for number in range(batches):
            texts = [f"{writer}.{number}.{item}" for item in range(size)]
            await store.append(name, messages(*texts))
            print(json.dumps(texts), flush=True)


if __name__ == "__main__":
    asyncio.run(write(json.loads(sys.argv[1])))
