"""Authentication over real sockets: before the upgrade, and until the token expires."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import pytest
import structlog
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from exai.mcp.auth.jwks import MAX_BYTES, fetch_text
from exai.mcp.auth.jwt import LEEWAY_S
from exai.mcp.auth.tokens import authenticator
from exai.mcp.core.versions import TOKEN_EXPIRED
from exai.mcp.identity import Admitted, AuthRefusal
from exai.mcp.session.session import EXPIRED
from exai.models import Owner
from exai.settings.load import JwtSettings
from tests.support.mcp_server import WAIT_S, Running, fast_settings, modern, request, running_server, tool_call
from tests.support.tokens import ISSUER, SECRET, ec_key, published, signed, signed_by


@asynccontextmanager
async def guarded(jwt: JwtSettings, **changes: Any) -> AsyncIterator[Running]:
    settings = fast_settings(jwt=jwt, **changes)
    async with running_server(settings, authenticate=authenticator(settings)) as server:
        yield server


@asynccontextmanager
async def dial(server: Running, token: str) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(server.url, proxy=None, additional_headers=headers) as socket:
        yield socket


async def ask(socket: ClientConnection, message: object) -> dict[str, Any]:
    await socket.send(orjson.dumps(message), text=True)
    return await answer(socket)


async def answer(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        found = orjson.loads(await socket.recv())
    assert isinstance(found, dict)
    return found


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
    return caught.value.rcvd.code if caught.value.rcvd else None


SHARED = JwtSettings(secret=SecretStr(SECRET), issuer=ISSUER)


async def test_a_signed_token_opens_both_doors_for_its_subject() -> None:
    """The owner that tools see is the sub."""
    async with guarded(SHARED) as server:
        async with dial(server, signed("user-1")) as socket:
            await ask(socket, modern(1, "tools/call", tool_call("echo", text="a")))
        async with httpx.AsyncClient(base_url=server.http, timeout=WAIT_S, verify=False) as client:
            headers = {"authorization": f"Bearer {signed('user-2')}"}
            message = request(1, "tools/call", tool_call("echo", text="a"))
            assert (await client.post("/mcp", json=message, headers=headers)).status_code == 200
        assert [context.owner for context in server.tools.contexts] == ["user-1", "user-2"]


async def test_a_bad_token_is_refused_before_the_upgrade_and_stays_out_of_the_logs() -> None:
    """401 with a challenge; neither answer nor log repeats the token."""
    token = signed(aud="anon")
    with structlog.testing.capture_logs() as lines:
        async with guarded(SHARED) as server:
            with pytest.raises(InvalidStatus) as caught:
                async with dial(server, token):
                    pass
            response = caught.value.response
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            assert token not in response.body.decode()
    assert {"event": "refused a token", "reason": "InvalidAudienceError", "log_level": "info"} in lines
    assert token not in str(lines)


async def test_a_connection_ends_with_4401_when_its_token_expires() -> None:
    """Facts on security: a socket is not a way to outlive one's token. The leeway counts here too."""
    token = signed(exp=int(time.time()) - LEEWAY_S + 2)
    async with guarded(SHARED) as server, dial(server, token) as socket:
        assert (await ask(socket, request(0, "ping")))["result"] == {}
        assert await close_code(socket) == EXPIRED


async def test_what_runs_when_the_token_expires_is_answered_and_nothing_begins() -> None:
    """A model's answer that took its time is not thrown away for a clock."""
    expiry = time.time() + 0.3

    async def authenticate(headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | AuthRefusal:
        return Admitted(Owner("alice"), expiry)

    async with running_server(authenticate=authenticate) as server, dial(server, "any") as socket:
        await socket.send(orjson.dumps(modern(1, "tools/call", tool_call("slow"))), text=True)
        await server.tools.gate.arrived()
        code, key = None, 1
        async with asyncio.timeout(WAIT_S):
            while code != TOKEN_EXPIRED:
                key += 1
                code = (
                    (await ask(socket, modern(key, "tools/call", tool_call("echo", text="a"))))
                    .get("error", {})
                    .get("code")
                )
        server.tools.gate.open.set()
        found = await answer(socket)
        assert (found["id"], found["result"]["structuredContent"]) == (1, {"done": True})
        assert await close_code(socket) == EXPIRED


class Issuer(BaseHTTPRequestHandler):
    """Publishes `document`, holding every request until `gate` is open."""

    document = b""
    location = ""
    asked = 0
    gate = threading.Event()

    def do_GET(self) -> None:
        kind = type(self)
        kind.asked += 1
        kind.gate.wait(WAIT_S)
        self.send_response(302 if kind.location else 200)
        if kind.location:
            self.send_header("Location", kind.location)
        self.send_header("Content-Length", str(len(kind.document)))
        self.end_headers()
        self.wfile.write(kind.document)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def issuer(document: bytes, location: str = "") -> Iterator[tuple[str, type[Issuer]]]:
    kind = type("Issuer", (Issuer,), {"document": document, "location": location, "gate": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks.json", kind
    finally:
        kind.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


async def test_keys_are_fetched_once_without_blocking_other_requests() -> None:
    """The fetch runs in a thread; connections that wait for it share it."""
    key = ec_key()
    with issuer(published(a=key)) as (url, kind):
        jwt = JwtSettings(jwks_url=url, issuer=ISSUER)
        async with (
            guarded(jwt, tokens={"robot": SecretStr("token-of-the-robot")}) as server,
            dial(server, "token-of-the-robot") as other,
        ):

            async def arrive(number: int) -> str:
                async with dial(server, signed_by(key, "a", f"user-{number}")) as socket:
                    await ask(socket, modern(1, "tools/call", tool_call("echo", text="a")))
                return "served"

            arriving = [asyncio.create_task(arrive(number)) for number in range(4)]
            async with asyncio.timeout(WAIT_S):
                while not kind.asked:
                    assert (await ask(other, request(0, "ping")))["result"] == {}
            assert (await ask(other, request(1, "ping")))["result"] == {}
            kind.gate.set()
            async with asyncio.timeout(WAIT_S):
                assert await asyncio.gather(*arriving) == ["served"] * 4
            assert kind.asked == 1
            owners = {context.owner for context in server.tools.contexts}
            assert owners == {"user-0", "user-1", "user-2", "user-3"}


def test_the_issuer_is_asked_at_its_address_only_and_within_bounds() -> None:
    """No redirect is followed, no file is read, nothing endless is swallowed."""
    with issuer(b"") as (url, kind):
        kind.gate.set()
        with issuer(b"", location=url) as (moved, mover):
            mover.gate.set()
            with pytest.raises(OSError, match="302"):
                fetch_text(moved)
        assert kind.asked == 0
    with issuer(b"x" * (MAX_BYTES + 1)) as (url, kind):
        kind.gate.set()
        with pytest.raises(ValueError, match="bytes"):
            fetch_text(url)
    with pytest.raises(OSError, match="file"):
        fetch_text("file:///etc/hostname")


async def test_a_token_that_expires_while_its_request_arrives_is_refused_with_401() -> None:
    """A body may take a minute; the answer is that to a new connection."""

    async def authenticate(headers: Mapping[str, str], query: Mapping[str, str]) -> Admitted | AuthRefusal:
        return Admitted(Owner("alice"), time.time())

    async with running_server(authenticate=authenticate) as server, httpx.AsyncClient(timeout=WAIT_S) as client:
        message = request(1, "tools/call", tool_call("echo", text="a"))
        found = await client.post(f"{server.http}/mcp", json=message)
        assert (found.status_code, found.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
        assert not server.tools.contexts
