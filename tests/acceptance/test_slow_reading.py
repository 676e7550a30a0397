"""Calls whose files are still being read at their client's deadline: they go on as turns, and any daemon knows of them.

The reading is held up by the program that it runs: a `git` that waits until a test lets it begin.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer
from tests.support.stateless import KNOWS_TASKS, Stateless, stateless

LIMIT_S = 20.0
SLOW_GIT = """#!/bin/sh
[ -e '{gate}.open' ] || read -r _ < '{gate}'
exec '{git}' "$@"
"""


@dataclass
class SlowGit:
    """A `git` in a directory of its own, which waits at `gate` until it is open."""

    directory: Path

    @property
    def gate(self) -> Path:
        return self.directory / "gate"

    def make(self) -> None:
        os.mkfifo(self.gate)
        program = self.directory / "git"
        program.write_text(SLOW_GIT.format(gate=self.gate, git=shutil.which("git")))
        program.chmod(0o755)

    async def let_go(self) -> None:
        """Let the programs that wait begin, and all later ones."""
        (self.directory / "gate.open").touch()
        async with asyncio.timeout(LIMIT_S):
            # Opening it waits for a reader, of which there may be none any more.
            writing = os.open(self.gate, os.O_RDWR | os.O_NONBLOCK)
            os.write(writing, b"\n" * 50)
            self._kept = writing

    def close(self) -> None:
        if hasattr(self, "_kept"):
            os.close(self._kept)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "app.py").write_text("def add(a, b):\n    return a + b\n")
    git = ("git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.com")
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    (root / "app.py").write_text("def add(a, b):\n    return a - b  # planted\n")
    return root


@pytest.fixture
def git(tmp_path: Path) -> Iterator[SlowGit]:
    slow = SlowGit(tmp_path / "bin")
    slow.directory.mkdir()
    slow.make()
    yield slow
    slow.close()


@pytest.fixture
def settings(
    provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path, repository: Path, git: SlowGit
) -> dict[str, str]:
    return {
        "PATH": f"{git.directory}{os.pathsep}{os.environ['PATH']}",
        "EXAI_DATA_DIR": str(tmp_path / "data"),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__MAX_ATTEMPTS": "1",
        "EXAI_FILES__ROOTS": f'["{repository}"]',
        "EXAI_SERVER__CALL_DEADLINES": '{"*": 0.5}',
        "EXAI_SERVER__TASK_AFTER_S": "0.5",
    }


@pytest.fixture
def daemon(settings: dict[str, str]) -> Iterator[Daemon]:
    with start_daemon(settings) as running:
        yield running


@asynccontextmanager
async def client_of(daemon: Daemon, capabilities: Any = None) -> AsyncIterator[Stateless]:
    async with stateless(f"http://127.0.0.1:{daemon.port}", capabilities=capabilities or {}) as client:
        yield client


async def conversation(client: Stateless, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.call("conversation_get", continuation_id=name))["structuredContent"]
    return found


async def ended(client: Stateless, name: str) -> list[dict[str, Any]]:
    """The messages of a conversation once no answer is pending."""
    async with asyncio.timeout(LIMIT_S):
        while (found := await conversation(client, name))["pending"]:
            await asyncio.sleep(0.02)
    messages: list[dict[str, Any]] = found["messages"]
    return messages


def chats(provider: ProviderServer) -> int:
    return sum(each.path.endswith("/chat/completions") for each in provider.received)


async def test_reading_goes_on_after_the_deadline_and_its_answer_is_read_later(
    provider: ProviderServer, daemon: Daemon, git: SlowGit
) -> None:
    """The call ends in time and says how to get the rest; meanwhile the conversation says that an answer is pending."""
    provider.script(kimi_answer("It subtracts."))
    async with client_of(daemon) as client:
        called = await client.call("codereview", prompt="Review this.", diff="uncommitted")
        early = called["structuredContent"]
        assert (early["complete"], called["isError"]) == (False, False)
        name, key = early["continuation_id"], early["idempotency_key"]
        assert "conversation_get" in early["next"]
        reading = await conversation(client, name)
        assert [(each["tool"], each["model"]) for each in reading["pending"]] == [("codereview", None)]
        assert chats(provider) == 0
        again = await client.call("codereview", prompt="Review this.", diff="uncommitted", idempotency_key=key)
        assert (again["structuredContent"]["complete"], again["structuredContent"]["continuation_id"]) == (False, name)
        await git.let_go()
        messages = await ended(client, name)
        assert [(each["role"], each["kind"]) for each in messages] == [("user", "step"), ("assistant", "answer")]
        assert messages[-1]["content"] == "It subtracts."
        assert "planted" in str(provider.chats[-1].body["messages"])
        whole = await client.call("codereview", prompt="Review this.", diff="uncommitted", idempotency_key=key)
        assert (whole["structuredContent"]["content"], whole["structuredContent"]["duplicate"]) == (
            "It subtracts.",
            True,
        )
    assert chats(provider) == 1


async def test_an_error_while_reading_is_the_newest_message_of_the_conversation(
    provider: ProviderServer, daemon: Daemon, git: SlowGit
) -> None:
    """In a continued conversation as well; no model is asked, and no model is shown the question later."""
    async with client_of(daemon) as client:
        first = (await client.call("chat", prompt="Hello"))["structuredContent"]
        name = first["continuation_id"]
        early = await client.call("codereview", prompt="Review.", diff="no-such-branch...HEAD", continuation_id=name)
        assert early["structuredContent"]["complete"] is False
        await git.let_go()
        messages = await ended(client, name)
        assert [(each["role"], each["kind"]) for each in messages[-2:]] == [("user", "failed"), ("assistant", "failed")]
        assert messages[-2]["content"].startswith("Review.")
        assert "no-such-branch" in messages[-1]["content"]
        assert chats(provider) == 1
        await client.call("chat", prompt="And now?", continuation_id=name)
        assert "Review." not in str(provider.chats[-1].body["messages"])


async def test_a_panel_waits_for_its_files_after_the_deadline(
    provider: ProviderServer, daemon: Daemon, git: SlowGit
) -> None:
    for answer in ("Yes.", "Yes, too.", "Both say yes."):
        provider.script(kimi_answer(answer))
    async with client_of(daemon) as client:
        called = await client.call("consensus", prompt="Is it right?", files=["*.py"], models=["kimi-k3", "kimi-k3"])
        early = called["structuredContent"]
        assert (early["complete"], called["isError"]) == (False, False)
        assert [each["tool"] for each in (await conversation(client, early["continuation_id"]))["pending"]] == [
            "consensus"
        ]
        await git.let_go()
        messages = await ended(client, early["continuation_id"])
        assert [each["kind"] for each in messages] == ["step", "opinion", "opinion", "answer"]
    assert "planted" in str(provider.chats[0].body["messages"])


async def test_a_task_is_cancelled_while_its_files_are_read(
    provider: ProviderServer, daemon: Daemon, git: SlowGit
) -> None:
    async with client_of(daemon, KNOWS_TASKS) as client:
        task = await client.call("codereview", prompt="Review.", diff="uncommitted")
        assert task["status"] == "working"
        await client.cancel(task["taskId"])
        assert (await client.task(task["taskId"]))["status"] == "cancelled"
        await git.let_go()
    assert chats(provider) == 0


async def test_a_daemon_that_stops_while_files_are_read_leaves_the_reason(
    provider: ProviderServer, settings: dict[str, str]
) -> None:
    """Another daemon knows of the turn while it is read, and why it has ended; the same key then asks again."""
    with start_daemon(settings) as other:
        with start_daemon({**settings, "EXAI_SERVER__SHUTDOWN_GRACE_S": "0"}) as daemon:
            async with client_of(daemon) as client, client_of(other) as elsewhere:
                early = (await client.call("codereview", prompt="Review.", diff="uncommitted"))["structuredContent"]
                name, key = early["continuation_id"], early["idempotency_key"]
                assert [each["tool"] for each in (await conversation(elsewhere, name))["pending"]] == ["codereview"]
                await asyncio.to_thread(daemon.stop)
                messages = await ended(elsewhere, name)
                assert messages[-1]["metadata"]["error"] == "shutting_down"
                (Path(settings["PATH"].partition(os.pathsep)[0]) / "gate.open").touch()
                provider.script(kimi_answer("It subtracts."))
                again = await elsewhere.call("codereview", prompt="Review.", diff="uncommitted", idempotency_key=key)
                if not again["structuredContent"]["complete"]:
                    await ended(elsewhere, name)
                    again = await elsewhere.call(
                        "codereview", prompt="Review.", diff="uncommitted", idempotency_key=key
                    )
                assert again["structuredContent"]["content"] == "It subtracts."
                assert again["structuredContent"]["continuation_id"] == name


async def test_a_step_is_recorded_without_the_files_that_are_not_read_in_time(daemon: Daemon, git: SlowGit) -> None:
    """No model is asked, so that there is nothing to wait for; the result says what is missing."""
    async with client_of(daemon) as client:
        called = await client.call("codereview", prompt="Looked at it.", diff="uncommitted", ask_model=False)
        recorded = called["structuredContent"]
        assert (recorded["complete"], called["isError"], recorded["step"]) == (True, False, 1)
        assert recorded["left_out"] == ["diff uncommitted (not read before the caller's time limit)"]
        await git.let_go()
