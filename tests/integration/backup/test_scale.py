"""A million messages are backed up and restored in memory that does not depend on their number."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from tests.integration.backup.bulk import bulk
from tests.integration.backup.conftest import ROOT, Side
from tests.support.daemon import environment
from tests.support.migrations import session, value

MESSAGES = int(os.environ.get("EXAI_TEST_BACKUP_MESSAGES", "1000000"))
MOST_MB = 200
MEASURED = (
    "import resource, sys; from exai.cli.main import main; status = main(sys.argv[1:]); "
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(status)"
)
DIGEST = "select count(*), sum(hashtextextended(m::text, 0)) from public.messages m"


async def measured(side: Side, *arguments: str) -> tuple[int, float]:
    """Run a command; returns its greatest memory in MB and its time in seconds."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        MEASURED,
        *arguments,
        env=environment({"PYTHONPATH": str(ROOT), **side.variables()}),
        cwd=side.home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return int(out.split()[-1]), time.monotonic() - began


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="measures memory by getrusage")
async def test_a_million_messages_fit_into_bounded_memory(source: Side, target: Side) -> None:
    """Backup, verification and restoration, with a passphrase and a renamed owner, which need most."""
    await bulk(source.url, MESSAGES)
    (source.home / "passphrase").write_text("correct horse")
    options = ("--passphrase-file", str(source.home / "passphrase"))
    backup = str(source.home / "backup")
    taken = {
        "backup": await measured(source, "backup", backup, *options),
        "verify": await measured(source, "backup", "--verify", backup, *options),
        "restore": await measured(target, "restore", backup, *options, "--owner", "local=me"),
    }
    stored = sum(path.stat().st_size for path in Path(backup).rglob("*") if path.is_file())
    for name, (peak_mb, took_s) in taken.items():
        print(f"\n{name}: {MESSAGES:,} messages, {took_s:.0f} s, {peak_mb} MB, {stored / 1e6:,.0f} MB stored")
    async with session(source.url) as one, session(target.url) as other:
        assert tuple(await one.fetchrow(DIGEST)) == tuple(await other.fetchrow(DIGEST))
    assert await value(target.url, "select array_agg(distinct owner) from public.conversations") == ["me"]
    assert max(peak_mb for peak_mb, _ in taken.values()) < MOST_MB
