"""Conversations and files by address: what a client lists, reads and completes without calling a tool."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any

import pytest
from mcp import McpError
from mcp.types import BlobResourceContents, ResourceTemplateReference, TextResourceContents
from pydantic import AnyUrl

from tests.support.client import call, connect
from tests.support.daemon import Daemon
from tests.support.mcp_server import modern

FILES = ResourceTemplateReference(type="ref/resource", uri="exai://files/{id}")
CONVERSATIONS = ResourceTemplateReference(type="ref/resource", uri="exai://conversations/{id}")


def post(daemon: Daemon, message: dict[str, Any]) -> dict[str, Any]:
    """POST a message of the stateless era."""
    headers = {
        "Content-Type": "application/json",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": message["method"],
        **({"Mcp-Name": message["params"]["uri"]} if "uri" in message["params"] else {}),
    }
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)
    try:
        connection.request("POST", "/mcp", json.dumps(message), headers)
        found = json.loads(connection.getresponse().read())
        assert isinstance(found, dict)
        return found
    finally:
        connection.close()


async def test_conversations_are_listed_by_recency_and_read_as_json(daemon: Daemon) -> None:
    """A page at a time; names that an address cannot hold as they are come through whole."""
    async with connect(daemon.url) as session:
        kept = []
        for number in range(52):
            stored = await call(
                session,
                "conversation_append",
                messages=[{"role": "user", "content": f"message {number}"}],
                title=f"Title {number}",
            )
            kept.append(stored["continuation_id"])
        exported = await call(session, "conversation_export", continuation_id=kept[0], format="jsonl")
        odd = "talks/März 100% #1?"
        await call(session, "conversation_import", text=exported["text"], format="jsonl", continuation_id=odd)
        await call(session, "conversation_update", continuation_id=odd, title="Odd")  # an import keeps its times
        first = await session.list_resources()
        second = await session.list_resources(cursor=first.nextCursor)
        assert [each.name for each in [*first.resources, *second.resources]] == [odd, *reversed(kept)]
        assert (len(first.resources), second.nextCursor) == (50, None)
        assert first.resources[1].title == "Title 51"
        for resource, content in ((first.resources[0], "message 0"), (first.resources[1], "message 51")):
            (read,) = (await session.read_resource(resource.uri)).contents
            assert isinstance(read, TextResourceContents)
            page = json.loads(read.text)
            assert [each["content"] for each in page["messages"]] == [content]
            assert page["continuation_id"] == resource.name
        with pytest.raises(McpError, match="cursor"):
            await session.list_resources(cursor="7")
        templates = (await session.list_resource_templates()).resourceTemplates
        assert [each.uriTemplate for each in templates] == ["exai://conversations/{id}", "exai://files/{id}"]


async def test_a_long_conversation_is_read_from_its_end_and_says_where_the_rest_is(daemon: Daemon) -> None:
    """Limited in size; before_seq of conversation_get continues there, and a very long message is truncated."""
    async with connect(daemon.url) as session:
        parts = [{"role": "user", "content": f"{number} " + "x" * 30_000} for number in range(6)]
        long = (await call(session, "conversation_append", messages=parts))["continuation_id"]
        (read,) = (await session.read_resource(AnyUrl(f"exai://conversations/{long}"))).contents
        assert isinstance(read, TextResourceContents)
        page = json.loads(read.text)
        assert [each["seq"] for each in page["messages"]] == [4, 5, 6]
        older = {"continuation_id": long, "before_seq": page["next_before_seq"], "max_chars": 400_000}
        rest = await call(session, "conversation_get", **older)
        assert [each["seq"] for each in rest["messages"]] == [1, 2, 3]
        giant = [{"role": "user", "content": "before"}, {"role": "user", "content": "\x01" * 1_000_000}]
        big = (await call(session, "conversation_append", messages=giant))["continuation_id"]
        (read,) = (await session.read_resource(AnyUrl(f"exai://conversations/{big}"))).contents
        assert isinstance(read, TextResourceContents)
        page = json.loads(read.text)
        (shown,) = page["messages"]
        assert len(shown["content"]) == shown["next_offset"] < 1_000_000
        assert page["next_before_seq"] == 2
        rest = await call(session, "conversation_get", continuation_id=big, seq=2, char_offset=shown["next_offset"])
        assert rest["messages"][0]["content"].startswith("\x01")


async def test_files_are_read_as_text_or_bytes_up_to_a_size(daemon: Daemon) -> None:
    """Beyond it the answer names the tool that reads in parts."""
    async with connect(daemon.url) as session:
        text = await call(session, "file_put", name="a.md", content="# Größe")
        data = bytes(range(256)) * 1_900
        binary = await call(session, "file_put", name="a.bin", content_base64=base64.b64encode(data).decode())
        large = await call(session, "file_put", name="b.txt", content="x" * 500_001)
        (read,) = (await session.read_resource(AnyUrl(f"exai://files/{text['file_id']}"))).contents
        assert isinstance(read, TextResourceContents)
        assert (read.text, read.mimeType) == ("# Größe", "text/markdown")
        (read,) = (await session.read_resource(AnyUrl(f"exai://files/{binary['file_id']}"))).contents
        assert isinstance(read, BlobResourceContents)
        assert base64.b64decode(read.blob) == data
        with pytest.raises(McpError, match="file_get reads it in parts"):
            await session.read_resource(AnyUrl(f"exai://files/{large['file_id']}"))


@pytest.mark.parametrize(
    "uri",
    [
        "exai://conversations/none",
        "exai://conversations/",
        "exai://conversations/%00",
        "exai://files/none",
        "exai://files/00000000-0000-4000-8000-000000000000",
        "exai://models/kimi",
        "file:///etc/hostname",
    ],
)
def test_an_unknown_address_is_an_error_that_names_it(daemon: Daemon, uri: str) -> None:
    """2026-07-28: invalid params with the address, never an empty result."""
    error = post(daemon, modern(1, "resources/read", {"uri": uri}))["error"]
    assert (error["code"], error["data"]) == (-32602, {"uri": uri})


async def test_all_files_are_completed(daemon: Daemon) -> None:
    """By the beginning of the id or a part of the name in any case, also if many files are newer."""
    async with connect(daemon.url) as session:
        old = (await call(session, "file_put", name="Größen_100%.md", content="old"))["file_id"]
        for number in range(101):
            await call(session, "file_put", name=f"{number}.txt", content=str(number))
        for typed in (old, old[:9].upper(), "GRÖ", "größen_", "100%"):
            found = await session.complete(FILES, {"name": "id", "value": typed})
            assert found.completion.values == [old], typed
        found = await session.complete(FILES, {"name": "id", "value": ".TXT"})
        assert (len(found.completion.values), found.completion.hasMore) == (100, True)
        assert (await session.complete(FILES, {"name": "id", "value": "%.txt"})).completion.values == []


async def test_the_address_of_a_resource_is_taken_as_its_id(daemon: Daemon) -> None:
    """As a model finds it in a list of resources, or a client writes it for a mention."""
    async with connect(daemon.url) as session:
        message = [{"role": "user", "content": "a"}]
        file = (await call(session, "file_put", name="a.md", content="a"))["file_id"]
        kept = await call(session, "conversation_append", messages=message, title="a", files=[f"exai://files/{file}"])
        export = await call(session, "conversation_export", continuation_id=kept["continuation_id"])
        await call(session, "conversation_import", text=export["text"], continuation_id="a/b c")
        listed = (await session.list_resources()).resources
        addresses = [str(each.uri) for each in listed]
        assert len(addresses) == 2
        for address in (*addresses, f"@exai:{addresses[0]}"):
            read = await call(session, "conversation_get", continuation_id=address)
            assert read["continuation_id"] in {kept["continuation_id"], "a/b c"}
            assert read["understood"] == ["continuation_id: the address taken as the id in it"]
            assert (await call(session, "file_list", continuation_id=address))["files"][0]["file_id"] == file
        assert (await call(session, "file_get", file_id=f"exai://files/{file}"))["content"] == "a"


async def test_ids_and_models_are_completed(daemon: Daemon) -> None:
    """By the beginning of the id or a part of the title; models by their name."""
    async with connect(daemon.url) as session:
        message = [{"role": "user", "content": "a"}]
        planets = await call(session, "conversation_append", messages=message, title="About planets")
        key = planets["continuation_id"]
        await call(session, "conversation_append", messages=message, title="About birds")
        for typed in (key[:8], "PLANETS"):
            found = await session.complete(CONVERSATIONS, {"name": "id", "value": typed})
            assert found.completion.values == [key]
        # Far from the newest page.
        for number in range(101):
            await call(session, "conversation_append", messages=message, title=f"Filler {number}")
        for typed in (key[:8], "of planets"[3:], "PLANETS"):
            found = await session.complete(CONVERSATIONS, {"name": "id", "value": typed})
            assert found.completion.values == [key], typed
        found = await session.complete(CONVERSATIONS, {"name": "id", "value": "Filler"})
        assert (len(found.completion.values), found.completion.hasMore) == (100, True)
        listed = (await session.list_resources()).resources
        assert all(each.title and each.title in (each.description or "") for each in listed)
        models = await session.complete(CONVERSATIONS, {"name": "model", "value": "kimi"})
        listed = await call(session, "listmodels")
        assert set(models.completion.values) & {each["name"] for each in listed["models"]}
        assert all(each.startswith("kimi") for each in models.completion.values)
        assert (await session.complete(CONVERSATIONS, {"name": "other", "value": ""})).completion.values == []
        unknown = ResourceTemplateReference(type="ref/resource", uri="exai://nothing/{id}")
        with pytest.raises(McpError, match="no such prompt or resource"):
            await session.complete(unknown, {"name": "id", "value": ""})
