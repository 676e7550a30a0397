"""What chat and recorded steps leave out of named files is in the result, and in what later models are shown."""

from __future__ import annotations

from pathlib import Path

from exai.app import App
from exai.models import Owner
from tests.integration.conversations.conftest import Rig
from tests.integration.workflows.conftest import call, rows_of


async def test_chat_reads_directories_and_says_what_it_left_out(rig: Rig, rooted: App, repository: Path) -> None:
    (repository / "data.bin").write_bytes(bytes(range(256)))
    found = await call(rooted, "chat", prompt="What is it?", files=[str(repository)])
    assert any(note.startswith("read: app.py") for note in found["notes"])
    assert any(note.startswith("left out: data.bin (binary") for note in found["notes"])
    sent = str(rig.provider.chats[-1].body["messages"])
    assert "planted" in sent
    assert "Of the material this was left out" in sent
    assert "data.bin (binary" in sent


async def test_chat_reads_a_range_of_lines(rig: Rig, rooted: App, repository: Path) -> None:
    await call(rooted, "chat", prompt="What is it?", files=[f"{repository / 'app.py'}:2-2"])
    sent = str(rig.provider.chats[-1].body["messages"])
    assert "planted" in sent
    assert "def add" not in sent


async def test_a_recorded_step_says_what_it_left_out(rig: Rig, rooted: App, repository: Path) -> None:
    """A model that is asked later is shown the list with the step."""
    (repository / "data.bin").write_bytes(bytes(range(256)))
    for tool, prompt in (("debug", "Looked."), ("planner", "1. Read\n2. Write")):
        step = await call(rooted, tool, Owner("steps"), prompt=prompt, files=[str(repository)], ask_model=False)
        assert any(each.startswith("data.bin (binary") for each in step["left_out"])
        rows = await rows_of(rooted, step["continuation_id"], Owner("steps"))
        assert "Of the material this was left out:\n- data.bin (binary" in rows[-1].content
