"""Many conversations at once over two daemons: none sees another's, and none waits for another's model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import ClientSession

from exai.workflows import load_workflows
from tests.acceptance.test_workflow_path import git
from tests.support.client import call, connect
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer, chunk, event, stream

CONVERSATIONS, STEPS, AT_ONCE = 50, 3, 8
TOOLS = (*load_workflows(), "consensus", "chat")
MARK = re.compile(r"mark-(\d\d)-")
SAID = ("content", "answers", "findings", "read")


@pytest.fixture
def daemons(
    provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path
) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons on one database that may read one repository with a change."""
    home = tmp_path / "project"
    home.mkdir()
    git(home, "init", "-q", "-b", "main")
    git(home, "commit", "-q", "--allow-empty", "-m", "Begin")
    (home / "new.py").write_text("NEW = 1\n")
    settings = {
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_FILES__ROOTS": str(home),
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "ZAI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__GLM__BASE_URL": provider.base_url,
    }
    with (
        start_daemon({**settings, "EXAI_DATA_DIR": str(tmp_path / "1")}) as first,
        start_daemon({**settings, "EXAI_DATA_DIR": str(tmp_path / "2")}) as second,
    ):
        yield first, second


async def test_fifty_conversations_over_every_tool_see_nothing_of_each_other(
    provider: ProviderServer, daemons: tuple[Daemon, Daemon]
) -> None:
    """Each step on the other daemon than the one before, with the next tool; requests, results and rows."""
    places, used = asyncio.Semaphore(AT_ONCE), set()

    async def work(number: int, sessions: tuple[ClientSession, ClientSession]) -> str:
        key = None
        for step in range(STEPS):
            tool = TOOLS[(number + step * 5) % len(TOOLS)]
            used.add(tool)
            async with places:
                answer = await call(
                    sessions[(number + step) % 2],
                    tool,
                    prompt=f"mark-{number:02}-step-{step}: what of it?",
                    **({} if key is None else {"continuation_id": key}),
                )
            key = str(answer["continuation_id"])
            told = json.dumps({name: answer.get(name) for name in SAID})
            assert set(MARK.findall(told)) <= {f"{number:02}"}
        return key or ""

    async with connect(daemons[0].url) as first, connect(daemons[1].url) as second:
        sessions = (first, second)
        keys = await asyncio.gather(*(work(number, sessions) for number in range(CONVERSATIONS)))
        assert len(set(keys)) == CONVERSATIONS
        assert used == set(TOOLS)
        for number, key in enumerate(keys):
            page = await call(sessions[number % 2], "conversation_get", continuation_id=key)
            assert set(MARK.findall(json.dumps(page["messages"]))) == {f"{number:02}"}
            steps = {text for each in page["messages"] for text in re.findall(r"step-\d", each["content"])}
            assert steps == {f"step-{step}" for step in range(STEPS)}
    assert len(provider.chats) >= CONVERSATIONS * STEPS
    for request in provider.chats:
        assert len(set(MARK.findall(request.raw.decode()))) == 1


@pytest.mark.parametrize("is_shared", [False, True], ids=["four conversations", "one conversation"])
async def test_four_calls_are_with_the_model_at_once(
    provider: ProviderServer, daemons: tuple[Daemon, Daemon], *, is_shared: bool
) -> None:
    """None is answered before all four have arrived, so that together they take the time of one."""
    async with connect(daemons[0].url) as session:
        begun = await call(session, "chat", prompt="Begin.")
        given = {"continuation_id": begun["continuation_id"]} if is_shared else {}
        before = len(provider.chats)
        provider.default = lambda _: stream("gate", chunk({"content": "x"}), chunk({}, finish="stop"), event("[DONE]"))
        tools = ("debug", "chat", "codereview", "thinkdeep")
        calls = [asyncio.create_task(call(session, tool, prompt=f"{tool}?", **given)) for tool in tools]
        async with asyncio.timeout(60):
            await provider.arrived(before + len(tools))
        assert not any(request.ended.is_set() for request in provider.chats[before:])
        provider.gate.set()
        answers = await asyncio.gather(*calls)
    assert len({answer["continuation_id"] for answer in answers}) == (1 if is_shared else len(tools))
