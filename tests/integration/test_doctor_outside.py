"""`exai doctor --url`: a daemon behind proxies that pass everything on, or that do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exai.cli.outside import check_from_outside
from tests.acceptance.conftest import shared_daemon
from tests.support.daemon import Daemon

__all__ = ["shared_daemon"]


@contextmanager
def proxy(port: int, *, drops_upgrade: bool = False, status: bytes = b"") -> Iterator[str]:
    """A reverse proxy on loopback in a thread of its own."""
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if status:
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
                return
            if drops_upgrade:
                head = b"\r\n".join(line for line in head.split(b"\r\n") if b"pgrade" not in line)
            there, back = await asyncio.open_connection("127.0.0.1", port)
            back.write(head)
            try:
                await asyncio.gather(pump(reader, back), pump(there, writer))
            finally:
                back.close()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:

        async def end() -> None:
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def seen(url: str) -> dict[str, tuple[str, str]]:
    return {each.part: (each.state, each.cure) for each in check_from_outside(url, None)}


def test_a_proxy_that_passes_everything_on(shared_daemon: Daemon) -> None:
    """Each check is one request."""
    with proxy(shared_daemon.port) as url:
        found = seen(url)
    assert {part: state for part, (state, _) in found.items()} == {
        "address": "ok",
        "websocket": "ok",
        "origin": "ok",
        "event stream": "ok",
        "metrics": "warn",
    }


def test_a_proxy_without_upgrades(shared_daemon: Daemon) -> None:
    """The cure has the lines for the proxy."""
    with proxy(shared_daemon.port, drops_upgrade=True) as url:
        state, cure = seen(url)["websocket"]
    assert state == "fail"
    assert "proxy_set_header Upgrade" in cure


@pytest.mark.parametrize(
    ("status", "words"), [(b"502 Bad Gateway", "daemon runs"), (b"421 Misdirected Request", "ALLOWED_HOSTS=127.0.0.1")]
)
def test_a_proxy_that_answers_by_itself(status: bytes, words: str) -> None:
    """Nothing else is asked then."""
    with proxy(1, status=status) as url:
        found = seen(url)
    assert list(found) == ["address"]
    assert words in found["address"][1]


def test_nothing_is_there() -> None:
    """The port is closed."""
    [finding] = check_from_outside("http://127.0.0.1:1", None)
    assert (finding.state, finding.part) == ("fail", "address")
