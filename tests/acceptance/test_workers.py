"""Several workers on one port: a failure of one does not affect the others, and all stop together."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed

from tests.acceptance.test_start_refused import CLOSED, assert_refused, run_serve
from tests.support import frames
from tests.support.client import call, connect
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer, stream
from tests.support.waiting import wait_until

START_LIMIT_S = 60.0
MAX_TRIES = 200


@pytest.fixture
def workers(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Daemon]:
    """Two workers on the suite's servers."""
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    with start_daemon(settings, ["--workers", "2"]) as daemon:
        yield daemon


def pids_of(daemon: Daemon) -> set[int]:
    """The workers that answer, as far as some tries show them; one that is just ending may hang up on a try."""
    found = set()
    for _ in range(20):
        with contextlib.suppress(OSError, http.client.HTTPException):
            found.add(int(str(daemon.get("/health")[1]["pid"])))
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def a_socket_on_each(daemon: Daemon) -> AsyncIterator[Mapping[int, ClientConnection]]:
    """Connect until both workers have a socket."""
    async with AsyncExitStack() as stack:
        found: dict[int, ClientConnection] = {}
        for _ in range(MAX_TRIES):
            socket = await stack.enter_async_context(dial(daemon.url, proxy=None))
            found.setdefault((await frames.call(socket, "status"))["pid"], socket)
            if len(found) == 2:
                break
        assert len(found) == 2
        yield found


async def test_a_killed_worker_does_not_affect_the_other_and_is_replaced(
    workers: Daemon, provider: ProviderServer
) -> None:
    """kill -9 of one while a chat runs on the other; any worker then serves the conversation of the dead one."""
    provider.script(stream("gate", *kimi_answer("Still here.").steps))
    async with a_socket_on_each(workers) as sockets:
        (victim, lost), (survivor, kept) = sockets.items()
        stored = await frames.call(
            lost, "conversation_append", messages=[{"role": "user", "content": "kept by Postgres"}]
        )
        chat = asyncio.create_task(frames.call(kept, "chat", prompt="Hello?"))
        await provider.arrived(1)
        os.kill(victim, signal.SIGKILL)
        await wait_until(
            lambda: len(pids_of(workers) - {victim}) == 2, lambda: f"no new worker:\n{workers.output}", START_LIMIT_S
        )
        provider.gate.set()
        assert (await chat)["content"] == "Still here."
        assert (await frames.call(kept, "status"))["pid"] == survivor
        page = await frames.call(kept, "conversation_get", continuation_id=stored["continuation_id"])
        assert page["messages"][0]["content"] == "kept by Postgres"
        with pytest.raises(ConnectionClosed):
            await frames.call(lost, "status")
    assert workers.output.count("a worker died and is started again") == 1
    pids = pids_of(workers)
    assert workers.stop() == 0
    assert not [pid for pid in pids if is_running(pid)]


async def test_a_hangup_replaces_all_workers_and_drops_no_running_call(
    workers: Daemon, provider: ProviderServer
) -> None:
    """One after the other, each when its successor is ready; a running call is answered before its worker exits."""
    provider.script(stream("gate", *kimi_answer("Answered.").steps))
    async with a_socket_on_each(workers) as sockets:
        before = set(sockets)
    async with dial(workers.url, proxy=None) as socket:
        chat = asyncio.create_task(frames.call(socket, "chat", prompt="Hello?"))
        await provider.arrived(1)
        workers.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: bool(pids_of(workers) - before), lambda: workers.output, START_LIMIT_S)
        provider.gate.set()
        answer = await chat
        async with asyncio.timeout(START_LIMIT_S):
            await socket.wait_closed()
        assert socket.close_code == 1012, "clients are told that it is a restart"
    assert answer["content"] == "Answered."
    await wait_until(
        lambda: not [pid for pid in before if is_running(pid)] and len(pids_of(workers)) == 2,
        lambda: workers.output,
        START_LIMIT_S,
    )
    async with connect(workers.url) as session:
        page = await call(session, "conversation_get", continuation_id=answer["continuation_id"])
        assert [each["content"] for each in page["messages"]] == ["Hello?", "Answered."]
    assert "a worker died" not in workers.output
    assert workers.stop() == 0


async def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """No process listens on the port any more, and the parent's embedded servers have ended."""
    with start_daemon({"EXAI_DATA_DIR": str(tmp_path)}, ["--workers", "2"]) as daemon:
        async with connect(daemon.url) as session:
            await call(session, "conversation_append", messages=[{"role": "user", "content": "a"}])
        workers = pids_of(daemon)
        daemon.kill()
        await wait_until(lambda: not [pid for pid in workers if is_running(pid)], lambda: daemon.output, START_LIMIT_S)


def test_what_keeps_workers_from_starting_is_said_once(tmp_path: Path) -> None:
    """With the same message and status as a single process has."""
    settings = {"EXAI_DATABASE__URL": f"postgresql://exai@{CLOSED}/exai", "EXAI_DATA_DIR": str(tmp_path)}
    assert_refused(run_serve(settings, "--workers", "3"), 3, CLOSED)
    assert_refused(run_serve(settings, "--workers", "0"), 2, "--workers: 0", "1 to 64")


def metrics_of(daemon: Daemon) -> dict[str, float]:
    """Samples of `/metrics` by their text before the value, from whichever worker answers."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def test_metrics_are_those_of_all_workers_and_never_go_back(workers: Daemon) -> None:
    """Also when one is killed, and when all are replaced."""
    calls = 'exai_mcp_requests_total{method="tools/call",outcome="ok",tool="version"}'
    made = 0
    open_now: list[float] = []

    async def make(number: int) -> None:
        nonlocal made
        async with a_socket_on_each(workers) as sockets:
            for socket in sockets.values():
                for _ in range(number):
                    await frames.call(socket, "version")
                made += number
            open_now[:] = [metrics_of(workers)["exai_ws_connections"] for _ in range(10)]

    await make(5)
    assert min(open_now) == max(open_now) >= 2, "the sockets of both workers"
    seen = [metrics_of(workers) for _ in range(10)]
    assert {each[calls] for each in seen} == {made}
    assert {each['exai_request_statements_count{tool="version"}'] for each in seen} == {made}
    assert {each["exai_workers"] for each in seen} == {2}
    cpu = [each["process_cpu_seconds_total"] for each in seen]
    assert cpu == sorted(cpu)
    killed = next(iter(pids_of(workers)))
    os.kill(killed, signal.SIGKILL)
    await wait_until(lambda: len(pids_of(workers) - {killed}) == 2, limit_s=START_LIMIT_S)
    assert metrics_of(workers)[calls] == made
    await make(3)
    before = pids_of(workers)
    workers.process.send_signal(signal.SIGHUP)
    await wait_until(lambda: len(found := pids_of(workers)) == 2 and not found & before, limit_s=START_LIMIT_S)
    assert metrics_of(workers)[calls] == made
