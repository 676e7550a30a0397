"""Backups as an operator makes them: two databases, and the command in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from exai.db.backup.catalogue import NOT_COPIED
from exai.db.backup.snapshot import read_tables
from tests.support.commands import run_exai_as_text
from tests.support.daemon import environment
from tests.support.migrations import session

ROOT = Path(__file__).resolve().parents[3]

OTHERWISE = {"changed_xid", "store", "storage_path", "blob_id"}
"""Columns whose values belong to one database or store."""


HISTORIES = {"monitoring.metrics_raw", "monitoring.metrics_1min", "monitoring.metrics_1hour"}
OWN_RUNS = "type <> 'command_run'"
"""Leaves out the records of the commands that tests run."""


@dataclass
class Side:
    """One database with a data directory of its own."""

    url: str
    home: Path

    def variables(self, **more: str) -> dict[str, str]:
        """The settings of commands on this side."""
        given = {"HOME": str(self.home), "EXAI_DATA_DIR": str(self.home), "EXAI_CACHE__URL": "off"}
        return {**given, "EXAI_DATABASE__URL": self.url, **more}

    async def exai(self, *arguments: str, limit_kb: int | None = None, **more: str) -> tuple[int, str]:
        """Run a command, which may write files up to a size; returns its status and everything that it printed."""
        if limit_kb is None:
            done = await asyncio.to_thread(run_exai_as_text, *arguments, settings=self.variables(**more), cwd=self.home)
            return done.returncode, done.stdout + done.stderr
        process = await self.start(*arguments, limit_kb=limit_kb, **more)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def start(self, *arguments: str, limit_kb: int | None = None, **more: str) -> asyncio.subprocess.Process:
        """Start a command."""
        limited = ("sh", "-c", f'ulimit -f {2 * limit_kb}; exec "$@"', "sh") if limit_kb else ()
        return await asyncio.create_subprocess_exec(
            *limited,
            sys.executable,
            "-m",
            "exai",
            *arguments,
            env=environment({"PYTHONPATH": str(ROOT), **self.variables(**more)}),
            cwd=self.home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )


@pytest.fixture
def source(postgres_url: str, tmp_path: Path) -> Side:
    """A migrated database."""
    (tmp_path / "source").mkdir()
    return Side(postgres_url, tmp_path / "source")


@pytest.fixture
def target(empty_postgres_url: str, tmp_path: Path) -> Side:
    """A database without anything."""
    (tmp_path / "target").mkdir()
    return Side(empty_postgres_url, tmp_path / "target")


@pytest.fixture
def rows_of() -> Callable[[str], Awaitable[dict[str, list[str]]]]:
    """All rows of all tables as texts, in a fixed order, without the records of the tests' own commands."""

    async def read(url: str) -> dict[str, list[str]]:
        found = {}
        async with session(url) as connection:
            await connection.execute("set timezone = 'UTC'")
            for table in await read_tables(connection):
                if table.name not in NOT_COPIED:
                    columns = ", ".join(f'"{each}"' for each in table.columns if each not in OTHERWISE)
                    kept = f"where {OWN_RUNS}" if table.name in HISTORIES else ""
                    query = (
                        f'select row({columns})::text as line from {table.schema}."{table.table}" {kept} order by line'
                    )
                    found[table.name] = [row["line"] for row in await connection.fetch(query)]
        return found

    return read
