"""A PDF without text among the files of an expert tool: Kimi reads it, or the result says what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from exai.app import App, open_app
from exai.settings.load import FileSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.sources.test_documents import pdf
from tests.integration.workflows.conftest import call, called
from tests.support.kimi_files import TEXT, KimiFiles


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path / "data") as opened:
        opened.provider.files = KimiFiles()
        yield opened


async def reading(stack: AsyncExitStack, rig: Rig, root: Path, *, may_upload: bool = True) -> App:
    root.mkdir()
    (root / "scan.pdf").write_bytes(pdf(""))
    files = FileSettings(roots=(root,), provider_extract=may_upload)
    return await stack.enter_async_context(open_app(rig.app.settings.model_copy(update={"files": files})))


async def test_a_kimi_model_is_shown_the_text_of_a_scan(rig: Rig, tmp_path: Path) -> None:
    """Uploaded once per content, as by chat."""
    async with AsyncExitStack() as stack:
        app = await reading(stack, rig, tmp_path / "root")
        for _ in range(2):
            found = await call(app, "analyze", prompt="What is it?", files=[str(tmp_path / "root" / "scan.pdf")])
            assert found["read"] == [
                "scan.pdf (PDF of 1 page without text, as a scan, which the model's provider reads)"
            ]
            assert TEXT in str(rig.provider.chats[-1].body["messages"])
    assert isinstance(rig.provider.files, KimiFiles)
    assert len(rig.provider.files.uploads) == 1


async def test_without_leave_to_upload_the_error_names_the_setting(rig: Rig, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        app = await reading(stack, rig, tmp_path / "root", may_upload=False)
        with pytest.raises(Exception, match="EXAI_FILES__PROVIDER_EXTRACT=true so that Kimi may read it"):
            await called(app, "analyze", {"prompt": "What?", "files": [str(tmp_path / "root" / "scan.pdf")]})
    assert rig.provider.chats == []
