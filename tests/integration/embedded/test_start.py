"""Starting embedded servers: first and later starts, unusual paths and users, and the reasons of refusals."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import pytest
import redis.asyncio

from exai.embedded.launcher import start_embedded
from exai.embedded.postgres import PostgresBinaries
from exai.errors import StartupError
from tests.integration.embedded.conftest import Identity
from tests.support.programs import program


async def answer(postgres_url: str, sql: str) -> object:
    """One value."""
    connection = await asyncpg.connect(postgres_url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def execute(postgres_url: str, *statements: str) -> None:
    """Each in a transaction of its own."""
    connection = await asyncpg.connect(postgres_url)
    try:
        for sql in statements:
            await connection.execute(sql)
    finally:
        await connection.close()


def socket_dir_of(postgres_url: str) -> Path:
    """Where the server listens."""
    return Path(parse_qs(urlsplit(postgres_url).query)["host"][0])


async def test_cold_start_answers_on_both_servers(data_dir: Path, binaries: PostgresBinaries) -> None:
    """From nothing to an answer with one call."""
    async with start_embedded(data_dir, pg_bin=binaries.bin_dir) as embedded:
        version = await answer(embedded.postgres_url, "show server_version")
        assert str(version).startswith(embedded.postgres_version)
        assert embedded.postgres_version == binaries.version
        async with redis.asyncio.from_url(embedded.valkey_url) as client:
            assert await client.ping()
        assert embedded.notes == ()
        assert embedded.data_dir == data_dir.resolve()


async def test_warm_start_finds_what_was_written(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Conversations are continued days later."""
    async with start_embedded(data_dir, pg_bin=binaries.bin_dir) as embedded:
        await execute(embedded.postgres_url, "create table kept (n int)", "insert into kept values (7)")
        async with redis.asyncio.from_url(embedded.valkey_url) as client:
            await client.set("kept", "7")
    async with start_embedded(data_dir, pg_bin=binaries.bin_dir) as embedded:
        assert await answer(embedded.postgres_url, "select n from kept") == 7
        async with redis.asyncio.from_url(embedded.valkey_url) as client:
            assert await client.get("kept") == b"7"


async def test_servers_are_reachable_through_private_sockets_only(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Trust authentication is safe because of this alone."""
    async with start_embedded(data_dir, pg_bin=binaries.bin_dir) as embedded:
        sockets = socket_dir_of(embedded.postgres_url)
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert await answer(embedded.postgres_url, "show listen_addresses") == ""
        async with redis.asyncio.from_url(embedded.valkey_url) as client:
            assert await client.config_get("port") == {"port": "0"}


async def test_postgres_keeps_acknowledged_writes_through_a_power_cut(
    data_dir: Path, binaries: PostgresBinaries
) -> None:
    """The user's data is written with every protection on; only tests ask for less."""
    async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir) as embedded:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await answer(embedded.postgres_url, f"show {setting}") == "on"
        assert await answer(embedded.postgres_url, "show server_encoding") == "UTF8"


async def test_valkey_is_bounded_and_persistent(data_dir: Path) -> None:
    """The same rules as docker/redis.conf."""
    async with start_embedded(data_dir, postgres=False) as embedded:
        assert embedded.postgres_url is None
        async with redis.asyncio.from_url(embedded.valkey_url) as client:
            settings = await client.config_get("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "save")
    assert int(settings.pop("maxmemory")) > 0
    assert settings.pop("save")
    assert settings == {"maxmemory-policy": "volatile-lru", "appendonly": "yes", "appendfsync": "everysec"}


async def test_stop_leaves_no_process_and_no_socket(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Servers live as long as the program."""
    with program({"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir)}) as run:
        sockets = socket_dir_of(run.said["postgres_url"])
        assert len(run.family) > 2
        assert run.end() == 0
        assert run.all_gone()
        assert not sockets.exists()
        assert not (data_dir / "running.json").exists()


@pytest.mark.parametrize(
    "name",
    ["with spaces", 'it\'s "ünï" $HOME, #1; 100%', "/".join(["long" * 10] * 5)],
    ids=["spaces", "punctuation", "long"],
)
async def test_any_data_directory_will_do(identity: Identity, their_dir: Callable[[str], Path], name: str) -> None:
    """Socket paths are limited to about a hundred bytes; data directories are where the user wants them."""
    directory = their_dir(name)
    plan = {"data_dir": str(directory), "pg_bin": str(identity.pg_bin), "durable": False}
    with program(plan, python=(identity.python,), path=identity.path, user=identity.user) as run:
        assert "error" not in run.said
        assert await answer(run.said["postgres_url"], "select 1") == 1
        async with redis.asyncio.from_url(run.said["valkey_url"]) as client:
            assert await client.ping()


async def test_sockets_are_in_the_data_directory_where_they_can_be(their_dir: Callable[[str], Path]) -> None:
    """Directories for temporary files are tidied up by others."""
    async with start_embedded(their_dir("data"), postgres=False) as embedded:
        assert Path(unquote(urlsplit(embedded.valkey_url).path)).parents[1] == embedded.data_dir


@pytest.mark.parametrize(
    ("name", "is_used"),
    [("a b", True), ("x" * 90, False)],
    ids=["space", "long"],
)
async def test_sockets_find_a_place_when_the_data_directory_has_a_long_path(
    tmp_path: Path, binaries: PostgresBinaries, name: str, is_used: bool
) -> None:
    """macOS has long temporary directories too."""
    plan = {"data_dir": str(tmp_path / ("d" * 90)), "pg_bin": str(binaries.bin_dir), "durable": False}
    with (
        # Not below `tmp_path`: how long that is depends on who runs the suite, and where.
        tempfile.TemporaryDirectory(prefix="exai-", dir="/tmp") as base,
        program(plan, environ={"TMPDIR": str(temporary := make(Path(base) / name))}) as run,
    ):
        assert "error" not in run.said
        assert await answer(run.said["postgres_url"], "select 1") == 1
        async with redis.asyncio.from_url(run.said["valkey_url"]) as client:
            assert await client.ping()
        assert (socket_dir_of(run.said["postgres_url"]).parent == temporary) == is_used


def make(directory: Path) -> Path:
    """Make a directory and return it."""
    directory.mkdir()
    return directory


async def test_directory_that_cannot_be_written_is_named(identity: Identity, their_dir: Callable[[str], Path]) -> None:
    """The error has the path and the cure."""
    locked = their_dir("file")
    locked.touch()
    plan = {"data_dir": str(locked / "data"), "pg_bin": str(identity.pg_bin)}
    with program(plan, python=(identity.python,), path=identity.path, user=identity.user) as run:
        assert str(locked) in run.said["error"]
        assert "EXAI_DATA_DIR" in run.said["error"]
        assert run.end() == StartupError.exit_status


async def test_directory_of_another_user_is_named(their_dir: Callable[[str], Path], identity: Identity) -> None:
    """The usual case of the rule above; root may write everywhere."""
    directory = their_dir("readonly")
    directory.mkdir(mode=0o555)
    plan = {"data_dir": str(directory), "pg_bin": str(identity.pg_bin)}
    with program(plan, python=(identity.python,), path=identity.path, user=identity.user) as run:
        if identity.user is None and os.geteuid() == 0:
            assert "error" not in run.said
        else:
            assert "Permission denied" in run.said["error"]
            assert "EXAI_DATA_DIR" in run.said["error"]


async def test_no_user_namespaces_still_lets_root_start(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Containers run as root and refuse namespaces; the data is below a 0700 directory there too."""
    if os.geteuid() != 0:
        pytest.skip("only root meets this")
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "durable": False}
    for namespaces in (True, False, True):
        with program(plan | {"no_namespaces": not namespaces}) as run:
            assert "error" not in run.said
            uid = os.getuid() if namespaces else 65534
            assert next(data_dir.glob("postgres-*/PG_VERSION")).stat().st_uid == uid
            await execute(run.said["postgres_url"], "create table if not exists t ()")
            assert run.end() == 0
            assert run.all_gone()


async def test_other_major_version_is_refused_with_its_cure(data_dir: Path, binaries: PostgresBinaries) -> None:
    """Starting an empty database instead would look like data loss."""
    for major in (13, 99):
        cluster = data_dir / f"postgres-{major}"
        cluster.mkdir(parents=True)
        (cluster / "PG_VERSION").write_text(f"{major}\n")
        with pytest.raises(StartupError, match=f"written by Postgres {major}.*EXAI_PG_BIN at Postgres {major}"):
            async with start_embedded(data_dir, valkey=False, pg_bin=binaries.bin_dir):
                pass


async def test_named_binaries_that_are_none_are_refused(data_dir: Path, tmp_path: Path) -> None:
    """A configured path is used or is an error; no other Postgres replaces it."""
    with pytest.raises(StartupError, match=r"EXAI_PG_BIN.*initdb"):
        async with start_embedded(data_dir, pg_bin=tmp_path):
            pass
    assert not data_dir.exists()


async def test_missing_valkey_is_reported(data_dir: Path, binaries: PostgresBinaries) -> None:
    """On a platform without Valkey there is no cache."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "durable": False}
    with program(plan, python=(sys.executable, "-S"), environ={"PATH": "/nonexistent"}) as run:
        assert run.said["valkey_url"] is None
        assert "running without a cache" in " ".join(run.said["notes"])
        assert await answer(run.said["postgres_url"], "select 1") == 1


async def test_full_disk_is_an_error_with_the_end_of_the_log(data_dir: Path, binaries: PostgresBinaries) -> None:
    """A file size limit stands in for a full disk; nothing half-made is taken for a database afterwards."""
    plan = {"data_dir": str(data_dir), "pg_bin": str(binaries.bin_dir), "valkey": False, "durable": False}
    with program(plan | {"file_max_bytes": 300_000}) as run:
        assert "no database could be made: " in run.said["error"]
        assert "postgres.log" in run.said["error"]
    with program(plan) as run:
        assert "error" not in run.said


async def test_directory_of_the_running_file_may_hold_rubbish(data_dir: Path, binaries: PostgresBinaries) -> None:
    """A crash of the whole machine can leave any of our small files empty or torn."""
    data_dir.mkdir()
    for text in ("", "{", json.dumps({"pid": 1}), json.dumps([1])):
        (data_dir / "running.json").write_text(text)
        async with start_embedded(data_dir, postgres=False, pg_bin=binaries.bin_dir) as embedded:
            assert unquote(urlsplit(embedded.valkey_url).path).endswith("valkey.sock")
