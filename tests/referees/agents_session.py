"""OpenAI's Agents SDK asks a model within a session of EXAI, and prints the session's items.

Arguments: the address of a daemon, the address of a chat-completions API, the session's id, and the question.
"""

from __future__ import annotations

import asyncio
import json
import sys

from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

from exai.adapters.openai_agents import ExaiSession


async def main() -> None:
    set_tracing_disabled(True)
    address, model_url, session_id, question = sys.argv[1:]
    model = OpenAIChatCompletionsModel("m", AsyncOpenAI(base_url=f"{model_url}/v1", api_key="none"))
    session = ExaiSession(session_id, address)
    await Runner.run(Agent("assistant", model=model), question, session=session)
    print(json.dumps(await session.get_items()))


asyncio.run(main())
