"""A daemon that uses the embedded servers of another command outlives that command."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from exai.embedded.ownership import read_running
from tests.support.client import call, connect
from tests.support.daemon import start_daemon
from tests.support.programs import program
from tests.support.waiting import wait_until

LIMIT_S = 40.0


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
async def test_daemon_serves_on_when_the_owner_of_its_servers_is_gone(
    number: signal.Signals | None, tmp_path: Path
) -> None:
    """`exai chat` started the servers; the same daemon process reads what was acknowledged before."""
    with program({"data_dir": str(tmp_path)}) as owner:
        with start_daemon({"EXAI_DATA_DIR": str(tmp_path)}) as daemon:
            async with connect(daemon.url) as session:
                messages = [{"role": "user", "content": "kept"}]
                stored = await call(session, "conversation_append", messages=messages)
                await asyncio.to_thread(owner.end, number)
                await wait_until(
                    lambda: getattr(read_running(tmp_path), "pid", 0) == daemon.process.pid,
                    lambda: daemon.output,
                    LIMIT_S,
                )
                await wait_until(lambda: daemon.get("/health/ready")[0] == 200, lambda: daemon.output, LIMIT_S)
                page = await call(session, "conversation_get", continuation_id=stored["continuation_id"])
                assert page["messages"][0]["content"] == "kept"
                await call(session, "conversation_append", messages=messages)
            await wait_until(lambda: "are run by this process now" in daemon.output, lambda: daemon.output, LIMIT_S)
            assert daemon.stop() == 0
    assert read_running(tmp_path) is None
