"""Other people's clients in Python, in environments of their own, go through a conversation of two turns."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.clients.model_server import DONE, QUESTIONS, ModelServer
from tests.support.daemon import ROOT, Daemon

pytestmark = pytest.mark.heavy

CLIENTS = ROOT / ".venv" / "clients" / "bin" / "python"
REFEREES = ROOT / ".venv" / "referees" / "bin" / "python"


async def output_of(python: Path, program: str, *arguments: str) -> str:
    """Run a referee; it must end well."""
    assert python.exists(), "the clients are not installed; `make test-clients` does it"
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-I", str(ROOT / "tests" / "referees" / program), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def address(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}/mcp"


def assert_conversation(shown: list[str]) -> None:
    """The second answer was given with the first question and answer before it."""
    assert len(shown) == len(QUESTIONS)
    assert all("continuation_id" in each for each in shown)
    assert f"1 messages. You said: {QUESTIONS[0]}" in shown[0]
    assert f"3 messages. You said: {QUESTIONS[1]}" in shown[1]


@pytest.mark.parametrize(
    ("python", "program"),
    [(CLIENTS, "first_sdk.py"), (REFEREES, "second_sdk.py"), (CLIENTS, "langchain_adapters.py")],
    ids=lambda each: each.removesuffix(".py") if isinstance(each, str) else "",
)
async def test_what_a_client_shows_is_enough_for_the_next_turn(daemon: Daemon, python: Path, program: str) -> None:
    """The program sends only values that its model was shown."""
    shown = json.loads(await output_of(python, program, address(daemon)))
    for number in range(0, len(shown), len(QUESTIONS)):
        assert_conversation(shown[number : number + len(QUESTIONS)])


@pytest.mark.parametrize("results", ["text", "structured"])
async def test_an_agent_of_openai_goes_on(daemon: Daemon, model: ModelServer, results: str) -> None:
    """With the texts, its default, and with structured answers."""
    said = await output_of(CLIENTS, "agents_sdk.py", address(daemon), model.url, results)
    assert said.strip() == DONE
    assert_conversation(model.seen)
