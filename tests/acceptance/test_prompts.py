"""Prompts, the completion of their arguments, and the notices that the list of conversations changed; in both eras."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession

from tests.support.client import call, connect
from tests.support.daemon import Daemon, start_daemon
from tests.support.mcp_server import handshake, modern, request
from tests.support.plain_socket import PlainSocket, plain_socket

LIST_CHANGED = "notifications/resources/list_changed"
UPDATED = "notifications/resources/updated"

Era = Callable[..., dict[str, Any]]


async def asked(socket: PlainSocket, era: Era, method: str, params: dict[str, Any]) -> Any:
    answer = await socket.ask(era(f"{era.__name__} {method} {json.dumps(params)}", method, params))
    return answer["result"] if "result" in answer else answer["error"]


async def completed(socket: PlainSocket, era: Era, reference: dict[str, str], name: str, typed: str) -> list[str]:
    params = {"ref": reference, "argument": {"name": name, "value": typed}}
    found = await asked(socket, era, "completion/complete", params)
    values = found["completion"]["values"]
    assert isinstance(values, list)
    return values


async def stored(session: ClientSession, content: str, title: str | None = None) -> str:
    message = [{"role": "user", "content": content}]
    found = await call(session, "conversation_append", messages=message, title=title)
    return str(found["continuation_id"])


async def test_prompts_and_their_arguments_in_both_eras(daemon: Daemon) -> None:
    """Listed, completed, rendered; a conversation comes along as an embedded resource."""
    async with connect(daemon.url) as session, plain_socket(daemon.url) as socket:
        key = await stored(session, "The answer is 42.", "Of planets")
        await socket.ask(handshake())
        for era in (request, modern):
            listed = (await asked(socket, era, "prompts/list", {}))["prompts"]
            names = [each["name"] for each in listed]
            assert names[:3] == ["ask", "continue", "find"]
            assert {"codereview", "debug", "planner", "precommit"} <= set(names[3:])
            assert all(each["title"] and each["description"] for each in listed)
            prompt = {"type": "ref/prompt", "name": "continue"}
            assert await completed(socket, era, prompt, "continuation_id", "PLANETS") == [key]
            assert await completed(socket, era, prompt, "continuation_id", key[:8]) == [key]
            assert await completed(socket, era, {"type": "ref/prompt", "name": "ask"}, "question", "w") == []
            review = {"type": "ref/prompt", "name": "codereview"}
            assert await completed(socket, era, review, "prompt", "planets") == [key]
            for typed in ({"prompt": f"{key} Is it right?"}, {}):
                asking = {"name": "codereview", "arguments": typed}
                (only,) = (await asked(socket, era, "prompts/get", asking))["messages"]
                assert "tool codereview of EXAI" in only["content"]["text"]
                assert only["content"]["text"].endswith(typed.get("prompt", "what we are working on."))
            given = {"question": "Why is it so?"}
            (only,) = (await asked(socket, era, "prompts/get", {"name": "ask", "arguments": given}))["messages"]
            assert only["role"] == "user"
            assert only["content"]["text"].endswith("Why is it so?")
            go_on = {"name": "continue", "arguments": {"continuation_id": key}}
            first, second = (await asked(socket, era, "prompts/get", go_on))["messages"]
            resource = first["content"]["resource"]
            assert resource["uri"] == f"exai://conversations/{key}"
            assert json.loads(resource["text"])["messages"][0]["content"] == "The answer is 42."
            assert key in second["content"]["text"]
            go_on["arguments"] = {"continuation_id": f"exai://conversations/{key} What is the question?"}
            _, second = (await asked(socket, era, "prompts/get", go_on))["messages"]
            assert second["content"]["text"].endswith("What is the question?")
            find = {"name": "find", "arguments": {"words": "planets"}}
            (only,) = (await asked(socket, era, "prompts/get", find))["messages"]
            assert "conversation_search" in only["content"]["text"]
            for params, words in (
                ({"name": "continue", "arguments": {"continuation_id": "none"}}, "no conversation 'none'"),
                ({"name": "ask"}, "question is required"),
                ({"name": "nothing"}, "prompts/list"),
            ):
                error = await asked(socket, era, "prompts/get", params)
                assert error["code"] == -32602
                assert words in error["message"]
            unknown = {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "model", "value": ""}}
            assert (await asked(socket, era, "completion/complete", unknown))["code"] == -32602


def as_claude_code(prompt: dict[str, Any], typed: str) -> dict[str, Any]:
    """The params of prompts/get for a typed command: one word for each argument, the rest dropped."""
    names = [each["name"] for each in prompt["arguments"]]
    return {"name": prompt["name"], "arguments": dict(zip(names, typed.split(), strict=False))}


async def test_no_word_of_a_command_becomes_another_argument(daemon: Daemon) -> None:
    """Claude Code splits at spaces and shows its model the typed text; other clients send all of it."""
    typed = "what is the capital of France"
    async with connect(daemon.url) as session, plain_socket(daemon.url) as socket:
        key = await stored(session, "The answer is 42.", "Of planets")
        listed = {each["name"]: each for each in (await asked(socket, modern, "prompts/list", {}))["prompts"]}
        assert all(len(each["arguments"]) == 1 for each in listed.values())
        for name in ("ask", "find"):
            (cut,) = (await asked(socket, modern, "prompts/get", as_claude_code(listed[name], typed)))["messages"]
            text = cut["content"]["text"]
            assert "\n\nwhat\n\n" in text
            assert "<command-args>" in text
            whole = {"name": name, "arguments": {listed[name]["arguments"][0]["name"]: typed}}
            (only,) = (await asked(socket, modern, "prompts/get", whole))["messages"]
            assert only["content"]["text"].endswith(f"\n\n{typed}")
        cut = await asked(socket, modern, "prompts/get", as_claude_code(listed["continue"], f"{key} {typed}"))
        assert "<command-args>" in cut["messages"][1]["content"]["text"]
        whole = {"name": "continue", "arguments": {"continuation_id": f"{key} {typed}"}}
        said = (await asked(socket, modern, "prompts/get", whole))["messages"][1]["content"]["text"]
        assert said.endswith(f"the continuation_id {key}.\n\n{typed}")


async def changes(session: ClientSession, key: str, change: str) -> None:
    """Change the list of conversations in one of the ways there are."""
    if change == "create":
        await stored(session, "new")
    elif change == "chat":
        await call(session, "chat", prompt="Hello?")
    elif change == "fork":
        await call(session, "conversation_fork", continuation_id=key)
    elif change == "rename":
        await call(session, "conversation_update", continuation_id=key, title="Other")
    else:
        await call(session, "conversation_delete", continuation_id=key, restore=change == "restore")


async def test_subscribers_are_notified_of_changes_of_the_list_and_of_a_conversation(daemon: Daemon) -> None:
    """Both eras; an append changes the conversation and not the list, a repeated one nothing."""
    async with connect(daemon.url) as session, plain_socket(daemon.url) as old, plain_socket(daemon.url) as new:
        initialised = (await old.ask(handshake()))["result"]
        assert initialised["capabilities"]["resources"] == {"subscribe": True, "listChanged": True}
        key = await stored(session, "first")
        uri = f"exai://conversations/{key}"
        assert (await old.notice())["method"] == LIST_CHANGED
        await old.ask(request(1, "resources/subscribe", {"uri": uri}))
        wanted = {"notifications": {"resourcesListChanged": True, "resourceSubscriptions": [uri]}}
        await new.send(modern("s", "subscriptions/listen", wanted))
        acknowledged = await new.receive()
        assert acknowledged["params"]["notifications"] == wanted["notifications"]
        for change in ("create", "chat", "fork", "rename", "delete", "restore"):
            await changes(session, key, change)
            heard = {UPDATED, LIST_CHANGED} if change in ("rename", "delete", "restore") else {LIST_CHANGED}
            for socket in (old, new):
                assert {(await socket.notice())["method"] for _ in heard} == heard, change
        append = {"messages": [{"role": "user", "content": "more"}], "continuation_id": key, "idempotency_key": "k"}
        await call(session, "conversation_append", **append)
        for socket, tag in ((old, {}), (new, {"_meta": {"io.modelcontextprotocol/subscriptionId": "s"}})):
            assert await socket.notice() == {"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": uri, **tag}}
        assert (await call(session, "conversation_append", **append))["duplicate"]
        await changes(session, key, "create")
        for socket in (old, new):
            assert (await socket.notice())["method"] == LIST_CHANGED, "of the repetition nothing was told"


async def test_subscribers_are_notified_of_changes_by_another_daemon(
    daemon: Daemon, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The daemons share a database; the notice arrives at whichever the client uses."""
    settings = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url, "EXAI_DATA_DIR": str(tmp_path)}
    with start_daemon(settings) as other:
        async with connect(other.url) as session, plain_socket(daemon.url) as socket:
            key = await stored(session, "first")
            uri = f"exai://conversations/{key}"
            await socket.send(modern("s", "subscriptions/listen", {"notifications": {"resourceSubscriptions": [uri]}}))
            await socket.notice()
            await call(session, "conversation_delete", continuation_id=key)
            assert (await socket.notice())["params"]["uri"] == uri


@pytest.mark.parametrize("era", [request, modern])
async def test_an_http_response_contains_only_its_answer(daemon: Daemon, era: Era) -> None:
    """A chat changes the list while it is answered, and that is no reason to stream."""
    import httpx

    params = {"name": "conversation_append", "arguments": {"messages": [{"role": "user", "content": "a"}]}}
    if era is modern:
        headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": params["name"]}
        message = modern(1, "tools/call", params)
    else:
        headers, message = {"mcp-protocol-version": "2025-11-25"}, request(1, "tools/call", params)
    async with httpx.AsyncClient() as client:
        found = await client.post(f"http://127.0.0.1:{daemon.port}/mcp", json=message, headers=headers)
    assert found.headers["content-type"] == "application/json"
    assert found.json()["result"]["structuredContent"]["last_seq"] == 1
