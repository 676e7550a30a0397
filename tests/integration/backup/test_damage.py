"""A wrong passphrase, and any change of a file, is found before anything is restored; backups reuse earlier ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from exai.app import open_app
from exai.backup.manifest import read_manifest
from exai.backup.sealing import Damaged
from exai.backup.verifying import BackupReader
from exai.errors import RequestError
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, Owner, StoredFile
from exai.settings.load import load_settings
from tests.integration.backup.conftest import Side
from tests.support.migrations import run, value

pytestmark = pytest.mark.heavy


class Silent:
    """Shows no progress."""

    def expect(self, size_bytes: int) -> None:
        pass

    def add(self, size_bytes: int, what: str) -> None:
        pass


SIZES = (0, 5, 262_144, 3_000_000)


async def store(side: Side, *contents: bytes, owner: Owner = LOCAL_OWNER, **settings: str) -> tuple[StoredFile, ...]:
    async with open_app(load_settings(side.variables(**settings), None)) as app:
        files = [FileContent(f"{number}.bin", data) for number, data in enumerate(contents)]
        return await app.files.put(owner, files)


def passphrase(side: Side, text: str) -> list[str]:
    path = side.home / f"passphrase-{len(text)}"
    path.write_text(text + "\n")
    return ["--passphrase-file", str(path)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, half, longer, changed, Path.unlink)


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_every_damage_is_found_before_anything_is_restored(
    source: Side, target: Side, *, is_sealed: bool
) -> None:
    """In each kind of file: the manifest, a table, the listing, and the bytes of a small and a large content."""
    await store(source, *(bytes([n % 251]) * n for n in SIZES))
    options = passphrase(source, "correct horse") if is_sealed else []
    whole, broken = source.home / "whole", source.home / "broken"
    assert (await source.exai("backup", str(whole), *options))[0] == 0
    files = sorted((path.stat().st_size, path) for path in (whole / "files").rglob("*.zst"))
    tables = whole / "tables"
    kinds = [
        whole / "manifest.json",
        tables / "public.files.copy.zst",
        whole / "files.jsonl.zst",
        files[0][1],
        files[-1][1],
    ]
    for kind in kinds:
        for damage in DAMAGES:
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(whole, broken)
            damage(broken / kind.relative_to(whole))
            try:
                manifest, seal = read_manifest(broken, lambda: "correct horse")
                problems = await BackupReader(broken, manifest, seal).verify(Silent())
            except (Damaged, RequestError):
                continue
            assert problems, (kind.name, damage)
    status, out = await target.exai("restore", str(broken), *options)
    assert status == 1, out
    assert await value(target.url, "select to_regnamespace('exai') is null")


async def test_two_files_cannot_change_places(source: Side) -> None:
    """With a passphrase each file is bound to its name."""
    await store(source, b"a" * 100, b"b" * 100)
    options = passphrase(source, "correct horse")
    directory = source.home / "backup"
    assert (await source.exai("backup", str(directory), *options))[0] == 0
    one, other = (directory / "files").rglob("*.zst")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    status, out = await source.exai("backup", "--verify", str(directory), *options)
    assert (status, out.count("is damaged: it is changed")) == (1, 2), out


async def test_a_wrong_or_missing_passphrase_changes_nothing(source: Side, target: Side) -> None:
    """It is not in the backup, nor is anything that it protects."""
    await store(source, b"secret words" * 1_000)
    directory = source.home / "backup"
    assert (await source.exai("backup", str(directory), *passphrase(source, "correct horse")))[0] == 0
    status, out = await target.exai("restore", str(directory), *passphrase(target, "wrong"))
    assert (status, "passphrase: is wrong" in out) == (1, True), out
    status, out = await target.exai("restore", str(directory))
    assert (status, "there is no terminal to ask at" in out) == (1, True), out
    assert await value(target.url, "select to_regnamespace('exai') is null")
    everything = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"correct horse" not in everything
    digest = await value(source.url, "select sha256 from exai.contents")
    assert not [path for path in directory.rglob("*") if digest in path.name]
    assert digest.encode() not in everything
    assert all(path.stat().st_mode & 0o077 == 0 for path in (directory, *directory.rglob("*.zst")))


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_contents_of_an_earlier_backup_are_not_copied_again(
    source: Side, target: Side, *, is_sealed: bool
) -> None:
    """They are linked, and stay when the earlier backup is removed; equal ones of two owners are stored once."""
    options = passphrase(source, "correct horse") if is_sealed else []
    first, second = source.home / "first", source.home / "second"
    await store(source, b"one" * 50_000, b"two" * 50_000)
    assert (await source.exai("backup", str(first), *options))[0] == 0
    await store(source, b"three" * 50_000)
    await store(source, b"one" * 50_000, owner=Owner("other"))
    status, out = await source.exai("backup", str(second), "--base", str(first), *options)
    assert (status, "4 contents of files (1 copied, 2 from the earlier backup)" in out) == (0, True), out
    names = {path.name: path.stat().st_ino for path in (second / "files").rglob("*.zst")}
    assert len(names) == 3
    assert {path.stat().st_ino for path in (first / "files").rglob("*.zst")} < set(names.values())
    shutil.rmtree(first)
    assert (await source.exai("backup", "--verify", str(second), *options))[0] == 0
    status, out = await target.exai("restore", str(second), *options)
    assert status == 0, out
    status, out = await target.exai("blobs", "verify")
    assert (status, "4 contents verified" in out) == (0, True), out


async def test_a_base_with_another_passphrase_is_refused(source: Side) -> None:
    """Else its contents could not be read with the new one."""
    plain, sealed, new = (str(source.home / name) for name in ("plain", "sealed", "new"))
    assert (await source.exai("backup", plain))[0] == 0
    assert (await source.exai("backup", sealed, *passphrase(source, "correct horse")))[0] == 0
    for base, options in (
        (plain, passphrase(source, "correct horse")),
        (sealed, []),
        (sealed, passphrase(source, "no")),
    ):
        status, out = await source.exai("backup", new, "--base", base, *options)
        assert status == 1, out
        assert not Path(new).exists()


async def test_lost_bytes_are_named_and_all_others_restored(source: Side, target: Side) -> None:
    """A backup is complete without them, but does not end as if nothing had happened."""
    lost, kept = await store(source, b"lost" * 50_000, b"kept" * 50_000)
    await run(
        source.url,
        f"delete from exai.blob_parts p using exai.contents c where c.sha256 = '{lost.sha256}'"
        " and p.blob_id = c.blob_id",
    )
    directory = str(source.home / "backup")
    status, out = await source.exai("backup", directory)
    assert (status, "1 contents have no bytes" in out, lost.sha256 in out) == (1, True, True), out
    status, out = await target.exai("restore", directory)
    assert (status, "1 contents have no bytes in the backup" in out) == (0, True), out
    async with open_app(load_settings(target.variables(), None)) as app:
        assert (await app.files.read(LOCAL_OWNER, kept.id))[1] == b"kept" * 50_000
    # Storing it again repairs it.
    again, *_ = await store(target, b"lost" * 50_000)
    async with open_app(load_settings(target.variables(), None)) as app:
        assert (await app.files.read(LOCAL_OWNER, again.id))[1] == b"lost" * 50_000
    assert again.id == lost.id
