"""A phone that reaches Supabase only, and a daemon that reaches the database only: supabase-js, PostgREST, EXAI."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from exai.db.migrations.migrate import upgrade
from tests.acceptance.conftest import provider
from tests.supabase.postgrest import MODULES, Issuer, postgrest
from tests.support.daemon import ROOT, start_daemon
from tests.support.migrations import session
from tests.support.pg_proxy import PgProxy
from tests.support.provider_server import ProviderServer, chunk, stream
from tests.support.supabase import REALTIME, make_supabase

__all__ = ["provider"]

A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
LIMIT_S = 180.0
STEPS = 10

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not MODULES.exists(), reason="PostgREST, supabase-js and the advisor need npm (make test-supabase)"
    ),
]


@pytest.fixture
async def supabase_url(empty_postgres_url: str) -> str:
    """EXAI on a database as Supabase makes it."""
    async with session(empty_postgres_url) as connection:
        await make_supabase(connection)
        for statement in REALTIME:
            await connection.execute(statement)
    await upgrade(empty_postgres_url)
    return empty_postgres_url


async def test_two_users_with_a_phone_each(
    supabase_url: str, provider: ProviderServer, redis_url: str, tmp_path: Path
) -> None:
    """Ask, read, go offline, cancel; and nothing of another user."""
    hanging = stream(chunk({"content": "Half"}), "hang")
    growing = stream(chunk({"content": "The first half"}), "gate", chunk({"content": ", the rest"}, finish="stop"))
    provider.script(growing)
    provider.default = lambda body, usual=provider.default: (
        hanging if "Never mind" in body["messages"][-1]["content"] else usual(body)
    )
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": supabase_url,
        "EXAI_REQUESTS__LISTEN_URL": supabase_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    issuer, program = Issuer(), tmp_path / "phone"
    program.mkdir()
    shutil.copy(ROOT / "examples" / "phone" / "exai.js", program)
    shutil.copy(ROOT / "tests" / "supabase" / "flow.mjs", program)
    (program / "package.json").write_text('{"type": "module"}')
    (program / "node_modules").symlink_to(MODULES)
    with start_daemon(settings, ["--requests"]), postgrest(supabase_url, issuer, tmp_path) as api:
        process = await asyncio.create_subprocess_exec(
            "node", "flow.mjs", cwd=program, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={
                "PATH": os.environ["PATH"], "API": api, "KEY": "sb_publishable_test", "A": A, "B": B,
                "TOKEN_A": issuer.token(A), "TOKEN_B": issuer.token(B),
                "TOKEN_ANONYMOUS": issuer.token(B, is_anonymous=True),
                "TOKEN_EXPIRED": issuer.token(A, lifetime_s=-600),
            },
        )  # fmt: skip
        assert process.stdout is not None
        lines: list[str] = []
        try:
            async with asyncio.timeout(LIMIT_S):
                async for line in process.stdout:
                    lines.append(line.decode().rstrip())
                    if lines[-1] == "gate":
                        provider.gate.set()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, "\n".join(lines)
    assert len([line for line in lines if line.startswith("ok ")]) == STEPS, lines
    asked = [each.body["messages"][-1]["content"] for each in provider.chats]
    assert sorted(asked) == sorted(["Hello, model", "Did you get this?", "One", "Never mind"])


@pytest.mark.parametrize("kind", ["security", "performance"])
async def test_supabase_s_advisor_has_no_objection(supabase_url: str, tmp_path: Path, kind: str) -> None:
    """The same queries as in the dashboard (splinter), without the platform."""
    home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SUPABASE_TELEMETRY_DISABLED": "1", "NO_COLOR": "1"}
    async with PgProxy(supabase_url) as proxy:
        process = await asyncio.create_subprocess_exec(
            "node", str(MODULES / ".bin" / "supabase"), "db", "advisors", "--db-url", proxy.url,
            "--type", kind, "--level", "warn", "--fail-on", "warn",
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=home,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0, out.decode()
    assert "Connecting" in out.decode() or "No issues" in out.decode(), out.decode()
