"""The application for workflow tests, and what a call of a tool gives its client."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from exai.app import App, open_app
from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import CallContext
from exai.mcp.features.coercion import coerce
from exai.mcp.features.results import call_result
from exai.mcp.features.schemas import portable_schema
from exai.mcp.features.tools import ToolSpec
from exai.models import LOCAL_OWNER, ContinuationId, Message, Owner
from exai.settings.load import FileSettings
from exai.tools.registry import build_tools
from tests.integration.conversations.conftest import Rig, open_rig


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


@pytest.fixture
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a committed file, a change of it, and a new file."""
    root = tmp_path_factory.mktemp("repository")
    (root / "app.py").write_text("def add(a, b):\n    return a + b\n")
    git = ("git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.com")
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    (root / "app.py").write_text("def add(a, b):\n    return a - b  # planted\n")
    (root / "new.py").write_text("NEW = 'planted too'\n")
    return root


@pytest.fixture
async def rooted(rig: Rig, repository: Path) -> AsyncIterator[App]:
    """An application that may read the repository."""
    settings = rig.app.settings.model_copy(update={"files": FileSettings(roots=(repository,))})
    async with open_app(settings) as app:
        yield app


async def quiet(_: str) -> None:
    """Report nothing."""


BUILT: dict[int, tuple[App, dict[str, ToolSpec]]] = {}
"""The tools of an application, which are built once, as a daemon does; the application is kept so that its id is."""


def tools_of(app: App) -> dict[str, ToolSpec]:
    if id(app) not in BUILT:
        BUILT[id(app)] = (app, {spec.name: spec for spec in build_tools(app)})
    return BUILT[id(app)][1]


async def call(app: App, tool: str, owner: Owner = LOCAL_OWNER, **given: Any) -> Json:
    """Call a tool as a client does; return its structured answer."""
    found: Json = (await called(app, tool, given, owner))["structuredContent"]
    return found


async def called(app: App, tool: str, given: Any, owner: Owner = LOCAL_OWNER, directory: str = "") -> Json:
    """Call a tool as a client does; return the whole result."""
    spec = tools_of(app)[tool]
    arguments, notes = coerce(portable_schema(spec.arguments), given, spec.arguments.KEEPS_EMPTY)
    context = CallContext(owner, "r", quiet, directory=directory)
    result = call_result(await spec.handler(spec.arguments.model_validate(arguments), context), notes)
    sent: Json = orjson.loads(orjson.dumps(result))
    return sent


async def rows_of(app: App, continuation_id: str, owner: Owner = LOCAL_OWNER) -> tuple[Message, ...]:
    return (await app.conversations.read(owner, ContinuationId(continuation_id))).messages
