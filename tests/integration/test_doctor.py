"""`exai doctor` and `exai health` with servers that work, fail, do not answer, or are another program's."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from exai.cache.diagnose import diagnose as diagnose_cache
from exai.cli import main as cli
from exai.cli.doctor import examine, table
from exai.cli.health import MAX_CLIENTS, REPORT_AGE_S, HealthReading, open_endpoint, watch, watch_as_json
from exai.cli.health_client import ask_health, health_url, local_address
from exai.db.diagnose import diagnose as diagnose_database
from exai.errors import ConfigError, StartupError
from exai.models import Finding
from exai.monitoring.metrics import MetricsRecorder
from exai.providers.diagnose import diagnose as diagnose_providers
from exai.settings.load import CacheSettings, DatabaseSettings, ProvidersSettings, load_settings
from tests.support.migrations import run
from tests.support.pg_wire import dial, through
from tests.support.pooler import Pooler

CLOSED = "127.0.0.1:1"
TOKEN = "a-token-that-is-long-enough"


def by_part(findings: list[Finding]) -> dict[str, Finding]:
    assert len({each.part for each in findings}) == len(findings)
    return {each.part: each for each in findings}


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """A server that accepts connections and sends nothing."""
    ended = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def session_pooler(postgres_url: str) -> AsyncIterator[str]:
    """Passes everything on, one server connection for each client, but greets with a backend id of its own."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, greeting: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                if greeting and (at := data.find(b"K\x00\x00\x00\x0c")) >= 0:
                    data, greeting = data[: at + 5] + b"\x7f\x00\x00\x01" + data[at + 9 :], False
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        upstream = await dial(postgres_url)
        ways = {
            asyncio.create_task(pump(reader, upstream[1], greeting=False)),
            asyncio.create_task(pump(upstream[0], writer, greeting=True)),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
        for each in (writer, upstream[1]):
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()

    handlers: set[asyncio.Task[None] | None] = set()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield through(postgres_url, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.gather(*(handler for handler in handlers if handler))
        await server.wait_closed()


@contextmanager
def http_server(status: int, body: object) -> Iterator[tuple[str, list[http.server.BaseHTTPRequestHandler]]]:
    """Answers every GET the same way, in a thread, since the client under test blocks."""
    seen: list[http.server.BaseHTTPRequestHandler] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self)
            data = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.direct
class TestDatabase:
    async def test_migrated_database_is_all_well(self, postgres_url: str) -> None:
        """Every line of the list, on a server that has nothing wrong with it."""
        found = by_part(await diagnose_database(DatabaseSettings(), postgres_url))
        # A container may be reached by its bridge's address, which is not this machine's own.
        is_local = urlsplit(postgres_url).hostname in (None, "127.0.0.1", "::1", "localhost")
        assert {part: each.state for part, each in found.items()} == {
            "postgres": "ok",
            "postgres TLS": "off" if is_local else "warn",
            "postgres mode": "ok",
            "postgres clock": "ok",
            "postgres schema": "ok",
            "migration address": "ok",
        }
        assert found["postgres mode"].detail == "direct"

    async def test_database_without_the_schema_names_the_command(self, empty_postgres_url: str) -> None:
        """The error names the command that creates it."""
        found = by_part(await diagnose_database(DatabaseSettings(), empty_postgres_url))
        assert (found["postgres"].state, found["postgres schema"].state) == ("ok", "fail")
        assert "exai migrate" in found["postgres schema"].cure

    async def test_tables_that_the_roles_of_an_interface_may_read_are_named(self, postgres_url: str) -> None:
        """Adopted tables keep their grants, which include EXAI's new rows."""
        await run(
            postgres_url,
            "do $$ begin create role anon; exception when duplicate_object then null; end $$",
            "grant select on conversations, messages to anon",
            "alter table messages disable row level security",
        )
        found = by_part(await diagnose_database(DatabaseSettings(), postgres_url))["postgres access"]
        assert found.state == "warn"
        assert "messages" in found.detail
        assert "conversations" not in found.detail
        assert "enable row level security" in found.cure

    async def test_migration_address_is_looked_at_by_itself(self, postgres_url: str) -> None:
        """It may be down while the service's own address is up."""
        settings = DatabaseSettings(migration_url=SecretStr(f"postgresql://u:pa55word@{CLOSED}/d"))
        found = by_part(await diagnose_database(settings, postgres_url))
        assert (found["postgres schema"].state, found["migration address"].state) == ("ok", "fail")

    @pytest.mark.parametrize("sessions", [1, 2, 3, 5])
    async def test_pooler_in_transaction_mode_is_detected_with_any_number_of_sessions(
        self, postgres_url: str, sessions: int
    ) -> None:
        """Index builds need a session of their own, so the migration address is worth a warning."""
        async with Pooler(postgres_url, sessions=sessions) as pooler:
            found = by_part(await diagnose_database(DatabaseSettings(), pooler.url))
            assert found["postgres mode"].detail == "pooler in transaction mode"
            assert {found["postgres mode"].state, found["postgres schema"].state} == {"ok"}
            assert found["migration address"].state == "warn"
            assert "EXAI_DATABASE__MIGRATION_URL" in found["migration address"].cure
            direct = DatabaseSettings(migration_url=SecretStr(postgres_url))
            assert by_part(await diagnose_database(direct, pooler.url))["migration address"].state == "ok"

    async def test_pooler_in_session_mode_is_distinguished(self, postgres_url: str) -> None:
        """It is as good as direct for migrations, though its greeting is a pooler's."""
        async with session_pooler(postgres_url) as url:
            found = by_part(await diagnose_database(DatabaseSettings(), url))
        assert found["postgres mode"].detail == "pooler in session mode"
        assert found["migration address"].state == "ok"

    async def test_pool_larger_than_the_server_allows_is_found(self, postgres_url: str) -> None:
        """The start would fail with it, and only once every daemon runs."""
        found = by_part(await diagnose_database(DatabaseSettings(pool_size=200), postgres_url))
        assert found["postgres mode"].state == "fail"
        assert "the pool wants 200" in found["postgres mode"].detail
        assert "EXAI_DATABASE__POOL_SIZE" in found["postgres mode"].cure

    async def test_closed_port_is_reported_with_the_systems_message_without_the_password(self) -> None:
        """Unreachable: where, why, and never the password."""
        [found] = await diagnose_database(DatabaseSettings(), f"postgresql://u:pa55word@{CLOSED}/d")
        assert found.state == "fail"
        assert "127.0.0.1" in found.detail
        assert "pa55word" not in repr(found)

    async def test_server_that_says_nothing_is_given_up_on(self) -> None:
        """Each look is bounded."""
        async with silent_server() as address:
            [found] = await diagnose_database(DatabaseSettings(), f"postgresql://u@{address}/d", timeout_s=0.2)
        assert (found.state, found.detail) == ("fail", "no answer within 0.2 s")


class TestCache:
    async def test_empty_cache_is_all_well(self, redis_url: str) -> None:
        """Version, memory, persistence, clock, bound."""
        found = by_part(await diagnose_cache(CacheSettings(), redis_url, recorder=MetricsRecorder()))
        assert set(found) == {"redis", "redis memory", "redis persistence", "redis clock", "staleness bound"}
        assert found["redis"].state == found["redis clock"].state == "ok"
        assert "2 s" in found["staleness bound"].detail

    async def test_looking_writes_nothing(self, redis_url: str) -> None:
        """A doctor changes nothing."""
        import redis.asyncio

        await diagnose_cache(CacheSettings(), redis_url, recorder=MetricsRecorder())
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            assert await client.dbsize() == 0

    async def test_closed_port_is_reported_without_the_password(self) -> None:
        """Unreachable: where, and what to do."""
        settings, recorder = CacheSettings(), MetricsRecorder()
        [found] = await diagnose_cache(settings, f"redis://:pa55word@{CLOSED}/0", recorder=recorder)
        assert found.state == "fail"
        assert CLOSED in found.detail
        assert "EXAI_CACHE__URL" in found.cure
        assert "pa55word" not in repr(found)

    async def test_server_that_says_nothing_is_given_up_on(self) -> None:
        """Each look is bounded."""
        async with silent_server() as address:
            url, recorder = f"redis://{address}/0", MetricsRecorder()
            [found] = await diagnose_cache(CacheSettings(), url, recorder=recorder, timeout_s=0.2)
        assert found.state == "fail"


class TestProviders:
    @pytest.mark.parametrize(
        ("status", "state", "word"),
        [
            (200, "ok", "ms"),
            (404, "ok", "without a list of models"),
            (401, "fail", "the key was not accepted"),
            (403, "fail", "the key was not accepted"),
            (429, "warn", "HTTP 429"),
            (503, "warn", "HTTP 503"),
            (302, "fail", "redirects"),
        ],
    )
    async def test_status_of_the_model_list_says_how_the_provider_is(self, status: int, state: str, word: str) -> None:
        """One GET with the key, and no token is spent."""
        with http_server(status, {"data": []}) as (address, seen):
            settings = ProvidersSettings.model_validate({"kimi": {"api_key": "k", "base_url": f"http://{address}/v1"}})
            found = by_part(await diagnose_providers(settings))
        assert (found["provider kimi"].state, word in found["provider kimi"].detail) == (state, True)
        assert [(each.command, each.path) for each in seen] == [("GET", "/v1/models")]
        assert seen[0].headers["Authorization"] == "Bearer k"

    async def test_provider_without_a_key_is_off_and_names_its_variable(self) -> None:
        """Design: a disabled part is shown as off."""
        found = by_part(await diagnose_providers(ProvidersSettings()))
        assert {each.state for each in found.values()} == {"off"}
        assert "KIMI_API_KEY" in found["provider kimi"].cure

    async def test_unreachable_and_silent_providers_fail_in_time(self) -> None:
        """Each look is bounded."""
        async with silent_server() as silent:
            endpoints = {"a": {"base_url": f"http://{CLOSED}/v1"}, "b": {"base_url": f"http://{silent}/v1"}}
            settings = ProvidersSettings.model_validate({"endpoints": endpoints})
            found = by_part(await diagnose_providers(settings, timeout_s=0.2))
        assert found["provider a"].state == found["provider b"].state == "fail"
        assert "no answer" in found["provider b"].detail


class TestDoctor:
    async def test_whole_list_on_given_servers(self, postgres_url: str, redis_url: str, tmp_path: Path) -> None:
        """The report for an installation without a problem."""
        environ = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url, "EXAI_DATA_DIR": str(tmp_path)}
        findings = await examine(load_settings({**environ, "EXAI_SERVER__PORT": "0"}, None), MetricsRecorder())
        assert [each for each in findings if each.state == "fail"] == []
        assert {"settings", "data directory", "port", "postgres", "redis", "provider kimi"} <= set(by_part(findings))

    async def test_embedded_servers_that_do_not_run_are_off_and_nothing_is_started(self, tmp_path: Path) -> None:
        """A doctor starts nothing."""
        data_dir = tmp_path / "data"
        found = by_part(await examine(load_settings({"EXAI_DATA_DIR": str(data_dir)}, None), MetricsRecorder()))
        assert found["postgres"].state == found["redis"].state == "off"
        assert "exai serve" in found["postgres"].detail
        assert found["embedded postgres"].state == "ok"
        assert not data_dir.exists()

    async def test_database_without_a_cache_is_a_warning(self, postgres_url: str, tmp_path: Path) -> None:
        """Slow by configuration is worth a word; off on purpose is not."""
        environ = {"EXAI_DATABASE__URL": postgres_url, "EXAI_DATA_DIR": str(tmp_path), "EXAI_SERVER__PORT": "0"}
        for url, state in (("", "warn"), ("off", "off")):
            settings = load_settings({**environ, "EXAI_CACHE__URL": url}, None)
            assert by_part(await examine(settings, MetricsRecorder()))["redis"].state == state

    async def test_port_held_by_exai_or_by_another_program_is_distinguished(self, tmp_path: Path) -> None:
        """The cures differ: nothing to do, or another port."""
        for body, state, word in (
            ({"service": "exai", "version": "9", "status": "ok"}, "ok", "held by EXAI 9"),
            ({"hello": "world"}, "fail", "in use"),
        ):
            with http_server(200, body) as (address, _):
                port = address.rpartition(":")[2]
                settings = load_settings({"EXAI_DATA_DIR": str(tmp_path), "EXAI_SERVER__PORT": port}, None)
                found = by_part(await examine(settings, MetricsRecorder()))["port"]
            assert (found.state, word in found.detail) == (state, True), found

    async def test_data_directory_that_cannot_be_written_is_found(self, tmp_path: Path) -> None:
        """Before a start fails over it."""
        (tmp_path / "file").write_text("")
        settings = load_settings({"EXAI_DATA_DIR": str(tmp_path / "file" / "data")}, None)
        found = by_part(await examine(settings, MetricsRecorder()))["data directory"]
        assert (found.state, "EXAI_DATA_DIR" in found.cure) == ("fail", True)

    async def test_a_root_of_files_that_is_not_there_is_a_warning(self, tmp_path: Path) -> None:
        """A misspelled directory would let every file be refused; one that exists says nothing."""
        (tmp_path / "file").write_text("")
        for name, is_found in (("missing", True), ("file", True), (".", False)):
            environ = {"EXAI_DATA_DIR": str(tmp_path / "data"), "EXAI_FILES__ROOTS": str(tmp_path / name)}
            found = by_part(await examine(load_settings(environ, None), MetricsRecorder()))
            assert ("file roots" in found) is is_found, name

    def test_command_ends_with_2_for_settings_it_cannot_read(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Still a list, with every problem in it."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("EXAI_SERVER__PORT", "x")
        monkeypatch.setenv("EXAI_FOO", "1")
        assert cli.main(["doctor", "--format", "json"]) == 2
        findings = json.loads(capsys.readouterr().out)
        assert [(each["part"], each["state"]) for each in findings] == [("settings", "fail")] * 2

    def test_command_ends_with_1_when_something_fails(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """And the table shows the cure under the problem."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("EXAI_DATABASE__URL", f"postgresql://u:pa55word@{CLOSED}/d")
        monkeypatch.setenv("EXAI_CACHE__URL", "off")
        monkeypatch.setenv("EXAI_DATA_DIR", str(tmp_path))
        assert cli.main(["doctor"]) == 1
        out, error = capsys.readouterr()
        assert "pa55word" not in out + error
        assert "Traceback" not in out + error
        assert any(line.split()[:2] == ["postgres", "fail"] for line in out.splitlines())

    def test_table_puts_each_cure_under_its_problem(self) -> None:
        """A person reads it from top to bottom."""
        lines = table([Finding("a", "ok", "fine"), Finding("long part", "fail", "bad", "Mend it")]).splitlines()
        assert [line.split() for line in lines] == [
            ["a", "ok", "fine"],
            ["long", "part", "fail", "bad"],
            ["->", "Mend", "it"],
        ]


HEALTHY = {
    "service": "exai",
    "version": "1.2",
    "status": "ok",
    "ready": True,
    "components": {"database": {"state": "ok", "latency_ms": 1.25, "detail": "Postgres 18"}},
}


class TestHealthCommand:
    @pytest.mark.parametrize(
        ("http_status", "status", "expected"), [(200, "ok", 0), (200, "degraded", 0), (503, "down", 1)]
    )
    def test_exit_status_is_the_daemons_verdict(
        self, http_status: int, status: str, expected: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Design, monitoring: 0 healthy, 1 unhealthy."""
        with http_server(http_status, HEALTHY | {"status": status}) as (address, _):
            assert cli.main(["health", "--url", f"http://{address}"]) == expected
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith(f"{status}, ready")
        assert lines[1].split() == ["database", "ok", "1.2", "ms", "Postgres", "18"]

    def test_json_has_every_check_with_its_time(self, capsys: pytest.CaptureFixture[str]) -> None:
        """For programs; a WebSocket that cannot be opened degrades what is otherwise healthy."""
        with http_server(200, HEALTHY) as (address, _):
            assert cli.main(["health", "--format", "json", "--url", address]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["status"], report["service"], report["ready"]) == ("degraded", "exai", True)
        assert 0 < report["duration_ms"] < 5_000
        assert datetime.fromisoformat(report["timestamp"]).tzinfo is not None
        database, websocket = report["checks"]["database"], report["checks"]["websocket"]
        assert (database["status"], database["response_time_ms"]) == ("healthy", 1.25)
        assert datetime.fromisoformat(database["timestamp"]).tzinfo is not None
        assert (websocket["status"], "answers 200 instead of 101" in websocket["detail"]) == ("unhealthy", True)

    def test_endpoint_serves_the_report_and_its_verdict(self) -> None:
        """The daemon is asked at most once a second, however many ask."""
        asked, now = 0, [0.0]

        def read() -> HealthReading:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise StartupError("daemon", "is away", "Start it")
            websocket = {"status": "healthy", "latency_ms": 1.0, "detail": ""}
            return HealthReading("http://h/health", HEALTHY, True, websocket, datetime.now(UTC), 2.0)

        with open_endpoint(read, "127.0.0.1:0", clock=lambda: now[0]) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                address = f"http://127.0.0.1:{server.server_port}"
                answers = [httpx.get(f"{address}{path}") for path in ("/health", "/", "/health")]
                assert asked == 1
                assert [each.status_code for each in answers] == [200, 200, 200]
                assert answers[0].json()["status"] == "healthy"
                now[0] = REPORT_AGE_S
                away = httpx.get(address)
                assert (away.status_code, away.json()["status"]) == (503, "unhealthy")
            finally:
                server.shutdown()
                thread.join()

    def test_clients_that_send_nothing_cost_few_threads_and_end(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As many as there are places, each closed after a while; one too many is closed at once."""

        def read() -> HealthReading:
            raise StartupError("daemon", "is away", "Start it")

        monkeypatch.setattr("exai.cli.health.IDLE_S", 0.5)
        with open_endpoint(read, "127.0.0.1:0") as server, contextlib.ExitStack() as stack:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                before = threading.active_count()
                idle = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=20))
                    for _ in range(3 * MAX_CLIENTS)
                ]
                assert threading.active_count() - before <= MAX_CLIENTS
                for each in idle:
                    with contextlib.suppress(ConnectionResetError):
                        assert each.recv(1) == b""
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        assert httpx.get(f"http://127.0.0.1:{server.server_port}").status_code == 503
                        break
            finally:
                server.shutdown()
                thread.join()
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("address", ["", "host", "host:port", "99999999"])
    def test_endpoint_without_a_port_is_2(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Nothing is asked before."""
        assert cli.main(["health", "--url", CLOSED, "--endpoint", address]) == 2
        assert "--endpoint" in capsys.readouterr().err

    @pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
    def test_a_pause_out_of_range_is_2(self, seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Before the daemon is asked."""
        assert cli.main(["health", "--url", CLOSED, "--watch", seconds]) == 2
        assert "--watch" in capsys.readouterr().err

    def test_watching_goes_on_without_a_daemon(self) -> None:
        """It is watched because it may be away; a terminal is cleared, a file is not."""

        def read() -> HealthReading:
            raise StartupError("daemon", "is away", "Start it")

        plain = watch(read, 0.0, in_place=False)
        assert [next(plain).splitlines()[0] for _ in range(2)] == ["daemon: is away. Start it"] * 2
        assert next(watch(read, 0.0, in_place=True)).startswith("\x1b[H\x1b[Jdaemon")
        reports = watch_as_json(read, 0.0)
        assert [json.loads(next(reports))["status"] for _ in range(2)] == ["unhealthy"] * 2

    @pytest.mark.parametrize("body", [{"service": "other"}, [], b"<html>", b"", b"[" * 100_000])
    def test_something_else_on_the_port_is_3(self, body: object, capsys: pytest.CaptureFixture[str]) -> None:
        """An answer from another program is no sign of health."""
        with http_server(200, body) as (address, _):
            assert cli.main(["health", "--url", address]) == 3
        assert "is answered by something that is not EXAI" in capsys.readouterr().err

    def test_closed_port_is_3(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Design, monitoring: 3 unreachable."""
        assert cli.main(["health", "--url", CLOSED]) == 3
        assert "cannot be reached" in capsys.readouterr().err

    def test_a_program_gets_a_report_of_a_daemon_that_is_away(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A monitor that reads standard output as JSON finds JSON, and the same status as text gives."""
        assert cli.main(["health", "--url", CLOSED, "--format", "json"]) == 3
        report = json.loads(capsys.readouterr().out)
        assert (report["status"], report["checks"]["daemon"]["status"]) == ("unhealthy", "unhealthy")
        assert "cannot be reached" in report["checks"]["daemon"]["detail"]

    async def test_silence_is_given_up_on(self) -> None:
        """A health check that hangs is the outage it should report."""
        async with silent_server() as address:
            with pytest.raises(StartupError, match=r"no answer within 0\.1 s"):
                await asyncio.to_thread(ask_health, f"http://{address}/health", None, 0.1)

    def test_default_is_the_configured_address_with_the_servers_token(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """In the same directory with the same settings, no option is needed."""
        monkeypatch.chdir(tmp_path)
        with http_server(200, HEALTHY) as (address, seen):
            monkeypatch.setenv("EXAI_SERVER__PORT", address.rpartition(":")[2])
            monkeypatch.setenv("EXAI_SERVER__TOKEN", TOKEN)
            assert cli.main(["health"]) == 0
        assert seen[0].headers["Authorization"] == f"Bearer {TOKEN}"

    def test_wrong_token_is_2(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """The daemon is there; it is the caller who is misconfigured."""
        monkeypatch.setenv("EXAI_TOKEN", TOKEN)
        with http_server(401, {}) as (address, _):
            assert cli.main(["health", "--url", address]) == 2
        assert "EXAI_TOKEN" in capsys.readouterr().err

    def test_proxy_settings_are_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The question is whether this address answers from here."""
        monkeypatch.setenv("http_proxy", f"http://{CLOSED}")
        with http_server(200, HEALTHY) as (address, _):
            assert ask_health(health_url(address)).healthy


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("127.0.0.1:8079", "http://127.0.0.1:8079/health"),
        ("http://h:1/", "http://h:1/health"),
        ("http://h:1/health", "http://h:1/health"),
        ("ws://h:1/", "http://h:1/health"),
        ("https://h/exai/mcp", "https://h/exai/health"),
        ("wss://[::1]:1", "https://[::1]:1/health"),
    ],
)
def test_any_address_of_a_daemon_leads_to_its_health(given: str, asked: str) -> None:
    """People paste the address they have."""
    assert health_url(given) == asked


@pytest.mark.parametrize("given", ["", "ftp://h", "http://", "http://h:port", "http://u:pa55word@h"])
def test_what_is_no_address_is_refused(given: str) -> None:
    """Misconfigured, not unreachable."""
    with pytest.raises(ConfigError) as caught:
        health_url(given)
    assert "pa55word" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:1"), ("::", "[::1]:1"), ("::1", "[::1]:1"), ("exai.example", "exai.example:1")],
)
def test_server_on_all_interfaces_is_reached_over_loopback(host: str, address: str) -> None:
    """0.0.0.0 is an address to bind, not one to call."""
    assert local_address(host, 1) == address
