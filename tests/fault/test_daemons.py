"""Daemons that are killed, stopped, overloaded, cut off or given a wrong clock, as seen by their clients."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.fault.caller import Lost, Refused, calling
from tests.fault.cluster import Cluster, Member, open_cluster
from tests.support.backend import FaultServer
from tests.support.daemon import ROOT, Daemon
from tests.support.provider_server import chunk, event, kimi_answer, stream
from tests.support.waiting import wait_until

BOUND_S = 2.0
ROUNDS = 4
HEAL_LIMIT_S = 30.0
CALLS = 5
HOUR_S = 3_600

CLOCK = """
import datetime, pathlib, time
real, shift = time.time, pathlib.Path({shift!r})
time.time = lambda: real() + float(shift.read_text())
time.time_ns = lambda: int(time.time() * 1e9)
Real = datetime.datetime
class Shifted(Real):
    fromisoformat, fromtimestamp, strptime = Real.fromisoformat, Real.fromtimestamp, Real.strptime
    def __new__(cls, *args, **named):
        return Real(*args, **named)
    @classmethod
    def now(cls, tz=None):
        return Real.fromtimestamp(time.time(), tz)
datetime.datetime = Shifted
"""
"""A clock of a daemon's own, which may be moved: only what `time` and `datetime` take for now is shifted."""

CULPRIT = """
import signal, time
def culprit(*_):
    time.sleep(2)
signal.signal(signal.SIGUSR2, culprit)
"""
"""Something that blocks the event loop of a daemon for two seconds, on demand."""


@pytest.fixture
async def two(postgres_server: FaultServer, valkey_server: FaultServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two daemons on servers of their own."""
    async with open_cluster(postgres_server, valkey_server, tmp_path, daemons=2) as cluster:
        yield cluster


@pytest.fixture
async def one(postgres_server: FaultServer, valkey_server: FaultServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A daemon on servers of its own."""
    async with open_cluster(postgres_server, valkey_server, tmp_path, daemons=1) as cluster:
        yield cluster


async def append(member: Member, name: str | None, *contents: str, key: str | None = None) -> dict[str, Any]:
    """Append user messages through a daemon."""
    messages = [{"role": "user", "content": content} for content in contents]
    return await member.call("conversation_append", continuation_id=name, messages=messages, idempotency_key=key)


async def contents(member: Member, name: str) -> list[str]:
    """Return the contents that a daemon shows."""
    page = await member.call("conversation_get", continuation_id=name)
    return [message["content"] for message in page["messages"]]


async def until_it_works(member: Member, name: str, content: str) -> dict[str, Any]:
    """Append under one key until it is acknowledged, within the limit for everything to be well again."""
    end = time.monotonic() + HEAL_LIMIT_S
    while True:
        try:
            return await append(member, name, content, key=content)
        except (Refused, Lost) as error:
            assert time.monotonic() < end, f"{content}: {error}"
            await asyncio.sleep(0.1)


async def test_daemon_killed_between_commit_and_telling_redis_leaves_others_late_for_the_bound_only(
    two: Cluster,
) -> None:
    """The write is there, others see it within the bound, and its repetition finds it done."""
    writer, reader = two.members
    name = (await append(writer, None, "one"))["continuation_id"]
    assert await contents(reader, name) == ["one"]
    writer.to_redis.lose_request(two.apply_sha, then=lambda: writer.signal(signal.SIGKILL))
    with pytest.raises(Lost):
        await append(writer, name, "two", key="key")
    began = time.monotonic()
    while (found := await contents(reader, name)) != ["one", "two"]:
        assert found == ["one"]
        assert time.monotonic() - began < BOUND_S + 0.1
        await asyncio.sleep(0.02)
    again = await append(reader, name, "two", key="key")
    assert (again["duplicate"], again["first_seq"]) == (True, 2)
    assert await contents(reader, name) == ["one", "two"]
    await writer.kill()


async def test_daemon_killed_again_and_again_in_the_middle_of_calls_halves_none_of_them(one: Cluster) -> None:
    """SIGKILL with appends and a turn in flight; after the restart every repetition gives one result."""
    (member,) = one.members
    name = (await append(member, None, "first"))["continuation_id"]
    for number in range(ROUNDS):
        one.provider.script(stream("gate", chunk({"content": "never heard"}, finish="stop"), event("[DONE]")))
        asked = len(one.provider.chats)
        turn = asyncio.create_task(
            member.call("chat", continuation_id=name, prompt=f"q{number}", idempotency_key=f"q{number}")
        )
        await one.provider.arrived(asked + 1)
        keys = [f"{number}.{part}" for part in range(12)]
        writes = [asyncio.create_task(append(member, name, key, f"{key}'", key=key)) for key in keys]
        await asyncio.wait(writes[: 3 * number + 1], return_when=asyncio.ALL_COMPLETED)
        await member.kill()
        outcomes = await asyncio.gather(turn, *writes, return_exceptions=True)
        assert all(isinstance(outcome, dict | Lost) for outcome in outcomes), outcomes
        await member.start()
        for key in keys:
            told = await append(member, name, key, f"{key}'", key=key)
            assert told["last_seq"] == told["first_seq"] + 1
        async with one.admin() as connection:
            # A minute passes, after which the lease of the dead daemon's turn has expired.
            await connection.execute("update public.turns set lease_until = now() where state = 'pending'")
        one.provider.script(kimi_answer(f"answer to q{number}", reasoning=""))
        answered = await member.call("chat", continuation_id=name, prompt=f"q{number}", idempotency_key=f"q{number}")
        assert answered["content"] == f"answer to q{number}"
    log = (await one.logs())[name]
    stored = [message.content for message in log.messages]
    assert len(stored) == len(set(stored)) == 1 + ROUNDS * (2 * 12 + 2)
    for index, content in enumerate(stored):
        if content.endswith("'"):
            assert stored[index - 1] == content[:-1]


async def test_stop_lets_calls_finish_turns_away_the_next_and_ends_well(one: Cluster) -> None:
    """SIGTERM during calls: not ready at once, all answered and stored, sockets closed as going away, exit 0."""
    (member,) = one.members
    name = (await append(member, None, "one"))["continuation_id"]
    daemon = member.daemon
    assert daemon is not None
    one.provider.script(
        *(stream("gate", chunk({"content": f"a{n}"}, finish="stop"), event("[DONE]")) for n in range(CALLS))
    )
    async with calling(daemon.url) as caller:
        calls = [asyncio.create_task(caller.call("chat", continuation_id=name, prompt=f"q{n}")) for n in range(CALLS)]
        await one.provider.arrived(CALLS)
        member.signal(signal.SIGTERM)
        await wait_until(lambda: not ready(daemon))
        with pytest.raises((Lost, Refused)):
            await caller.call("conversation_get", continuation_id=name)
        one.provider.gate.set()
        answers = await asyncio.gather(*calls)
        assert sorted(answer["content"] for answer in answers) == [f"a{n}" for n in range(CALLS)]
        await wait_until(lambda: caller.is_lost)
        assert caller.close_code == 1001
    assert await member.ended() == 0
    assert len((await one.logs())[name].messages) == 1 + 2 * CALLS


def ready(daemon: Daemon) -> bool:
    """Whether the daemon is ready; a refused connection counts as not ready."""
    return status_of(daemon, "/health/ready") == 200


def status_of(daemon: Daemon, path: str) -> int:
    """The HTTP status of a path, 0 if the connection is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def metrics_of(daemon: Daemon) -> str:
    """The metrics of a daemon."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


async def test_second_stop_ends_at_once_and_leaves_the_rest_to_their_keys(one: Cluster) -> None:
    """The model never answers; the caller receives the error for shutdown, and repeats the call with its key later."""
    (member,) = one.members
    daemon = member.daemon
    assert daemon is not None
    one.provider.script(stream("hang"), kimi_answer("later", reasoning=""))
    call = asyncio.create_task(member.call("chat", prompt="Hello", idempotency_key="key"))
    await one.provider.arrived(1)
    member.signal(signal.SIGTERM)
    await wait_until(lambda: not ready(daemon))
    assert not call.done()
    assert await member.stop() == 0
    with pytest.raises((Refused, Lost)) as caught:
        await call
    if isinstance(caught.value, Refused):
        assert caught.value.code in ("shutting_down", "cancelled")
    await member.start()
    assert (await member.call("chat", prompt="Hello", idempotency_key="key"))["content"] == "later"


async def test_everything_else_restarting_at_once_is_survived_without_a_restart(two: Cluster) -> None:
    """Both servers die and come back in either order; the daemons answer errors meanwhile, live, and work again."""
    names = [(await append(member, None, "first"))["continuation_id"] for member in two.members]
    for number, order in enumerate(((two.start_postgres, two.start_valkey), (two.start_valkey, two.start_postgres))):
        processes = [member.daemon.process.pid for member in two.members if member.daemon]
        await asyncio.to_thread(two.postgres.kill)
        await asyncio.to_thread(two.valkey.kill)
        for member, name in zip(two.members, names, strict=True):
            with pytest.raises(Refused) as caught:
                await append(member, name, "never", key=f"never {number} {name}")
            assert caught.value.facts["retryable"] is True
            assert member.daemon is not None
            assert status_of(member.daemon, "/health/live") == 200
        for start in order:
            await start()
        for member, name in zip(two.members, names, strict=True):
            await until_it_works(member, name, f"after {number} {member.number}")
            assert (await contents(member, name))[-1] == f"after {number} {member.number}"
        assert [member.daemon.process.pid for member in two.members if member.daemon] == processes
        for member in two.members:
            member.check_alive()


@pytest.mark.parametrize("first", ["postgres", "valkey"])
async def test_daemon_that_starts_before_its_servers_waits_for_them(one: Cluster, first: str) -> None:
    """In either order of the servers: no crash, no restart, and the daemon is ready when both are."""
    (member,) = one.members
    name = (await append(member, None, "one"))["continuation_id"]
    await member.stop()
    await asyncio.to_thread(one.postgres.kill)
    await asyncio.to_thread(one.valkey.kill)
    member.env["EXAI_START_WAIT_S"] = "60"
    tried = member.to_postgres.accepted
    starting = asyncio.create_task(member.start())
    await wait_until(lambda: member.to_postgres.accepted > tried, limit_s=HEAL_LIMIT_S)
    order = [one.start_postgres, one.start_valkey]
    for start in order if first == "postgres" else reversed(order):
        await start()
    await starting
    assert await contents(member, name) == ["one"]
    assert member.daemon is not None
    assert "waiting_for_server" in member.daemon.output


IMPORT = '{"format": "exai-conversation", "version": 1, "continuation_id": "a", "%s": "\\u0000"}'
NAN_IMPORT = IMPORT.replace('"%s": "\\u0000"', '"metadata": {"a": NaN}')
USER = {"role": "user", "content": "a"}

UNSTORABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("messages[0].content", "conversation_append", {"messages": [{"role": "user", "content": "a\x00"}]}),
    ("messages[0].metadata", "conversation_append", {"messages": [{**USER, "metadata": {"a": [{"b": "\x00"}]}}]}),
    ("title", "conversation_append", {"messages": [USER], "title": "\x00"}),
    ("idempotency_key", "conversation_append", {"messages": [USER], "idempotency_key": "\x00"}),
    ("continuation_id", "conversation_append", {"messages": [USER], "continuation_id": "\x00"}),
    ("continuation_id", "conversation_get", {"continuation_id": "a\x00"}),
    ("cursor", "conversation_list", {"cursor": "\x00"}),
    ("query", "conversation_search", {"query": "a\x00"}),
    ("continuation_id", "conversation_search", {"query": "a", "continuation_id": "\x00"}),
    ("tool", "conversation_search", {"query": "a", "tool": "\x00"}),
    ("model", "conversation_search", {"query": "a", "model": "\x00"}),
    ("cursor", "conversation_search", {"query": "a", "cursor": "\x00"}),
    ("continuation_id", "conversation_fork", {"continuation_id": "\x00"}),
    ("title", "conversation_fork", {"continuation_id": "a", "title": "\x00"}),
    ("idempotency_key", "conversation_fork", {"continuation_id": "a", "idempotency_key": "\x00"}),
    ("continuation_id", "conversation_update", {"continuation_id": "\x00", "title": "a"}),
    ("title", "conversation_update", {"continuation_id": "a", "title": "\x00"}),
    ("tags[1]", "conversation_update", {"continuation_id": "a", "tags": ["a", "\x00"]}),
    ("metadata", "conversation_update", {"continuation_id": "a", "metadata": {"\x00": 1}}),
    ("continuation_id", "conversation_delete", {"continuation_id": "\x00"}),
    ("idempotency_key", "conversation_delete", {"continuation_id": "a", "idempotency_key": "\x00"}),
    ("continuation_id", "conversation_export", {"continuation_id": "\x00"}),
    ("line 1, title", "conversation_import", {"text": IMPORT % "title", "format": "jsonl"}),
    ("line 1, continuation_id", "conversation_import", {"text": IMPORT % "continuation_id", "format": "jsonl"}),
    ("line 1, metadata", "conversation_import", {"text": NAN_IMPORT, "format": "jsonl"}),
    ("name", "file_put", {"name": "\x00", "content": "a"}),
    ("media_type", "file_put", {"name": "a", "content": "a", "media_type": "\x00"}),
    ("file_id", "file_get", {"file_id": "\x00"}),
    ("continuation_id", "file_list", {"continuation_id": "\x00"}),
    ("cursor", "file_list", {"cursor": "\x00"}),
    ("continuation_id", "file_link", {"continuation_id": "\x00", "file_ids": [str(UUID(int=1))]}),
    ("file_ids[0]", "file_link", {"continuation_id": "a", "file_ids": ["\x00"]}),
    ("file_id", "file_delete", {"file_id": "\x00"}),
    ("prompt", "chat", {"prompt": "a\x00"}),
    ("system", "chat", {"prompt": "a", "system": "\x00"}),
    ("idempotency_key", "chat", {"prompt": "a", "idempotency_key": "\x00"}),
    ("continuation_id", "chat", {"prompt": "a", "continuation_id": "\x00"}),
]


async def test_what_postgres_cannot_store_is_an_argument_to_correct_on_every_path(one: Cluster) -> None:
    """NUL in any text: refused by name before the database, never an internal error, and no model is asked."""
    (member,) = one.members
    for field, tool, arguments in UNSTORABLE:
        with pytest.raises(Refused) as caught:
            await member.call(tool, **arguments)
        assert (caught.value.code, caught.value.facts["field"]) == ("invalid_argument", field)
    assert one.provider.chats == []
    assert await one.logs() == {}
    assert member.daemon is not None
    assert "Traceback" not in member.daemon.output


async def test_clocks_of_daemons_decide_nothing(two: Cluster, tmp_path: Path) -> None:
    """One an hour behind, one an hour ahead: leases, order and the bound are by the servers' clocks alone."""
    shifts = [tmp_path / f"shift{number}" for number in range(2)]
    set_clocks(shifts, -HOUR_S, HOUR_S)
    for member, shift in zip(two.members, shifts, strict=True):
        await customised(member, tmp_path / f"clock{member.number}", CLOCK.format(shift=str(shift)))
    slow, fast = two.members
    name = (await append(slow, None, "one"))["continuation_id"]
    assert await contents(fast, name) == ["one"]
    two.provider.script(stream("gate", chunk({"content": "answer"}, finish="stop"), event("[DONE]")))
    arguments = {"continuation_id": name, "prompt": "q", "idempotency_key": "key"}
    first = asyncio.create_task(slow.call("chat", **arguments))
    await two.provider.arrived(1)
    second = asyncio.create_task(fast.call("chat", **arguments))
    await append(fast, name, "two")
    await append(slow, name, "three")
    assert not second.done()
    two.provider.gate.set()
    told = await asyncio.gather(first, second)
    assert [each["content"] for each in told] == ["answer", "answer"]
    assert len(two.provider.chats) == 1
    for member in (fast, slow):
        page = await member.call("conversation_get", continuation_id=name)
        assert [message["content"] for message in page["messages"]] == ["one", "q", "two", "three", "answer"]
        times = [message["created_at"] for message in page["messages"]]
        assert times == sorted(times)
    assert (await fast.call("conversation_get", continuation_id=name))["source"] == "cache"
    # Both are set right, and each a day wrong the other way: nothing runs out early, and nothing is held for long.
    set_clocks(shifts, 24 * HOUR_S, -24 * HOUR_S)
    await append(fast, name, "four")
    for member in (slow, fast):
        page = await member.call("conversation_get", continuation_id=name)
        assert (page["messages"][-1]["content"], page["source"]) == ("four", "cache")
        found = await member.call("conversation_search", query="four")
        assert [hit["seq"] for hit in found["hits"]] == [6]
    for seq, member in ((8, slow), (10, fast)):
        assert (await member.call("chat", continuation_id=name, prompt="q again"))["seq"] == seq


def set_clocks(shifts: list[Path], *seconds: int) -> None:
    """Move the daemons' clocks."""
    for shift, by_s in zip(shifts, seconds, strict=True):
        new = shift.with_suffix(".new")
        new.write_text(str(by_s))
        new.replace(shift)


async def customised(member: Member, place: Path, program: str) -> None:
    """Start a daemon anew with something done to its interpreter first."""
    place.mkdir()
    (place / "sitecustomize.py").write_text(program)
    await member.stop()
    member.env["PYTHONPATH"] = os.pathsep.join((str(place), str(ROOT)))
    await member.start()


async def test_stall_of_a_daemon_names_its_cause_and_counts_no_failure(one: Cluster, tmp_path: Path) -> None:
    """Two seconds without the event loop: the call in flight is answered, and no server is taken for dead."""
    (member,) = one.members
    await customised(member, tmp_path / "culprit", CULPRIT)
    daemon = member.daemon
    assert daemon is not None
    name = (await append(member, None, "one"))["continuation_id"]
    one.provider.script(stream("gate", chunk({"content": "answer"}, finish="stop"), event("[DONE]")))
    asking = asyncio.create_task(member.call("chat", continuation_id=name, prompt="q"))
    await one.provider.arrived(1)
    member.signal(signal.SIGUSR2)
    reads = [asyncio.create_task(contents(member, name)) for _ in range(10)]
    await wait_until(lambda: "event_loop_runs_again" in daemon.output, limit_s=HEAL_LIMIT_S)
    assert await asyncio.gather(*reads) == [["one", "q"]] * 10
    one.provider.gate.set()
    assert (await asking)["content"] == "answer"
    assert '"inside":"culprit (' in daemon.output
    counted = await asyncio.to_thread(metrics_of, daemon)
    assert not re.findall(r'^exai_breaker_calls_total\{.*outcome="failure".*\} [1-9]', counted, re.MULTILINE)
