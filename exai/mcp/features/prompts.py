"""Prompts: message templates that users select in their client, and completion of arguments during typing.

Invariant: a prompt receives exactly the arguments it declares, all of them strings; a missing or unknown one is an
error that names it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.core.protocol import READ_TERMS, Call, CallContext, Feature, Method
from exai.mcp.core.versions import Cacheable
from exai.mcp.features.coercion import coerce
from exai.mcp.features.paging import paged

LIST_CACHE = Cacheable(300_000, "public")
MAX_COMPLETIONS = 100


@dataclass(frozen=True, slots=True)
class PromptArgument:
    """One argument of a prompt."""

    name: str
    description: str = ""
    required: bool = True


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """One prompt; `render` returns its messages in MCP's form."""

    name: str
    title: str
    description: str
    render: Callable[[Mapping[str, str], CallContext], Awaitable[Sequence[Json]]]
    arguments: tuple[PromptArgument, ...] = ()


class PromptRegistry:
    """The prompts of one server, in order of registration."""

    def __init__(self, specs: Iterable[PromptSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}

    def feature(self) -> Feature:
        """Return the methods and the capability of these prompts."""
        return Feature(
            {"prompts": {}},
            (
                Method("prompts/list", answer=self._list, cacheable=LIST_CACHE),
                Method("prompts/get", work=self._get, terms=READ_TERMS),
            ),
        )

    def _list(self, call: Call) -> Json:
        return paged([_description(spec) for spec in self._specs.values()], call.params, "prompts")

    async def _get(self, call: Call, context: CallContext) -> Json:
        name, given = call.params.get("name"), call.params.get("arguments")
        spec = self._specs.get(name) if isinstance(name, str) else None
        if spec is None:
            raise RpcError(INVALID_PARAMS, "Unknown prompt; prompts/list names all prompts")
        arguments = _checked(spec, given)
        return {"description": spec.description, "messages": list(await spec.render(arguments, context))}


Completer = Callable[[Json, str, str, CallContext], Awaitable[Sequence[str]]]
"""Maps a reference (prompt or resource), an argument's name and the typed text to the caller's matching values."""


def completion_feature(complete: Completer) -> Feature:
    """Return the feature that completes arguments."""

    async def answer(call: Call, context: CallContext) -> Json:
        reference, argument = call.params.get("ref"), call.params.get("argument")
        if not isinstance(reference, dict) or not isinstance(argument, dict):
            raise RpcError(INVALID_PARAMS, "Invalid params: ref and argument must be objects")
        if not all(isinstance(reference.get(field, ""), str) for field in ("name", "uri")):
            raise RpcError(INVALID_PARAMS, "Invalid params: ref.name and ref.uri must be strings")
        name, typed = argument.get("name"), argument.get("value")
        if not isinstance(name, str) or not isinstance(typed, str):
            raise RpcError(INVALID_PARAMS, "Invalid params: argument needs a name and a value")
        values = list(await complete(reference, name, typed, context))
        shown = values[:MAX_COMPLETIONS]
        return {"completion": {"values": shown, "total": len(values), "hasMore": len(shown) < len(values)}}

    return Feature({"completions": {}}, (Method("completion/complete", work=answer, terms=READ_TERMS),))


def _checked(spec: PromptSpec, sent: object) -> Mapping[str, str]:
    """Return the arguments, coerced like those of tools."""
    texts = {argument.name: {"type": "string"} for argument in spec.arguments}
    required = [argument.name for argument in spec.arguments if argument.required]
    given, _ = coerce({"properties": texts, "required": required}, sent)
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise RpcError(INVALID_PARAMS, "Invalid params: arguments must be an object of texts")
    names = {argument.name for argument in spec.arguments}
    unknown = sorted(given.keys() - names)
    missing = [name for name in required if name not in given]
    if unknown:
        known = ", ".join(sorted(names)) or "none"
        raise RpcError(INVALID_PARAMS, f"Invalid params: no argument {unknown[0][:64]}; the arguments are {known}")
    if missing:
        raise RpcError(INVALID_PARAMS, f"Invalid params: the argument {missing[0]} is required")
    return given


def _description(spec: PromptSpec) -> Json:
    described: dict[str, Any] = {"name": spec.name, "title": spec.title, "description": spec.description}
    if spec.arguments:
        described["arguments"] = [
            {"name": each.name, "description": each.description, "required": each.required} for each in spec.arguments
        ]
    return described
