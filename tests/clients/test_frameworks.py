"""Conversations that agent frameworks made, continued by other clients and found on the page."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from exai.client import connect
from exai.db.filters import ListFilter
from exai.models import LOCAL_OWNER
from tests.browser.conftest import LIMIT_MS, OPTIONS, browser_program
from tests.clients.model_server import DONE, ModelServer
from tests.clients.programs import MODULES, claude, run
from tests.support.daemon import ROOT, Daemon

__all__ = ["browser_program"]

ENVIRONMENTS = ROOT / ".venv" / "adapters"
FIRST, SECOND, THIRD = "Does the okapi sleep?", "And the quagga?", "Which of the two is extinct?"

pytestmark = pytest.mark.heavy


async def referee(name: str, program: str, home: Path, *arguments: str) -> str:
    """Run a program in the environment of a framework; return what it printed last."""
    python = ENVIRONMENTS / f"{name}-newest" / "bin" / "python"
    assert python.exists(), "the frameworks are not installed; `make test-clients` does it"
    home.mkdir(exist_ok=True)
    command = [str(python), str(ROOT / "tests" / "referees" / program), *arguments]
    printed = await run(command, home, {"PYTHONPATH": str(ROOT)})
    assert "Traceback" not in printed, printed
    return printed.strip().splitlines()[-1]


@pytest.mark.skipif(not MODULES.exists(), reason="Claude Code needs Node and npm")
async def test_a_session_of_openai_is_continued_by_claude_code_and_found_on_the_page(
    daemon: Daemon, model: ModelServer, browser_program: str, tmp_path: Path
) -> None:
    """The SDK, Claude Code over MCP, the SDK again, and a search in a browser: one conversation."""
    session_id, address = str(uuid.uuid4()), f"http://127.0.0.1:{daemon.port}"

    async def agent(question: str) -> list[Any]:
        ids = (address, model.url, session_id, question)
        items: list[Any] = json.loads(await referee("openai-agents", "agents_session.py", tmp_path / "agent", *ids))
        return items

    assert [said(item) for item in await agent(FIRST)] == [FIRST, DONE]

    model.calls = [
        ("conversation_get", {"continuation_id": session_id}),
        ("chat", {"prompt": SECOND, "continuation_id": session_id}),
    ]
    home = tmp_path / "claude"
    home.mkdir()
    command, environment = claude(daemon, model, home, "Go on with it.")
    printed = await run(command, home, environment)
    assert model.said[-1:] == [DONE], (printed, model.said, model.seen)
    shown, answered = model.seen
    assert FIRST in shown
    answer = f"3 messages. You said: {SECOND}"
    assert answer in answered

    items = await agent(THIRD)
    assert [said(item) for item in items[:2]] == [FIRST, DONE]
    assert items[2] == {"role": "user", "content": SECOND}
    assert answer in items[3]["content"]
    assert [said(item) for item in items[4:]] == [THIRD, DONE]
    asked = [body["messages"] for path, body in model.asked if path.endswith("/chat/completions")][-1]
    assert [answer in str(each["content"]) for each in asked].count(True) == 1

    await assert_found_on_page(browser_program, address, {"okapi": FIRST, "quagga": SECOND, "extinct": THIRD})


def said(item: Any) -> str:
    """Return the text of an item."""
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def assert_found_on_page(program: str, address: str, texts: dict[str, str]) -> None:
    """Search each word on the page, and follow the hit to its message."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=list(OPTIONS))
        page = await browser.new_page(base_url=address)
        page.set_default_timeout(LIMIT_MS)
        for word, text in texts.items():
            await page.goto("/")
            await page.get_by_label("Search conversations").fill(word)
            await page.locator(".snippet", has_text=word).first.click()
            await page.locator(".message", has_text=text).first.wait_for()
        assert await page.locator(".message", has_text=DONE).count() == 2
        await browser.close()


async def test_the_claude_agent_sdk_resumes_a_transcript_on_another_machine(
    daemon: Daemon, model: ModelServer, tmp_path: Path
) -> None:
    """With the command that the SDK brings; the second run has another home directory."""
    address, project = f"http://127.0.0.1:{daemon.port}", tmp_path / "project"
    project.mkdir()

    async def ask(question: str, machine: str, resumed: str) -> list[str]:
        arguments = (address, model.url, str(project), question, resumed)
        printed = await referee("claude-agent", "claude_session.py", tmp_path / machine, *arguments)
        return printed.split(" ", 1)

    session_id, result = await ask(FIRST, "first", "")
    assert result == DONE
    resumed_id, _ = await ask(SECOND, "second", session_id)
    assert resumed_id == session_id
    asked = [json.dumps(body["messages"]) for path, body in model.asked if "/messages" in path and "messages" in body]
    last = next(each for each in reversed(asked) if SECOND in each)
    assert FIRST in last
    async with connect(address) as store:
        listed = (await store.conversations.list(LOCAL_OWNER, only=ListFilter(prefix="claude/"))).conversations
        (name,) = [each.continuation_id for each in listed]
        assert name.endswith(session_id)
        messages = (await store.conversations.read(LOCAL_OWNER, name)).messages
    assert [each.content for each in messages if each.role == "user"] == [FIRST, SECOND]
