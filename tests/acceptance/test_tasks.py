"""A chat as a task, end to end: started on one daemon, which is killed, and polled on another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer, stream
from tests.support.stateless import Stateless, stateless

GATED = stream("gate", *kimi_answer("Four.").steps)
LIMIT_S = 20.0


@pytest.fixture
def settings(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "EXAI_SERVER__TASK_AFTER_S": "0",
        "EXAI_SERVER__SHUTDOWN_GRACE_S": "0",
    }


def address(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}"


async def ended(client: Stateless, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT_S):
        while (task := await client.task(task_id))["status"] == "working":
            await asyncio.sleep(0.02)
    return task


async def test_tasks_outlive_their_daemon(
    provider: ProviderServer, settings: dict[str, str], postgres_url: str
) -> None:
    """A finished task has its answer; an unfinished one is working until its lease expires, then failed."""
    provider.script(GATED, stream("hang"), stream("hang"), kimi_answer("Four after all."), stream("hang"))
    with start_daemon(settings) as first, start_daemon(settings) as second:
        async with stateless(address(first)) as one, stateless(address(second)) as other:
            answered = await one.call("chat", prompt="Two and two?")
            await provider.arrived(1)
            left = await one.call("chat", prompt="Two and two again?", idempotency_key="key")
            await provider.arrived(2)
            cancelled = await one.call("chat", prompt="Two and two?")
            await provider.arrived(3)
            assert [each["resultType"] for each in (answered, left, cancelled)] == ["task"] * 3
            provider.gate.set()
            told = await ended(one, answered["taskId"])
            await other.cancel(cancelled["taskId"])
            first.kill()
            assert told == await other.task(answered["taskId"])
            assert told["result"]["structuredContent"]["content"] == "Four."
            assert (await other.task(cancelled["taskId"]))["status"] == "cancelled"
            assert (await other.task(left["taskId"]))["status"] == "working"

            sql = await asyncpg.connect(postgres_url)
            await sql.execute("update public.turns set lease_until = now() where state = 'pending'")
            failed = await other.task(left["taskId"])
            assert (failed["status"], failed["error"]["code"]) == ("failed", -32603)
            assert "the daemon that asked the model is gone" in failed["statusMessage"]
            again = await other.call("chat", prompt="Two and two again?", idempotency_key="key")
            assert again.get("taskId", left["taskId"]) == left["taskId"]
            done = await ended(other, left["taskId"])
            assert done["result"]["structuredContent"]["content"] == "Four after all."

            stopped = await other.call("chat", prompt="And now?")
            await provider.arrived(5)
            assert second.stop() == 0
            # As any third daemon would find it.
            cause = "select error ->> 'code' from public.turns where id = $1"
            assert await sql.fetchval(cause, stopped["taskId"]) == "shutting_down"
            await sql.close()
