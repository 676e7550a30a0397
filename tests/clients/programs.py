"""Third-party programs as clients of a daemon, each in a home directory of its own, with the scripted model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.model_server import ModelServer
from tests.support.daemon import ROOT, Daemon

MODULES = ROOT / ".venv" / "node-clients" / "node_modules"
LIMIT_S = 120.0


async def run(command: Sequence[str], home: Path, environment: Mapping[str, str]) -> str:
    """Run a client in a home directory of its own; return its output."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=home,
        env={**kept, "HOME": str(home), "NO_COLOR": "1", **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return output.decode(errors="replace")


def address(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}/mcp"


def claude(
    daemon: Daemon, model: ModelServer, home: Path, prompt: str, kind: str = "http"
) -> tuple[list[str], dict[str, str]]:
    url = address(daemon) if kind == "http" else daemon.url
    servers = home / "servers.json"
    servers.write_text(json.dumps({"mcpServers": {"exai": {"type": kind, "url": url}}}))
    (program,) = MODULES.glob("@anthropic-ai/claude-code-*/claude")
    command = [str(program), "-p", prompt, "--mcp-config", str(servers), "--strict-mcp-config"]
    command += ["--allowedTools", "mcp__exai"]
    environment = {
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": "sk-ant-none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ENABLE_TOOL_SEARCH": "false",
        "DISABLE_AUTOUPDATER": "1",
    }
    return command, environment
