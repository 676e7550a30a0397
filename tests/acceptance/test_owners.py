"""Two owners on one daemon: no tool of one shows, reveals or changes anything of the other.

The tools come from the daemon itself, so that a tool without an attempt below fails here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from mcp import ClientSession, McpError
from mcp.types import PromptReference, ResourceTemplateReference
from pydantic import AnyUrl

from exai.workflows import load_workflows
from tests.support.backend import flush
from tests.support.client import call, connect, refused
from tests.support.daemon import Daemon, start_daemon
from tests.support.mcp_server import modern
from tests.support.plain_socket import plain_socket
from tests.support.provider_server import ProviderServer
from tests.support.tokens import ISSUER, SECRET, signed

ALICE_TOKEN = "token-of-alice-0123456789"
MARKER = "xylophone"
"""A word that only Alice ever writes."""

KEY = "the-same-key"


@dataclass
class World:
    """What Alice has, and Bob's session with a conversation and a file of his own."""

    alice: ClientSession
    bob: ClientSession
    provider: ProviderServer
    theirs: str
    their_file: str
    own: str
    own_file: str

    async def view(self) -> list[dict[str, Any]]:
        """Everything Alice sees."""
        pages = [
            await call(self.alice, "conversation_get", continuation_id=self.theirs),
            await call(self.alice, "conversation_export", continuation_id=self.theirs),
            await call(self.alice, "conversation_list"),
            await call(self.alice, "file_list"),
            await call(self.alice, "file_list", continuation_id=self.theirs),
            await call(self.alice, "file_get", file_id=self.their_file),
        ]
        return [{name: value for name, value in page.items() if name != "source"} for page in pages]

    async def not_found(self, tool: str, **arguments: Any) -> None:
        """The error is literally that for an object that does not exist."""
        told = await refused(self.bob, tool, **arguments)
        assert told["code"] == "not_found", told
        other = arguments
        for real, unreal in ((self.theirs, "no-such-conversation"), (self.their_file, str(UUID(int=1)))):
            other = replaced(other, real, unreal)
        assert replaced(await refused(self.bob, tool, **other), "no-such-conversation", self.theirs) == replaced(
            told, self.their_file, str(UUID(int=1))
        )


def replaced(value: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The same JSON with one id instead of another."""
    found = json.loads(json.dumps(value).replace(old, new))
    assert isinstance(found, dict)
    return found


async def chat(world: World) -> None:
    await world.not_found("chat", prompt="What did I say?", continuation_id=world.theirs)
    await world.not_found("chat", prompt="What is in it?", files=[world.their_file])
    answer = await call(world.bob, "chat", prompt="Hello?", idempotency_key=KEY)
    assert MARKER not in json.dumps(answer)
    assert answer["continuation_id"] != world.theirs
    bodies = [json.dumps(each.body) for each in world.provider.chats if MARKER in json.dumps(each.body)]
    assert len(bodies) == 1, "only Alice's own question went out with it"


async def append(world: World) -> None:
    message = [{"role": "user", "content": "mine"}]
    await world.not_found("conversation_append", messages=message, continuation_id=world.theirs)
    await world.not_found("conversation_append", messages=message, files=[world.their_file])
    stored = await call(world.bob, "conversation_append", messages=message, idempotency_key=f"append-{KEY}")
    assert stored["continuation_id"] != world.theirs


async def get(world: World) -> None:
    await world.not_found("conversation_get", continuation_id=world.theirs)
    await world.not_found("conversation_get", continuation_id=world.theirs, before_seq=2)


async def list_all(world: World) -> None:
    listed = await call(world.bob, "conversation_list", limit=200)
    assert world.own in {each["continuation_id"] for each in listed["conversations"]}
    assert world.theirs not in json.dumps(listed)
    assert MARKER not in json.dumps(listed)


async def search(world: World) -> None:
    for arguments in ({}, {"continuation_id": world.theirs}):
        assert (await call(world.bob, "conversation_search", query=MARKER, **arguments))["hits"] == []


async def fork(world: World) -> None:
    await world.not_found("conversation_fork", continuation_id=world.theirs)
    await world.not_found("conversation_fork", continuation_id=world.theirs, at_seq=1)


async def update(world: World) -> None:
    await world.not_found("conversation_update", continuation_id=world.theirs, title="Bob was here")


async def delete(world: World) -> None:
    await world.not_found("conversation_delete", continuation_id=world.theirs)
    await world.not_found("conversation_delete", continuation_id=world.theirs, restore=True)


async def export(world: World) -> None:
    await world.not_found("conversation_export", continuation_id=world.theirs)
    await world.not_found("conversation_export", continuation_id=world.theirs, format="jsonl")


async def import_same_name(world: World) -> None:
    """Two owners use the same name for two conversations, also in the cache, in any order of reads and changes."""
    text = (await call(world.bob, "conversation_export", continuation_id=world.own))["text"]
    await call(world.bob, "conversation_import", text=text, continuation_id=world.theirs)
    for _ in range(2):
        page = await call(world.bob, "conversation_get", continuation_id=world.theirs)
        assert [each["content"] for each in page["messages"]] == ["of Bob"]
        assert MARKER in json.dumps(await call(world.alice, "conversation_get", continuation_id=world.theirs))
    await call(world.bob, "conversation_delete", continuation_id=world.theirs)
    assert MARKER in json.dumps(await call(world.alice, "conversation_get", continuation_id=world.theirs))
    await call(world.bob, "conversation_delete", continuation_id=world.theirs, restore=True)


async def put(world: World) -> None:
    stored = await call(world.bob, "file_put", name="same.txt", content=f"the {MARKER}")
    assert stored["created"], "an owner must not learn that another has the same content"
    assert stored["file_id"] != world.their_file
    await call(world.bob, "file_delete", file_id=stored["file_id"])


async def file_get(world: World) -> None:
    await world.not_found("file_get", file_id=world.their_file)


async def file_list(world: World) -> None:
    listed = await call(world.bob, "file_list", limit=200)
    assert [each["file_id"] for each in listed["files"]] == [world.own_file]
    within = await world.bob.call_tool("file_list", {"continuation_id": world.theirs})
    without = await world.bob.call_tool("file_list", {"continuation_id": "no-such-conversation"})
    assert json.dumps(within.structuredContent).replace(world.theirs, "no-such-conversation") == json.dumps(
        without.structuredContent
    )


async def link(world: World) -> None:
    await world.not_found("file_link", continuation_id=world.own, file_ids=[world.their_file])
    await world.not_found("file_link", continuation_id=world.own, file_ids=[world.own_file, world.their_file])
    await world.not_found("file_link", continuation_id=world.theirs, file_ids=[world.own_file])


async def file_delete(world: World) -> None:
    await world.not_found("file_delete", file_id=world.their_file)


async def usage(world: World) -> None:
    await world.not_found("usage", continuation_id=world.theirs)
    for by in ("conversation", "tool"):
        assert world.theirs not in json.dumps(await call(world.bob, "usage", by=by))


def shows_nothing(tool: str) -> Callable[[World], Awaitable[None]]:
    """Tools about the service show both owners the same, and nothing that belongs to Alice."""

    async def attempt(world: World) -> None:
        seen = await call(world.bob, tool)
        assert seen.keys() == (await call(world.alice, tool)).keys()
        assert not [word for word in (MARKER, world.theirs, world.their_file) if word in json.dumps(seen)]

    return attempt


async def nothing_by_address(world: World) -> None:
    """Resources and completions reach the same objects."""
    addresses = [f"exai://conversations/{world.theirs}", f"exai://files/{world.their_file}"]
    assert MARKER in (await world.alice.read_resource(AnyUrl(addresses[0]))).model_dump_json()
    assert MARKER in (await world.alice.read_resource(AnyUrl(addresses[1]))).model_dump_json()
    # Bob has a conversation of the same name by now.
    assert MARKER not in (await world.bob.read_resource(AnyUrl(addresses[0]))).model_dump_json()
    with pytest.raises(McpError, match="not found"):
        await world.bob.read_resource(AnyUrl(addresses[1]))
    listed = (await world.bob.list_resources()).model_dump_json()
    assert world.own in listed
    assert MARKER not in listed
    templates = [each.uriTemplate for each in (await world.bob.list_resource_templates()).resourceTemplates]
    assert templates == ["exai://conversations/{id}", "exai://files/{id}"], "every template needs an attempt here"
    for template in templates:
        reference = ResourceTemplateReference(type="ref/resource", uri=template)
        for typed in ("same", MARKER):
            assert (await world.bob.complete(reference, {"name": "id", "value": typed})).completion.values == []


async def nothing_by_prompt(world: World) -> None:
    """A prompt shows a conversation, and its arguments are completed."""
    prompts = {each.name: each.arguments or [] for each in (await world.bob.list_prompts()).prompts}
    assert prompts.keys() == {"ask", "continue", "find", *load_workflows(), "consensus"}, "a prompt lacks its attempt"
    for name, arguments in prompts.items():
        reference = PromptReference(type="ref/prompt", name=name)
        for argument in arguments:
            # By now Bob has a conversation of the same name, whose id completes these two.
            completes_ids = argument.name in ("continuation_id", "prompt")
            for typed in ("same", MARKER, MARKER if completes_ids else world.theirs[:8]):
                found = await world.bob.complete(reference, {"name": argument.name, "value": typed})
                assert found.completion.values == [], (name, argument.name, typed)
        given = {each.name: world.theirs for each in arguments if each.required}
        # Bob has a conversation of the same name by now.
        assert MARKER not in (await world.bob.get_prompt(name, given)).model_dump_json()
    hers = await world.alice.get_prompt("continue", {"continuation_id": world.theirs})
    assert MARKER in hers.model_dump_json()


async def nothing_by_listening(world: World, url: str) -> None:
    """A subscription to an address of another owner receives nothing, nor does that of an owner without the object."""
    address = f"exai://conversations/{world.theirs}"
    listen = {"notifications": {"resourcesListChanged": True, "resourceSubscriptions": [address]}}
    third = f"{url}?token={signed('carol')}"
    async with plain_socket(f"{url}?token={ALICE_TOKEN}") as hers, plain_socket(third) as strange:
        for socket in (hers, strange):
            await socket.send(modern("s", "subscriptions/listen", listen))
            assert (await socket.notice())["method"] == "notifications/subscriptions/acknowledged"
        await call(world.alice, "conversation_update", continuation_id=world.theirs, title="Louder")
        while (await hers.notice())["method"] != "notifications/resources/list_changed":
            pass
        # All sessions are notified together, so a notification to another owner would precede this answer.
        await strange.ask(modern("d", "server/discover"))
        assert strange.notices == []


def expert(tool: str) -> Callable[[World], Awaitable[None]]:
    """Make the attempt with a tool that asks as an expert: at a conversation, asked and recorded, and at a file."""

    async def attempt(world: World) -> None:
        if tool != "precommit":
            await world.not_found(tool, prompt="What did I say?", continuation_id=world.theirs, files=[world.own_file])
        await world.not_found(tool, prompt="What is in it?", files=[world.their_file])
        if tool not in ("challenge", "consensus"):
            await world.not_found(tool, prompt="Mine.", continuation_id=world.theirs, ask_model=False)

    return attempt


ATTEMPTS: dict[str, Callable[[World], Awaitable[None]]] = {
    "chat": chat,
    **{name: expert(name) for name in (*load_workflows(), "consensus")},
    "conversation_append": append,
    "conversation_get": get,
    "conversation_list": list_all,
    "conversation_search": search,
    "conversation_fork": fork,
    "conversation_update": update,
    "conversation_delete": delete,
    "conversation_export": export,
    "file_put": put,
    "file_get": file_get,
    "file_list": file_list,
    "file_link": link,
    "file_delete": file_delete,
    "usage": usage,
    **{name: shows_nothing(name) for name in ("listmodels", "status", "version")},
    "conversation_import": import_same_name,  # the last: from then on Bob has a conversation of the same name
}


@pytest.fixture
async def shared(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Daemon]:
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_SERVER__TOKENS": json.dumps({"alice": ALICE_TOKEN}),
        "EXAI_SERVER__JWT__SECRET": SECRET,
        "EXAI_SERVER__JWT__ISSUER": ISSUER,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
    }
    with start_daemon(settings) as daemon:
        yield daemon


async def test_no_tool_lets_one_owner_at_what_another_has(
    shared: Daemon, provider: ProviderServer, redis_url: str
) -> None:
    """Design: every row, statement and cache key is scoped by an owner. Tried with the cache warm and cold."""
    async with (
        connect(f"{shared.url}?token={ALICE_TOKEN}") as alice,
        connect(f"{shared.url}?token={signed('bob')}") as bob,
    ):
        tools = {tool.name for tool in (await bob.list_tools()).tools}
        assert tools == set(ATTEMPTS), "every tool needs an attempt here"
        world = await furnished(alice, bob, provider)
        for name, attempt in ATTEMPTS.items():
            for cache in ("warm", "cold"):
                before = await world.view()
                if cache == "cold":
                    flush(redis_url)
                try:
                    await attempt(world)
                except AssertionError as error:
                    raise AssertionError(f"{name} with a {cache} cache: {error}") from error
                assert await world.view() == before, f"{name} with a {cache} cache changed what Alice sees"
        await nothing_by_address(world)
        await nothing_by_prompt(world)
        await nothing_by_listening(world, shared.url)
    log = shared.output
    assert ALICE_TOKEN not in log
    assert signed("bob")[:40] not in log


async def furnished(alice: ClientSession, bob: ClientSession, provider: ProviderServer) -> World:
    """Alice has a conversation with a title, a turn, a linked file and used keys; Bob has one and a file, too."""
    their_file = (await call(alice, "file_put", name="same.txt", content=f"the {MARKER}"))["file_id"]
    appended = await call(
        alice,
        "conversation_append",
        messages=[{"role": "user", "content": f"Remember the {MARKER}."}],
        title=f"About the {MARKER}",
        files=[their_file],
        idempotency_key=f"append-{KEY}",
    )
    theirs = appended["continuation_id"]
    await call(alice, "chat", prompt="What is it?", continuation_id=theirs, idempotency_key=KEY)
    own_file = (await call(bob, "file_put", name="own.txt", content="of Bob"))["file_id"]
    own = await call(bob, "conversation_append", messages=[{"role": "user", "content": "of Bob"}])
    return World(alice, bob, provider, theirs, their_file, own["continuation_id"], own_file)
