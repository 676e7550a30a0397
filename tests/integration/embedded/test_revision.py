"""What a start does with the revision of the embedded database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from exai.db.migrations.revision import expected_revision
from exai.embedded.postgres import PostgresBinaries

CODE = """
import asyncio, json, sys
from exai.app import open_app
from exai.daemon.serve import serve
from exai.settings.load import load_settings

async def main():
    data_dir, pg_bin = sys.argv[1:]
    environ = {"EXAI_DATA_DIR": data_dir, "EXAI_PG_BIN": pg_bin, "EXAI_CACHE__URL": "off"}
    async with open_app(load_settings(environ, env_file=None)) as app:
        [row] = await app.database.fetch("revision")
        heavy = {"alembic", "sqlalchemy", "jwt", "cryptography"}
        print(json.dumps([row["revision"], sorted(heavy & set(sys.modules))]))

asyncio.run(main())
"""
LIMIT_S = 60


def started(data_dir: Path, binaries: PostgresBinaries) -> Any:
    """Open the application in a process of its own; return the database's revision and the heavy packages imported."""
    command = [sys.executable, "-c", CODE, str(data_dir), str(binaries.bin_dir)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_a_start_that_migrates_imports_the_migrations(data_dir: Path, binaries: PostgresBinaries) -> None:
    """They take a quarter of the processor time of a start, and a database is migrated once per release."""
    assert started(data_dir, binaries) == [expected_revision(), ["alembic", "sqlalchemy"]]
    assert started(data_dir, binaries) == [expected_revision(), []]
