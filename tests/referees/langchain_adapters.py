"""LangChain's MCP adapters: what a model is shown of a tool's result is the content of its `ToolMessage`.

Arguments: the address of the HTTP door. What was shown is printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

from langchain_mcp_adapters.client import MultiServerMCPClient


async def main() -> None:
    client = MultiServerMCPClient({"exai": {"transport": "streamable_http", "url": sys.argv[1]}})
    tools = {tool.name: tool for tool in await client.get_tools()}
    shown: list[str] = []
    arguments: dict[str, Any] = {"prompt": "Two and two?"}
    for question in ("And three?", ""):
        call = {"type": "tool_call", "name": "chat", "args": arguments, "id": f"call_{len(shown)}"}
        message = await tools["chat"].ainvoke(call)
        shown.append(message.text if isinstance(message.text, str) else message.text())
        found = re.search(r"continuation_id: ([0-9a-f-]{36})", shown[-1])
        assert found is not None, message
        arguments = {"prompt": question, "continuation_id": found[1]}
    print(json.dumps(shown))


asyncio.run(main())
