"""Three daemons, run as users run them, on one Postgres and one Valkey that can be killed, each behind its own proxies.

Invariant: `heal` undoes every fault: all servers and daemons run, and all connections pass.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import asyncpg
import hiredis
import redis.asyncio as redis

from exai.cache.redis.scripts import load_scripts
from exai.errors import StartupError
from tests.fault.caller import Caller, Lost, calling
from tests.fault.service import PostgresProxy, redis_proxy
from tests.support.backend import FaultServer
from tests.support.daemon import Daemon, start_daemon
from tests.support.fault_proxy import FaultProxy, Link
from tests.support.history import Applied, Log, Stored
from tests.support.pooler import Pooler
from tests.support.provider_server import ProviderServer, Reply, kimi_answer

DAEMONS = 3
TOOL_TIMEOUT_S = 8.0
ADMIN_LIMIT_S = 20.0
START_ATTEMPTS = 3
POOL_SIZE = 3
POOLER_SESSIONS = 6


def changes_in(command: list[bytes]) -> Iterator[tuple[str, int]]:
    """Yield the conversation and the revision of each change in a call of `apply.lua`, which may apply several."""
    keys, arguments = command[3 : 3 + int(command[2])], command[3 + int(command[2]) :]
    # Two keys for each change; its number of arguments, its base revision, its revision, and others.
    for entry_key in keys[::2]:
        count = int(arguments[0])
        yield unquote(entry_key.decode().split(":")[-2]), int(arguments[2])
        arguments = arguments[1 + count :]


class WitnessProxy(FaultProxy):
    """Between a daemon and Redis; notes each change that Redis has applied."""

    def __init__(self, upstream: tuple[str, int] | str) -> None:
        super().__init__(upstream)
        self.applied: list[Applied] = []
        script = load_scripts().apply
        self._apply = {script.sha.encode(), script.text.encode()}
        self._asked: dict[Link, tuple[hiredis.Reader, hiredis.Reader, deque[list[bytes]]]] = {}

    @property
    def url(self) -> str:
        """For the daemon."""
        return f"redis://{self.host}:{self.port}/0"

    def saw_request(self, link: Link, data: bytes) -> None:
        requests, _, waiting = self._of(link)
        requests.feed(data)
        while (command := requests.gets()) is not False:
            waiting.append(command)

    def saw_reply(self, link: Link, data: bytes) -> None:
        _, replies, waiting = self._of(link)
        replies.feed(data)
        while (reply := replies.gets()) is not False:
            command = waiting.popleft()
            if len(command) > 7 and command[1] in self._apply and not isinstance(reply, hiredis.ReplyError):
                self.applied += [Applied(name, time.monotonic(), revision) for name, revision in changes_in(command)]

    def _of(self, link: Link) -> tuple[hiredis.Reader, hiredis.Reader, deque[list[bytes]]]:
        if link not in self._asked:
            self._asked[link] = hiredis.Reader(), hiredis.Reader(), deque()
        return self._asked[link]


class Member:
    """One daemon, which may be restarted; `name` is its number and that of its current process."""

    def __init__(self, number: int, to_postgres: PostgresProxy, to_redis: WitnessProxy, env: dict[str, str]) -> None:
        self.number, self.to_postgres, self.to_redis, self.env = number, to_postgres, to_redis, env
        self.life = 0
        self.daemon: Daemon | None = None
        self._process = ExitStack()
        self._connection = AsyncExitStack()
        self._caller: tuple[Caller, str] | None = None
        self._connecting = asyncio.Lock()

    @property
    def name(self) -> str:
        return f"{self.number}.{self.life}"

    @property
    def is_up(self) -> bool:
        return self.daemon is not None

    async def start(self) -> None:
        """Start a new process, unless one runs."""
        if self.daemon is None:
            self.life += 1
            self.daemon = await asyncio.to_thread(self._process.enter_context, start_daemon(self.env))

    async def kill(self) -> None:
        """SIGKILL."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return await self._end(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait until the process has ended; return the exit status."""
        return await self._end(None)

    def signal(self, number: int) -> None:
        """Send a signal that does not end the process."""
        if self.daemon is not None:
            self.daemon.process.send_signal(number)

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool of this daemon; `by` in the result names the process. Raises Refused, Lost or Unanswered."""
        caller, by = await self._connected()
        return {**await caller.call(tool, **arguments), "by": by}

    async def close(self) -> None:
        """Close the connection and end the process."""
        await self._connection.aclose()
        await asyncio.to_thread(self._process.close)

    def check_alive(self) -> None:
        """Fail if the process ended without being stopped."""
        daemon = self.daemon
        if daemon is not None and daemon.process.poll() is not None:
            raise AssertionError(f"daemon {self.name} ended by itself:\n{daemon.output}")

    async def _end(self, number: int | None) -> int:
        daemon = self.daemon
        if daemon is None:
            return 0
        self.daemon = None
        ending = daemon.process.wait if number is None else functools.partial(daemon.stop, number)
        status = await asyncio.to_thread(ending)
        await self._connection.aclose()
        self._caller = None
        await asyncio.to_thread(self._process.close)
        return status

    async def _connected(self) -> tuple[Caller, str]:
        async with self._connecting:
            if self._caller is None or self._caller[0].is_lost:
                await self._connection.aclose()
                if self.daemon is None:
                    raise Lost
                by = self.name
                self._caller = await self._connection.enter_async_context(calling(self.daemon.url)), by
            return self._caller


class Cluster:
    """Made by `open_cluster`."""

    def __init__(self, postgres: FaultServer, valkey: FaultServer, provider: ProviderServer) -> None:
        self.postgres, self.valkey, self.provider = postgres, valkey, provider
        self.members: list[Member] = []
        self.forgotten: list[float] = []
        self.redis = redis.Redis.from_url(valkey.url)
        self.apply_sha = load_scripts().apply.sha.encode()

    @property
    def up(self) -> list[Member]:
        """The daemons that run now."""
        return [member for member in self.members if member.is_up]

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[asyncpg.Connection]:
        """Open a connection to the server without a proxy; waits while the server recovers."""
        end = time.monotonic() + ADMIN_LIMIT_S
        while True:
            try:
                connection = await asyncpg.connect(
                    self.postgres.url, timeout=ADMIN_LIMIT_S, command_timeout=ADMIN_LIMIT_S
                )
                break
            except asyncpg.CannotConnectNowError:
                assert time.monotonic() < end, "Postgres does not recover"
                await asyncio.sleep(0.05)
        try:
            yield connection
        finally:
            connection.terminate()

    async def restart_valkey(self) -> None:
        """Kill Valkey and start it with its files; data that was not written yet is lost."""
        await asyncio.to_thread(self.valkey.kill)
        await self.start_valkey()

    async def start_valkey(self) -> None:
        """Start it, if it does not run."""
        if not self.valkey.is_running():
            await self.valkey.start()
            self.forgotten.append(time.monotonic())

    async def start_postgres(self) -> None:
        """Start it, if it does not run; its last sessions may need a while to end on a busy machine."""
        for _ in range(START_ATTEMPTS - 1):
            with suppress(StartupError):
                await self.postgres.start()
                return
        await self.postgres.start()

    async def heal(self) -> None:
        """Start every server and daemon, open every connection and reset every limit."""
        await self.start_postgres()
        await self.start_valkey()
        for member in self.members:
            member.signal(signal.SIGCONT)
            for proxy in (member.to_postgres, member.to_redis):
                proxy.mode = "pass"
                proxy.latency_s = 0.0
            await member.start()

    def applied(self) -> list[Applied]:
        """Return every change that Redis is known to have applied."""
        return list(itertools.chain.from_iterable(member.to_redis.applied for member in self.members))

    async def logs(self) -> dict[str, Log]:
        """The stored messages, in the order of their numbers."""
        async with self.admin() as connection:
            heads = await connection.fetch("select id, continuation_id, next_seq, revision from public.conversations")
            logs = {}
            for head in heads:
                rows = await connection.fetch(
                    "select seq, content, kind, turn_id, created_at from public.messages"
                    " where conversation_id = $1 order by seq",
                    head["id"],
                )
                assert [row["seq"] for row in rows] == list(range(1, head["next_seq"])), "numbers with holes"
                # One change of a conversation stores one block, all of it at one time.
                blocks = itertools.groupby(rows, key=lambda row: (row["turn_id"], row["created_at"]))
                heights = tuple(itertools.accumulate((len(list(block)) for _, block in blocks), initial=0))
                assert len(heights) - 1 == head["revision"], "revisions that are no appends"
                stored = tuple(Stored(row["content"], row["kind"] == "partial") for row in rows)
                logs[head["continuation_id"]] = Log(stored, heights)
            return logs


def running(server: FaultServer) -> int:
    """Return the process id of a running server; a signal to 0 would reach this process itself."""
    assert server.pid
    return server.pid


class Answers:
    """The answers of the provider: each is unique and contains its question; they take turns with the given pauses."""

    def __init__(self, pauses: deque[float]) -> None:
        self._pauses, self._numbers = pauses, itertools.count(1)

    def __call__(self, body: Any) -> Reply:
        question = body["messages"][-1]["content"]
        self._pauses.rotate()
        reply = kimi_answer(f"answer {next(self._numbers)} to {question}", reasoning="")
        return Reply([self._pauses[0], *reply.steps], headers=reply.headers)


@asynccontextmanager
async def open_cluster(
    postgres: FaultServer,
    valkey: FaultServer,
    data_dir: Path,
    *,
    daemons: int = DAEMONS,
    pooled: bool = False,
    pauses: tuple[float, ...] = (0.0,),
    settings: Mapping[str, str] = {},
) -> AsyncIterator[Cluster]:
    """Start the daemons; with `pooled`, a transaction-mode pooler is between them and Postgres."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(ProviderServer(default=Answers(deque(pauses))))
        cluster = Cluster(postgres, valkey, provider)
        stack.push_async_callback(cluster.redis.aclose)
        url = postgres.url
        if pooled:
            url = (await stack.enter_async_context(Pooler(postgres.url, sessions=POOLER_SESSIONS))).url
        redis_address = redis_proxy(valkey.url).upstream
        for number in range(daemons):
            to_postgres = await stack.enter_async_context(PostgresProxy(url))
            to_redis = await stack.enter_async_context(WitnessProxy(redis_address))
            env = {
                "EXAI_DATA_DIR": str(data_dir),
                "EXAI_DATABASE__URL": to_postgres.url,
                "EXAI_DATABASE__POOL_SIZE": str(POOL_SIZE),
                "EXAI_CACHE__URL": to_redis.url,
                "EXAI_CACHE__VERIFY_ONE_IN": "20",
                "EXAI_TOOL_TIMEOUT_S": str(TOOL_TIMEOUT_S),
                "KIMI_API_KEY": "sk-test",
                "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
                "EXAI_LOG__LEVEL": "warning",
                # A fault that comes at the next byte may come while a daemon starts.
                "EXAI_START_WAIT_S": "30",
                **settings,
            }
            member = Member(number, to_postgres, to_redis, env)
            stack.push_async_callback(member.close)
            cluster.members.append(member)
        await asyncio.gather(*(member.start() for member in cluster.members))
        yield cluster
        await cluster.heal()
