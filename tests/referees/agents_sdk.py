"""OpenAI's Agents SDK runs an agent with EXAI's tools; its model is the one at the second address.

Arguments: the address of the HTTP door, the address of a chat-completions API, and whether results are structured.
"""

from __future__ import annotations

import asyncio
import sys

from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp
from openai import AsyncOpenAI


async def main() -> None:
    set_tracing_disabled(True)
    address, model_url, structured = sys.argv[1:]
    model = OpenAIChatCompletionsModel("m", AsyncOpenAI(base_url=f"{model_url}/v1", api_key="none"))
    server = MCPServerStreamableHttp(
        {"url": address}, client_session_timeout_seconds=30, use_structured_content=structured == "structured"
    )
    async with server:
        agent = Agent("tester", instructions="Ask.", model=model, mcp_servers=[server])
        print((await Runner.run(agent, "Go on.")).final_output)


asyncio.run(main())
