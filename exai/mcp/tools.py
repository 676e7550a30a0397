"""Tools: what they are, how their arguments are checked, and what their outcomes look like to a client.

Invariant: whatever a model could cure by calling differently comes back as a result with `isError` whose text names the
field, what is wrong and what would be right; only an unknown tool, a malformed request and a defect of EXAI are
JSON-RPC errors. The order of the tools is the order they were registered in, the same for every connection.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from exai.errors import ExaiError, InvalidArgument
from exai.mcp import eras
from exai.mcp.coercion import Plain, understood
from exai.mcp.eras import Cacheable
from exai.mcp.errors import error_facts
from exai.mcp.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.paging import paged
from exai.mcp.protocol import Call, CallContext, Feature, Method
from exai.mcp.schemas import portable_schema
from exai.mcp.texts import NOTES, headed, headed_facts

__all__ = ["Arguments", "CallContext", "ToolRegistry", "ToolResult", "ToolSpec"]

MAX_REPORTED_ERRORS = 10
IDEMPOTENCY_KEY = "idempotency_key"
LIST_CACHE = Cacheable(300_000, "public")
MAX_REPEATED_BYTES = 480_000
"""Of an error's content: a longer one would not fit into a message twice, and is in the structure only."""

ABOUT_ERRORS = frozenset({"name", "model", "title", "metadata"})
"""Fields of an error that say what it is about, as its sentence does, and nothing that a next call needs."""

STORE_TIMEOUT_S = 30.0
"""For tools that read or write one thing: several times what the database may take with all its retries."""

TRANSFER_TIMEOUT_S = 120.0
"""For tools that move as much as a message can hold."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")

_KINDS = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "model": "an object",
    "uuid": "a UUID",
    "datetime": "a time in ISO 8601",
}


Work = Callable[[CallContext], Awaitable[Json]]
RunAsTask = Callable[[Call, CallContext, Work], Awaitable[Json]]
"""Does a call's work, and may answer with a handle before it has ended; see `exai.mcp.tasks`."""


class Arguments(BaseModel):
    """Base of all tool arguments: immutable, and an unknown name is an error instead of a silent no-op."""

    KEEPS_EMPTY: ClassVar[frozenset[str]] = frozenset()
    """Optional texts for which an empty one is a value; everywhere else it says that there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


@dataclass(slots=True)
class ToolResult:
    """What a tool answers: `structured` for programs, `text` for people and models.

    Some clients show a model only one of the two, so each has to be a complete answer by itself. The text goes out
    after a head made from the structure (`exai.mcp.texts`), to which `head` adds fields. `content` holds further MCP
    content blocks (images, links).
    """

    structured: Json | None
    text: str
    head: Json = field(default_factory=dict)
    content: Sequence[Json] = ()
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool. `arguments` must forbid unknown names; `output_schema` is a promise about `ToolResult.structured`."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    handler: Callable[[Any, CallContext], Awaitable[ToolResult]]
    output_schema: Json | None = None
    read_only: bool = False
    idempotent: bool = False
    destructive: bool = False
    open_world: bool = False
    joins_identical: bool = False
    """Whether the same arguments, sent again on a connection while the first call runs, are taken for a repetition by
    the client; a call with an idempotency key never is."""

    timeout_s: float | None = STORE_TIMEOUT_S
    """Ends a call earlier than the server's limit for all tools does; None for tools that ask a model."""

    outlasts: bool = False
    """Whether the handler says under which id it has `begun`, so that a call may be answered with a task's handle."""

    meta: Json = field(default_factory=dict)
    input_schema: Json | None = None
    """Replaces the schema made from `arguments` where that cannot say it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What calls of one tool or method share: a name for logs and metrics, a limit, and whether they may be joined."""

    label: str
    timeout_s: float | None = None
    joins_identical: bool = False


UNKNOWN = Terms("unknown")
"""Of a tool that does not exist: a peer must not invent labels."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A registered tool with what each of its calls would otherwise find out again."""

    spec: ToolSpec
    schema: Json
    plain: Plain
    terms: Terms
    validate: Callable[[object], Any]
    """What `model_validate` calls, after looking at options that are not used here."""


class ToolRegistry:
    """The tools of one server, in order of registration."""

    def __init__(self, specs: Iterable[ToolSpec] = (), *, announces_changes: bool = False) -> None:
        self._known: dict[str, _Known] = {}
        self._described: list[Json] = []
        self._announces_changes = announces_changes
        for spec in specs:
            self.add(spec)

    def __iter__(self) -> Iterator[ToolSpec]:
        return (known.spec for known in self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def add(self, spec: ToolSpec) -> None:
        """Register a tool; raises `ValueError` or `TypeError` for one that clients could not use."""
        if spec.name in self._known:
            raise ValueError(f"two tools are named {spec.name}")
        if NAME.fullmatch(spec.name) is None:
            raise ValueError(f"{spec.name}: a tool's name is up to 41 of a-z, 0-9 and _, beginning with a letter")
        if spec.arguments.model_config.get("extra") != "forbid":
            raise TypeError(f"{spec.name}: {spec.arguments.__name__} must forbid unknown arguments")
        description = _description(spec)
        self._described.append(description)
        schema = description["inputSchema"]
        self._known[spec.name] = _Known(
            spec,
            schema,
            Plain(schema, spec.arguments.KEEPS_EMPTY),
            Terms(spec.name, spec.timeout_s, spec.joins_identical),
            spec.arguments.__pydantic_validator__.validate_python,
        )

    def feature(self, run_as_task: RunAsTask | None = None) -> Feature:
        """Return the methods and the capability of these tools; `run_as_task` does what may outlast its call."""
        capability = {"listChanged": True} if self._announces_changes else {}
        return Feature(
            {"tools": capability},
            (
                Method("tools/list", answer=self._list, cacheable=LIST_CACHE),
                Method("tools/call", work=partial(self._call, run_as_task), as_result=error_result),
            ),
        )

    def _list(self, call: Call) -> Json:
        return paged(self._described, call.params, "tools")

    async def _call(self, run_as_task: RunAsTask | None, call: Call, context: CallContext) -> Json:
        known, given = self._named(call.params), call.params.get("arguments")
        spec = known.spec
        notes: Sequence[str] = ()
        if type(given) is not dict or not known.plain.holds(given):
            given, notes = understood(known.schema, given, spec.arguments.KEEPS_EMPTY)
            if not isinstance(given, dict):
                raise RpcError(INVALID_PARAMS, "Invalid params: arguments must be an object")
        try:
            arguments = known.validate(given)
        except ValidationError as error:
            return invalid_arguments(spec, error)
        if not spec.outlasts or run_as_task is None:
            return call_result(noted(await spec.handler(arguments, context), notes))

        async def work(context: CallContext) -> Json:
            return call_result(noted(await spec.handler(arguments, context), notes))

        return await run_as_task(call, context, work)

    def terms(self, call: Call) -> Terms:
        """Return the terms of the called tool."""
        name = call.params.get("name")
        known = self._known.get(name) if isinstance(name, str) else None
        return UNKNOWN if known is None else known.terms

    def joining_key(self, call: Call) -> bytes | None:
        """Return what makes calls of one session, of a tool whose calls may be joined, identical; None for no other."""
        given = call.params.get("arguments")
        if not isinstance(given, dict) or given.get(IDEMPOTENCY_KEY) not in (None, ""):
            return None
        # What may be answered with a task's handle is no answer for a client that knows none.
        knows_tasks = eras.declares(call.version, call.client.capabilities, eras.TASKS)
        return orjson.dumps([call.params["name"], given, knows_tasks], option=orjson.OPT_SORT_KEYS)

    def _named(self, params: Json) -> _Known:
        name = params.get("name")
        if not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, "Invalid params: name must be the name of a tool")
        known = self._known.get(name)
        if known is None:
            near = get_close_matches(name[:64], self._known, n=3)
            hint = f". Did you mean {' or '.join(near)}?" if near else ". tools/list names all tools"
            raise RpcError(INVALID_PARAMS, f"Unknown tool: {name[:64]}{hint}")
        return known


def noted(result: ToolResult, notes: Sequence[str]) -> ToolResult:
    """Return a result that says as well how its arguments were understood."""
    if notes and result.structured is not None:
        result.structured = {**result.structured, NOTES: [*notes, *result.structured.get(NOTES, ())]}
    return result


def call_result(result: ToolResult) -> Json:
    """Return the `CallToolResult` of what a handler returned."""
    facts = result.structured
    text = headed(facts, result.text, result.head) if facts is not None or result.head else result.text
    structured = None if facts is None else headed_facts(facts)
    shape: dict[str, Any] = {"content": [{"type": "text", "text": text}] if text else []}
    if result.content:
        shape["content"] += result.content
    if structured is not None:
        shape["structuredContent"] = structured
    shape["isError"] = result.is_error
    return shape


def error_result(error: ExaiError) -> Json:
    """Return the `CallToolResult` of an error a tool raised on purpose."""
    return failed_result(error_facts(error))


def failed_result(facts: Json) -> Json:
    """Return the `CallToolResult` of an error's facts; an answer that exists only in the error is in its text, too."""
    text, content = str(facts["message"]), facts.get("content")
    if isinstance(content, str) and len(orjson.dumps(content)) <= MAX_REPEATED_BYTES:
        text = f"{text}\n\n{content}".strip()
    head = {name: value for name, value in facts.items() if name not in ABOUT_ERRORS}
    return call_result(ToolResult({"error": facts}, text, head, is_error=True))


def invalid_arguments(spec: ToolSpec, error: ValidationError) -> Json:
    """Return the `CallToolResult` that tells a model how to call this tool instead."""
    details = error.errors(include_url=False, include_input=False, include_context=True)
    found = [_explained(spec, detail) for detail in details[:MAX_REPORTED_ERRORS]]
    facts = error_facts(found[0])
    facts["message"] = "\n".join(map(str, found))
    facts["errors"] = [{"field": each.field, "problem": each.problem, "cure": each.cure} for each in found]
    return failed_result(facts)


def _explained(spec: ToolSpec, detail: ErrorDetails) -> InvalidArgument:
    path = _path(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return InvalidArgument(path, "this argument is required", f"Give it {_expected(spec, detail['loc'])}")
    if kind == "extra_forbidden":
        return _unknown_argument(spec, detail["loc"], path)
    if kind in ("literal_error", "enum"):
        return InvalidArgument(path, "not one of the possible values", f"Use {context.get('expected', 'one of them')}")
    if kind == "value_error":
        return InvalidArgument(path, str(context.get("error", detail["msg"])), "Correct it and call again")
    name = kind.removesuffix("_type").removesuffix("_parsing")
    if name in _KINDS:
        return InvalidArgument(path, "this has the wrong type", f"Give it {_KINDS[name]}")
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return InvalidArgument(path, message[0].lower() + message[1:], "Correct it and call again")


def _unknown_argument(spec: ToolSpec, location: Sequence[int | str], path: str) -> InvalidArgument:
    schema = _schema_at(spec, location[:-1])
    names = list(schema.get("properties", {}))
    near = get_close_matches(str(location[-1])[:64], names, n=1, cutoff=0.5)
    cure = f"Did you mean {near[0]}? " if near else ""
    known = f"The arguments are {', '.join(names)}" if names else "It takes none"
    return InvalidArgument(path, "there is no such argument", cure + known)


def _expected(spec: ToolSpec, location: Sequence[int | str]) -> str:
    schema = _schema_at(spec, location)
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    kind = {"string": "a string", "integer": "an integer", "array": "a list", "object": "an object"}
    words = kind.get(schema.get("type", ""), "a value")
    return f"{words}: {schema['description']}" if "description" in schema else words


def _schema_at(spec: ToolSpec, location: Sequence[int | str]) -> Json:
    schema: Json = spec.input_schema or portable_schema(spec.arguments)
    for part in location:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return schema


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:64]}"
    return path.removeprefix(".") or "arguments"


def _description(spec: ToolSpec) -> Json:
    annotations = {"readOnlyHint": spec.read_only, "openWorldHint": spec.open_world}
    annotations["idempotentHint"] = spec.read_only or spec.idempotent
    if not spec.read_only:
        annotations["destructiveHint"] = spec.destructive
    described: dict[str, Any] = {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "inputSchema": spec.input_schema or portable_schema(spec.arguments),
        "annotations": annotations,
    }
    if spec.output_schema is not None:
        described["outputSchema"] = spec.output_schema
    if spec.meta:
        described["_meta"] = spec.meta
    return described
