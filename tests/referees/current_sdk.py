"""The official client of today does everything a client does; run by a Python of its own that has it.

Arguments: the address of the HTTP door, then the command that starts a bridge. Each era is gone through on a connection
of its own through each; what was seen is printed as JSON, and the first thing that is not as it should be ends the
program.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from mcp import Client, MCPError, StdioServerParameters
from mcp_types import ResourceTemplateReference, TextResourceContents

LIMIT_S = 30.0
LEGACY, MODERN = "2025-11-25", "2026-07-28"
VERSIONS = {"auto": MODERN, "legacy": LEGACY}
CONVERSATIONS = ResourceTemplateReference(uri="exai://conversations/{id}")


async def main() -> None:
    address, program, *arguments = sys.argv[1:]
    doors: dict[str, Any] = {"http": address, "bridge": StdioServerParameters(command=program, args=arguments)}
    seen: dict[str, Any] = {}
    for door, server in doors.items():
        for mode in VERSIONS:
            async with asyncio.timeout(LIMIT_S), Client(server, mode=mode) as client:
                seen[f"{door} {mode}"] = await used(client, mode)
    print(json.dumps(seen))


async def used(client: Client, mode: str) -> dict[str, Any]:
    """Go through one connection."""
    assert client.protocol_version == VERSIONS[mode], client.protocol_version
    assert client.server_info is not None
    assert client.server_info.name == "exai"
    assert client.instructions
    tools = (await client.list_tools()).tools
    said, continuation_id = await chatted(client)
    await refused(client)
    await stopped(client)
    await read(client, continuation_id, said)
    # The call was cancelled, and the connection still works.
    await answered(client, "version")
    return {"tools": [tool.name for tool in tools], "answer": said}


async def answered(client: Client, tool: str, **arguments: Any) -> Any:
    """Call a tool; the client validates the result by the schema."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


async def chatted(client: Client) -> tuple[str, str]:
    """Ask, receive progress, and continue the conversation."""
    reports: list[tuple[float, str | None]] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, message))

    result = await client.call_tool("chat", {"prompt": "Two and two?"}, progress_callback=heard)
    assert result.structured_content is not None, result.content
    assert "Two and two?" in result.structured_content["content"]
    counts = [count for count, _ in reports]
    assert counts, "no progress"
    assert counts == sorted(set(counts))
    assert all(message for _, message in reports)
    continuation_id = result.structured_content["continuation_id"]
    more = await answered(client, "chat", prompt="And three?", continuation_id=continuation_id)
    assert more["content"].startswith("3 messages."), more
    return more["content"], continuation_id


async def refused(client: Client) -> None:
    """An error that the model can correct is a result, any other an error."""
    for arguments in ({}, {"continuation_id": "nobody-has-this"}):
        result = await client.call_tool("conversation_get", arguments)
        assert result.is_error, result
    try:
        await client.call_tool("no_such_tool")
    except MCPError as error:
        assert error.code == -32602, error
    else:
        raise AssertionError("a tool that does not exist was called")


async def stopped(client: Client) -> None:
    """Cancel a chat when the model has begun to answer."""
    begun = asyncio.Event()

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        if message is not None and " answering" in message:
            begun.set()

    call = asyncio.create_task(client.call_tool("chat", {"prompt": "hang"}, progress_callback=heard))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait({call, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert not call.done(), call
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()


async def read(client: Client, continuation_id: str, said: str) -> None:
    """Find the conversation by address."""
    found = await client.complete(CONVERSATIONS, {"name": "id", "value": continuation_id[:8]})
    assert found.completion.values == [continuation_id]
    listed = {each.name: each.uri for each in (await client.list_resources()).resources}
    (contents,) = (await client.read_resource(listed[continuation_id])).contents
    assert isinstance(contents, TextResourceContents)
    assert json.loads(contents.text)["messages"][-1]["content"] == said
    templates = (await client.list_resource_templates()).resource_templates
    assert CONVERSATIONS.uri in {each.uri_template for each in templates}


if __name__ == "__main__":
    asyncio.run(main())
