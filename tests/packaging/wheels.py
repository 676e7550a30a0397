"""What the tests of the wheel share: an environment of its own, with any Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import environment, start_daemon
from tests.support.mcp_server import handshake, request, tool_call

LIMIT_S = 300
"""Longest installation or command, in seconds; the registry may be slow."""


@dataclass(frozen=True)
class Installed:
    """An environment that holds EXAI and what its metadata asks for."""

    directory: Path
    variables: dict[str, str]

    def run(self, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a directory without a checkout and without a `.env`."""
        return subprocess.run(
            [self.directory / "bin" / command[0], *command[1:]],
            check=False,
            input=given,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=self.directory,
            env=environment(self.variables),
        )

    def names(self) -> set[str]:
        """The distributions it holds."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.directory / "bin/python", "list", "--format=json"],
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        return {each["name"].lower() for each in json.loads(listed.stdout)}


def install(
    directory: Path, wheel: str, *options: str, variables: Mapping[str, str], python: Path | str = sys.executable
) -> Installed:
    """Make an environment with a Python and install the wheel, with its extras, and what its metadata asks for."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=LIMIT_S)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "--no-compile", "-q"]
    subprocess.run([*pip, wheel, *options], check=True, timeout=LIMIT_S)
    return Installed(directory, dict(variables))


def check_daemon(installed: Installed) -> None:
    """Migrate, serve, list the tools through the bridge, store a message, and stop."""
    migrated = installed.run("exai", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    with start_daemon(installed.variables, program=[str(installed.directory / "bin" / "exai")]) as daemon:
        assert daemon.get("/health/ready")[0] == 200
        message = {"role": "user", "content": "kept by a wheel"}
        calls = [
            handshake(),
            request(2, "tools/list"),
            request(3, "tools/call", tool_call("conversation_append", messages=[message])),
        ]
        given = "".join(f"{json.dumps(call)}\n" for call in calls)
        answered = installed.run("exai", "connect", "--url", daemon.url, given=given)
        assert answered.returncode == 0, answered.stderr
        answers = {answer.get("id"): answer for answer in map(json.loads, answered.stdout.splitlines())}
        assert "chat" in {tool["name"] for tool in answers[2]["result"]["tools"]}
        assert answers[3]["result"]["structuredContent"]["continuation_id"], answers[3]
        assert daemon.stop() == 0
