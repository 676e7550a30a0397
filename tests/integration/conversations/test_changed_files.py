"""A continued conversation shows files as they were stored, and says which of them have changed on disk since."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from exai.conversations import AppendRequest, ChatRequest, ChatResult
from exai.conversations.turns.disk import DiskComparison
from exai.conversations.turns.prompt import Asked, estimate_tokens
from exai.files.loading import FileContent
from exai.files.paths import Roots
from exai.files.sources import SourceReader, SourceRequest
from exai.models import LOCAL_OWNER, ContinuationId, NewMessage
from exai.workflows import WorkflowRequest
from exai.workflows.consensus import ConsensusRequest
from tests.integration.conversations.conftest import Rig, open_rig
from tests.support.migrations import run

OLD = "value = 'old'\n"
NEW = "value = 'new'\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path, root: Path) -> AsyncIterator[Rig]:
    """Directly on the database, with a root of which files may be read."""
    async with open_rig(postgres_url, redis_url, tmp_path / "data", roots=(root,)) as opened:
        yield opened


def written(path: Path, text: str = OLD, *, at_s: int = 1_700_000_000) -> Path:
    """Write a file whose time of change is long ago, as that of most files is."""
    path.write_text(text)
    os.utime(path, (at_s, at_s))
    return path


async def asked(rig: Rig, *paths: Path, continuation_id: ContinuationId | None = None) -> ChatResult:
    """Ask about files of this machine, as the tool does."""
    given = await rig.app.files.resolve(LOCAL_OWNER, [str(path) for path in paths])
    request = ChatRequest(LOCAL_OWNER, "Why?", continuation_id=continuation_id, files=given.ids, sources=given.sources)
    return await rig.app.chat.run(request)


async def continued(rig: Rig, first: ChatResult) -> ChatResult:
    return await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "And now?", continuation_id=first.continuation_id))


def states(result: ChatResult) -> dict[str, str]:
    """What is said of each path; the notes say it, too."""
    for each in result.changed_files:
        assert any(each.path in note for note in result.notes)
    return {Path(each.path).name: each.state for each in result.changed_files}


def shown(rig: Rig) -> str:
    return "\n".join(str(each["content"]) for each in rig.provider.chats[-1].body["messages"])


async def test_model_is_shown_the_file_as_stored_and_the_result_says_what_changed(rig: Rig, root: Path) -> None:
    """Without a round trip more: the places come with the rows of the files."""
    path = written(root / "a.py")
    first = await asked(rig, path, written(root / "b.py", "other = 1\n"))
    assert states(first) == {}
    await continued(rig, first)
    rig.reset()
    same = await continued(rig, first)
    cost = rig.cost()
    assert states(same) == {}
    written(path, NEW, at_s=1_700_000_001)
    rig.reset()
    changed = await continued(rig, first)
    assert rig.cost() == cost
    assert states(changed) == {"a.py": "changed"}
    assert OLD in shown(rig)
    assert NEW not in shown(rig)


async def test_repeated_call_says_the_same(rig: Rig, root: Path) -> None:
    """What was said is stored with the turn."""
    first = await asked(rig, written(root / "a.py"))
    (root / "a.py").unlink()
    request = ChatRequest(LOCAL_OWNER, "Go on.", continuation_id=first.continuation_id, idempotency_key="key")
    once, again = await rig.app.chat.run(request), await rig.app.chat.run(request)
    assert again.duplicate
    assert states(once) == states(again) == {"a.py": "gone"}
    assert once.notes == again.notes


@pytest.mark.parametrize("shape", ["unlinked", "directory gone", "link to outside", "link out of the way", "directory"])
async def test_path_that_vanished_or_leads_outside_is_said_so(rig: Rig, root: Path, tmp_path: Path, shape: str) -> None:
    """Nothing outside the roots is opened: a link to a file with the same content is still outside."""
    (root / "sub").mkdir()
    path = written(root / "sub" / "a.py")
    first = await asked(rig, path)
    outside = written(tmp_path / "outside.py")
    path.unlink()
    if shape == "link to outside":
        path.symlink_to(outside)
    elif shape in ("directory gone", "link out of the way"):
        path.parent.rmdir()
    if shape == "link out of the way":
        (tmp_path / "elsewhere").mkdir()
        written(tmp_path / "elsewhere" / "a.py")
        path.parent.symlink_to(tmp_path / "elsewhere")
    if shape == "directory":
        path.mkdir()
    said = {"directory": "unknown", "unlinked": "gone", "directory gone": "gone"}.get(shape, "outside")
    assert states(await continued(rig, first)) == {"a.py": said}
    again = await rig.app.sources.reread(LOCAL_OWNER, first.continuation_id)
    assert again.files == ()


async def test_root_that_is_no_longer_allowed_is_outside(
    postgres_url: str, redis_url: str, tmp_path: Path, root: Path
) -> None:
    async with open_rig(postgres_url, redis_url, tmp_path / "data", roots=(root,)) as rig:
        first = await asked(rig, written(root / "a.py"))
    async with open_rig(postgres_url, redis_url, tmp_path / "data") as rig:
        assert states(await continued(rig, first)) == {"a.py": "outside"}


async def test_content_decides_where_size_or_time_do_not(rig: Rig, root: Path) -> None:
    """A touched file is the same; a file changed in the moment in which it was read is not."""
    touched, late = written(root / "touched.py"), root / "late.py"
    late.write_text(OLD)
    moment = late.stat().st_mtime_ns
    first = await asked(rig, touched, late)
    os.utime(touched, (1_800_000_000, 1_800_000_000))
    late.write_text(NEW)
    os.utime(late, ns=(moment, moment))
    assert states(await continued(rig, first)) == {"late.py": "changed"}


async def test_file_that_is_as_it_was_is_not_opened_for_its_content(rig: Rig, root: Path) -> None:
    """Size and time of change are enough: the time of access stays what it was."""
    path = written(root / "a.py")
    first = await asked(rig, path)
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    await continued(rig, first)
    assert path.stat().st_atime_ns == 1


async def test_only_files_that_this_machine_read_are_compared(rig: Rig, root: Path, postgres_url: str) -> None:
    """A content that a client sent has no place, nor has one of another machine; a caller cannot give it one."""
    written(root / "a.py", NEW)
    (sent,) = await rig.app.files.put(LOCAL_OWNER, [FileContent("a.py", OLD.encode())])
    first = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "Why?", files=[sent.id]))
    assert states(await continued(rig, first)) == {}
    second = await asked(rig, written(root / "b.py"))
    written(root / "b.py", NEW)
    await run(postgres_url, 'update public.conversation_files set source = source || \'{"machine": "other"}\'')
    assert states(await continued(rig, second)) == {}
    assert (await rig.app.sources.reread(LOCAL_OWNER, second.continuation_id)).files == ()
    await run(postgres_url, "update public.conversation_files set source = '{\"path\": 1}'")
    assert states(await continued(rig, second)) == {}


async def test_changed_files_are_read_again_on_request_and_the_prefix_stays(rig: Rig, root: Path) -> None:
    """One statement finds them and one stores them; the older version stays where it was in the array."""
    path, kept = written(root / "a.py"), written(root / "b.py", "other = 1\n")
    first = await asked(rig, path, kept)
    before = rig.provider.chats[-1].body["messages"]
    written(path, NEW)
    os.utime(path, (1_800_000_000, 1_800_000_000))
    rig.reset()
    again = await rig.app.sources.reread(LOCAL_OWNER, first.continuation_id)
    assert rig.cost() == (2, 0)
    request = ChatRequest(
        LOCAL_OWNER,
        "And now?",
        continuation_id=first.continuation_id,
        reread=again.files,
        sources=again.sources,
        idempotency_key="key",
    )
    result = await rig.app.chat.run(request)
    assert states(result) == {}
    assert rig.provider.chats[-1].body["messages"][: len(before)] == before
    assert NEW in rig.provider.chats[-1].body["messages"][-1]["content"]
    assert states(await continued(rig, first)) == {}
    assert (await rig.app.sources.reread(LOCAL_OWNER, first.continuation_id)).notes
    # A repetition finds nothing changed, and is the same request.
    assert (await rig.app.chat.run(replace(request, reread=(), sources={}))).duplicate
    written(path, "third = 3\n")
    assert states(await continued(rig, first)) == {"a.py": "changed"}


async def test_fork_and_append_keep_from_where_a_file_was_read(rig: Rig, root: Path) -> None:
    given = await rig.app.files.resolve(LOCAL_OWNER, [str(written(root / "a.py"))])
    rig.reset()
    appended = await rig.app.conversations.append(
        AppendRequest(LOCAL_OWNER, [NewMessage("user", "Look.")], files=given.ids, sources=given.sources)
    )
    assert rig.database.round_trips == 1
    fork = await rig.app.conversations.fork(LOCAL_OWNER, appended.continuation_id)
    (root / "a.py").unlink()
    for name in (appended.continuation_id, fork.continuation_id):
        result = await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "So?", continuation_id=name))
        assert states(result) == {"a.py": "gone"}


async def test_tools_of_experts_say_it_and_read_again(rig: Rig, root: Path) -> None:
    """Also of a part of a file, which is read again as a part, and for a panel."""
    text = "".join(f"line {number}\n" for number in range(1, 31))
    path = written(root / "a.py", text)
    request = WorkflowRequest(LOCAL_OWNER, "Why?", files=(f"{path}:5-7",))
    first = await rig.app.workflows.run("debug", request)
    written(path, text.replace("line", "row"), at_s=1_700_000_001)
    again = WorkflowRequest(LOCAL_OWNER, "And now?", continuation_id=first.continuation_id)
    said = await rig.app.workflows.run("debug", again)
    assert said.turn is not None
    assert {each.state for each in said.turn.changed_files} == {"changed"}
    assert {each.lines for each in said.turn.changed_files} == {"5-7"}
    assert len([note for note in said.notes if "a.py has changed" in note]) == 1
    read = await rig.app.workflows.run("analyze", replace(again, reread=True))
    assert read.turn is not None
    assert read.turn.changed_files == ()
    assert [each.partition(" (")[2] for each in read.read] == ["lines 5-7 of 30)"]
    newest = rig.provider.chats[-1].body["messages"][-1]["content"]
    assert "row 6\n" in newest
    assert "line 6\n" not in newest
    nothing = await rig.app.workflows.run("debug", replace(again, reread=True))
    assert nothing.read == ()
    assert any(note.startswith("reread: no file") for note in nothing.notes)
    written(path, "panel = 1\n")
    lost = await rig.app.workflows.run("debug", replace(again, reread=True))
    assert lost.left_out == ("a.py:5-7 (has only 1 line)",)
    written(path, "panel = 1\n" * 6)
    panel = ConsensusRequest(
        LOCAL_OWNER,
        "Is it right?",
        continuation_id=first.continuation_id,
        models=("kimi-k2.6", "kimi-k2.6"),
        reread=True,
    )
    assert any(each.startswith("a.py (lines 5-6 of 6") for each in (await rig.app.consensus.run(panel)).read)


async def test_file_system_that_does_not_answer_fails_and_delays_no_turn(rig: Rig, root: Path) -> None:
    """The comparison is given up a moment after the answer, and its thread ends by its limits."""
    leave = threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            leave.wait(30)
        return 0.0

    slow = SourceReader(rig.app.files, Roots([root]), estimate_tokens, clock=clock)
    read = await rig.app.files.resolve(LOCAL_OWNER, [str(written(root / "a.py"))])
    files = tuple(
        replace(each, source=read.sources[each.id]) for each in await rig.app.files.get_all(LOCAL_OWNER, read.ids)
    )
    request = ChatRequest(LOCAL_OWNER, "Why?")
    try:
        async with DiskComparison(slow).beside(request, Asked([], 0, files=files)) as conclude:
            concluded = await conclude(Asked([], 0))
    finally:
        leave.set()
    assert concluded.changed == ()
    assert "did not answer in time" in concluded.notes[0]
    assert (
        await SourceReader(rig.app.files, Roots([root]), estimate_tokens).read(LOCAL_OWNER, SourceRequest(("a.py",)))
    ).read
