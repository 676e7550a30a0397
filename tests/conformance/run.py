"""Run the official conformance suite, TypeScript client and inspector; exit with 0 if only expected failures occur.

The suite runs over both transports and with both eras of the protocol, the client over the WebSocket. The inspector
lists the tools of a real daemon in both eras, over HTTP and through the bridge, and calls `chat` as a task. All are
installed by npm, with their Node, into the ignored environment directory, at the versions of `package-lock.json` beside
this file; after that no network is used. The checks of each scenario are stored in the same directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fnmatch import fnmatch
from pathlib import Path

import uvicorn

from exai.logs import configure_logging
from exai.mcp.transport.asgi import build_asgi
from exai.mcp.transport.listener import bind_sockets, open_server
from exai.settings.load import LogSettings
from tests.conformance.pack import conformance_server
from tests.conformance.shim import shim
from tests.support.daemon import start_daemon
from tests.support.mcp_server import fast_settings
from tests.support.provider_server import ProviderServer, kimi_answer, stream

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / ".venv" / "conformance"
NODE = BUILD / "node_modules" / "node" / "bin" / "node"
CLIENT = "websocket_client.mjs"
REVISIONS = ("2025-11-25", "2026-07-28")
ERAS = ("legacy", "modern")
SUITE_TIMEOUT_S = 300.0
LATE_S = 0.5
"""The time the model takes to answer, so that the answer follows the handle of the task."""


def main() -> int:
    """Install what is missing, run everything, and report."""
    if not _installed():
        return 2
    configure_logging(LogSettings(level="error"))
    return asyncio.run(_run())


def _installed() -> bool:
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write("the conformance suite and its inspector come from npm, which is not on PATH\n")
        return False
    BUILD.mkdir(parents=True, exist_ok=True)
    changed = False
    for name in ("package.json", "package-lock.json", CLIENT):
        wanted, present = (HERE / name).read_bytes(), BUILD / name
        if not present.exists() or present.read_bytes() != wanted:
            present.write_bytes(wanted)
            changed = True
    if changed or not (BUILD / "node_modules/.bin/conformance").exists():
        done = os.spawnl(os.P_WAIT, npm, npm, "ci", "--prefix", str(BUILD), "--no-audit", "--no-fund", "--silent")
        if done != 0 or not NODE.exists():
            sys.stderr.write(f"npm could not install the conformance suite and its Node into {BUILD}\n")
            return False
    return True


async def _run() -> int:
    settings = fast_settings()
    failed = False
    async with (
        open_server(build_asgi(conformance_server()), settings) as running,
        _serving_shim(f"ws://127.0.0.1:{running.port}/") as shim_port,
    ):
        failed |= not await _client(f"ws://127.0.0.1:{running.port}/")
        for door, port in (("http", running.port), ("websocket", shim_port)):
            for revision in REVISIONS:
                failed |= not await _suite(door, revision, f"http://127.0.0.1:{port}/mcp")
    failed |= not await _inspected()
    failed |= not await _task_settled()
    return int(failed)


@asynccontextmanager
async def _serving_shim(url: str) -> AsyncIterator[int]:
    (opened,) = bind_sockets(fast_settings())
    server = uvicorn.Server(uvicorn.Config(shim(url), log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server._serve([opened]))
    try:
        yield opened.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def _client(url: str) -> bool:
    status, output = await _node(str(BUILD / CLIENT), url)
    print(f"TypeScript client over WebSocket: {'passes' if status == 0 else 'FAILS'}")
    if status != 0:
        print(output.decode())
    return status == 0


async def _inspected() -> bool:
    """Return whether the inspector accepts every schema of the daemon's tools as portable, without a warning."""
    passed = True
    with (
        tempfile.TemporaryDirectory(prefix="exai-inspected-") as directory,
        start_daemon({"EXAI_DATA_DIR": directory}) as daemon,
    ):
        doors = {
            "HTTP": (f"http://127.0.0.1:{daemon.port}/mcp", "--transport", "http"),
            "the bridge": (sys.executable, "-m", "exai", "connect", "--url", daemon.url),
        }
        for door, target in doors.items():
            for era in ERAS:
                passed &= await _inspect(door, era, *target)
    return passed


async def _inspect(door: str, era: str, *target: str) -> bool:
    program = str(BUILD / "node_modules/.bin/mcp-inspector")
    options = ("--protocol-era", era, "--method", "tools/list", "--strict")
    status, output = await _node(program, "--cli", *target, *options)
    findings = [line for line in output.decode().splitlines() if line.startswith(("Warning:", "Error:", "  Path:"))]
    good = status == 0 and not findings
    print(f"inspector over {door}, {era} era: {'every tool is portable' if good else 'FAILS'}")
    for line in findings if status == 0 else output.decode().splitlines():
        print(f"  {line}")
    return good


async def _task_settled() -> bool:
    """Return whether the inspector, which supports tasks, receives the answer of a model through the task's handle."""
    with tempfile.TemporaryDirectory(prefix="exai-settled-") as directory:
        async with ProviderServer() as provider:
            provider.script(stream(LATE_S, *kimi_answer("Four.").steps))
            settings = {
                "EXAI_DATA_DIR": directory,
                "EXAI_SERVER__TASK_AFTER_S": "0",
                "KIMI_API_KEY": "sk-test",
                "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
            }
            with start_daemon(settings) as daemon:
                program = str(BUILD / "node_modules/.bin/mcp-inspector")
                target = (f"http://127.0.0.1:{daemon.port}/mcp", "--transport", "http", "--protocol-era", "modern")
                call = ("--method", "tools/call", "--tool-name", "chat", "--tool-arg", "prompt=Two and two?")
                status, output = await _node(program, "--cli", *target, *call)
                good = status == 0 and b'"content": "Four."' in output and "tasks/get" in daemon.output
    print(f"inspector, a chat that becomes a task: {'is answered' if good else 'FAILS'}")
    if not good:
        print(output.decode())
    return good


async def _node(*arguments: str) -> tuple[int | None, bytes]:
    process = await asyncio.create_subprocess_exec(
        str(NODE), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SUITE_TIMEOUT_S):
        output, _ = await process.communicate()
    return process.returncode, output


async def _suite(door: str, revision: str, url: str) -> bool:
    results = BUILD / "results" / f"{door}-{revision}"
    shutil.rmtree(results, ignore_errors=True)
    program = str(BUILD / "node_modules/.bin/conformance")
    _, output = await _node(program, "server", "--url", url, "--requirements", revision, "-o", str(results))
    results.mkdir(parents=True, exist_ok=True)
    (results / "output.txt").write_bytes(output)
    return _report(door, revision, results)


def _report(door: str, revision: str, results: Path) -> bool:
    """Compare the failed scenarios with the expected ones; an expectation that no failure matches is a failure, too."""
    reasons = json.loads((HERE / "expected_failures.json").read_text())[revision]
    scenarios = _scenarios(results)
    failed = {name: problems for name, problems in scenarios.items() if problems}
    excused = {name for name in failed if any(fnmatch(name, pattern) for pattern in reasons)}
    idle = [pattern for pattern in reasons if not any(fnmatch(name, pattern) for name in failed)]
    print(f"{door} {revision}: {len(scenarios) - len(failed)} scenarios pass, {len(excused)} fail as expected")
    for name in sorted(failed.keys() - excused):
        print("\n        ".join([f"  FAILS {name}", *failed[name]]))
    for pattern in idle:
        print(f"  no scenario matches {pattern} of expected_failures.json any more")
    return bool(scenarios) and failed.keys() == excused and not idle


def _scenarios(results: Path) -> dict[str, list[str]]:
    """Return the failed checks of each scenario, from the files that the suite writes."""
    found: dict[str, list[str]] = {}
    for path in sorted(results.glob("*/checks.json")):
        name = re.sub(r"^server-(.*)-\d{4}-\d\d-\d\dT.*$", r"\1", path.parent.name)
        checks = json.loads(path.read_text())
        found[name] = [
            f"{check['id']}: {check.get('errorMessage', '')}" for check in checks if check["status"] == "FAILURE"
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())
