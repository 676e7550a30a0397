"""From a failure to its commit: debug, chat, codereview and precommit on one conversation and a real repository.

The client is the official SDK's. The daemon is killed between two calls, and another one continues.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import call, connect
from tests.support.daemon import start_daemon
from tests.support.provider_server import ProviderServer, kimi_answer

BEFORE = "def mean(values):\n    return sum(values) / len(values)\n"
AFTER = "def mean(values):\n    if not values:\n        return 0.0\n    return sum(values) / len(values)\n"

CAUSE = "The list is empty.\n\n```findings\nhigh: division by the length of an empty list (stats.py:2)\n```\n"
REVIEW = "It holds.\n\n```findings\nlow: 0.0 hides missing data (stats.py:3)\n```\n\nVERDICT: pass\n"
GO = "The change is complete.\n\n```findings\n```\n\nVERDICT: pass\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    home = tmp_path / "project"
    home.mkdir()
    (home / "stats.py").write_text(BEFORE)
    git(home, "init", "-q", "-b", "main")
    git(home, "add", "stats.py")
    git(home, "commit", "-qm", "Compute a mean")
    return home


@pytest.fixture
def settings(
    provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path, repository: Path
) -> dict[str, str]:
    return {
        "EXAI_DATA_DIR": str(tmp_path / "data"),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_FILES__ROOTS": str(repository),
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }


def git(home: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    subprocess.run(["git", *identity, *arguments], cwd=home, check=True)


def shown_to_model(provider: ProviderServer) -> str:
    """All texts of the newest request."""
    return "\n".join(str(each["content"]) for each in provider.chats[-1].body["messages"])


async def test_from_a_failure_to_its_commit_across_a_killed_daemon(
    provider: ProviderServer, settings: dict[str, str], repository: Path
) -> None:
    """Each tool continues where the previous one ended, on either daemon."""
    provider.script(*map(kimi_answer, (CAUSE, "Return 0.0.", REVIEW, GO)))
    with start_daemon(settings) as first:
        async with connect(first.url) as session:
            name = await debugged(session, provider, repository)
        first.kill()
    (repository / "stats.py").write_text(AFTER)
    with start_daemon(settings) as second:
        async with connect(second.url) as session:
            await reviewed(session, provider, repository, name)
            page = await call(session, "conversation_get", continuation_id=name)
            assert [each["seq"] for each in page["messages"]] == list(range(1, len(page["messages"]) + 1))
            assert not [each for each in page["messages"] if each.get("kind") == "failed"]


async def debugged(session: Any, provider: ProviderServer, repository: Path) -> str:
    """Two recorded steps, then the question, then a chat about it; returns the conversation."""
    step = await call(
        session,
        "debug",
        prompt="mean([]) fails.",
        hypothesis="The list is empty.",
        ask_model=False,
    )
    assert (step["step"], step["complete"], provider.chats) == (1, True, [])
    name = str(step["continuation_id"])
    step = await call(
        session,
        "debug",
        prompt="It fails for [] only.",
        findings=["ZeroDivisionError (stats.py:2)"],
        continuation_id=name,
        ask_model=False,
    )
    assert step["step"] == 2
    cause = await call(
        session, "debug", prompt="What is the cause?", files=[str(repository / "stats.py")], continuation_id=name
    )
    assert (cause["step"], cause["continuation_id"]) == (3, name)
    assert [(each["severity"], each["file"], each["line"]) for each in cause["findings"] if each["by"] == "model"] == [
        ("high", "stats.py", 2)
    ]
    assert any("stats.py" in each for each in cause["read"])
    for words in ("It fails for [] only.", "ZeroDivisionError", "return sum(values) / len(values)"):
        assert words in shown_to_model(provider)
    answer = await call(session, "chat", prompt="What should it return?", continuation_id=name)
    assert answer["content"] == "Return 0.0."
    assert "The list is empty." in shown_to_model(provider)
    return name


async def reviewed(session: Any, provider: ProviderServer, repository: Path, name: str) -> None:
    """The change is reviewed as it lies on disk, and judged before its commit."""
    review = await call(
        session, "codereview", prompt="Is the change right?", files=[str(repository / "stats.py")], continuation_id=name
    )
    assert (review["verdict"], review["continuation_id"]) == ("pass", name)
    assert ("low", "stats.py", 3) in [(each["severity"], each["file"], each["line"]) for each in review["findings"]]
    for words in ("if not values:", "Return 0.0.", "ZeroDivisionError"):
        assert words in shown_to_model(provider)
    judged = await call(session, "precommit", prompt="May it be committed?", continuation_id=name)
    assert judged["verdict"] == "pass"
    assert "+    if not values:" in shown_to_model(provider)
    assert judged["next"]
