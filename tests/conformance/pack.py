"""The tools, resources and prompts that the official conformance suite calls by name; nothing but tests loads them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from exai.errors import InvalidArgument
from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import INTERNAL_ERROR, Json, RpcError
from exai.mcp.core.protocol import Call, Surface
from exai.mcp.features.prompts import PromptArgument, PromptRegistry, PromptSpec, completion_feature
from exai.mcp.features.resources import Listing, ResourceContents, ResourceRegistry, ResourceSpec
from exai.mcp.features.tools import Arguments, CallContext, ToolRegistry, ToolSpec
from exai.mcp.server import McpServer
from tests.support.mcp_server import fast_settings, notify_list_changed
from tests.support.memory_tasks import MemoryTasks
from tests.support.outputs import Fixed

STEP_S = 0.02


def _png() -> bytes:
    """Return an image of one red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    header = struct.pack("!IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(b"\x00\xff\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def _wav() -> bytes:
    """Return a recording of one silent sample."""
    data = b"\x00\x00"
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


PNG = _png()
IMAGE: Json = {"type": "image", "data": base64.b64encode(PNG).decode(), "mimeType": "image/png"}
AUDIO: Json = {"type": "audio", "data": base64.b64encode(_wav()).decode(), "mimeType": "audio/wav"}


def _embedded(uri: str, kind: str, text: str) -> Json:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}}


class Nothing(Arguments):
    """No arguments."""


def _fixed(text: str, *content: Json) -> Any:
    async def handler(arguments: Nothing, context: CallContext) -> Fixed:
        return Fixed.of(None, text, content)

    return handler


async def _error(arguments: Nothing, context: CallContext) -> Fixed:
    raise InvalidArgument("anything", "This tool intentionally returns an error for testing", "There is no cure")


async def _progress(arguments: Nothing, context: CallContext) -> Fixed:
    for percent in (0, 50, 100):
        await context.progress(f"{percent} of 100")
        await asyncio.sleep(STEP_S)
    return Fixed.of(None, "done")


async def _needs_sampling(arguments: Nothing, context: CallContext) -> Fixed:
    if "sampling" not in context.client.capabilities:
        facts = {"requiredCapabilities": {"sampling": {}}}
        raise RpcError(versions.MISSING_CAPABILITY, "Missing required client capability", facts)
    return Fixed.of(None, "declared")


SCHEMA_2020_12: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
"""A schema that the suite expects unchanged in tools/list; the tool is listed, never called."""

RESOURCES = {
    "test://static-text": ("This is the content of the static text resource.", "text/plain"),
    "test://static-binary": (PNG, "image/png"),
    "test://watched-resource": ("Watched.", "text/plain"),
}


async def _read(uri: str, context: CallContext) -> Sequence[ResourceContents]:
    if uri in RESOURCES:
        body, kind = RESOURCES[uri]
        return [ResourceContents(uri, body, kind)]
    found = re.fullmatch(r"test://template/([^/]+)/data", uri)
    if found is None:
        return []
    data = {"id": found[1], "templateTest": True, "data": f"Data for ID: {found[1]}"}
    return [ResourceContents(uri, json.dumps(data), "application/json")]


def _messages(*contents: Json) -> list[Json]:
    return [{"role": "user", "content": content} for content in contents]


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


async def _simple_prompt(arguments: Mapping[str, str], context: CallContext) -> list[Json]:
    return _messages(_text("This is a simple prompt for testing."))


async def _prompt_with_arguments(arguments: Mapping[str, str], context: CallContext) -> list[Json]:
    return _messages(_text(f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'"))


async def _prompt_with_resource(arguments: Mapping[str, str], context: CallContext) -> list[Json]:
    resource = _embedded(arguments["resourceUri"], "text/plain", "Embedded resource content for testing.")
    return _messages(resource, _text("Please process the embedded resource above."))


async def _prompt_with_image(arguments: Mapping[str, str], context: CallContext) -> list[Json]:
    return _messages(IMAGE, _text("Please analyze the image above."))


async def _complete(reference: Json, name: str, typed: str, context: CallContext) -> list[str]:
    return [word for word in ("paris", "park", "party") if word.startswith(typed)]


class Greeting(Arguments):
    name: str


class Computation(Arguments):
    seconds: float
    label: str = ""


class Deletion(Arguments):
    filename: str


async def _greet(arguments: Greeting, context: CallContext) -> Fixed:
    return Fixed.of(None, f"Hello, {arguments.name}!")


def _outlasting(tasks: MemoryTasks) -> list[ToolSpec]:
    """Return the tools that may be answered with the handle of a task."""

    async def compute(arguments: Computation, context: CallContext) -> Fixed:
        async def work() -> Fixed:
            await asyncio.sleep(arguments.seconds)
            return Fixed.of(None, "computed")

        return await tasks.do(context, work())

    async def fail(arguments: Nothing, context: CallContext) -> Fixed:
        """Fail as a task; the suite expects that this tool can only be called as one."""
        versions.require_extension(context.client.capabilities, versions.TASKS)

        async def work() -> Fixed:
            await asyncio.sleep(1)
            raise InvalidArgument("anything", "This job intentionally fails", "There is no cure")

        return await tasks.do(context, work())

    async def crash(arguments: Nothing, context: CallContext) -> Fixed:
        async def work() -> Fixed:
            await asyncio.sleep(STEP_S * 5)
            raise RpcError(INTERNAL_ERROR, "This job intentionally has a defect")

        return await tasks.do(context, work())

    async def delete(arguments: Deletion, context: CallContext) -> Fixed:
        async def work() -> Fixed:
            await asyncio.sleep(STEP_S * 5)
            return Fixed.of(None, f"{arguments.filename} is deleted without a question")

        return await tasks.do(context, work())

    tools: list[tuple[str, type[Arguments], Any]] = [
        ("slow_compute", Computation, compute),
        ("failing_job", Nothing, fail),
        ("protocol_error_job", Nothing, crash),
        ("confirm_delete", Deletion, delete),
    ]
    return [
        ToolSpec(name, name, f"Conformance: {name}.", arguments, Fixed, handler, answer_from=Fixed.answer_from)
        for name, arguments, handler in tools
    ]


def _tools(server: list[McpServer], tasks: MemoryTasks) -> ToolRegistry:
    async def change_tools(arguments: Nothing, context: CallContext) -> Fixed:
        notify_list_changed(server[0], "tools")
        return Fixed.of(None, "changed")

    async def change_prompts(arguments: Nothing, context: CallContext) -> Fixed:
        notify_list_changed(server[0], "prompts")
        return Fixed.of(None, "changed")

    mixed = (IMAGE, _embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'))
    embedded = _embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    handlers = {
        "test_simple_text": _fixed("This is a simple text response for testing."),
        "test_image_content": _fixed("", IMAGE),
        "test_audio_content": _fixed("", AUDIO),
        "test_embedded_resource": _fixed("", embedded),
        "test_multiple_content_types": _fixed("Multiple content types test:", *mixed),
        # It requests no elicitation: the suite checks that only notifications precede its result.
        "test_streaming_elicitation": _progress,
        "test_logging_tool": _fixed("Nothing is logged to clients."),
        "test_error_handling": _error,
        "test_tool_with_progress": _progress,
        "test_missing_capability": _needs_sampling,
        "test_trigger_tool_change": change_tools,
        "test_trigger_prompt_change": change_prompts,
    }
    registry = ToolRegistry(
        (ToolSpec(name, name, f"Conformance: {name}.", Nothing, Fixed, handler) for name, handler in handlers.items()),
    )
    for spec in (ToolSpec("greet", "greet", "Conformance: greet.", Greeting, Fixed, _greet), *_outlasting(tasks)):
        registry.add(spec)
    return registry


async def _list_resources(cursor: str | None, context: CallContext) -> Listing:
    return Listing([ResourceSpec(uri, uri[7:], uri[7:], "Conformance.", kind) for uri, (_, kind) in RESOURCES.items()])


def _list_schema_tool(surface: Surface) -> None:
    """Add a tool to `tools/list` whose schema EXAI's own tools cannot have."""
    described = {"name": "json_schema_2020_12_tool", "description": "Conformance.", "inputSchema": SCHEMA_2020_12}
    method = surface.methods["tools/list"]
    assert method.answer is not None
    listing = method.answer

    def answer(call: Call) -> Json:
        page = listing(call)
        return {**page, "tools": [*page["tools"], described]}

    surface.methods["tools/list"] = replace(method, answer=answer)


def conformance_server() -> McpServer:
    """Return a server with all features that the suite tests and EXAI supports."""
    resources = ResourceRegistry(
        [ResourceSpec("test://template/{id}/data", "template", "Template", "Conformance.", "application/json")],
        _read,
        _list_resources,
        announces=True,
    )
    prompts = PromptRegistry(
        [
            PromptSpec("test_simple_prompt", "Simple", "Conformance.", _simple_prompt),
            PromptSpec(
                "test_prompt_with_arguments",
                "Arguments",
                "Conformance.",
                _prompt_with_arguments,
                (PromptArgument("arg1"), PromptArgument("arg2")),
            ),
            PromptSpec(
                "test_prompt_with_embedded_resource",
                "Resource",
                "Conformance.",
                _prompt_with_resource,
                (PromptArgument("resourceUri"),),
            ),
            PromptSpec("test_prompt_with_image", "Image", "Conformance.", _prompt_with_image),
        ]
    )
    known: list[McpServer] = []
    tasks = MemoryTasks()
    server = McpServer(
        "exai-conformance",
        "0",
        tools=_tools(known, tasks),
        instructions="For the conformance suite.",
        settings=fast_settings(task_after_s=STEP_S),
        tool_timeout_s=90.0,
        features=(resources.feature(), prompts.feature(), completion_feature(_complete)),
        task_store=tasks,
    )
    for kind in ("tools", "prompts"):
        server.surface.capabilities[kind] = {"listChanged": True}
    _list_schema_tool(server.surface)
    known.append(server)
    return server
