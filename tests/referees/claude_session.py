"""The Claude Agent SDK asks its model by its own command, with its transcript in EXAI, and prints the session's id.

Arguments: the address of a daemon, the address of Anthropic's API, the directory of a project, a question, and a
session to resume or nothing. The options are those of docs/adapters.md.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from claude_agent_sdk import ResultMessage, query

from tests.adapters.quick_starts import run_quick_start


async def main() -> None:
    address, model_url, project, question, resumed = sys.argv[1:]
    options = (await run_quick_start("claude", address))["options"]
    environment = {
        "ANTHROPIC_BASE_URL": model_url,
        "ANTHROPIC_API_KEY": "sk-ant-none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    options = replace(options, env=environment, cwd=project, resume=resumed or None)
    async for message in query(prompt=question, options=options):
        if isinstance(message, ResultMessage):
            assert not message.is_error, message
            print(message.session_id, message.result)
    await options.session_store.close()


asyncio.run(main())
