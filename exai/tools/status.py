"""Tools that show configuration and state: `listmodels`, `status`, `version`."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import Field

from exai import __version__
from exai.errors import InvalidArgument
from exai.mcp.features.texts import items
from exai.mcp.features.tools import Arguments, CallContext, ToolResult, ToolSpec
from exai.providers.base import ModelInfo
from exai.providers.naming import SET_A_KEY
from exai.providers.registry import Providers
from exai.tools.limits import fitting, room

LINE = (
    "name",
    "provider",
    "configured",
    "aliases",
    "context_window",
    "max_output_tokens",
    "thinking",
    "retires",
    "successor",
)
COMPONENT = ("component", "state", "latency_ms", "detail")
"""Fields of a component of EXAI in the text."""

ReadHealth = Callable[[], Awaitable[dict[str, Any]]]


class NoArguments(Arguments):
    """The arguments of a tool without arguments."""


class ListModelsArguments(Arguments):
    """Arguments of `listmodels`."""

    provider: str | None = Field(None, description="Only this provider's models.")
    after: str | None = Field(None, description="next_after of the previous page.")


def status_tools(providers: Providers, health: ReadHealth) -> tuple[ToolSpec, ...]:
    """Make the tools that show the service itself."""
    return (_listmodels_tool(providers), _status_tool(health), _version_tool())


def _listmodels_tool(providers: Providers) -> ToolSpec:
    async def handle(arguments: ListModelsArguments, _context: CallContext) -> ToolResult:
        await providers.discover()
        infos = [info for info in providers.models() if arguments.provider in (None, info.provider)]
        rest = infos[_begin(infos, arguments.after) :]
        shown = fitting(rest, _model, room())
        default = next((info.name for info in infos if info.default), None)
        facts = {
            "models": shown,
            "default": default,
            "next_after": shown[-1]["name"] if len(shown) < len(rest) else None,
        }
        missing = "" if any(info.configured for info in infos) else f"No model is configured. {SET_A_KEY}\n"
        return ToolResult(facts, f"{missing}default: {default}\n{items(shown, LINE)}")

    return ToolSpec(
        name="listmodels",
        title="List models",
        description="List models with windows, prices and aliases, and whether they are configured.",
        arguments=ListModelsArguments,
        handler=handle,
        read_only=True,
    )


def _status_tool(health: ReadHealth) -> ToolSpec:
    async def handle(_arguments: NoArguments, _context: CallContext) -> ToolResult:
        report = await health()
        parts = ({"component": name, **facts} for name, facts in report.get("components", {}).items())
        return ToolResult(report, f"status: {report['status']}\n{items(parts, COMPONENT)}")

    return ToolSpec(
        name="status",
        title="Status",
        description="Show the state and latency of every component: database, cache, providers.",
        arguments=NoArguments,
        handler=handle,
        read_only=True,
    )


def _version_tool() -> ToolSpec:
    async def handle(_arguments: NoArguments, _context: CallContext) -> ToolResult:
        facts = {"name": "exai", "version": __version__, "python": platform.python_version()}
        return ToolResult(structured=facts, text=f"exai {__version__}")

    return ToolSpec(
        name="version",
        title="Version",
        description="Show EXAI's version.",
        arguments=NoArguments,
        handler=handle,
        read_only=True,
    )


def _begin(infos: Sequence[ModelInfo], after: str | None) -> int:
    if after is None:
        return 0
    found = next((index for index, info in enumerate(infos) if info.name == after), None)
    if found is None:
        raise InvalidArgument("after", "names no model of the list", "Use next_after of the page before")
    return found + 1


def _model(info: ModelInfo) -> dict[str, Any]:
    price = info.price
    return {
        "name": info.name,
        "provider": info.provider,
        "configured": info.configured,
        "default": info.default,
        "aliases": list(info.aliases),
        "context_window": info.context_window,
        "max_output_tokens": info.max_output_tokens,
        "thinking": list(info.thinking),
        "usd_per_million_tokens": price
        and {"input": float(price.input), "cached": float(price.cached), "output": float(price.output)},
        "retires": info.retires.isoformat() if info.retires else None,
        "successor": info.successor,
    }
