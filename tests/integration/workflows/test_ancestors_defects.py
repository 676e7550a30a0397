"""The defects of the system before, each by its name: none of them comes back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import pairwise

import pytest

from exai.app import open_app
from exai.errors import NotFound
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, Owner
from exai.workflows import load_workflows
from tests.integration.conversations.conftest import Rig
from tests.integration.workflows.conftest import call, rows_of
from tests.support.provider_server import ProviderServer, chunk, event, kimi_answer, stream

TOOLS = [name for name in load_workflows() if name not in ("precommit", "challenge")]


def shown(provider: ProviderServer) -> str:
    """Everything that the model was shown by the last request."""
    return "\n---\n".join(message["content"] for message in provider.chats[-1].body["messages"])


def test_start_up() -> None:
    """The server starts beside any installed MCP library, because it uses none."""
    program = (
        "import sys\n"
        "sys.modules['mcp'] = None\n"
        "import exai.cli.main, exai.daemon.serve, exai.tools.registry, exai.mcp.server, exai.mcp.stdio.bridge\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'mcp'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "['mcp']\n"), done.stderr


async def test_history_doubling(rig: Rig) -> None:
    """Six exchanges are sent once each, so the prompt grows by one exchange at a time."""
    key = None
    sizes = []
    for number in range(6):
        question, reply = f"question {number} " + "q" * 500, f"reply {number} " + "r" * 2_000
        rig.provider.script(kimi_answer(reply))
        key = (await call(rig.app, "debug", prompt=question, continuation_id=key))["continuation_id"]
        text = shown(rig.provider)
        assert all(text.count(f"question {earlier} ") == 1 for earlier in range(number + 1))
        assert all(text.count(f"reply {earlier} ") == 1 for earlier in range(number))
        sizes.append(len(text))
    steps = {later - earlier for earlier, later in pairwise(sizes)}
    assert max(steps) - min(steps) < 10
    assert len(await rows_of(rig.app, key or "")) == 12


async def test_workflow_bleed(rig: Rig) -> None:
    """A new run of a tool has no content of an earlier run, also of another owner."""
    await call(rig.app, "debug", prompt="It is the planted-lock.", findings="high: planted-finding", ask_model=False)
    await call(rig.app, "debug", prompt="Another problem.")
    assert "planted" not in shown(rig.provider)
    await call(rig.app, "debug", Owner("other"), prompt="A third problem.")
    assert "planted" not in shown(rig.provider)


async def test_consensus_swap(rig: Rig) -> None:
    """Two runs of a tool that are continued in turn: each has its own model, its own proposal, its own count."""
    one = await call(rig.app, "planner", prompt="Plan alpha.", model="kimi-k3", ask_model=False)
    two = await call(rig.app, "planner", prompt="Plan beta.", model="kimi-k2.6", ask_model=False)
    again = await call(rig.app, "planner", prompt="Go on.", model="kimi-k3", continuation_id=one["continuation_id"])
    assert "Plan alpha." in shown(rig.provider)
    assert "Plan beta." not in shown(rig.provider)
    assert (again["model"], again["step"]) == ("kimi-k3", 2)
    assert two["step"] == 1


async def test_lost_findings(rig: Rig) -> None:
    """Two recorded steps and then a chat on the same conversation: the model reads texts, findings, hypothesis."""
    key = (await call(rig.app, "debug", prompt="Step-one text.", findings="high: f-one (a.py:1)", ask_model=False))[
        "continuation_id"
    ]
    await call(rig.app, "debug", prompt="Step-two text.", hypothesis="h-two", continuation_id=key, ask_model=False)
    await call(rig.app, "chat", prompt="And now?", continuation_id=key)
    for planted in ("Step-one text.", "f-one (a.py:1)", "Step-two text.", "h-two"):
        assert planted in shown(rig.provider)


async def test_blocking(rig: Rig) -> None:
    """Four calls are with the model at once, however long each takes."""
    gated = [stream("gate", chunk({"content": "x"}, finish="stop"), event("[DONE]")) for _ in range(4)]
    rig.provider.script(*gated)
    calls = [asyncio.create_task(call(rig.app, tool, prompt=f"{tool}?")) for tool in TOOLS[:4]]
    await rig.provider.arrived(4)
    rig.provider.gate.set()
    answers = await asyncio.gather(*calls)
    assert len({each["continuation_id"] for each in answers}) == 4


async def test_files_crowd_out_turns(rig: Rig) -> None:
    """Four files of 93 kB leave room for all turns before, which together are a small part of the window."""
    key = None
    for number in range(10):
        rig.provider.script(kimi_answer(f"reply {number}."))
        asked = {"prompt": f"question {number}.", "model": "kimi-k3", "continuation_id": key}
        key = (await call(rig.app, "chat", **asked))["continuation_id"]
    contents = [FileContent(f"{name}.txt", f"{name} ".encode() * 46_500) for name in "abcd"]
    files = [file.id for file in await rig.app.files.put(LOCAL_OWNER, contents)]
    for tool in ("chat", "debug"):
        answer = await call(rig.app, tool, prompt="And now?", model="kimi-k3", continuation_id=key, files=files)
        assert all(f"question {number}." in shown(rig.provider) for number in range(10))
        assert all(f"reply {number}." in shown(rig.provider) for number in range(10))
        assert all(f"{name} {name} {name}" in shown(rig.provider) for name in "abcd")
        assert not answer["left_out"]


async def test_suffix_replayed(rig: Rig) -> None:
    """The sentences for the client's next call are neither stored nor sent to a model."""
    answers = {}
    for tool in TOOLS:
        answers[tool] = await call(rig.app, tool, prompt="Look.")
        key = answers[tool]["continuation_id"]
        await call(rig.app, "chat", prompt="And?", continuation_id=key)
        sentences = load_workflows()[tool].header.next.model_dump().values()
        stored = "\n".join(row.content for row in await rows_of(rig.app, key))
        for sentence in filter(None, sentences):
            assert sentence not in shown(rig.provider)
            assert sentence not in stored


async def test_swallowed_errors(rig: Rig) -> None:
    """A missing conversation is an error that names it, and no model is asked."""
    for tool in (*TOOLS, "challenge"):
        with pytest.raises(NotFound, match="no conversation"):
            await call(rig.app, tool, prompt="Go on.", continuation_id="not-there")
    assert rig.provider.chats == []


async def test_no_ownership(rig: Rig) -> None:
    """Who knows an id of another owner cannot continue it, with no tool, recorded or asked."""
    key = (await call(rig.app, "debug", prompt="Secret.", ask_model=False))["continuation_id"]
    for tool in (*TOOLS, "challenge"):
        with pytest.raises(NotFound):
            await call(rig.app, tool, Owner("thief"), prompt="Go on.", continuation_id=key)
        if tool != "challenge":
            with pytest.raises(NotFound):
                await call(rig.app, tool, Owner("thief"), prompt="x", continuation_id=key, ask_model=False)
    assert len(await rows_of(rig.app, key)) == 1


async def test_fifty_conversations_interleaved_on_two_services(rig: Rig) -> None:
    """Over every workflow tool and one database: none sees another's steps."""
    tools, turns = [*TOOLS, "challenge"], asyncio.Semaphore(4)
    async with open_app(rig.app.settings) as other:
        apps = (rig.app, other)

        async def one(number: int) -> str:
            mark = f"mark-{number:02}-end"
            begun = {"prompt": f"Begun by {mark}.", "ask_model": False}
            async with turns:
                key: str = (await call(apps[number % 2], "debug", **begun))["continuation_id"]
            for step in range(3):
                app, tool = apps[(number + step) % 2], tools[(number + step) % len(tools)]
                given = {} if tool in ("challenge", "planner") else {"findings": f"low: {mark}"}
                async with turns:
                    await call(app, tool, prompt=f"Step {step} of {mark}.", continuation_id=key, **given)
            return key

        keys = await asyncio.gather(*map(one, range(50)))
        for number, key in enumerate(keys):
            rows = await rows_of(apps[(number + 1) % 2], key)
            marks = {word for row in rows for word in row.content.split() if word.startswith("mark-")}
            assert {mark.strip(".,()") for mark in marks} == {f"mark-{number:02}-end"}
    assert len(rig.provider.chats) == 150
    for chat in rig.provider.chats:
        text = "\n".join(message["content"] for message in chat.body["messages"])
        assert len({text[at : at + 7] for at in range(len(text)) if text.startswith("mark-", at)}) == 1


async def test_debug_then_chat_then_codereview_after_a_restart(rig: Rig) -> None:
    """One conversation, three tools, a new service before each: each reads the findings of the one before."""
    recorded = {"prompt": "It hangs.", "hypothesis": "h-one", "findings": "high: f-one (a.py:3)", "ask_model": False}
    key = (await call(rig.app, "debug", **recorded))["continuation_id"]
    rig.provider.script(kimi_answer("The cause is r-one.\n\n```findings\nhigh: r-two (a.py:9)\n```"))
    async with open_app(rig.app.settings) as app:
        await call(app, "debug", prompt="Alone it ends.", continuation_id=key)
    async with open_app(rig.app.settings) as app:
        rig.provider.script(kimi_answer("Good."))
        await call(app, "chat", prompt="Fixed it.", continuation_id=key)
    async with open_app(rig.app.settings) as app:
        rig.provider.script(kimi_answer("Well done.\n\n```findings\nnone\n```\n\nVERDICT: pass"))
        answer = await call(app, "codereview", prompt="Is it right now?", continuation_id=key)
        assert (answer["verdict"], answer["findings"], answer["step"]) == ("pass", [], 1)
        kinds = [row.kind for row in await rows_of(app, key)]
    for planted in ("It hangs.", "h-one", "f-one", "Alone it ends.", "r-one", "Fixed it.", "Is it right now?"):
        assert shown(rig.provider).count(planted) == 1
    assert kinds == [
        *("finding", "hypothesis", "step"),
        *("step", "finding", "answer"),
        *("message", "message"),
        *("step", "verdict", "answer"),
    ]
    assert (await rig.app.conversations.read(LOCAL_OWNER, ContinuationId(key))).conversation.last_seq == 11
