"""The official client of the first generation continues a conversation from the texts of the results.

Arguments: the address of the HTTP door. What was shown is printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main() -> None:
    async with streamablehttp_client(sys.argv[1]) as (reader, writer, _), ClientSession(reader, writer) as session:
        await session.initialize()
        shown: list[str] = []
        arguments = {"prompt": "Two and two?"}
        for question in ("And three?", ""):
            result = await session.call_tool("chat", arguments)
            assert not result.isError, result
            shown.append("\n".join(each.text for each in result.content if each.type == "text"))
            found = re.search(r"continuation_id: ([0-9a-f-]{36})", shown[-1])
            assert found is not None, shown
            arguments = {"prompt": question, "continuation_id": found[1]}
        print(json.dumps(shown))


asyncio.run(main())
