"""The stores behind one framework's interface, in its environment: EXAI's adapter and the framework's own store.

    python -m bench.frameworks.worker MODULE PLAN        (started by `bench/adapters.py`)

All of them run in this process, are given the same items, and are timed by `exai.bench.batch`.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import uvloop

from bench.frameworks.contestant import Contest, Contestant
from bench.lines import serve
from bench.places import Servers
from exai.app import App, open_app
from exai.bench.batch import Run, run_batch
from exai.bench.contestants import PATIENT, UNSAMPLED
from exai.bench.floors.postgres import OWNER
from exai.bench.plan import Texts
from exai.cli.command import OBJECTS_PER_COLLECTION
from exai.client import connect
from exai.logs import configure_logging
from exai.settings.load import LogSettings, load_settings

EXCHANGES = 512
OWN = "own"


class Worker:
    """Does what the lines on standard input ask for; `sessions` is the number of those that are loaded or extended."""

    def __init__(self, app: App, contestants: Mapping[str, Contestant], plan: Mapping[str, Any]) -> None:
        self._app, self._contestants = app, contestants
        self._sessions, self._items, self._run_id = plan["sessions"], plan["items"], plan["run"]
        texts = Texts(plan["message_bytes"])
        self._exchanges = [tuple(message.content for message in texts.exchange()) for _ in range(EXCHANGES)]
        self._created = itertools.count()

    async def seed(self, store: str) -> dict[str, Any]:
        """Make the sessions to load and those to extend."""
        contestant = self._contestants[store]

        async def make(number: int) -> None:
            for name in (self._loaded(store, number), self._extended(store, number)):
                await contestant.create(name, self._exchange(number))
                await contestant.load(name)
                for turn in range(1, self._items // 2):
                    await contestant.append(name, self._exchange(number + turn))

        await asyncio.gather(*map(make, range(self._sessions)))
        return {}

    async def warm(self, store: str) -> dict[str, Any]:
        """Read every session once."""
        for number in range(self._sessions):
            await self._contestants[store].load(self._loaded(store, number))
            await self._contestants[store].load(self._extended(store, number))
        return {}

    async def once(self, store: str, operation: str) -> dict[str, Any]:
        """Do an operation once, to be counted from outside."""
        return {"as_named": await self._run(store, operation)(1)}

    async def batch(self, store: str, operation: str, callers: int, number: int) -> dict[str, Any]:
        """Time an operation."""
        batch = await run_batch(self._run(store, operation), callers, number)
        if store != OWN:
            await self._app.maintenance.index_words()
        return asdict(batch)

    def _run(self, store: str, operation: str) -> Run:
        contestant = self._contestants[store]

        async def load(number: int) -> bool:
            return await contestant.load(self._loaded(store, number % self._sessions)) == self._items

        async def append(number: int) -> bool:
            await contestant.append(self._extended(store, number % self._sessions), self._exchange(number))
            return True

        async def create(number: int) -> bool:
            await contestant.create(f"{store}-new-{self._run_id}-{next(self._created)}", self._exchange(number))
            return True

        return {"load": load, "append": append, "create": create}[operation]

    def _exchange(self, number: int) -> Any:
        return self._exchanges[number % EXCHANGES]

    def _loaded(self, store: str, number: int) -> str:
        return f"{store}-loaded-{number}"

    def _extended(self, store: str, number: int) -> str:
        return f"{store}-extended-{number}"


@asynccontextmanager
async def open_worker(module: str, plan: Mapping[str, Any]) -> AsyncIterator[tuple[Worker, list[str]]]:
    """Open EXAI in the process, a client of the daemon, and the framework's own store."""
    addresses = {"EXAI_DATABASE__URL": plan["postgres_url"], "EXAI_CACHE__URL": plan["redis_url"]}
    settings = load_settings(overrides={**addresses, **PATIENT, **UNSAMPLED})
    async with (
        open_app(settings) as app,
        connect(plan["daemon"], token=plan["token"]) as client,
        importlib.import_module(module).open_contestants(
            Contest(app, client, OWNER, Servers(**plan["servers"]))
        ) as contestants,
    ):
        yield Worker(app, contestants, plan), list(contestants)


async def main() -> None:
    """Open everything, say the stores' names, and work until the input ends."""
    async with open_worker(sys.argv[1], json.loads(sys.argv[2])) as (worker, names):
        # Each batch collects garbage first, and would go through all that a framework has loaded.
        gc.collect()
        gc.freeze()
        await serve(worker, names)


if __name__ == "__main__":
    configure_logging(LogSettings(level="error"))
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
