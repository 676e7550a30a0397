"""Sentinel, Cluster and TLS: the same cache, which follows its servers when they move."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exai.cache.answers import AnswerLimits
from exai.cache.conversations import ConversationCache
from exai.cache.entry import cache_keys, watermark_key
from exai.cache.reconciliation import ChangedRevisions
from exai.cache.records import Hit, Unavailable
from exai.cache.redis.topology import CLUSTER_GROUPS
from exai.models import ContinuationId, Owner
from tests.integration.cache.conftest import OpenCache
from tests.integration.cache.steps import apply, expect_current, fill, hit
from tests.integration.cache.stored import Stored
from tests.support.counters import Counters
from tests.support.valkey import Valkey, free_port
from tests.support.waiting import wait_until

SERVICE = "exai-primary"
SLOTS = 16_384


async def unchanged(_: str | None) -> ChangedRevisions:
    return ChangedRevisions("100", "epoch-1")


async def eventually_cached(cache: ConversationCache, stored: Stored) -> None:
    async with asyncio.timeout(20):
        while (await cache.read_through(stored.key, stored.load))[1] != "cache":
            await asyncio.sleep(0.02)


class TestSentinel:
    @pytest.fixture
    async def sentinel(self) -> AsyncIterator[tuple[Valkey, Valkey, Valkey]]:
        with (
            Valkey(repl_diskless_sync_delay="0") as primary,
            Valkey(replicaof=f"127.0.0.1 {primary.port}") as replica,
        ):
            # Sentinels look for replicas when they start, and then every ten seconds.
            await wait_until(lambda: replica.do("ROLE")[3] == b"connected", limit_s=20)
            watch = Valkey(sentinel=True)
            watch.configure(
                f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1",
                f"sentinel down-after-milliseconds {SERVICE} 300",
                f"sentinel failover-timeout {SERVICE} 2000",
            )
            with watch:
                yield watch, primary, replica

    async def test_primary_is_found_used_and_found_again_after_a_failover(
        self, cache_at: OpenCache, sentinel: tuple[Valkey, Valkey, Valkey], stored: Stored
    ) -> None:
        """The first sentinel of the address does not even answer; a replica takes the primary's place."""
        watch, primary, replica = sentinel
        with Valkey() as gone:
            dead = gone.port
        cache = await cache_at(f"redis+sentinel://127.0.0.1:{dead},127.0.0.1:{watch.port}/{SERVICE}", timeout_s=0.5)
        await fill(cache, stored)
        await expect_current(cache, stored)
        await wait_until(lambda: watch.do("SENTINEL", "REPLICAS", SERVICE) != [])
        primary.kill()
        await eventually_cached(cache, stored)
        assert replica.do("ROLE")[0] == b"master"
        await apply(cache, stored, stored.append("on the new primary"))
        await expect_current(cache, stored)

    async def test_server_that_is_no_primary_is_not_taken_for_one(
        self, cache_at: OpenCache, sentinel: tuple[Valkey, Valkey, Valkey], stored: Stored
    ) -> None:
        """A sentinel that is behind the times names a replica."""
        watch, primary, _ = sentinel
        primary.do("REPLICAOF", "127.0.0.1", "1")
        cache = await cache_at(f"redis+sentinel://127.0.0.1:{watch.port}/{SERVICE}", timeout_s=0.5)
        assert await cache.read(stored.key) == Unavailable("down")
        assert "does not say that it is the primary" in str((await cache.status()).problem)

    async def test_service_that_no_sentinel_knows_is_named(
        self, cache_at: OpenCache, sentinel: tuple[Valkey, Valkey, Valkey], stored: Stored
    ) -> None:
        """A misspelled name is seen in the status."""
        cache = await cache_at(f"redis+sentinel://127.0.0.1:{sentinel[0].port}/exia", timeout_s=0.5)
        assert await cache.read(stored.key) == Unavailable("down")
        assert "no sentinel names a primary of exia" in str((await cache.status()).problem)


class TestCluster:
    @pytest.fixture
    async def nodes(self) -> AsyncIterator[list[Valkey]]:
        with ExitStack() as stack:
            options = {"cluster_enabled": "yes", "cluster_node_timeout": "2000", "cluster_require_full_coverage": "no"}
            # The port between nodes is by default ten thousand above the other, which need not exist.
            buses = [free_port() for _ in range(3)]
            nodes = [stack.enter_context(Valkey(**options, cluster_port=str(bus))) for bus in buses]
            for number, node in enumerate(nodes):
                first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
                node.do("CLUSTER", "ADDSLOTSRANGE", first, last)
                node.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number:
                    node.do("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
            await wait_until(lambda: all(agrees(node) for node in nodes), limit_s=20)
            yield nodes

    @pytest.fixture
    def many(self) -> list[Stored]:
        """At least one conversation of each group."""
        found: dict[int, Stored] = {}
        for number in range(200):
            each = Stored(name=ContinuationId(f"thread {number}"))
            found.setdefault(cache_keys(each.key, CLUSTER_GROUPS).group, each)
        assert len(found) == CLUSTER_GROUPS
        return list(found.values())

    async def test_every_group_is_cached_where_it_lives(
        self, cache_at: OpenCache, nodes: list[Valkey], many: list[Stored], recorder: Counters
    ) -> None:
        """One address is enough; the redirections teach the rest, each once."""
        asked = []

        async def changes(since: str | None) -> ChangedRevisions:
            asked.append(since)
            return ChangedRevisions("100", "epoch-1")

        cache = await cache_at(
            f"redis+cluster://127.0.0.1:{nodes[1].port}", changes=changes, reconcile_interval_s=3_600
        )
        for each in many:
            await fill(cache, each)
            await expect_current(cache, each)
            await apply(cache, each, each.append("one"))
            await expect_current(cache, each)
        await wait_until(lambda: recorder["cache_reconciliations_total", "generation"] == 1)
        assert asked == [None]
        kept = [len(node.do("KEYS", "*:e")) for node in nodes]
        assert (sum(kept), min(kept) > 0) == (CLUSTER_GROUPS, True)
        assert sum(len(node.do("KEYS", "*watermark")) for node in nodes) == CLUSTER_GROUPS
        before = sum(moved(node) for node in nodes)
        for each in many:
            await hit(cache, each)
        assert sum(moved(node) for node in nodes) == before

    async def test_answers_of_an_owner_are_kept_together(self, cache_at: OpenCache, nodes: list[Valkey]) -> None:
        """A script uses both keys of an owner, so that one node must have them; owners are spread over the nodes."""
        entries = (await cache_at(f"redis+cluster://127.0.0.1:{nodes[1].port}")).answers
        limits = AnswerLimits(ttl_s=60.0, owner_max_bytes=1_000)
        owners = [Owner(f"owner {number}") for number in range(50)]
        for owner in owners:
            assert await entries.keep(owner, "name", owner.encode(), limits)
            assert await entries.find(owner, "name", limits) == owner.encode()
        kept = [len(node.do("KEYS", "exai:answers:*")) for node in nodes]
        assert (sum(kept), min(kept) > 0) == (2 * len(owners), True)

    async def test_dead_node_leaves_the_others_cached_and_licensed(
        self, cache_at: OpenCache, nodes: list[Valkey], many: list[Stored]
    ) -> None:
        """Two thirds stay warm; the rest is read from the database, at no cost after a while."""
        cache = await cache_at(
            f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[2].port}",
            changes=unchanged, max_staleness_s=1.0, reconcile_interval_s=0.1, timeout_s=0.5,
        )  # fmt: skip
        for each in many:
            await eventually_cached(cache, each)
        nodes[0].kill()
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            results = [await cache.read_through(each.key, each.load) for each in many]
            assert all(found.conversation.revision == 1 for found, _ in results)
        warm = [source for _, source in results].count("cache")
        assert 0 < warm < CLUSTER_GROUPS
        licensed = [number for number in range(CLUSTER_GROUPS) if await covered(cache, many[number])]
        assert len(licensed) == warm

    async def test_changes_go_together_within_a_group(
        self, cache_at: OpenCache, nodes: list[Valkey], recorder: Counters
    ) -> None:
        """Also when their command is redirected, as the first of most groups is."""
        cache = await cache_at(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        many = [Stored(name=ContinuationId(f"thread {number}")) for number in range(6 * CLUSTER_GROUPS)]
        assert len({cache_keys(each.key, CLUSTER_GROUPS).group for each in many}) == CLUSTER_GROUPS
        told = await asyncio.gather(*(apply(cache, each, each.append("one")) for each in many))
        assert (told, recorder["cache_calls_total", "apply", "ok"]) == ([True] * len(many), CLUSTER_GROUPS)
        assert sum(moved(node) for node in nodes) > 0
        for each in many:
            await fill(cache, each)
        await asyncio.gather(*(apply(cache, each, each.append("two")) for each in many))
        assert recorder["cache_calls_total", "apply", "ok"] == 2 * CLUSTER_GROUPS
        for each in many:
            await expect_current(cache, each)

    async def test_slot_that_moves_is_followed(self, cache_at: OpenCache, nodes: list[Valkey], stored: Stored) -> None:
        """Its keys stayed behind, so it is cold; then it is cached in its new place."""
        cache = await cache_at(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        await fill(cache, stored)
        where = cache_keys(stored.key, CLUSTER_GROUPS)
        slot = nodes[0].do("CLUSTER", "KEYSLOT", watermark_key(where.group))
        old = slot * 3 // SLOTS
        target = nodes[(old + 1) % 3]
        nodes[old].do("DEL", where.entry)
        for node in (target, nodes[old]):
            node.do("CLUSTER", "SETSLOT", slot, "NODE", target.do("CLUSTER", "MYID").decode())
        await fill(cache, stored)
        await expect_current(cache, stored)
        assert target.do("EXISTS", where.entry) == 1


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        now = dt.datetime.now(dt.UTC)
        built = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
        cert.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert, private

    async def test_rediss_speaks_tls_and_checks_the_certificate(
        self, cache_at: OpenCache, valkey: Valkey, certificate: tuple[Path, Path], stored: Stored
    ) -> None:
        """Unverified only if the address asks for it, refused otherwise."""
        cert, private = certificate
        async with tls_door(valkey, cert, private) as port:
            cache = await cache_at(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={cert}")
            await fill(cache, stored)
            await expect_current(cache, stored)
            doubting = await cache_at(f"rediss://127.0.0.1:{port}/0")
            assert await doubting.read(stored.key) == Unavailable("down")
            assert "certificate" in str((await doubting.status()).problem).lower()


async def covered(cache: ConversationCache, stored: Stored) -> bool:
    found = await cache.read(stored.key)
    return isinstance(found, Hit) and found.age_s < 1.0


def agrees(node: Valkey) -> bool:
    info = node.do("CLUSTER", "INFO")
    return (
        b"cluster_state:ok" in info and b"cluster_slots_assigned:16384" in info
        if isinstance(info, bytes)
        else (info["cluster_state"] == "ok" and info["cluster_slots_assigned"] == str(SLOTS))
    )


def moved(node: Valkey) -> int:
    return int(node.do("INFO", "errorstats").get("errorstat_MOVED", {}).get("count", 0))


@asynccontextmanager
async def tls_door(valkey: Valkey, cert: Path, private: Path) -> AsyncIterator[int]:
    """A TLS port in front of a server that has none."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, private)

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(*valkey.address)
        writers.extend((writer, forth))
        halves = [asyncio.create_task(copy(reader, forth)), asyncio.create_task(copy(back, writer))]
        await asyncio.wait(halves)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        # Since Python 3.12 a server waits for its connections.
        for writer in writers:
            writer.transport.abort()
