"""One connection shared by all: pairing of replies, cancellation, time limits, loss and renewal; and its cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from exai.cache.redis.address import dial, parse_address
from exai.cache.redis.connection import LONG_BYTES, MAX_WAITING, RedisConnection
from exai.cache.redis.faults import CacheAway, CacheDown, CacheLost, CacheRefused, ReplyError
from exai.cache.redis.topology import OneServer, open_topology
from tests.support.counters import Counters
from tests.support.redis_proxy import RedisProxy
from tests.support.valkey import Valkey

LIMIT_S = 0.2


@pytest.fixture
async def proxy(valkey: Valkey) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(valkey.address) as between:
        yield between


async def wire_to(url: str, limit_s: float = 5.0) -> RedisConnection:
    return await dial(parse_address(url).primary, limit_s)


def server_at(url: str, recorder: Counters, limit_s: float = LIMIT_S) -> OneServer:
    topology = open_topology(parse_address(url), limit_s, recorder)
    assert isinstance(topology, OneServer)
    return topology


class TestPairing:
    async def test_commands_of_one_tick_leave_in_one_write(self, proxy: RedisProxy) -> None:
        """That is where the speed comes from."""
        wire = await wire_to(proxy.url)
        replies = await asyncio.gather(*(wire.call("ECHO", f"word {number}") for number in range(100)))
        assert replies == [f"word {number}".encode() for number in range(100)]
        assert (proxy.round_trips, len(proxy.commands)) == (1, 100)
        await wire.close()

    async def test_long_arguments_arrive_as_they_were_given(self, proxy: RedisProxy) -> None:
        """One is not copied into its command when it is the last; among short ones, in one write and in order."""
        wire = await wire_to(proxy.url)
        words: list[str | bytes] = ["short", b"", "é" * LONG_BYTES]
        words += [b"\r\n$0" * size for size in (LONG_BYTES // 4 - 1, LONG_BYTES // 4, LONG_BYTES)]
        replies = await asyncio.gather(*(wire.call("ECHO", word) for word in words))
        assert replies == [word.encode() if isinstance(word, str) else word for word in words]
        assert len(proxy.commands) == len(words)
        await wire.close()

    async def test_reply_of_a_cancelled_command_is_discarded(self, proxy: RedisProxy) -> None:
        """Fault 12: the next caller on the same connection gets its own reply."""
        wire = await wire_to(proxy.url)
        proxy.mode = "stall_down"
        first = asyncio.create_task(echo(wire, "first"))
        second = asyncio.create_task(echo(wire, "second"))
        await until(lambda: len(proxy.commands) == 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        third = asyncio.create_task(echo(wire, "third"))
        proxy.mode = "pass"
        assert (await second, await third) == (b"second", b"third")
        assert proxy.accepted == 1
        await wire.close()

    async def test_command_cancelled_before_it_left_is_sent_and_its_reply_dropped(self, proxy: RedisProxy) -> None:
        """It was promised to the connection in the same tick; order is all that pairs replies."""
        wire = await wire_to(proxy.url)
        wire.call("ECHO", "first").cancel()
        assert await wire.call("ECHO", "second") == b"second"
        await wire.close()

    @pytest.mark.parametrize("seed", range(5))
    async def test_any_cancellations_leave_the_pairs_right(self, valkey: Valkey, seed: int) -> None:
        """Three hundred callers of all sizes; every third is cancelled at some point."""
        wire = await wire_to(valkey.url)

        async def caller(number: int) -> None:
            word = f"{number} " + "x" * (number * 37 % 50_000)
            assert await wire.call("ECHO", word) == word.encode()

        tasks = [asyncio.create_task(caller(number)) for number in range(300)]
        for number, task in enumerate(tasks):
            if (number + seed) % 3 == 0:
                task.cancel()
            if number % 7 == seed:
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        await wire.close()

    async def test_error_reply_is_a_result_with_its_code(self, valkey: Valkey) -> None:
        """Errors are distinguished by the protocol's code, never by their text."""
        wire = await wire_to(valkey.url)
        reply = await wire.call("EVALSHA", "0" * 40, 0)
        assert isinstance(reply, ReplyError)
        assert reply.code == "NOSCRIPT"
        await wire.close()


class TestLimits:
    async def test_silence_costs_one_limit_and_fails_all_who_wait(self, proxy: RedisProxy) -> None:
        """One of them reports it; the connection is of no more use."""
        wire = await wire_to(proxy.url, LIMIT_S)
        proxy.mode = "stall"
        started = time.monotonic()
        results = await asyncio.gather(*(wire.call("ECHO", "x") for _ in range(50)), return_exceptions=True)
        assert time.monotonic() - started >= LIMIT_S * 0.9
        assert [type(result) for result in results] == [CacheDown] + [CacheLost] * 49
        with pytest.raises(CacheLost, match="no answer within"):
            wire.call("PING")
        await wire.close()

    async def test_steady_traffic_is_not_silence(self, valkey: Valkey) -> None:
        """The limit is of each command, not of the connection."""
        wire = await wire_to(valkey.url, 0.05)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            await wire.call("PING")
        assert wire.lost is None
        await wire.close()

    async def test_own_stall_is_not_taken_for_the_servers(self, valkey: Valkey) -> None:
        """Fault 24: replies that have arrived are read before the deadline is checked."""
        wire = await wire_to(valkey.url, LIMIT_S)
        reply = wire.call("PING")
        await asyncio.sleep(0)
        time.sleep(LIMIT_S * 2)
        assert await reply == b"PONG"
        await wire.close()

    async def test_callers_beyond_the_limit_are_refused_at_once(self, proxy: RedisProxy) -> None:
        """Memory is limited for any number of callers."""
        wire = await wire_to(proxy.url)
        proxy.mode = "stall"
        waiting = [wire.call("PING") for _ in range(MAX_WAITING)]
        with pytest.raises(CacheLost, match="more commands"):
            wire.call("PING")
        await wire.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, CacheAway) for result in results)

    async def test_server_that_stops_reading_is_noticed(self, proxy: RedisProxy) -> None:
        """Bytes that the kernel does not take are bounded as well."""
        wire = await wire_to(proxy.url)
        proxy.mode = "stall"
        block = b"x" * 8_000_000
        waiting = []
        with pytest.raises(CacheLost, match="more commands"):
            for _ in range(10):
                waiting.append(wire.call("ECHO", block))
                await asyncio.sleep(0)
        await wire.close()
        await asyncio.gather(*waiting, return_exceptions=True)


class TestLoss:
    @pytest.mark.parametrize("fault", ["reset", "cut"])
    async def test_lost_connection_fails_its_callers_and_the_next_call_makes_another(
        self, proxy: RedisProxy, recorder: Counters, fault: str
    ) -> None:
        """Nothing is sent twice, and no caller waits for its time limit."""
        server = server_at(proxy.url, recorder, 5.0)
        node = server.node(0)
        assert await node.call("ECHO", "x" * 5_000) == b"x" * 5_000
        proxy.reset_counters()
        if fault == "reset":
            lost = proxy.drop_reply_to(b"first")
        else:
            proxy.cut_after(100)
        with pytest.raises(CacheDown):
            await node.call("ECHO", "first" + "x" * 5_000)
        if fault == "reset":
            await lost
        assert await node.call("ECHO", "second") == b"second"
        assert [command[1][:6] for command in proxy.commands] == [b"firstx", b"second"]
        await server.close()

    @pytest.mark.parametrize("garbage", [b"?what\r\n", b"+one\r\n+too many\r\n"])
    async def test_what_is_no_reply_ends_the_connection(self, proxy: RedisProxy, garbage: bytes) -> None:
        """Once the pairing is in doubt nothing that follows can be trusted."""
        wire = await wire_to(proxy.url)
        proxy.mode = "stall_down"
        wire.call("ECHO", "x").cancel()
        await until(lambda: len(proxy.commands) == 1)
        proxy.inject(garbage)
        await until(lambda: wire.lost is not None)
        with pytest.raises(CacheLost, match="not a reply"):
            wire.call("PING")
        await wire.close()

    async def test_idle_connection_closed_by_the_server_is_no_failure(self, valkey: Valkey, recorder: Counters) -> None:
        """Servers and balancers close idle connections; the next call makes another."""
        server = server_at(valkey.url, recorder)
        node = server.node(0)
        for _ in range(6):
            assert await node.call("PING") == b"PONG"
            valkey.do("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
            await asyncio.sleep(0.01)
        assert recorder["breaker_calls_total", "redis", "failure"] == 0
        await server.close()

    async def test_callers_share_one_attempt_to_connect(self, proxy: RedisProxy, recorder: Counters) -> None:
        """And one that is cancelled leaves it to the others."""
        server = server_at(proxy.url, recorder, 5.0)
        tasks = [asyncio.create_task(server.node(0).call("ECHO", str(number))) for number in range(20)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1:] == [str(number).encode() for number in range(1, 20)]
        assert proxy.accepted == 1
        await server.close()

    async def test_one_lost_connection_is_one_failure_however_many_it_hits(
        self, proxy: RedisProxy, recorder: Counters
    ) -> None:
        """A restart of Redis must not shut the cache for seconds."""
        server = server_at(proxy.url, recorder, 5.0)
        node = server.node(0)
        await node.call("PING")
        proxy.mode = "stall"
        tasks = [asyncio.create_task(node.call("PING")) for _ in range(64)]
        await asyncio.sleep(0)
        proxy.reset()
        await asyncio.gather(*tasks, return_exceptions=True)
        proxy.mode = "pass"
        assert await node.call("PING") == b"PONG"
        assert recorder["breaker_calls_total", "redis", "failure"] == 1
        await server.close()

    async def test_closing_ends_all_waits(self, proxy: RedisProxy, recorder: Counters) -> None:
        """Shutdown does not wait for an unavailable server."""
        server = server_at(proxy.url, recorder, 5.0)
        proxy.mode = "stall"
        waiting = asyncio.create_task(server.node(0).call("PING"))
        await until(lambda: proxy.accepted == 1)
        await server.close()
        with pytest.raises(CacheAway):
            await waiting


class TestBreaker:
    async def test_black_hole_costs_the_limit_a_few_times_and_then_nothing(
        self, proxy: RedisProxy, recorder: Counters
    ) -> None:
        """Fault 8: five in a row open the breaker; then calls are refused without a packet."""
        server = server_at(proxy.url, recorder, 0.05)
        proxy.mode = "stall"
        for _ in range(5):
            with pytest.raises(CacheDown):
                await server.node(0).call("PING")
        accepted = proxy.accepted
        with pytest.raises(CacheLost, match="failed repeatedly"):
            await server.node(0).call("PING")
        assert proxy.accepted == accepted
        assert server.node(0).breaker.state == "open"
        await server.close()

    async def test_refused_connection_is_an_immediate_error(self, recorder: Counters) -> None:
        """A dead port costs no limit at all."""
        with Valkey() as gone:
            url = gone.url
        server = server_at(url, recorder, 30.0)
        async with asyncio.timeout(5):
            with pytest.raises(CacheDown, match="no connection to 127"):
                await server.node(0).call("PING")
        await server.close()

    async def test_refusal_of_one_command_is_no_failure_of_the_server(self, valkey: Valkey, recorder: Counters) -> None:
        """Out of memory, say: hits are still served."""
        server = server_at(valkey.url, recorder)
        for _ in range(10):
            with pytest.raises(CacheRefused) as refused:
                await server.node(0).call("NO-SUCH-COMMAND")
        assert (refused.value.reply_code, server.node(0).breaker.state) == ("ERR", "closed")
        await server.close()


class TestGreeting:
    async def test_password_and_database_are_used(self, recorder: Counters) -> None:
        """`redis://:password@host/3`."""
        with Valkey() as server:
            server.do("CONFIG", "SET", "requirepass", "p@ss")
            wire = await wire_to(server.url.replace("127", ":p%40ss@127").replace("/0", "/3"))
            await wire.call("SET", "key", "value")
            info = await wire.call("INFO", "keyspace")
            assert isinstance(info, bytes)
            assert b"db3:keys=1" in info
            await wire.close()

    @pytest.mark.parametrize(("address", "code"), [("127", "NOAUTH"), (":wrong@127", "WRONGPASS")])
    async def test_wrong_password_is_named_but_not_shown(self, recorder: Counters, address: str, code: str) -> None:
        """The status has the cause without the password."""
        with Valkey() as server:
            server.do("CONFIG", "SET", "requirepass", "right")
            node = server_at(server.url.replace("127", address), recorder).node(0)
            with pytest.raises(CacheDown, match=code) as refused:
                await node.call("PING")
            assert "wrong" not in str(refused.value)
            await node.close()


async def echo(wire: RedisConnection, word: str) -> object:
    return await wire.call("ECHO", word)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)
