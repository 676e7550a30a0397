"""POST /import: import an uploaded file of another program, and report the progress as a stream of events.

Invariant: an upload is a file on disk, never in memory, and is removed when its request ends. A request that ends early
cancels its import, which the same upload continues later.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

import orjson
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from exai.errors import ExaiError, Overloaded
from exai.fairness import request_owner
from exai.files.names import shown_name
from exai.importers.pipeline import ImportTarget, import_sources
from exai.importers.recognition import SOURCE_KINDS, SourceKind
from exai.importers.report import ImportReport
from exai.mcp.admission import Rejection, header_map, query_map, too_many
from exai.mcp.identity import Admitted
from exai.mcp.server import McpServer
from exai.mcp.transport.extensions import abort_of
from exai.mcp.transport.http.streamable import Gone, HttpReply
from exai.models import Owner

PLACE: Final = "/import"
UPLOADS: Final = 4
"""Maximum number of uploads at the same time in one process, each of another owner."""

CHUNK_S: Final = 60.0
"""Time within which the next bytes of an upload must arrive."""

LEAST_BYTES_PER_S: Final = 4_096
"""Of an upload on average, after its first minute."""

MAX_STEM_BYTES: Final = 160
MAX_ENDING_CHARS: Final = 20
"""Of at most 4 bytes; a name has at most 255 bytes on most file systems."""

PROGRESS_S: Final = 0.5
TYPE: Final = "application/octet-stream"


def upload_routes(server: McpServer, target: ImportTarget, most_bytes: int) -> list[Route]:
    """Return the route: `?name=` is the name of the file, `?kind=` its kind if it is not recognised."""
    return [Route(PLACE, _Uploads(server, target, most_bytes), methods=["POST"])]


class _Uploads:
    """The ASGI application of POST /import."""

    def __init__(self, server: McpServer, target: ImportTarget, most_bytes: int) -> None:
        self._server, self._target, self._most_bytes = server, target, most_bytes
        self._running: set[Owner] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload."""
        reply = HttpReply(send, abort_of(scope), self._server.settings.send_timeout_s)
        admitted = await self._server.edge.admit(scope)
        if isinstance(admitted, Rejection):
            await reply.text(admitted)
            return
        quota = self._server.quotas.of(admitted.owner)
        try:
            quota.take(0)
            with quota.hold_connection(), self._place(admitted.owner):
                await self._serve(scope, receive, reply, admitted)
        except Overloaded as error:
            await reply.text(too_many(error))
        except Gone:
            pass

    @contextlib.contextmanager
    def _place(self, owner: Owner) -> Iterator[None]:
        """Count one upload of an owner while the block runs. Raises `Overloaded`."""
        if owner in self._running:
            raise Overloaded("uploads of one owner at the same time", 1)
        if len(self._running) >= UPLOADS:
            raise Overloaded("uploads at the same time", UPLOADS)
        self._running.add(owner)
        try:
            yield
        finally:
            self._running.discard(owner)

    async def _serve(self, scope: Scope, receive: Receive, reply: HttpReply, admitted: Admitted) -> None:
        headers, query = header_map(scope["headers"]), query_map(scope["query_string"])
        if headers.get("content-type") != TYPE:
            await reply.text(Rejection(415, f"send the file as {TYPE}"))
            return
        kind = next((each for each in SOURCE_KINDS if each == query.get("kind")), None)
        if kind is None and query.get("kind"):
            await reply.text(Rejection(400, f"kind is unknown; use one of {', '.join(SOURCE_KINDS)}"))
            return
        with tempfile.TemporaryDirectory(prefix="exai-import-") as directory:
            path = Path(directory, name_on_disk(query.get("name", "")))
            refusal = await take_upload(receive, path, self._most_bytes)
            if refusal is not None:
                await reply.text(refusal)
                return
            request_owner.set(admitted.owner)
            await reply.begin_stream()
            await self._import(path, kind, admitted.owner, receive, reply)
            await reply.end_stream()

    async def _import(
        self, path: Path, kind: SourceKind | None, owner: Owner, receive: Receive, reply: HttpReply
    ) -> None:
        latest = ImportReport()

        def keep(report: ImportReport) -> None:
            nonlocal latest
            latest = report

        importing = import_sources(self._target, owner, [path], kind, keep, label=path.name)
        work = asyncio.create_task(importing, name="import of an upload")
        gone = asyncio.create_task(_wait_until_gone(receive), name="upload disconnect")
        try:
            while not work.done() and not gone.done() and not self._server.is_draining:
                await asyncio.wait({work, gone}, timeout=PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    await reply.event(orjson.dumps(_progress(latest)))
            if work.done():
                await reply.event(orjson.dumps(_result(work)))
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait({work, gone})


async def take_upload(
    receive: Receive, path: Path, most_bytes: int, clock: Callable[[], float] = time.monotonic
) -> Rejection | None:
    """Write an upload to disk. Returns the reason why it is refused."""
    size_bytes, begun = 0, clock()
    with await asyncio.to_thread(path.open, "wb") as file:
        while True:
            # One that trickles would keep its place from others for ever.
            left_s = begun + CHUNK_S + size_bytes / LEAST_BYTES_PER_S - clock()
            if left_s <= 0:
                return Rejection(408, f"the upload is slower than {LEAST_BYTES_PER_S:,} bytes a second")
            try:
                async with asyncio.timeout(min(CHUNK_S, left_s)):
                    message = await receive()
            except TimeoutError:
                return Rejection(408, f"no bytes of the upload arrived for {min(CHUNK_S, left_s):.0f} s")
            if message["type"] == "http.disconnect":
                raise Gone
            body = message.get("body", b"")
            size_bytes += len(body)
            if size_bytes > most_bytes:
                limit = f"EXAI_FILES__IMPORT_MAX_BYTES is {most_bytes:,}"
                return Rejection(413, f"the file is too large: {limit}; import it with exai import")
            await asyncio.to_thread(file.write, body)
            if not message.get("more_body", False):
                return None


def name_on_disk(name: str) -> str:
    """Return the name of an upload as a file here can have it: without any directory, and not too long."""
    given = name.replace("\\", "/").rpartition("/")[2]
    ending = "".join(PurePosixPath(given).suffixes[-2:])
    ending = ending if len(ending) <= MAX_ENDING_CHARS else ""
    stem = given[: len(given) - len(ending)].encode("utf-8", "replace")[:MAX_STEM_BYTES].decode("utf-8", "ignore")
    shown = shown_name(stem + ending)
    return "file" if shown in (".", "..") else shown


def _progress(report: ImportReport) -> dict[str, Any]:
    share = report.read_bytes / report.total_bytes if report.total_bytes else 0.0
    return {"share": min(1.0, share), "messages": report.messages, "stored": report.stored}


def _result(work: asyncio.Task[ImportReport]) -> dict[str, Any]:
    """Return the report of an import, or why it failed."""
    error = work.exception()
    if error is None:
        return {"report": work.result().as_json()}
    if isinstance(error, ExaiError):
        return {"error": str(error)}
    raise error


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
