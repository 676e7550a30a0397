"""SIGHUP of a closed terminal, and an own cache beside a given database."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.support.client import call, connect
from tests.support.commands import BASE
from tests.support.daemon import start_daemon
from tests.support.waiting import wait_until


@pytest.fixture
def settings(postgres_url: str, tmp_path: Path) -> dict[str, str]:
    return {"EXAI_DATA_DIR": str(tmp_path), "EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": "embedded"}


async def test_hangup_ends_a_daemon_as_a_stop_does(settings: dict[str, str], tmp_path: Path) -> None:
    """A closed terminal; until then the cache was its own, in a directory of that database."""
    with start_daemon(settings) as daemon:
        async with connect(daemon.url) as session:
            messages = [{"role": "user", "content": "hello"}]
            stored = await call(session, "conversation_append", messages=messages)
            page = await call(session, "conversation_get", continuation_id=stored["continuation_id"])
            assert page["messages"][0]["content"] == "hello"
        assert "embedded Valkey" in daemon.output
        assert "embedded Postgres" not in daemon.output
        assert daemon.get("/health")[1]["components"]["cache"]["state"] == "ok"  # type: ignore[index]
        assert [path.name for path in tmp_path.glob("cache-*/valkey")] == ["valkey"]
        assert daemon.stop(signal.SIGHUP) == 0
        assert '"event":"stopping"' in daemon.output or "stopping" in daemon.output


async def test_hangup_that_was_ignored_stays_ignored(settings: dict[str, str]) -> None:
    """nohup exai serve."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        # A process inherits what the one that starts it ignores.
        program = (sys.executable, "-m", "exai")
        with start_daemon({**settings, "EXAI_CACHE__URL": "off", **BASE}, program=program) as daemon:
            daemon.process.send_signal(signal.SIGHUP)
            async with connect(daemon.url) as session:
                await call(session, "version")
            assert daemon.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_workers_share_the_cache_of_their_parent(settings: dict[str, str]) -> None:
    """The database is the given one."""
    with start_daemon(settings, ["--workers", "2"]) as daemon:
        async with connect(daemon.url) as session:
            await call(session, "conversation_append", messages=[{"role": "user", "content": "hello"}])
        assert "embedded Valkey" in daemon.output
        assert "embedded Postgres" not in daemon.output
        assert daemon.stop() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal on this system")
@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]])
async def test_the_level_of_the_log_is_changed_while_it_runs(tmp_path: Path, arguments: list[str]) -> None:
    """SIGUSR1 switches to debug and back, in all workers."""
    processes = 2 if arguments else 1

    def changes(level: str) -> int:
        return sum("log_level_changed" in line and f'"{level}"' in line for line in daemon.output.splitlines())

    with start_daemon({"EXAI_DATA_DIR": str(tmp_path)}, arguments) as daemon:
        for level in ("debug", "info"):
            daemon.process.send_signal(signal.SIGUSR1)
            await wait_until(lambda: changes(level) == processes, lambda: daemon.output)  # noqa: B023
