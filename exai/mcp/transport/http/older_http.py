"""Answers to HTTP/1.0, which has no chunked encoding: a body of unknown length ends with the connection.

Invariant: an answer of known length is sent as uvicorn sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exai.mcp.transport.library_parts import STATUS_LINE, ASGISendEvent, RequestResponseCycle


class UnchunkedCycle(RequestResponseCycle):
    """uvicorn's request-response cycle for a client of HTTP/1.0."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a body of unknown length without chunks, and close the connection after it."""
        event: Mapping[str, Any] = message
        if event["type"] == "http.response.start":
            names = {name.lower() for name, _ in event.get("headers", ())}
            if b"content-length" not in names and self.scope["method"] != "HEAD":
                self._begin(event)
                return
        elif self.response_started and self.chunked_encoding is None and not self.response_complete:
            await self._continue(event.get("body", b""), is_last=not event.get("more_body", False))
            return
        await super().send(message)

    def _begin(self, event: Mapping[str, Any]) -> None:
        self.response_started = True
        self.keep_alive = False
        if self.disconnected:
            return
        lines = [STATUS_LINE[event["status"]]]
        for name, value in [*self.default_headers, *event.get("headers", ()), (b"connection", b"close")]:
            lines += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*lines, b"\r\n"]))

    async def _continue(self, body: bytes, *, is_last: bool) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.transport.write(body)
        if is_last:
            self.response_complete = True
            self.message_event.set()
            self.transport.close()
            self.on_response()
