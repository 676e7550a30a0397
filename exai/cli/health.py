"""`exai health`: the state of a running daemon once, repeatedly, or served to other programs.

Invariant: a report is complete within five seconds, also if the daemon or the network does not answer, and imports no
more than HTTP needs, because containers ask often.
"""

from __future__ import annotations

import base64
import json
import math
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from exai.cli.health_client import ask_health
from exai.cli.terminal_text import printable
from exai.errors import ConfigError, ExaiError, StartupError

LIMIT_S: Final = 4.0
SHORTEST_WATCH_S: Final = 0.2
LONGEST_WATCH_S: Final = 86_400.0
REPORT_AGE_S: Final = 1.0
"""Age up to which a served report answers further requests, so that they cost the daemon nothing."""

IDLE_S: Final = 5.0
"""Time for which a client of the endpoint may send nothing."""

MAX_CLIENTS: Final = 32
"""Connections to the endpoint at once; further ones are closed."""

STATUSES: Final = {"ok": "healthy", "degraded": "degraded", "down": "unhealthy", "off": "off"}
CLEAR: Final = "\x1b[H\x1b[J"
DETAILS: Final = "it says more to a token of its own, EXAI_TOKEN"


@dataclass(frozen=True, slots=True)
class HealthReading:
    """The answer of the daemon, and a look at its WebSocket from here. `healthy` is the daemon's own verdict."""

    url: str
    body: Mapping[str, Any]
    healthy: bool
    websocket: Mapping[str, Any]
    at: datetime
    duration_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        probed_at = self.at - timedelta(seconds=self.body.get("age_s") or 0.0)
        checks = {
            name: _check(STATUSES.get(each["state"], "unhealthy"), each["latency_ms"], probed_at, each["detail"])
            for name, each in self.body.get("components", {}).items()
        }
        websocket = self.websocket
        checks["websocket"] = _check(websocket["status"], websocket["latency_ms"], self.at, websocket["detail"])
        status = STATUSES.get(str(self.body.get("status")), "unhealthy")
        if status == "healthy" and websocket["status"] != "healthy":
            status = "degraded"
        known = {name: self.body[name] for name in ("version", "ready", "uptime_s", "pid") if name in self.body}
        return {
            "status": status,
            "timestamp": _text(self.at),
            "duration_ms": round(self.duration_ms, 1),
            "service": self.body.get("service"),
            "url": self.url,
            **known,
            "checks": checks,
        }

    def as_text(self) -> str:
        """Return a line for the daemon and one for each check."""
        if "version" not in self.body:
            lines = [f"EXAI at {self.url}: {self.body.get('status')} ({DETAILS})"]
        else:
            ready = "ready" if self.body.get("ready") else "not ready"
            lines = [f"EXAI {self.body['version']} at {self.url}: {self.body.get('status')}, {ready}"]
        rows = [(name, each["state"], each) for name, each in self.body.get("components", {}).items()]
        rows.append(("websocket", "ok" if self.websocket["status"] == "healthy" else "down", self.websocket))
        for name, state, each in rows:
            latency = "" if each["latency_ms"] is None else f"{each['latency_ms']:.1f} ms"
            lines.append(f"  {name:<12} {state:<9} {latency:>10}  {each['detail']}".rstrip())
        return "\n".join(lines)


def read_health(url: str, token: str | None) -> HealthReading:
    """Ask the daemon at `url`, the address of its health route. Raises `StartupError` or `ConfigError`."""
    began = time.monotonic()
    # Daemon threads: one that hangs in a name lookup must not delay the end of the command.
    websocket: dict[str, Any] = {}
    look = threading.Thread(target=lambda: websocket.update(look_at_websocket(url, token)), daemon=True)
    look.start()
    answer = ask_health(url, token, LIMIT_S)
    look.join(max(0.0, began + LIMIT_S - time.monotonic()))
    seen = websocket or {"status": "unhealthy", "latency_ms": None, "detail": f"no answer within {LIMIT_S:g} s"}
    duration_ms = (time.monotonic() - began) * 1000
    return HealthReading(url, answer.body, answer.healthy, seen, datetime.now(UTC), duration_ms)


def look_at_websocket(url: str, token: str | None) -> dict[str, Any]:
    """Open a WebSocket to the daemon of a health route, and close it. Never raises."""
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    path = parts.path.removesuffix("/health") or "/"
    began = time.monotonic()
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: mcp\r\n"
    )
    head += f"Authorization: Bearer {token}\r\n\r\n" if token else "\r\n"
    try:
        with socket.create_connection((host, parts.port or (443 if is_secure else 80)), LIMIT_S / 2) as plain:
            plain.settimeout(LIMIT_S / 2)
            stream = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if is_secure else plain
            stream.sendall(head.encode())
            line = stream.makefile("rb").readline(1_000).decode("latin-1").split(" ", 2)
            status = line[1] if len(line) > 1 else "no status"
            if status == "101":
                # A close frame with the code 1000, masked by zeros.
                stream.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
    except (OSError, ValueError) as error:
        problem = f"{getattr(error, 'strerror', None) or type(error).__name__}"
        return {"status": "unhealthy", "latency_ms": None, "detail": f"cannot be opened ({problem})"}
    latency_ms = round((time.monotonic() - began) * 1000, 1)
    if status == "101":
        return {"status": "healthy", "latency_ms": latency_ms, "detail": "opened and closed"}
    cure = "set EXAI_TOKEN" if status == "401" else "does a proxy in between pass WebSockets on?"
    return {"status": "unhealthy", "latency_ms": latency_ms, "detail": f"answers {status} instead of 101; {cure}"}


def unavailable(error: ExaiError) -> dict[str, Any]:
    """Return the report for programs about a daemon that could not be asked."""
    now = _text(datetime.now(UTC))
    checks = {"daemon": {"status": "unhealthy", "response_time_ms": None, "timestamp": now, "detail": str(error)}}
    return {"status": "unhealthy", "timestamp": now, "checks": checks}


def watch_as_json(read: Callable[[], HealthReading], pause_s: float) -> Iterator[str]:
    """Yield the report for programs repeatedly, without end, each as one line."""
    while True:
        try:
            report = read().as_json()
        except ExaiError as error:
            report = unavailable(error)
        yield json.dumps(report)
        time.sleep(pause_s)


def watch(read: Callable[[], HealthReading], pause_s: float, *, in_place: bool) -> Iterator[str]:
    """Yield the state repeatedly, without end; `in_place` begins each text with the codes that clear a terminal."""
    while True:
        try:
            text = read().as_text()
        except ExaiError as error:
            text = str(error)
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        clear = CLEAR if in_place else ""
        yield f"{clear}{printable(text) if in_place else text}\n{now}, again in {pause_s:g} s; Ctrl-C ends"
        time.sleep(pause_s)


def open_endpoint(
    read: Callable[[], HealthReading], address: str, *, clock: Callable[[], float] = time.monotonic
) -> ThreadingHTTPServer:
    """Return a server that answers every GET with the report as JSON: 200, or 503 if the daemon is not healthy.

    Raises `ConfigError` for the address, `StartupError` if it cannot be bound.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise ConfigError("--endpoint", f"{address} is not a port, or host and port", "Write 8080 or 127.0.0.1:8080")
    reports = _Reports(read, clock)

    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S

        def do_GET(self) -> None:
            healthy, body = reports.newest()
            self.send_response(200 if healthy else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: every request is one of a monitor."""

    try:
        return _Endpoint((host.strip("[]") or "127.0.0.1", int(port)), Handler)
    except OSError as error:
        raise StartupError(address, f"cannot be bound ({error.strerror})", "Give another --endpoint") from error


class _Endpoint(ThreadingHTTPServer):
    """A server that has at most `MAX_CLIENTS` threads, and reports no client that leaves early."""

    # With the default of 5, the kernel of a client that finds the queue full tries again after a second.
    request_queue_size = 2 * MAX_CLIENTS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Reports:
    """The newest report for all requests; one at a time asks the daemon."""

    def __init__(self, read: Callable[[], HealthReading], clock: Callable[[], float]) -> None:
        self._read, self._clock, self._lock = read, clock, threading.Lock()
        self._until = -math.inf
        self._newest: tuple[bool, bytes] = (False, b"")

    def newest(self) -> tuple[bool, bytes]:
        with self._lock:
            if self._clock() >= self._until:
                self._newest = self._ask()
                self._until = self._clock() + REPORT_AGE_S
            return self._newest

    def _ask(self) -> tuple[bool, bytes]:
        try:
            reading = self._read()
        except ExaiError as error:
            return False, json.dumps(unavailable(error), indent=2).encode()
        return reading.healthy, json.dumps(reading.as_json(), indent=2).encode()


def _check(status: str, latency_ms: float | None, at: datetime, detail: str) -> dict[str, Any]:
    return {"status": status, "response_time_ms": latency_ms, "timestamp": _text(at), "detail": detail}


def _text(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
