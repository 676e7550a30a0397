"""Sources reach the model as files of a message: stored once, readable later by any daemon."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exai.conversations import ChatRequest
from exai.conversations.turns.prompt import estimate_tokens
from exai.errors import DeadlineExceeded, InvalidArgument, NotFound
from exai.files.loading import FileContent
from exai.files.paths import Roots
from exai.files.service import FileService
from exai.files.sources import SourceReader, SourceRequest, SourcesRead
from exai.files.sources.reader import THREADS
from exai.models import LOCAL_OWNER, Owner
from exai.settings.load import FileSettings, LimitSettings
from tests.integration.conversations.conftest import Rig, open_rig


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Directly on the database."""
    async with open_rig(postgres_url, redis_url, tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("first = 1\n")
    (root / "src" / "b.py").write_text("second = 2\n")
    return root


def reader(rig: Rig, root: Path) -> SourceReader:
    return SourceReader(rig.app.files, Roots([root]), estimate_tokens)


async def test_model_is_shown_what_was_read(rig: Rig, root: Path) -> None:
    read = await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("src", "src/b.py:1")))
    assert read.read == ("src/b.py (1 line)", "src/a.py (1 line)")
    await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Review.", files=list(read.files)))
    (asked,) = [part["content"] for part in rig.provider.chats[-1].body["messages"]]
    assert asked.index("second = 2") < asked.index("first = 1")
    assert 'name="src/a.py"' in asked


async def test_reading_is_one_round_trip_and_the_same_files_again_are_the_same(rig: Rig, root: Path) -> None:
    rig.reset()
    first = await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("src",)))
    assert rig.cost() == (1, 0)
    assert await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("src",))) == first


async def test_file_ids_are_named_files_of_the_owner(rig: Rig, root: Path) -> None:
    (stored,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("notes.md", b"notes")])
    read = await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("src/a.py", stored.id.upper())))
    assert read.files[0] == stored.id
    assert read.read == ("notes.md (stored file, 5 bytes)", "src/a.py (1 line)")
    with pytest.raises(NotFound):
        await reader(rig, root).read(Owner("other"), SourceRequest((stored.id,)))


async def test_nothing_named_is_nothing_read(rig: Rig, root: Path) -> None:
    rig.reset()
    assert await reader(rig, root).read(LOCAL_OWNER, SourceRequest()) == SourcesRead()
    assert rig.cost() == (0, 0)


async def test_entries_of_which_nothing_can_be_read_are_an_error_with_the_reasons(rig: Rig, root: Path) -> None:
    """Never an answer about nothing."""
    (root / "raw").write_bytes(b"\0\1\2\3" * 100)
    with pytest.raises(InvalidArgument, match=r"nothing could be read of .*raw \(binary.*\*\.rs \(matches nothing"):
        await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("raw", "*.rs")))
    subprocess.run(["git", "init", "-q", root], check=True)
    with pytest.raises(
        InvalidArgument, match=r"^diff: nothing could be read of it: .*no changes in .*Give another diff"
    ):
        await reader(rig, root).read(LOCAL_OWNER, SourceRequest(diff="staged", directory=root))
    with pytest.raises(InvalidArgument, match=r"files\[1\]: is blank"):
        await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("raw", " ")))


async def test_caller_that_leaves_ends_the_reading(rig: Rig, root: Path) -> None:
    """The thread asks its limits, which the caller's end closes; the event loop is free in the meantime."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            leave.wait(5)
            seen.append(1)
        return 0.0

    slow = SourceReader(rig.app.files, Roots([root]), estimate_tokens, clock=clock)
    running = asyncio.create_task(slow.read(LOCAL_OWNER, SourceRequest(("src",))))
    assert await asyncio.to_thread(entered.wait, 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    leave.set()
    # Another reading of the same owner finds a free thread.
    assert (await reader(rig, root).read(LOCAL_OWNER, SourceRequest(("src",)))).read
    assert len(seen) <= 2


async def test_files_over_the_limit_of_the_settings_are_left_out(rig: Rig, root: Path) -> None:
    """Rather than an error about files that the caller did not name one by one."""
    (root / "src" / "c.py").write_text("third = 3\n" * 200)
    limited = FileService(
        rig.app.files.repository,
        rig.app.files.blobs,
        FileSettings(max_bytes=1_024),
        limits=LimitSettings(),
        roots=Roots([root]),
    )
    read = await SourceReader(limited, Roots([root]), estimate_tokens).read(LOCAL_OWNER, SourceRequest(("src",)))
    assert len(read.files) == 2
    assert read.left_out == ("src/c.py (over the limit of 1.0 kB for files)",)


class HungRoots(Roots):
    """Roots below which one file system does not answer until `answer` is set."""

    def __init__(self, root: Path, hung: str) -> None:
        super().__init__([root])
        self.hung, self.answer = str(root / hung), threading.Event()

    def find(self, field: str, path: str) -> tuple[Path, Path]:
        if path.startswith(self.hung):
            self.answer.wait()
        return super().find(field, path)


async def test_readings_that_hang_do_not_hold_up_later_ones(rig: Rig, root: Path) -> None:
    """As many as there are threads, and one more; each error names its path, which is then refused at once."""
    for number in range(THREADS + 1):
        (root / f"hung{number}").write_text("x")
    roots = HungRoots(root, "hung")
    reading = SourceReader(rig.app.files, roots, estimate_tokens, limit_s=0.2)
    try:
        for number in range(THREADS + 1):
            with pytest.raises(DeadlineExceeded, match=rf"the file system at .*hung{number}"):
                await reading.read(LOCAL_OWNER, SourceRequest((str(root / f"hung{number}"),)))
        with pytest.raises(InvalidArgument, match=r"hung0.* is not read, because reading .*hung0.* hangs"):
            await reading.read(LOCAL_OWNER, SourceRequest((str(root / "hung0"),)))
        read = await reading.read(LOCAL_OWNER, SourceRequest(("src/a.py",)))
        assert read.read == ("src/a.py (1 line)",)
    finally:
        roots.answer.set()
    async with asyncio.timeout(5):
        while True:
            try:
                found = await reading.read(LOCAL_OWNER, SourceRequest((str(root / "hung0"),)))
            except InvalidArgument:
                await asyncio.sleep(0.01)
            else:
                break
    assert found.read == ("hung0 (1 line)",)
