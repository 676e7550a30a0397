"""The official Python client of today, in both eras, over Streamable HTTP and through the bridge.

It cannot share an environment with the client of the WebSocket, so it runs as a program of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from tests.support.daemon import ROOT, Daemon
from tests.support.provider_server import ProviderServer, Reply, echo, hang_after_first_token

PYTHON = ROOT / ".venv" / "referees" / "bin" / "python"
PROGRAM = ROOT / "tests" / "referees" / "current_sdk.py"


def answer(body: Any) -> Reply:
    """Echo, or begin to answer and say nothing more."""
    return hang_after_first_token() if body["messages"][-1]["content"] == "hang" else echo(body)


async def test_the_current_client_does_everything_in_both_eras(daemon: Daemon, provider: ProviderServer) -> None:
    """List, call, progress, errors, cancellation, chat and resources; cancelling a chat cancels the provider's call."""
    assert PYTHON.exists(), "the client is not installed; `make .venv/referees/done` does it"
    provider.default = answer
    bridge = (sys.executable, "-m", "exai", "connect", "--url", daemon.url)
    process = await asyncio.create_subprocess_exec(
        *(str(PYTHON), "-I", str(PROGRAM), f"http://127.0.0.1:{daemon.port}/mcp", *bridge),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    seen = json.loads(output)
    assert list(seen) == ["http auto", "http legacy", "bridge auto", "bridge legacy"]
    assert all(each == seen["http auto"] for each in seen.values())
    assert "chat" in seen["http auto"]["tools"]
    hung = [each for each in provider.chats if each.body["messages"][-1]["content"] == "hang"]
    assert len(hung) == len(seen)
    async with asyncio.timeout(5):
        for each in hung:
            await each.gone.wait()
