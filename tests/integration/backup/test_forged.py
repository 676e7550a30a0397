"""Backups that others have made to harm: without a passphrase their digests prove nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from exai.app import open_app
from exai.backup.manifest import NAME, read_manifest
from exai.backup.parts import PartWriter
from exai.backup.sealing import Damaged, plain_digest
from exai.backup.verifying import MAX_CONTENT_BYTES, BackupReader
from exai.conversations.requests import AppendRequest
from exai.models import LOCAL_OWNER, NewMessage, Owner
from exai.settings.load import load_settings
from tests.integration.backup.conftest import Side
from tests.integration.backup.test_damage import Silent, passphrase, store
from tests.support.migrations import value

ZEROS = bytes(1_048_576)


def no_passphrase() -> str:
    raise AssertionError("the backup has none")


def forge(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and give it the digest that it then has to have."""
    body = orjson.loads(orjson.loads((directory / NAME).read_bytes())["manifest"])
    change(body)
    text = orjson.dumps(body).decode()
    document = {"format": 1, "manifest": text, "sha256": plain_digest(text.encode())}
    (directory / NAME).write_bytes(orjson.dumps(document))


def forge_listing(directory: Path, **fields: Any) -> None:
    """Replace the listing by one entry."""
    entry = {"owner": "local", "sha256": "0" * 64, "size_bytes": 1, "has_row": True, "problem": None, **fields}
    part = PartWriter(directory, "files.jsonl.zst", None)
    part.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
    part.close()
    forge(directory, lambda body: body["listing"].update(size_bytes=part.size_bytes, sha256=part.sha256))


async def made(side: Side) -> Path:
    directory = side.home / "backup"
    await store(side, b"content" * 10_000)
    status, out = await side.exai("backup", str(directory))
    assert status == 0, out
    return directory


async def problems_of(directory: Path) -> list[str]:
    manifest, seal = read_manifest(directory, no_passphrase)
    return await BackupReader(directory, manifest, seal).verify(Silent())


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "tables/../../other", "manifest.json"])
async def test_a_manifest_names_no_files_elsewhere(source: Side, name: str) -> None:
    """Neither for a table nor for the listing, nor by the name of a table."""
    directory = await made(source)
    good = (directory / NAME).read_bytes()
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda body: body["listing"].update(file=name),
        lambda body: body["tables"][0]["part"].update(file=name),
        lambda body: body["tables"][0].update(table=f"x/{name}", part={**body["tables"][0]["part"], "file": name}),
    ]
    for change in changes:
        (directory / NAME).write_bytes(good)
        forge(directory, change)
        with pytest.raises(Damaged, match="names other files"):
            read_manifest(directory, no_passphrase)


async def test_a_listing_names_contents_by_their_digests_only(source: Side) -> None:
    """Else a content's name would be a path."""
    directory = await made(source)
    forgeries: tuple[dict[str, Any], ...] = (
        {"sha256": "../../x"},
        {"sha256": 5},
        {"size_bytes": -1},
        {"owner": []},
        {"more": 1},
    )
    for fields in forgeries:
        forge_listing(directory, **fields)
        assert await problems_of(directory) == ["files.jsonl.zst is damaged: a line of it names no content"]


async def test_a_file_that_unpacks_to_more_than_stated_is_not_unpacked(
    source: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 GB of zeros are 2 MB; reading ends with the first bytes too many."""
    directory = await made(source)
    part = PartWriter(directory, "files/00/" + "0" * 64 + ".zst", None)
    for _ in range(64):
        part.write(ZEROS)
    part.close()
    forge_listing(directory)
    manifest, seal = read_manifest(directory, no_passphrase)
    reader = BackupReader(directory, manifest, seal)
    read, pieces = [], reader.bytes_of

    def counted(sha256: str) -> Any:
        for piece in pieces(sha256):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(reader, "bytes_of", counted)
    assert len(await reader.verify(Silent())) == 1
    assert sum(read) <= 2 * len(ZEROS)


async def test_a_content_larger_than_any_file_is_refused(source: Side) -> None:
    """It would be restored in one piece."""
    directory = await made(source)
    forge_listing(directory, size_bytes=MAX_CONTENT_BYTES + 1)
    (problem,) = await problems_of(directory)
    assert "the limit is 1,073,741,824" in problem


async def test_a_pipe_in_place_of_a_file_does_not_block(source: Side) -> None:
    """Nor in place of the manifest."""
    directory = await made(source)
    table = directory / "tables" / "public.files.copy.zst"
    table.unlink()
    os.mkfifo(table)
    assert any("is not a regular file" in each for each in await problems_of(directory))
    (directory / NAME).unlink()
    os.mkfifo(directory / NAME)
    with pytest.raises(Damaged, match="regular file"):
        read_manifest(directory, no_passphrase)


async def test_a_passphrase_is_not_ignored_for_a_backup_without_one(source: Side, target: Side) -> None:
    """Else a forged backup could take the place of an encrypted one."""
    directory = str(await made(source))
    options = passphrase(source, "correct horse")
    for command in (("backup", "--verify", directory), ("restore", directory)):
        status, out = await target.exai(*command, *options)
        assert (status, "the backup is not encrypted" in out) == (1, True), out
    assert await value(target.url, "select to_regnamespace('exai') is null")


async def append(side: Side, *owners: str) -> None:
    async with open_app(load_settings(side.variables(), None)) as app:
        for owner in owners:
            await app.conversations.append(AppendRequest(Owner(owner), [NewMessage("user", f"of {owner}")]))


async def test_rows_of_two_owners_are_not_mixed(source: Side, target: Side) -> None:
    """An owner would read what another one has written."""
    await append(source, LOCAL_OWNER, "alice", "bob")
    directory = str(source.home / "backup")
    assert (await source.exai("backup", directory))[0] == 0
    for names, problem in (
        (("alice=bob",), "would mix rows of two owners: the backup has rows of bob already"),
        (("alice=x", "bob=x"), "names an owner twice: bob=x"),
        (("alice=x", "alice=y"), "names an owner twice: alice=y"),
    ):
        options = [each for name in names for each in ("--owner", name)]
        status, out = await target.exai("restore", directory, *options)
        assert (status, problem in out) == (1, True), out
    assert await value(target.url, "select coalesce(to_regclass('public.conversations')::text, '')") in (
        "",
        "conversations",
    )


async def test_two_owners_can_exchange_their_names(source: Side, target: Side) -> None:
    """Also where an owner is named within JSON, which is renamed by statements of its own."""
    await append(source, "alice", "bob", "carol")
    for owner in ("alice", "bob", "carol"):
        data = f'{{"labels": {{"owner": "{owner}"}}, "value": {len(owner)}}}'
        await value(source.url, f"select monitoring.insert_metric('turn', '{data}')::text")
    directory = str(source.home / "backup")
    assert (await source.exai("backup", directory))[0] == 0
    options = ["--owner", "alice=bob", "--owner", "bob=carol", "--owner", "carol=alice"]
    status, out = await target.exai("restore", directory, *options)
    assert status == 0, out
    expected = {"bob": "of alice", "carol": "of bob", "alice": "of carol"}
    for owner, text in expected.items():
        query = "select m.content from public.messages m join public.conversations c on c.id = m.conversation_id"
        assert await value(target.url, f"{query} where c.owner = '{owner}'") == text
        number = (
            f"select (data ->> 'value')::int from monitoring.metrics_raw where data #>> '{{labels,owner}}' = '{owner}'"
        )
        assert await value(target.url, number) == len(text.removeprefix("of "))
