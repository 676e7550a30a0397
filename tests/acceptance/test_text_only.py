"""A model that sees only the texts of results can use every tool."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from mcp import ClientSession

from exai.mcp.features.texts import HEAD, USUAL
from exai.workflows import load_workflows
from tests.support.client import connect
from tests.support.daemon import Daemon, start_daemon
from tests.support.heads import body_of, head_of, notes_of, rows_of
from tests.support.provider_server import ProviderServer, break_after_first_token, failure, kimi_answer

LONG = "".join(f'{number}: "Größe" \\ 漢字 😀\n' for number in range(3_000))


class Model:
    """A model whose client shows it texts: what it passes on, it has read there."""

    def __init__(self, session: ClientSession, provider: ProviderServer) -> None:
        self._session = session
        self.provider = provider

    async def call(self, tool: str, *, fails: bool = False, **arguments: Any) -> str:
        """Call a tool; the head must have what the structure has for a next call."""
        result = await self._session.call_tool(tool, arguments)
        (content,) = result.content
        assert content.type == "text"
        assert result.isError is fails, content.text
        facts = result.structuredContent or {}
        told = head_of(content.text)
        for name, value in (facts.get("error", facts)).items():
            if value and USUAL.get(name) != value and (name.startswith("next_") or name in HEAD):
                assert told[name] == (value if isinstance(value, str) else orjson.dumps(value).decode()), content.text
        return content.text

    async def pages(self, tool: str, cursors: dict[str, str], **arguments: Any) -> list[str]:
        """Call until the text has no cursor; `cursors` maps each cursor's name to the argument that takes it."""
        texts = [await self.call(tool, **arguments)]
        while given := {cursors[name]: value for name, value in head_of(texts[-1]).items() if name in cursors}:
            texts.append(await self.call(tool, **{**arguments, **given}))
            assert len(texts) < 100
        return texts

    async def stored(self, *contents: str, **arguments: Any) -> str:
        """Store messages and return the conversation's name as it stands in the text."""
        messages = [{"role": "user", "content": each} for each in contents]
        return head_of(await self.call("conversation_append", messages=messages, **arguments))["continuation_id"]


async def chat(model: Model) -> None:
    """A long answer is read to its end, and the conversation continues."""
    model.provider.script(kimi_answer(LONG, reasoning=""))
    told = await model.call("chat", prompt="Tell me everything.")
    head = head_of(told)
    assert "conversation_get" in notes_of(told)[0]
    answer = body_of(told)
    where = {"continuation_id": head["continuation_id"], "seq": head["seq"]}
    while "next_offset" in head:
        told = await model.call("conversation_get", **where, char_offset=head["next_offset"])
        head, answer = head_of(told), answer + body_of(told).removeprefix("#2 assistant: ")
    assert answer == LONG
    more = await model.call(
        "chat", prompt="And now?", continuation_id=where["continuation_id"], expected_revision=head["revision"]
    )
    assert body_of(more).startswith("3 messages.")
    model.provider.script(failure(500))
    failed = await model.call("chat", fails=True, prompt="Again?", continuation_id=where["continuation_id"])
    assert "kimi" in failed
    await model.call("chat", prompt="Now?", continuation_id=where["continuation_id"])
    for broken in (failure(500), break_after_first_token(token="Half an answer")):
        model.provider.script(broken)
        # One failure is followed by an answer, so that the breaker stays closed.
        begun = head_of(await model.call("chat", fails=True, prompt="A new one?"))["continuation_id"]
        assert begun != where["continuation_id"]
        again = await model.call("chat", prompt="Once more?", continuation_id=begun)
        assert head_of(again)["continuation_id"] == begun
    assert "#2 assistant (partial): Half an answer" in await model.call("conversation_get", continuation_id=begun)


async def conversation_append(model: Model) -> None:
    message = [{"role": "user", "content": "two"}]
    told = head_of(await model.call("conversation_append", messages=message, title="T"))
    assert (told["first_seq"], told["last_seq"]) == ("1", "1")
    again = {"continuation_id": told["continuation_id"], "expected_revision": told["revision"]}
    assert head_of(await model.call("conversation_append", messages=message, **again))["first_seq"] == "2"
    refused = await model.call("conversation_append", fails=True, messages=message, **again)
    assert head_of(refused)["revision"] == "2"
    assert head_of(refused)["continuation_id"] == told["continuation_id"]


async def conversation_get(model: Model) -> None:
    """Older pages, and the rest of a message too long for one."""
    name = await model.stored("first", *(f"{number} {'x' * 9_000}" for number in range(12)), LONG)
    texts = await model.pages("conversation_get", {"next_before_seq": "before_seq"}, continuation_id=name)
    assert [head_of(each).get("seq") for each in texts] == ["14"] + [None] * (len(texts) - 1)
    seqs = [int(each) for text in texts for each in reversed(re.findall(r"^#(\d+) user: ", text, re.MULTILINE))]
    assert seqs == list(range(14, 0, -1))
    where = {"continuation_id": name, "seq": head_of(texts[0])["seq"]}
    rest = await model.pages(
        "conversation_get", {"next_offset": "char_offset"}, **where, char_offset=head_of(texts[0])["next_offset"]
    )
    assert "".join(body_of(each).removeprefix("#14 user: ") for each in (texts[0], *rest)) == LONG


async def conversation_list(model: Model) -> None:
    made = [await model.stored("a", title=f'Title | {number}: "x"') for number in range(7)]
    texts = await model.pages("conversation_list", {"next_cursor": "cursor"}, limit=3)
    rows = [row for text in texts for row in rows_of(body_of(text) or text)]
    assert [row["continuation_id"] for row in rows] == made[::-1]
    assert rows[0]["title"] == 'Title | 6: "x"'
    model.provider.script(failure(401))
    failed = head_of(await model.call("chat", fails=True, prompt="Hello?"))["continuation_id"]
    rows = rows_of(await model.call("conversation_list"))
    assert {row["continuation_id"]: row.get("newest_kind") for row in rows} == {
        failed: "failed",
        **dict.fromkeys(made),
    }


async def conversation_search(model: Model) -> None:
    made = [await model.stored(f"the needle {number}") for number in range(7)]
    texts = await model.pages("conversation_search", {"next_cursor": "cursor"}, query="needle", limit=3)
    rows = [row for text in texts for row in rows_of(body_of(text) or text) if "continuation_id" in row]
    assert {row["continuation_id"] for row in rows} == set(made)
    await model.call("conversation_update", continuation_id=made[3], tags=["a"], metadata={"n": {"b": 1}})
    for only in ({"tags": "a"}, {"metadata": '{"n": {"b": 1}}'}, {"labels": '["a"]', "metadata": {"n": {}}}):
        told = await model.call("conversation_search", query="needle", **only)
        assert [row["continuation_id"] for row in rows_of(told) if "continuation_id" in row] == [made[3]], only
    assert "Nothing was found." in await model.call("conversation_search", query="needle", tags=["a", "b"])
    assert all("needle" in row["snippet"] and row["seq"] == "1" for row in rows)


async def conversation_fork(model: Model) -> None:
    name = await model.stored("one", "two")
    fork = head_of(await model.call("conversation_fork", continuation_id=name, at_seq=1))["continuation_id"]
    assert fork != name
    assert body_of(await model.call("conversation_get", continuation_id=fork)) == "#1 user: one"


async def conversation_update(model: Model) -> None:
    name = await model.stored("one")
    told = head_of(await model.call("conversation_update", continuation_id=name, title="New", tags=["a"]))
    assert (told["title"], told["tags"]) == ("New", '["a"]')
    again = {"continuation_id": told["continuation_id"], "expected_revision": told["revision"]}
    newer = {"title": "Newer", "metadata": {"project": "x | y"}}
    await model.call("conversation_update", **again, **newer)
    read = head_of(await model.call("conversation_get", continuation_id=name))
    assert (read["title"], read["tags"], read["metadata"]) == ("Newer", '["a"]', '{"project":"x | y"}')
    await model.stored("two", title="Other")
    for only in ({"tags": "a"}, {"metadata": '{"project": "x | y"}'}, {"part": "NEWER"}, {"part": name[:8]}):
        listed = await model.call("conversation_list", **only)
        assert [row["continuation_id"] for row in rows_of(listed) if "continuation_id" in row] == [name], only


async def conversation_delete(model: Model) -> None:
    name = await model.stored("one")
    told = head_of(await model.call("conversation_delete", continuation_id=name))
    assert told["deleted"] == "true"
    await model.call("conversation_get", fails=True, continuation_id=told["continuation_id"])
    (row,) = rows_of(await model.call("conversation_list", deleted=True))
    assert (row["continuation_id"], row["deleted_at"][:2]) == (name, "20")
    assert "There are no conversations." in await model.call("conversation_list")
    restored = head_of(await model.call("conversation_delete", continuation_id=name, restore=True))
    assert "one" in await model.call("conversation_get", continuation_id=restored["continuation_id"])


async def conversation_export(model: Model) -> None:
    """All parts, joined after the head of each, are an export."""
    name = await model.stored("first", LONG, "last")
    cursors = {"next_after_seq": "after_seq", "next_char_offset": "char_offset"}
    parts = await model.pages("conversation_export", cursors, continuation_id=name, format="jsonl")
    assert len(parts) > 2
    text = "".join(map(body_of, parts))
    told = await model.call("conversation_import", text=text, format="jsonl", continuation_id="copy")
    assert head_of(told)["continuation_id"] == "copy"
    assert "last" in await model.call("conversation_get", continuation_id="copy", seq=3)


async def conversation_import(model: Model) -> None:
    name = await model.stored("first")
    text = body_of(await model.call("conversation_export", continuation_id=name))
    told = head_of(await model.call("conversation_import", text=text, continuation_id="it is: | odd"))
    assert told["continuation_id"] == "it is: | odd"
    more = {"messages": [{"role": "user", "content": "more"}], "expected_revision": told["revision"]}
    await model.call("conversation_append", continuation_id=told["continuation_id"], **more)


async def file_put(model: Model) -> None:
    told = head_of(await model.call("file_put", name="a.md", content="# A"))
    answer = await model.call("chat", prompt="Read it.", files=[told["file_id"]])
    assert "# A" in str(model.provider.chats[-1].body["messages"])
    name = head_of(answer)["continuation_id"]
    assert told["file_id"] in await model.call("conversation_get", continuation_id=name)


async def file_get(model: Model) -> None:
    data = os.urandom(150_000)
    for given, whole in (
        ({"content": LONG}, LONG.encode()),
        ({"content_base64": base64.b64encode(data).decode()}, data),
    ):
        told = head_of(await model.call("file_put", name="long.bin", **given))
        parts = await model.pages("file_get", {"next_offset": "offset"}, file_id=told["file_id"])
        found = b""
        for part in parts:
            is_base64 = head_of(part).get("encoding") == "base64"
            found += base64.b64decode(body_of(part)) if is_base64 else body_of(part).encode()
        assert len(parts) > 1
        assert found == whole


async def file_list(model: Model) -> None:
    made = [head_of(await model.call("file_put", name=f"{n} | x.md", content=str(n)))["file_id"] for n in range(7)]
    texts = await model.pages("file_list", {"next_cursor": "cursor"}, limit=3)
    rows = [row for text in texts for row in rows_of(body_of(text) or text)]
    assert [row["file_id"] for row in rows] == made[::-1]
    assert rows[0]["name"] == "6 | x.md"


async def file_link(model: Model) -> None:
    told = head_of(await model.call("file_put", name="a.md", content="# A"))
    name = await model.stored("one")
    linked = head_of(await model.call("file_link", continuation_id=name, file_ids=[told["file_id"]]))
    listed = await model.call("file_list", continuation_id=linked["continuation_id"])
    assert told["file_id"] in listed


async def file_delete(model: Model) -> None:
    told = head_of(await model.call("file_put", name="a.md", content="# A"))
    gone = head_of(await model.call("file_delete", file_id=told["file_id"]))
    assert gone == {"file_id": told["file_id"], "deleted": "true"}
    await model.call("file_get", fails=True, file_id=told["file_id"])


async def listmodels(model: Model) -> None:
    texts = await model.pages("listmodels", {"next_after": "after"})
    assert len(texts) > 1
    rows = [row for text in texts for row in rows_of(body_of(text) or text) if "name" in row]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) > 500
    usable = next(row["name"] for row in rows if row.get("configured") == "true" and row["provider"] == "many")
    assert head_of(await model.call("chat", prompt="Hello?", model=usable))["model"] == usable


async def status(model: Model) -> None:
    told = await model.call("status")
    assert "status: ok" in told
    assert {"database", "cache"} <= {row.get("component") for row in rows_of(told)}


async def version(model: Model) -> None:
    assert (await model.call("version")).startswith("exai ")


async def usage(model: Model) -> None:
    answer = head_of(await model.call("chat", prompt="Hello?"))
    total, *rows = rows_of(await model.call("usage", by="conversation"))
    assert total["key"] == "total by conversation"
    assert float(total["cost_usd"]) == float(rows[0]["cost_usd"]) > 0
    name = rows[0]["key"]
    assert name == answer["continuation_id"]
    await model.call("conversation_get", continuation_id=name)


def expert(tool: str) -> Callable[[Model], Awaitable[None]]:
    """Make the scenario of an expert tool: it continues from another tool's answer, which is read to its end."""

    async def scenario(model: Model) -> None:
        name = head_of(await model.call("chat", prompt="It hangs."))["continuation_id"]
        model.provider.script(kimi_answer(f"Because. {LONG}", reasoning=""))
        given = {} if tool == "challenge" else {"prompt": "Why?"}
        head = head_of(await model.call(tool, continuation_id=name, **given))
        assert head["continuation_id"] == name
        assert head["next"].startswith("The answer continues")
        where = {"seq": head["seq"], "char_offset": head["next_offset"]}
        assert body_of(await model.call("conversation_get", continuation_id=name, **where))

    return scenario


async def precommit(model: Model) -> None:
    """Without a directory that may be read there is no change to check, but a step can be recorded."""
    head = head_of(await model.call("precommit", prompt="Split it.", findings="low: long", ask_model=False))
    assert (head["step"], "next" in head) == ("1", True)
    assert "low: long" in await model.call("conversation_get", continuation_id=head["continuation_id"])
    assert "allowed root" in await model.call("precommit", fails=True, prompt="May it go?")


async def consensus(model: Model) -> None:
    head = head_of(await model.call("consensus", prompt="Which one?", models=["kimi-k3", "kimi-k3"]))
    assert head["next"]
    assert "Which one?" in await model.call("conversation_get", continuation_id=head["continuation_id"])
    assert await model.call("chat", prompt="Why?", continuation_id=head["continuation_id"])


SCENARIOS: dict[str, Callable[[Model], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        chat, conversation_append, conversation_get, conversation_list, conversation_search, conversation_fork,
        conversation_update, conversation_delete, conversation_export, conversation_import, file_put, file_get,
        file_list, file_link, file_delete, listmodels, status, version, usage, precommit, consensus,
    )
} | {name: expert(name) for name in load_workflows() if name != "precommit"}  # fmt: skip


@pytest.fixture
def many_models(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that knows more models than one answer holds."""
    provider.models = [{"id": f"model-{number:04}-{'x' * 60}", "object": "model"} for number in range(600)]
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__ENDPOINTS__MANY__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__MAX_ATTEMPTS": "1",
    }
    with start_daemon(settings) as daemon:
        yield daemon


@pytest.mark.parametrize("tool", SCENARIOS)
async def test_the_text_alone_is_enough_to_go_on(many_models: Daemon, provider: ProviderServer, tool: str) -> None:
    """Every cursor to its end, every id to a next call, with nothing that was not read in a text."""
    async with connect(many_models.url) as session:
        await SCENARIOS[tool](Model(session, provider))


async def test_every_tool_has_a_scenario(many_models: Daemon) -> None:
    """A new tool cannot be forgotten."""
    async with connect(many_models.url) as session:
        assert {tool.name for tool in (await session.list_tools()).tools} == set(SCENARIOS)
