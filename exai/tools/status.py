"""Tools that show configuration and state: `listmodels`, `status`, `version`."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from exai import __version__
from exai.db.ledger import BudgetState
from exai.errors import DatabaseError, InvalidArgument
from exai.mcp.features.results import ToolOutput
from exai.mcp.features.texts import items, one_line
from exai.mcp.features.tools import Arguments, CallContext, ToolSpec
from exai.models import Owner
from exai.providers.base import ModelInfo
from exai.providers.naming import SET_A_KEY
from exai.providers.registry import Providers
from exai.tools.limits import answer_limit, size_of, take_rows
from exai.tools.usage import BudgetOutput, budget_lines, budget_output

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
    "served",
)
COMPONENT = ("component", "state", "latency_ms", "detail")
"""Fields of a component of EXAI in the text."""

ReadHealth = Callable[[], Mapping[str, Any]]
ReadBudgets = Callable[[Owner], Awaitable[Sequence[BudgetState]]]


class NoArguments(Arguments):
    """The arguments of a tool without arguments."""


class ListModelsArguments(Arguments):
    """Arguments of `listmodels`."""

    provider: str | None = Field(None, description="Only this provider's models.")
    after: str | None = Field(None, description="next_after of the previous page.")


@dataclass
class PriceOutput:
    """Prices of a model, in USD per million tokens."""

    input: float
    cached: float
    output: float


@dataclass
class ModelOutput:
    """A model of the list."""

    name: str
    provider: str
    configured: bool
    default: bool
    aliases: list[str]
    context_window: int
    max_output_tokens: int
    thinking: list[str]
    usd_per_million_tokens: PriceOutput | None
    retires: str | None
    successor: str | None
    served: Annotated[bool | None, Field(description="Whether its provider lists it; null without a list.")]


@dataclass
class ListModelsOutput(ToolOutput):
    """Answer of `listmodels`."""

    models: list[ModelOutput]
    default: str | None
    next_after: str | None
    notes: list[str]

    def as_text(self) -> str:
        """Return the default, and one line for each model."""
        return "\n".join([f"default: {self.default}", items(map(vars, self.models), LINE), *self.notes])


@dataclass
class StatusOutput(ToolOutput):
    """Answer of `status`: the report of `GET /health` and the figures beside it."""

    status: str
    ready: bool
    accepting: bool
    uptime_s: float
    age_s: float | None
    components: dict[str, dict[str, Any]]
    pid: int
    staleness_bound_s: float
    cache_reads: dict[str, int]
    answer_cache: dict[str, dict[str, int]]
    recorder: dict[str, int]
    statement_ms: dict[str, Any] | None
    budgets: Annotated[
        list[BudgetOutput] | None, Field(description="Of the caller; null if the database cannot be asked.")
    ]

    def as_text(self) -> str:
        """Return one line for each component and each budget."""
        parts = ({"component": name, **facts} for name, facts in self.components.items())
        counts = [f"{part}: {one_line(results.items())}" for part, results in self.answer_cache.items() if results]
        lines = [f"status: {self.status}", items(parts, COMPONENT), *(f"answer cache {line}" for line in counts)]
        return "\n".join(filter(None, [*lines, budget_lines(self.budgets or ())]))


@dataclass
class VersionOutput(ToolOutput):
    """Answer of `version`."""

    name: str
    version: str
    python: str

    def as_text(self) -> str:
        """Return name and version."""
        return f"{self.name} {self.version}"


def status_tools(providers: Providers, health: ReadHealth, budgets: ReadBudgets) -> tuple[ToolSpec, ...]:
    """Make the tools that show the service itself."""
    return (_listmodels_tool(providers), _status_tool(health, budgets), _version_tool())


def _listmodels_tool(providers: Providers) -> ToolSpec:
    async def handle(arguments: ListModelsArguments, context: CallContext) -> ListModelsOutput:
        await providers.discover()
        infos = [info for info in providers.models() if arguments.provider in (None, info.provider)]
        rest = infos[_begin(infos, arguments.after) :]
        notes = _notes(providers, infos)
        shown = take_rows(rest, _model, answer_limit(context.client) - size_of(notes))
        return ListModelsOutput(
            models=shown,
            default=next((info.name for info in infos if info.default), None),
            next_after=shown[-1].name if len(shown) < len(rest) else None,
            notes=notes,
        )

    return ToolSpec(
        name="listmodels",
        title="List models",
        description="List models with windows, prices and aliases, and whether they are configured.",
        arguments=ListModelsArguments,
        output=ListModelsOutput,
        handler=handle,
        read_only=True,
    )


def _status_tool(health: ReadHealth, budgets: ReadBudgets) -> ToolSpec:
    async def handle(_arguments: NoArguments, context: CallContext) -> StatusOutput:
        try:
            found = [budget_output(each) for each in await budgets(context.owner)]
        except DatabaseError:
            return StatusOutput(**health(), budgets=None)
        return StatusOutput(**health(), budgets=found)

    return ToolSpec(
        name="status",
        title="Status",
        description="Show the state and latency of every component (database, cache, providers), and your budgets.",
        arguments=NoArguments,
        output=StatusOutput,
        handler=handle,
        read_only=True,
    )


def _version_tool() -> ToolSpec:
    async def handle(_arguments: NoArguments, _context: CallContext) -> VersionOutput:
        return VersionOutput(name="exai", version=__version__, python=platform.python_version())

    return ToolSpec(
        name="version",
        title="Version",
        description="Show EXAI's version.",
        arguments=NoArguments,
        output=VersionOutput,
        handler=handle,
        read_only=True,
    )


def _notes(providers: Providers, infos: Sequence[ModelInfo]) -> list[str]:
    """Return the notes of the listed providers, or the variables to set if none is configured."""
    if not any(info.configured for info in infos):
        return [f"No model is configured. {SET_A_KEY}"]
    shown = {info.provider for info in infos}
    return [note for status in providers.status() if status.name in shown for note in status.notes]


def _begin(infos: Sequence[ModelInfo], after: str | None) -> int:
    if after is None:
        return 0
    found = next((index for index, info in enumerate(infos) if info.name == after), None)
    if found is None:
        raise InvalidArgument("after", "names no model of the list", "Use next_after of the page before")
    return found + 1


def _model(info: ModelInfo) -> ModelOutput:
    price = info.price
    usd = None if price is None else PriceOutput(float(price.input), float(price.cached), float(price.output))
    return ModelOutput(
        name=info.name,
        provider=info.provider,
        configured=info.configured,
        default=info.default,
        aliases=list(info.aliases),
        context_window=info.context_window,
        max_output_tokens=info.max_output_tokens,
        thinking=list(info.thinking),
        usd_per_million_tokens=usd,
        retires=info.retires.isoformat() if info.retires else None,
        successor=info.successor,
        served=info.served,
    )
