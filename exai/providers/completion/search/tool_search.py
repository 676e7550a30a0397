"""Let a model search the web through tools that its platform runs, until it answers.

Each search is a request of its own. The model's call is returned to it with its reasoning, which the platform demands,
and with the result. Invariant: text that has reached the caller is not requested again, and the number of searches of
one answer is limited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httpx

from exai.models import Delta
from exai.providers.base import Family, ProviderCall
from exai.providers.completion.search.formula import FormulaFailed, FormulaTools
from exai.providers.reply.calls import ToolCall

MAX_SEARCHES: Final = 8
MAX_ROUNDS: Final = 6
NO_MORE: Final = "No further search is possible. Answer with what was found."


class ToolSearch:
    """Answers the searches of a model, and asks it again with their results."""

    def __init__(self, formula: FormulaTools) -> None:
        self._formula = formula

    async def run(
        self,
        call: ProviderCall,
        attempts: Callable[[ProviderCall], Awaitable[int]],
        rebuild: Callable[[ProviderCall], None],
    ) -> int:
        """Complete `call`; `attempts` asks the model, after `rebuild`. Returns the number of attempts."""
        try:
            call.tools = await self._formula.tools()
        except FormulaFailed as error:
            call.notes[f"the web was not searched: {error}"] = None
            return await attempts(call)
        rebuild(call)
        made = await attempts(call)
        for _ in range(MAX_ROUNDS):
            if not call.answer.calls:
                break
            await self._answer(call)
            call.earlier.append(call.answer)
            rebuild(call)
            made += await attempts(call)
        return made

    async def _answer(self, call: ProviderCall) -> None:
        """Add the model's calls, and the result of each, to the messages."""
        calls = [each for _, each in sorted(call.answer.calls.items())]
        said: dict[str, Any] = {"role": "assistant", "reasoning_content": call.answer.reasoning}
        if call.answer.content:
            # An empty text beside calls is refused.
            said["content"] = call.answer.content
        said["tool_calls"] = [
            {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
            for each in calls
        ]
        call.tail.append(said)
        for each in calls:
            call.tail.append(await self._result(call, each))

    async def _result(self, call: ProviderCall, wanted: ToolCall) -> Mapping[str, Any]:
        if call.searches >= MAX_SEARCHES:
            content = NO_MORE
        else:
            call.searches += 1
            if call.on_delta is not None:
                await call.on_delta(Delta(note=f"{call.model.name} searches the web"))
            try:
                content, found = await self._formula.run(wanted.name, wanted.arguments)
                call.sources.update({source.url: source for source in found})
            except FormulaFailed as error:
                content = f"The search failed: {error}"
                call.notes[f"a search of the web failed: {error}"] = None
        return {"role": "tool", "tool_call_id": wanted.id, "name": wanted.name, "content": content}


def search_of(family: Family, client: httpx.AsyncClient, base_url: str, key: str) -> ToolSearch | None:
    """Return the search of a provider whose models call a tool for it."""
    uri = family.search_formula
    return None if uri is None else ToolSearch(FormulaTools(client, base_url, key, uri))
