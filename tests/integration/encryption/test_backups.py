"""Backups of encrypted content hold it encrypted, need no key, and are read with the key where they are restored."""

from __future__ import annotations

from pathlib import Path

from exai.conversations import AppendRequest
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, NewMessage
from tests.integration.backup.conftest import Side
from tests.integration.conversations.conftest import open_rig
from tests.integration.encryption.conftest import OpenRig, store_of


async def test_backup_is_made_without_keys_and_read_with_them(
    with_keys: OpenRig, postgres_url: str, empty_postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The content is encrypted for its owner, so owners keep their names."""
    async with with_keys("k1") as rig:
        request = AppendRequest(LOCAL_OWNER, [NewMessage("user", "one")], title="the title")
        name = (await rig.app.conversations.append(request)).continuation_id
        (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.txt", b"content")])
    source, target = Side(postgres_url, tmp_path / "source"), Side(empty_postgres_url, tmp_path / "target")
    for side in (source, target):
        side.home.mkdir()
    backup = str(tmp_path / "backup")
    for arguments in (("backup", backup), ("backup", "--verify", backup)):
        status, out = await source.exai(*arguments)
        assert status == 0, out
    status, out = await target.exai("restore", backup, "--owner", "local=anna")
    assert status != 0
    assert "cannot rename owners, because the content of this backup is encrypted" in out
    assert "Restore it with the names it has, then export conversations and import them for the other owner" in out
    status, out = await target.exai("restore", backup)
    assert status == 0, out
    async with open_rig(empty_postgres_url, redis_url, tmp_path / "data", store=store_of("k1")) as restored:
        page = await restored.app.conversations.read(LOCAL_OWNER, name)
        assert (page.conversation.title, page.messages[0].content) == ("the title", "one")
        assert (await restored.app.files.read(LOCAL_OWNER, file.id))[1] == b"content"
