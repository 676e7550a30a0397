"""The image, built once, and the stack of compose.yaml with secrets of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import Engine
from tests.support.backend import docker_problem

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "exai-test"
PROJECT = "exai-test"
PROFILES = ("local", "pooler", "caddy", "monitoring")


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine of the environment; `make test-containers` starts one where none answers."""
    problem = docker_problem(os.environ)
    if problem is not None:
        pytest.skip(f"no Docker engine: {problem}")
    return Engine("the engine of the environment", is_private=False, variables={"DOCKER_BUILDKIT": "1"})


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The name of the image, built from the checkout."""
    engine.must("build", "-q", "-f", str(ROOT / "docker" / "Dockerfile"), "-t", IMAGE, str(ROOT))
    return IMAGE


@dataclass
class Stack:
    """The services of compose.yaml under a name of their own."""

    engine: Engine
    secrets_dir: Path
    variables: dict[str, str] = field(default_factory=dict)

    def compose(self, *command: str, profiles: tuple[str, ...] = ("local",)) -> str:
        """Run `docker compose ...`, which must succeed; returns what it printed."""
        files = ("-f", str(ROOT / "compose.yaml"), "-f", str(ROOT / "tests" / "containers" / "stand-ins.yaml"))
        chosen = [option for each in profiles for option in ("--profile", each)]
        variables = {**self.engine.variables, "SECRETS_DIR": str(self.secrets_dir), **self.variables}
        engine = Engine(self.engine.description, is_private=False, variables=variables)
        return engine.must("compose", "-p", PROJECT, *files, *chosen, *command)

    def up(self, *services: str, profiles: tuple[str, ...] = ("local",)) -> None:
        """Start services, or all, and wait until they are healthy."""
        self.compose("up", "--no-build", "--wait", *services, profiles=profiles)

    def address(self, service: str = "exai", port: int = 8079) -> str:
        """Return where a port is published on this machine."""
        return self.compose("port", service, str(port), profiles=PROFILES)

    @property
    def url(self) -> str:
        """The address of the WebSocket, with the token."""
        return f"ws://{self.address()}/?token={self.secret('EXAI_SERVER__TOKEN')}"

    def secret(self, name: str) -> str:
        """Return what one of the secrets holds."""
        return (self.secrets_dir / name).read_text().strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return the engine's description of a service's container, also of one that has ended."""
        container = self.compose("ps", "--all", "--quiet", service, profiles=PROFILES)
        described: dict[str, Any] = json.loads(self.engine.must("inspect", container))[0]
        return described

    def python(self, service: str, program: str) -> str:
        """Run a program in a container of EXAI."""
        return self.compose("exec", "-T", service, "python", "-c", program)

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", profiles=PROFILES)


@pytest.fixture(scope="session")
def stack(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack with a Postgres of its own, healthy."""
    directory = tmp_path_factory.mktemp("secrets")
    subprocess.run(
        ["sh", str(ROOT / "docker" / "secrets.sh")], check=True, env={**os.environ, "SECRETS_DIR": str(directory)}
    )
    stack = Stack(engine, directory)
    try:
        stack.down()
        stack.up()
        yield stack
    finally:
        stack.down()
