"""The array of a turn begins with the bytes of the previous one, whichever tool asks and whichever daemon answers."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path

import pytest

from exai.app import App, open_app
from exai.errors import ExaiError
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, FileId
from exai.settings.load import FileSettings
from exai.token_estimate import text_tokens
from exai.workflows import load_workflows
from tests.integration.conversations.conftest import Rig
from tests.integration.conversations.test_images import PNG
from tests.integration.conversations.test_prefix import array_of, prefix_changes
from tests.integration.conversations.test_reasoning import demanding
from tests.integration.workflows.conftest import call
from tests.support.provider_server import failure, kimi_answer

SHARING = tuple(name for name in load_workflows() if name != "challenge")
"""The tools whose model is shown the whole conversation."""

FOUND = (
    "So.\n\n```findings\nhigh: a \u201cbad\u201d line (a.py:1)\n```\n\n```plan\n1. Mend it\n```\n\nVERDICT: fix first"
)


@pytest.fixture
async def daemons(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[App, App, Path]]:
    """Two applications that may read one directory."""
    root = tmp_path_factory.mktemp("project")
    (root / "a.py").write_text("print('\u4f60\u597d')\n")
    git = ("git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.com")
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        subprocess.run([*git, *command], check=True)
    (root / "a.py").write_text("print('changed')\n")
    settings = rig.app.settings.model_copy(update={"files": FileSettings(roots=(root,))})
    async with open_app(settings) as first, open_app(settings) as second:
        yield first, second, root


async def stored_file(app: App, content: FileContent) -> FileId:
    (file,) = await app.files.put(LOCAL_OWNER, [content])
    return file.id


async def test_debug_chat_codereview_chat_share_their_prefix_across_a_restart(
    rig: Rig, daemons: tuple[App, App, Path]
) -> None:
    """With files, an image, findings, recorded steps, and a note; each turn on another daemon, one of them new."""
    first, second, root = daemons
    image = await stored_file(first, FileContent("shot.png", PNG, "image/png"))
    code = str(root / "a.py")
    rig.provider.default = lambda _: kimi_answer(FOUND)
    key = (await call(first, "debug", prompt="Why?", hypothesis="A race.", findings=["low: x"], files=[code]))[
        "continuation_id"
    ]
    await call(second, "debug", prompt="I tried it.", continuation_id=key, ask_model=False)
    await call(second, "chat", prompt="And now?", continuation_id=key, files=[image])
    (root / "a.py").write_text("print('mended')\n")
    async with open_app(first.settings) as restarted:
        await call(restarted, "codereview", prompt="Is it right?", focus="speed", files=[code], continuation_id=key)
        await call(first, "chat", prompt="Thanks.", continuation_id=key)
    chats = rig.provider.chats
    assert len(chats) == 4
    assert prefix_changes(rig.provider) == 0
    assert array_of(chats[-1]).count(b"<instructions ") == 2
    assert array_of(chats[-1]).count(b"image_url") > 0


async def test_every_tool_that_shows_the_conversation_continues_the_array(
    rig: Rig, daemons: tuple[App, App, Path]
) -> None:
    """Two that show less of it, to models of their own choice, do not change it for the others."""
    apps, apart = cycle(daemons[:2]), ("challenge", "consensus")
    rig.provider.default = lambda _: kimi_answer(FOUND)
    key = (await call(next(apps), "chat", prompt="Begin.", system="Be brief."))["continuation_id"]
    for number, tool in enumerate((*SHARING, *apart, "chat", "debug", "debug")):
        before = len(rig.provider.received)
        given = {"models": ["kimi-k3", "kimi-k2.6"]} if tool == "consensus" else {}
        await call(next(apps), tool, prompt=f"{number}?", continuation_id=key, **given)
        if tool in apart:
            del rig.provider.received[before:]
    assert len(rig.provider.chats) == len(SHARING) + 4
    assert prefix_changes(rig.provider) == 0


async def test_failed_step_keeps_its_instructions(rig: Rig) -> None:
    """Its question is sent with them again, by the repeated request and by the next tool."""
    rig.provider.default = lambda _: kimi_answer("Fine.")
    key = (await call(rig.app, "chat", prompt="Begin."))["continuation_id"]
    again = {"prompt": "Why?", "continuation_id": key, "idempotency_key": "k"}
    rig.provider.script(failure(400, {"error": {"message": "no", "type": "invalid_request_error"}}))
    with pytest.raises(ExaiError):
        await call(rig.app, "debug", **again)
    await call(rig.app, "debug", **again)
    await call(rig.app, "chat", prompt="Thanks.", continuation_id=key)
    assert len(rig.provider.chats) == 4
    assert prefix_changes(rig.provider) == 0
    assert array_of(rig.provider.chats[-1]).count(b"<instructions ") == 1


async def test_instructions_fill_the_window_as_other_text_does(rig: Rig) -> None:
    """History with many steps is left out in blocks, and the array never exceeds the window."""
    key = None
    for number in range(30):
        rig.provider.script(kimi_answer("word " * 100))
        tool = ("debug", "chat")[number % 2]
        key = (await call(rig.app, tool, prompt=f"{number}?", model="small-8k", continuation_id=key))["continuation_id"]
    arrays = [array_of(request) for request in rig.provider.chats]
    assert 1 <= prefix_changes(rig.provider) <= 6
    assert max(text_tokens(array.decode()) for array in arrays) < 8_192
    assert arrays[-1].count(b"<instructions ") > 3


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_returned_reasoning_is_part_of_the_prefix_across_tools(
    rig: Rig, daemons: tuple[App, App, Path], field: str
) -> None:
    """A daemon that does not know the endpoint's demand yet is refused once, before it sends the same bytes."""
    rig.provider.default = demanding(field)
    key, apps = None, cycle(daemons[:2])
    for tool in ("chat", "debug", "chat", "codereview", "chat", "precommit"):
        key = (await call(next(apps), tool, prompt="Why?", continuation_id=key))["continuation_id"]
    refused = [
        request
        for request in rig.provider.chats
        if any(message["role"] == "assistant" and len(message) == 2 for message in request.body["messages"])
    ]
    assert len(refused) == 2
    for request in refused:
        rig.provider.received.remove(request)
    assert prefix_changes(rig.provider) == 0
