"""docker/backup-redis.sh on a real server with both kinds of files, and the form of backup-redis.ps1."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_powershell

from tests.support.programs import ROOT
from tests.support.valkey import Valkey

SCRIPT = ROOT / "docker" / "backup-redis.sh"
CLIENT = ROOT / "tests" / "support" / "redis_cli.py"
LIMIT_S = 60


@pytest.fixture
def server() -> Iterator[Valkey]:
    """One that keeps a log and snapshots, as docker/redis.conf has it."""
    with Valkey(appendonly="yes", save="900 1") as running:
        yield running


def run(server: Valkey, backups: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a server of this machine."""
    # The script splits REDIS_CLI at spaces, which the paths of a checkout may contain.
    client = backups.parent / "client.sh"
    client.write_text(f'exec {shlex.quote(sys.executable)} {shlex.quote(str(CLIENT))} {server.port} "$@"\n')
    given = {
        "PATH": os.environ["PATH"],
        "REDIS_DIR": str(server.directory),
        "REDIS_CLI": f"sh {client}",
        "BACKUP_DIR": str(backups),
        "LIMIT_S": str(LIMIT_S),
    }
    command = ["sh", str(SCRIPT), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S, env=given | variables)


def saved(backups: Path) -> list[str]:
    return sorted(path.name for path in backups.iterdir())


def test_backup_is_restored_into_a_server_with_a_log(server: Valkey, tmp_path: Path) -> None:
    """Also the time to live; what came after the backup is gone, and the log goes on from the restored state."""
    server.do("SET", "exai:kept", "before", "EX", "5000")
    server.do("HSET", "exai:page", "field", "x" * 10_000)
    done = run(server, tmp_path / "backups")
    assert done.returncode == 0, done.stderr
    [name] = saved(tmp_path / "backups")
    assert done.stdout.strip().endswith(name)
    assert (tmp_path / "backups" / name).stat().st_mode & 0o777 == 0o600
    server.do("SET", "exai:kept", "after")
    server.do("SET", "exai:new", "1")
    server.kill()
    restored = run(server, tmp_path / "backups", "restore", str(tmp_path / "backups" / name))
    assert restored.returncode == 0, restored.stderr
    server.start()
    assert server.do("GET", "exai:kept") == b"before"
    assert 0 < server.do("TTL", "exai:kept") <= 5000
    assert server.do("EXISTS", "exai:new") == 0
    assert server.do("HSTRLEN", "exai:page", "field") == 10_000
    assert server.do("CONFIG", "GET", "appendonly")[1] == b"yes"
    server.do("SET", "exai:later", "1")
    server.do("WAITAOF", 1, 0, 5_000)
    server.kill()
    server.start()
    assert server.do("GET", "exai:later") == b"1"
    assert server.do("GET", "exai:kept") == b"before"


def test_newest_seven_are_kept_and_other_files_are_left(server: Valkey, tmp_path: Path) -> None:
    older = [f"cache-202601{day:02}T000000Z.rdb" for day in range(1, 10)]
    for name in (*older, "notes.txt"):
        (tmp_path / name).write_text("older")
    assert run(server, tmp_path).returncode == 0
    *kept, newest, other = saved(tmp_path)
    assert kept == older[3:]
    assert other == "notes.txt"
    assert newest > older[-1]


def test_each_backup_has_what_was_written_before_it(server: Valkey, tmp_path: Path) -> None:
    """Two in one second must not be taken for one, and a save that runs already is not the one that was asked for."""
    server.do("SET", "exai:a", "1")
    server.do("BGSAVE")
    server.do("SET", "exai:b", "in-the-second-save")
    done = run(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"in-the-second-save" in Path(done.stdout.strip()).read_bytes()


def test_restore_is_refused_while_the_server_runs_and_from_what_is_no_snapshot(server: Valkey, tmp_path: Path) -> None:
    """Nothing is changed."""
    server.do("SET", "exai:a", "1")
    file = run(server, tmp_path).stdout.strip()
    running = run(server, tmp_path, "restore", file)
    assert running.returncode == 1
    assert "stop the server first" in running.stderr
    server.kill()
    text = tmp_path / "text.rdb"
    text.write_text("not a snapshot")
    for path, problem in ((text, "is not a snapshot"), (tmp_path / "absent", "cannot be read")):
        refused = run(server, tmp_path, "restore", str(path))
        assert refused.returncode == 1
        assert problem in refused.stderr
    server.start()
    assert server.do("GET", "exai:a") == b"1"


def test_server_that_cannot_save_is_an_error_and_leaves_no_file(server: Valkey, tmp_path: Path) -> None:
    """A disk that is full, here a directory in the place of the file."""
    server.do("SET", "exai:a", "1")
    (server.directory / "dump.rdb").unlink(missing_ok=True)
    (server.directory / "dump.rdb").mkdir()
    (server.directory / "dump.rdb" / "x").touch()
    done = run(server, tmp_path)
    assert done.returncode == 1
    assert "could not save" in done.stderr
    assert saved(tmp_path) == []


def test_server_that_is_away_is_an_error(server: Valkey, tmp_path: Path) -> None:
    server.kill()
    done = run(server, tmp_path)
    assert done.returncode == 1
    assert "does not answer" in done.stderr


def test_script_of_powershell_parses() -> None:
    """It is parsed and not run: there is no PowerShell where these tests run."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    text = (ROOT / "docker" / "backup-redis.ps1").read_bytes()
    assert not parser.parse(text).root_node.has_error
    assert parser.parse(text.rstrip()[:-1]).root_node.has_error, "a missing bracket would be found"
