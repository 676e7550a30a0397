"""The store for programs: the methods of the extension `exai/store`, by which `exai.client` uses a daemon.

They are methods and no tools, so models are not shown them, and `tools/list` does not grow. Owners, quotas, limits and
deadlines are those of every other method.

Invariant: a call acts for the owner of the connection, and a call that names another owner is refused. A result that is
longer than a reply is sent in parts: each part is a call of its own that names the digest of the whole, so nothing is
kept between them.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from functools import partial
from typing import Any, Final

import orjson

from exai.app import App
from exai.conversations import AppendRequest, ChatRequest
from exai.errors import ExaiError, InvalidArgument
from exai.files.service import FileService
from exai.mcp.core.errors import error_facts
from exai.mcp.core.jsonrpc import Json
from exai.mcp.core.protocol import Call, CallContext, Feature, Method, Terms
from exai.mcp.features.tools import TRANSFER_TIMEOUT_S
from exai.models import FileId, Owner, Page, StoredFile
from exai.store import wire
from exai.tools.progress import AnswerProgress
from exai.validation import check_number

FRAME_BYTES: Final = 4_096
"""Of a reply, for what is beside the value."""

PART: Final = "part"
"""The parameter of a call that asks for a later part: its offset, and the digest of the whole."""

OF_A_PROCESS: Final = "is for callers in the daemon's process"


class StoreCalls:
    """The calls of the extension, for one application."""

    def __init__(self, app: App) -> None:
        self._services: dict[str, object] = {
            "conversations": app.conversations,
            "files": app.files,
            "chat": app.chat,
            "checkpoints": app.checkpoints,
        }
        self._room_bytes = app.settings.server.reply_max_bytes - FRAME_BYTES
        self._ranges = FileRange(app.files, max(FRAME_BYTES, self._room_bytes // 2))

    async def call(self, operation: wire.StoreOperation, call: Call, context: CallContext) -> Json:
        """Carry out one operation; the result is its value, or a part of it."""
        given = {name: value for name, value in call.params.items() if name != "_meta"}
        part = given.pop(PART, None)
        arguments = wire.decode_parameters(operation, given)
        _check_caller(arguments, context.owner)
        if operation.name == "chat.run":
            progress = AnswerProgress(context)
            arguments["on_delta"] = progress.on_delta
        of = self._ranges if operation.method == "read_range" else self._services[operation.service]
        value = await getattr(of, operation.method)(**arguments)
        if isinstance(value, Page):
            value = self._shortened(value)
        return self._reply(wire.encode(value), part)

    def _shortened(self, page: Page) -> Page:
        """Return a page with the newest messages that fit into one reply, and at least one of them."""
        left_bytes = self._room_bytes - len(wire.encode(replace(page, messages=())))
        kept = len(page.messages)
        for message in reversed(page.messages):
            left_bytes -= len(wire.encode(message)) + 1
            if left_bytes < 0 and kept < len(page.messages):
                break
            kept -= 1
        if kept == 0:
            return page
        messages = page.messages[kept:]
        return replace(page, messages=messages, next_before_seq=messages[0].seq)

    def _reply(self, encoded: bytes, part: object) -> Json:
        if part is None and len(encoded) <= self._room_bytes:
            return {"value": orjson.Fragment(encoded)}
        digest = hashlib.sha256(encoded).hexdigest()
        offset = _offset_of(part)
        if part is not None and isinstance(part, dict) and part.get("sha256") != digest:
            offset = 0  # It has changed, and the client begins again.
        end = offset + self._room_bytes * 3 // 4
        data = base64.b64encode(encoded[offset:end]).decode()
        return {PART: {"data": data, "offset": offset, "size_bytes": len(encoded), "sha256": digest}}


class FileRange:
    """Reads a part of a file that fits into a reply; implements `exai.store.wire.FileRanges`."""

    def __init__(self, files: FileService, most_bytes: int) -> None:
        self._files, self._most_bytes = files, most_bytes

    async def read_range(
        self, owner: Owner, file_id: FileId, *, offset: int, size_bytes: int
    ) -> tuple[StoredFile, bytes]:
        """Return a file, and at most `size_bytes` bytes of it from `offset` on. Raises `InvalidArgument`."""
        check_number("offset", offset)
        check_number("size_bytes", size_bytes)
        file = await self._files.get(owner, file_id)
        size_bytes = max(0, min(size_bytes, file.size_bytes - offset, self._most_bytes))
        return file, await self._files.read_bytes(owner, file, offset, size_bytes) if size_bytes else b""


def store_feature(app: App) -> Feature:
    """Return the methods and the capability of the extension."""
    calls = StoreCalls(app)
    return Feature(
        {"extensions": {wire.EXTENSION: {wire.MAX_BYTES: app.settings.server.message_max_bytes}}},
        [
            Method(
                wire.PREFIX + name,
                work=partial(calls.call, operation),
                as_result=failed_call,
                terms=Terms(name, None if operation.service == "chat" else TRANSFER_TIMEOUT_S),
                extension=wire.EXTENSION,
            )
            for name, operation in wire.OPERATIONS.items()
        ],
    )


def _check_caller(arguments: dict[str, Any], owner: Owner) -> None:
    """Raise `InvalidArgument` for another owner, and for what only a caller in the process may give."""
    request = arguments.get(wire.REQUEST, arguments.get("query"))
    given = arguments["owner"] if request is None else request.owner
    if given != owner:
        raise InvalidArgument("owner", f"is not {owner!r}, to whom the token belongs", "Use the token of that owner")
    if isinstance(request, AppendRequest) and (request.sources or request.identity or request.counts_steps):
        raise InvalidArgument("sources, identity or counts_steps", OF_A_PROCESS, "Leave it out")
    if isinstance(request, ChatRequest):
        own = (request.guidance, request.prepare, request.taken, request.system_taken)
        if request.sources or request.reread or request.named or any(each is not None for each in own):
            raise InvalidArgument(
                "guidance, prepare, taken, system_taken, sources, reread or named", OF_A_PROCESS, "Leave it out"
            )


def _offset_of(part: object) -> int:
    offset = part.get("offset", 0) if isinstance(part, dict) else 0
    if part is not None and (not isinstance(offset, int) or offset < 0):
        raise InvalidArgument(PART, "has no valid offset", "Give the offset and the digest of the part before")
    return offset


def failed_call(error: ExaiError) -> Json:
    """Return an error with all that its class was made of, so that a client can raise the same one."""
    codes = [base.code for base in type(error).__mro__ if issubclass(base, ExaiError)]
    facts = {**error_facts(error), "codes": list(dict.fromkeys(codes)), "attributes": _attributes(error)}
    return {"isError": True, "error": orjson.Fragment(orjson.dumps(facts, default=str))}


def _attributes(error: ExaiError) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if not name.startswith("_")}
