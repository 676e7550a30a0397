"""The official client of the second generation, in both eras, continues a conversation from the texts of the results.

Arguments: the address of the HTTP door. What was shown is printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

from mcp import Client


async def main() -> None:
    shown: list[str] = []
    for mode in ("auto", "legacy"):
        async with Client(sys.argv[1], mode=mode) as client:
            arguments = {"prompt": "Two and two?"}
            for question in ("And three?", ""):
                result = await client.call_tool("chat", arguments)
                assert not result.is_error, result
                shown.append("\n".join(each.text for each in result.content if each.type == "text"))
                found = re.search(r"continuation_id: ([0-9a-f-]{36})", shown[-1])
                assert found is not None, shown
                arguments = {"prompt": question, "continuation_id": found[1]}
    print(json.dumps(shown))


asyncio.run(main())
