"""Tools: their declaration, the validation of their arguments, and the calls of clients.

Invariant: an error that a model can cure by calling differently is a result with `isError` whose text names the
field, the problem and the cure. Only an unknown tool, a malformed request and a defect of EXAI are JSON-RPC errors.
Tools are listed in the order of their registration, the same for every connection.
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

from exai.errors import InvalidArgument
from exai.mcp.core import versions
from exai.mcp.core.directories import META_DIRECTORY, directory_of_call
from exai.mcp.core.errors import error_facts
from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.core.protocol import Call, CallContext, ClientInfo, Feature, Method, Terms
from exai.mcp.core.versions import Cacheable
from exai.mcp.features.coercion import coerce
from exai.mcp.features.paging import paged
from exai.mcp.features.results import ToolOutput, call_result, error_result, failed_result
from exai.mcp.features.schema_fit import SchemaFit
from exai.mcp.features.schemas import output_schema, portable_schema

__all__ = ["Arguments", "CallContext", "ToolRegistry", "ToolSpec"]

MAX_REPORTED_ERRORS = 10
IDEMPOTENCY_KEY = "idempotency_key"
OF_META = {IDEMPOTENCY_KEY: "exai/idempotencyKey", "expected_revision": "exai/expectedRevision"}
"""Arguments that a program may give in `_meta` of its call, to every tool that takes them, listed or not."""

LIST_CACHE = Cacheable(300_000, "public")
STORE_TIMEOUT_S = 30.0
"""Timeout of tools that read or write one item: several times the database's limit including all retries."""

TRANSFER_TIMEOUT_S = 120.0
"""Timeout of tools that transfer as much as a message can hold."""

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


BoundHandler = Callable[[CallContext], Awaitable[Json]]
RunAsTask = Callable[[Call, CallContext, BoundHandler], Awaitable[Json]]
"""Runs a call's work, and may return a handle before it has ended; see `exai.mcp.features.tasks`."""


class Arguments(BaseModel):
    """Base of all tool arguments: immutable; an unknown name is an error."""

    KEEPS_EMPTY: ClassVar[frozenset[str]] = frozenset()
    """Optional texts for which "" is a value; in all others it means that the argument is omitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool. `arguments` must forbid unknown names; `handler` receives them and returns an `output`."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    output: type[ToolOutput]
    handler: Callable[[Any, CallContext], Awaitable[ToolOutput]]
    lists_output: bool = False
    """Whether `tools/list` contains the schema of the output: about 300 bytes that most clients never show a model."""

    read_only: bool = False
    idempotent: bool = False
    destructive: bool = False
    open_world: bool = False
    joins_identical: bool = False
    """Whether a call with the same arguments, sent on the same connection while the first one runs, is treated as a
    repetition by the client. A call with an idempotency key never is."""

    timeout_s: float | None = STORE_TIMEOUT_S
    """Ends a call before the server's limit for all tools; None for tools that ask a model."""

    answer_from: Callable[[Any, ClientInfo], ToolOutput] | None = None
    """Makes the output for a client from the stored result of a call that outlasted it. Given for a handler that
    reports the id under which it has `begun`, so that the answer may be a task's handle."""

    meta: Json = field(default_factory=dict)


UNKNOWN = Terms("unknown")
"""Terms of an unknown tool: a peer must not be able to create labels."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A registered tool with values that are computed once instead of for each call."""

    spec: ToolSpec
    schema: Json
    fit: SchemaFit
    terms: Terms
    validate: Callable[[object], Any]
    """The function behind `model_validate`, which first processes options that are not used here."""


class ToolRegistry:
    """The tools of one server, in order of registration."""

    def __init__(self, specs: Iterable[ToolSpec] = ()) -> None:
        self._known: dict[str, _Known] = {}
        self._described: list[Json] = []
        for spec in specs:
            self.add(spec)

    def __iter__(self) -> Iterator[ToolSpec]:
        return (known.spec for known in self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def add(self, spec: ToolSpec) -> None:
        """Register a tool. Raises `ValueError` or `TypeError` for one that clients could not use."""
        if spec.name in self._known:
            raise ValueError(f"two tools are named {spec.name}")
        if NAME.fullmatch(spec.name) is None:
            raise ValueError(f"{spec.name}: a tool's name is up to 41 of a-z, 0-9 and _, beginning with a letter")
        if spec.arguments.model_config.get("extra") != "forbid":
            raise TypeError(f"{spec.name}: {spec.arguments.__name__} must forbid unknown arguments")
        if "__dataclass_fields__" not in vars(spec.output):
            raise TypeError(f"{spec.name}: {spec.output.__name__} must be a dataclass")
        if spec.output.as_text is ToolOutput.as_text:
            raise TypeError(f"{spec.name}: {spec.output.__name__} must define as_text")
        description = _description(spec)
        self._described.append(description)
        schema = description["inputSchema"]
        self._known[spec.name] = _Known(
            spec,
            schema,
            SchemaFit(schema, spec.arguments.KEEPS_EMPTY),
            Terms(
                spec.name,
                spec.timeout_s,
                _join_key if spec.joins_identical else None,
                may_go_on=spec.answer_from is not None,
            ),
            spec.arguments.__pydantic_validator__.validate_python,
        )

    def feature(self, run_as_task: RunAsTask | None = None) -> Feature:
        """Return the methods and the capability of these tools; `run_as_task` runs those that may outlast it."""
        return Feature(
            {"tools": {}},
            (
                Method("tools/list", answer=self._list, cacheable=LIST_CACHE),
                Method(
                    "tools/call",
                    work=partial(self._call, run_as_task),
                    as_result=error_result,
                    terms_of=self._terms_of,
                ),
            ),
        )

    def _list(self, call: Call) -> Json:
        return paged(self._described, call.params, "tools")

    async def _call(self, run_as_task: RunAsTask | None, call: Call, context: CallContext) -> Json:
        known, given = self._named(call.params), call.params.get("arguments")
        spec = known.spec
        notes: Sequence[str] = ()
        if type(given) is not dict or not known.fit.holds(given):
            given, notes = coerce(known.schema, given, spec.arguments.KEEPS_EMPTY)
            if not isinstance(given, dict):
                raise RpcError(INVALID_PARAMS, "Invalid params: arguments must be an object")
        has_meta = "_meta" in call.params
        try:
            arguments = known.validate(_with_meta(spec, given, call.params) if has_meta else given)
        except ValidationError as error:
            return invalid_arguments(spec, error)
        if has_meta:
            context.directory = directory_of_call(call.params, context.directory)
        if spec.answer_from is None or run_as_task is None:
            return call_result(await spec.handler(arguments, context), notes)

        async def work(context: CallContext) -> Json:
            return call_result(await spec.handler(arguments, context), notes)

        return await run_as_task(call, context, work)

    def _terms_of(self, call: Call) -> Terms:
        name = call.params.get("name")
        known = self._known.get(name) if isinstance(name, str) else None
        return UNKNOWN if known is None else known.terms

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


def _with_meta(spec: ToolSpec, given: Json, params: Json) -> Json:
    """Return the arguments with those that the call has in `_meta`; one among the arguments takes precedence."""
    meta = params.get("_meta") or {}
    found = {name: meta[key] for name, key in OF_META.items() if key in meta and name in spec.arguments.model_fields}
    return {**found, **given} if found else given


def _join_key(call: Call) -> bytes | None:
    """Return the key that identical calls share, or None for a call with an idempotency key, which is not joined."""
    given = call.params.get("arguments")
    if not isinstance(given, dict) or given.get(IDEMPOTENCY_KEY) not in (None, ""):
        return None
    meta = call.params.get("_meta") or {}
    if OF_META[IDEMPOTENCY_KEY] in meta:
        return None
    # A call whose answer may be a task's handle must not be joined with one of a client without tasks.
    knows_tasks = versions.declares(call.version, call.client.capabilities, versions.TASKS)
    asked = [call.params["name"], given, meta.get(META_DIRECTORY), knows_tasks]
    return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)


def invalid_arguments(spec: ToolSpec, error: ValidationError) -> Json:
    """Return the `CallToolResult` that explains to a model how to call this tool correctly."""
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
    schema: Json = portable_schema(spec.arguments)
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
        "inputSchema": portable_schema(spec.arguments),
        "annotations": annotations,
    }
    if spec.lists_output:
        described["outputSchema"] = output_schema(spec.output)
    if spec.meta:
        described["_meta"] = spec.meta
    return described
