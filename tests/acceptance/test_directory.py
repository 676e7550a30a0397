"""Relative paths and the default repository are those of the directory in which the client started its bridge."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.support.client import call, connect, refused
from tests.support.daemon import Daemon, environment, start_daemon
from tests.support.provider_server import ProviderServer

ENTRIES = ("../outside.py", "link.py", "link/outside.py", "../../outside.py", "~/outside.py")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two repositories with a file of the same name and a change each, and a file and a link outside of them."""
    for name in ("one", "two"):
        top = tmp_path / "roots" / name
        top.mkdir(parents=True)
        (top / "app.py").write_text(f"# first of {name}\n")
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
        for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "First")):
            subprocess.run(["git", *arguments], cwd=top, check=True)
        (top / "app.py").write_text(f"# changed in {name}\n")
    (tmp_path / "outside.py").write_text("# secret\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "outside.py").write_text("# secret\n")
    (tmp_path / "roots" / "one" / "link.py").symlink_to(tmp_path / "outside.py")
    (tmp_path / "roots" / "one" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "linked").symlink_to(tmp_path / "roots" / "two")
    return tmp_path


@pytest.fixture
def rooted(home: Path, provider: ProviderServer, postgres_url: str, redis_url: str) -> Iterator[Daemon]:
    settings = {
        "EXAI_DATA_DIR": str(home / "data"),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_FILES__ROOTS": json.dumps([str(home / "roots" / name) for name in ("one", "two")]),
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    with start_daemon(settings) as daemon:
        yield daemon


@asynccontextmanager
async def bridged(daemon: Daemon, directory: Path, **variables: str) -> AsyncIterator[ClientSession]:
    """Start `exai connect` in a directory, as an editor does."""
    command = ["-m", "exai", "connect", "--url", daemon.url]
    known = {name: value for name, value in environment({}).items() if name != "CLAUDE_PROJECT_DIR"}
    parameters = StdioServerParameters(command=sys.executable, args=command, cwd=directory, env={**known, **variables})
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        yield session


def shown(provider: ProviderServer) -> str:
    """Return all texts of the newest request to the model."""
    return "\n".join(str(each["content"]) for each in provider.chats[-1].body["messages"])


@pytest.mark.parametrize(("where", "other"), [("one", "two"), ("two", "one")])
async def test_names_and_repository_are_those_of_the_bridge(
    rooted: Daemon, provider: ProviderServer, home: Path, where: str, other: str
) -> None:
    """The daemon was started elsewhere and serves both."""
    async with bridged(rooted, home / "roots" / where) as session:
        for tool in ("analyze", "chat"):
            await call(session, tool, prompt="What is this?", files=["app.py"])
            assert f"changed in {where}" in shown(provider)
            assert f"changed in {other}" not in shown(provider)
        reviewed = await call(session, "precommit", prompt="May it go?")
        assert reviewed["read"]
        assert f"+# changed in {where}" in shown(provider)
        assert f"changed in {other}" not in shown(provider)
        panel = await call(session, "consensus", prompt="Is it right?", files=["app.py"], models=["kimi-k3", "kimi-k3"])
        assert panel["read"] == ["app.py (1 line)"]
        stored = await call(session, "file_put", path="app.py")
        assert (await call(session, "file_get", file_id=stored["file_id"]))["content"] == f"# changed in {where}\n"
        rows = [{"role": "user", "content": "kept"}]
        assert (await call(session, "conversation_append", messages=rows, files=["app.py"]))["last_seq"] == 1


async def test_directory_of_the_open_project_comes_before_the_working_directory(
    rooted: Daemon, provider: ProviderServer, home: Path
) -> None:
    project = str(home / "linked")
    async with bridged(rooted, home / "roots" / "one", CLAUDE_PROJECT_DIR=project) as session:
        await call(session, "chat", prompt="What is this?", files=["app.py"])
        assert "changed in two" in shown(provider)
        await session.call_tool("analyze", {"prompt": "And this?", "files": ["app.py"]})
        assert "changed in two" in shown(provider)


async def test_names_that_lead_out_of_the_roots_are_refused(
    rooted: Daemon, provider: ProviderServer, home: Path
) -> None:
    """Also by a link, and whether or not there is such a file."""
    async with bridged(rooted, home / "roots" / "one") as session:
        for tool in ("analyze", "chat"):
            for entry in ENTRIES:
                error = await refused(session, tool, prompt="What is this?", files=[entry])
                assert error["field"] == "files[0]", (tool, entry, error)
                assert "secret" not in json.dumps(error)
    assert provider.chats == []


async def test_directory_outside_the_roots_gives_no_path_a_meaning(
    rooted: Daemon, provider: ProviderServer, home: Path
) -> None:
    """What needs none still works: absolute paths, also for the repository of a diff."""
    absolute = str(home / "roots" / "two" / "app.py")
    async with bridged(rooted, home) as session:
        await call(session, "analyze", prompt="What is this?", files=[absolute])
        await call(session, "precommit", prompt="May it go?", files=[absolute])
        assert "+# changed in two" in shown(provider)
        asked = len(provider.chats)
        for tool, given in (
            ("analyze", {"files": ["outside.py"]}),
            ("chat", {"files": ["outside.py"]}),
            ("precommit", {}),
            ("codereview", {"diff": "uncommitted"}),
        ):
            error = await refused(session, tool, prompt="What is this?", **given)
            assert "is not below an allowed root" in error["message"], error
            assert "EXAI_FILES__ROOTS" in error["message"]
        assert len(provider.chats) == asked


async def test_hostile_directories_of_a_call_are_refused(rooted: Daemon, provider: ProviderServer, home: Path) -> None:
    """`_meta` of one call comes before the connection's directory, and is held to the same roots."""
    inside = home / "roots" / "one"
    given = [str(inside / name) for name in ("absent", "app.py", "../../elsewhere", "link", "a\0b", "x" * 5_000)]
    async with connect(rooted.url) as session:
        for directory in (*given, "/", "/root", "/proc/self/cwd", "relative", ".."):
            for tool in ("analyze", "chat"):
                arguments = {"prompt": "What is this?", "files": ["outside.py"]}
                result = await session.call_tool(tool, arguments, meta={"exai/directory": directory})
                assert result.isError, (tool, directory)
                assert "secret" not in result.content[0].text
        with pytest.raises(McpError, match="exai/directory must be a string"):
            await session.call_tool("chat", {"prompt": "What?"}, meta={"exai/directory": 7})
    assert provider.chats == []


async def test_a_call_may_name_its_directory(rooted: Daemon, provider: ProviderServer, home: Path) -> None:
    """Two of the same words in two directories are two calls."""
    async with connect(rooted.url) as session:
        for name in ("one", "two"):
            meta = {"exai/directory": str(home / "roots" / name)}
            await session.call_tool("chat", {"prompt": "What?", "files": ["app.py"]}, meta=meta)
            assert f"changed in {name}" in shown(provider)


async def test_without_a_directory_the_cure_is_named(rooted: Daemon, provider: ProviderServer) -> None:
    async with connect(rooted.url) as session:
        error = await refused(session, "chat", prompt="What is this?", files=["app.py"])
        assert "is not an absolute path" in error["message"]
        assert "exai connect" in error["message"]
        error = await refused(session, "analyze", prompt="What is this?", files=["app.py"])
        assert "roots/one/app.py" in error["message"]
        assert "roots/two/app.py" in error["message"]
        error = await refused(session, "precommit", prompt="May it go?")
        assert "several repositories" in error["message"]
    assert provider.chats == []


def posted(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


async def test_a_post_names_the_directory_in_a_header(rooted: Daemon, provider: ProviderServer, home: Path) -> None:
    """Twice on one connection's head, which is then not parsed again."""
    for name in ("one", "two", "two"):
        arguments = {"prompt": f"What is {name}?", "files": ["app.py"]}
        params = {"name": "chat", "arguments": arguments}
        body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "EXAI-Directory": str(home / "roots" / name),
        }
        url = rooted.url.replace("ws:", "http:") + "mcp"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        assert b'"isError":false' in await asyncio.to_thread(posted, request)
        assert f"changed in {name}" in shown(provider)
