"""What operators run on a database with encrypted content: with its keys, and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from exai.conversations import AppendRequest
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, NewMessage
from tests.integration.backup.conftest import Side
from tests.integration.conversations.conftest import Rig
from tests.integration.encryption.conftest import OpenRig, key
from tests.support.migrations import run, value

KEYS = "EXAI_STORE__KEYS"
LOCAL = " where owner = 'local'"
"""An application of a test has stored a message of another owner."""


@pytest.fixture
def side(postgres_url: str, tmp_path: Path) -> Side:
    """Commands on the database of the test."""
    (tmp_path / "home").mkdir()
    return Side(postgres_url, tmp_path / "home")


async def filled(rig: Rig) -> str:
    """Store a conversation and a file; return the name of the conversation."""
    messages = [NewMessage("user", f"harbour {number}") for number in range(3)]
    name = (await rig.app.conversations.append(AppendRequest(LOCAL_OWNER, messages, title="a title"))).continuation_id
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", b"content")])
    await rig.app.files.link(LOCAL_OWNER, name, [file.id])
    return name


async def test_doctor_names_the_keys_and_what_is_missing(with_keys: OpenRig, side: Side) -> None:
    """A daemon would not start without them; a database without keys has no such line."""
    assert "encryption" not in (await side.exai("doctor"))[1]
    async with with_keys("k1") as rig:
        await filled(rig)
    out = (await side.exai("doctor", **{KEYS: key("k1")}))[1]
    assert "new content is encrypted with the key k1" in out
    out = (await side.exai("doctor", **{KEYS: f"{key('k2')},{key('k1')}"}))[1]
    assert "new content is encrypted with the key k2; older content may need k1 until" in out
    out = (await side.exai("doctor", **{KEYS: f"plain,{key('k1')}"}))[1]
    assert "new content is stored as plain text; older content may need k1" in out
    for keys in ({}, {KEYS: key("k2")}):
        status, out = await side.exai("doctor", **keys)
        assert status == 1
        assert "lacks keys with which content of this database is encrypted: k1" in out
        assert "Add them after the newest (k1:KEY)" in out
    other = key("k2").replace("k2:", "k1:")
    status, out = await side.exai("doctor", **{KEYS: other})
    assert status == 1
    assert "the key k1 is not the one with that name" in out
    assert other.partition(":")[2] not in out


async def test_validate_needs_no_key(with_keys: OpenRig, side: Side) -> None:
    """It measures promises on rows of its own, and changes none that is encrypted."""
    async with with_keys("k1") as rig:
        await filled(rig)
    for keys in ({}, {KEYS: key("k1")}):
        status, out = await side.exai("validate", **keys)
        assert status == 0, out
        assert "FAIL" not in out


async def test_erase_finds_what_is_encrypted(with_keys: OpenRig, side: Side, postgres_url: str) -> None:
    """Owners and names are readable, so the same rows are found; without a key nothing is erased."""
    async with with_keys("k1") as rig:
        name = await filled(rig)
        kept = await filled(rig)
    status, out = await side.exai("erase", "conversation", name, "--yes")
    assert status != 0
    assert "lacks keys" in out
    status, out = await side.exai("erase", "conversation", name, "--yes", **{KEYS: key("k1")})
    assert status == 0, out
    assert "1 conversations, 0 files and 0 contents" in out
    assert await value(postgres_url, "select continuation_id from public.conversations" + LOCAL) == kept
    status, out = await side.exai("erase", "owner", LOCAL_OWNER, "--yes", **{KEYS: key("k1")})
    assert "1 conversations, 1 files and 1 contents" in out
    for table in ("public.conversations", "public.files", "exai.contents"):
        assert await value(postgres_url, f"select count(*) from {table}" + LOCAL) == 0
    assert await value(postgres_url, "select name from exai.encryption_keys") == "k1"


async def test_config_check_reads_keys_and_names_the_wrong_one(side: Side, tmp_path: Path) -> None:
    """From the environment and from a file of secrets; their values are in no output."""
    secret = key("k1").partition(":")[2]
    status, out = await side.exai("config", "--check", **{KEYS: key("k1")})
    assert status == 0, out
    assert secret not in out
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / KEYS).write_text(f"{key('k2')}\n{key('k1')}\n")
    status, out = await side.exai("config", "--check", EXAI_SECRETS_DIR=str(secrets))
    assert status == 0, out
    assert secret not in (await side.exai("config", EXAI_SECRETS_DIR=str(secrets)))[1]
    for wrong, problem in (("k1:abc", "32 bytes"), (f"{key('k1')},{key('k1')}", "k1"), (secret, "NAME:KEY")):
        status, out = await side.exai("config", "--check", **{KEYS: wrong})
        assert status == 2, out
        assert KEYS in out
        assert problem in out
        assert secret not in out


async def test_rehearsal_of_rekey_counts_and_changes_nothing(with_keys: OpenRig, side: Side, postgres_url: str) -> None:
    """Rows, and the contents of files among them; then the same numbers are replaced."""
    async with with_keys() as rig:
        await filled(rig)
    status, out = await side.exai("rekey", "--dry-run", **{KEYS: key("k1")})
    assert status == 0, out
    assert "7 rows are not encrypted with the key k1; 0 of them cannot be read" in out
    assert "1 contents of files (7 bytes) would be stored again" in out
    assert await value(postgres_url, "select count(*) from public.messages where content like '$exai1$%'") == 0
    assert await value(postgres_url, "select count(*) from exai.contents") == 1
    status, out = await side.exai("rekey", **{KEYS: key("k1")})
    assert status == 0, out
    assert "7 rows are now encrypted with the key k1" in out
    assert "1 contents of files (7 bytes) were stored again" in out
    status, out = await side.exai("rekey", "--dry-run", **{KEYS: key("k1")})
    assert "0 rows are not encrypted with the key k1" in out
    status, out = await side.exai("rekey")
    assert status != 0
    assert "lacks keys" in out or "is not set" in out


async def test_rehearsal_names_what_cannot_be_read(with_keys: OpenRig, side: Side, postgres_url: str) -> None:
    """The status stays 0: nothing was to be done."""
    async with with_keys("k1") as rig:
        await filled(rig)
    await run(postgres_url, "update public.messages set content = left(content, 40) where seq = 2")
    status, out = await side.exai("rekey", "--dry-run", **{KEYS: f"{key('k2')},{key('k1')}"})
    assert status == 0
    assert "1 of them cannot be read" in out
    assert "content of message 2" in out
    status, out = await side.exai("rekey", **{KEYS: f"{key('k2')},{key('k1')}"})
    assert status == 1
    assert "1 rows cannot be read and stay as they are" in out
    assert await value(postgres_url, "select string_agg(name, ',' order by name) from exai.encryption_keys") == "k1,k2"


async def test_index_is_made_again_after_a_change_of_search(with_keys: OpenRig, side: Side, postgres_url: str) -> None:
    """Without hashes of words nothing is found; `--index` makes them of what was stored meanwhile."""
    hashes = "select count(*) from exai.message_words where words <> ''"
    async with with_keys("k1", search="off") as rig:
        await filled(rig)
        await rig.app.maintenance.index_words()
    assert await value(postgres_url, hashes) == 0
    status, out = await side.exai("rekey", "--index", **{KEYS: key("k1")})
    assert status == 0, out
    assert await value(postgres_url, hashes) > 0
    status, out = await side.exai("search", "harbour", **{KEYS: key("k1")})
    assert status == 0, out
    assert out.count("harbour") >= 3
    status, out = await side.exai("rekey", "--index", **{KEYS: key("k1"), "EXAI_STORE__SEARCH": "off"})
    assert status == 0, out
    assert await value(postgres_url, hashes) == 0
