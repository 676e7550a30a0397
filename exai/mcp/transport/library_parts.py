"""The internals of uvicorn and websockets on which EXAI depends although their documentation does not promise them.

Invariant: no other module of the server imports such internals. Importing this module either succeeds, with every part
that is used present, or raises one `StartupError` that names the release, the part and the cure. That replaces an upper
bound on uvicorn: a newer release with these parts works.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Final

from exai.errors import StartupError

TESTED: Final[Mapping[str, str]] = {"uvicorn": "0.52.4 to 0.54.0", "websockets": "15.0 to 17.4"}
"""The releases that `make test-lowest` and `make test-newest` ran with."""


def _unusable(package: str, part: str) -> StartupError:
    return StartupError(
        f"{package} {version(package)}",
        f"lacks a part that EXAI extends ({part})",
        f"Install a release that EXAI was tested with ({package} {TESTED[package]}), or a newer EXAI",
    )


try:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from uvicorn.config import Config
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
    from uvicorn.protocols.utils import ClientDisconnected
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from uvicorn.server import ServerState
except ImportError as error:
    raise _unusable("uvicorn", str(error)) from error

try:
    from websockets.exceptions import InvalidState
    from websockets.frames import Frame
    from websockets.http11 import Request
    from websockets.protocol import Protocol, State
    from websockets.server import ServerProtocol
    from websockets.streams import StreamReader
except ImportError as error:
    raise _unusable("websockets", str(error)) from error

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which the library has no compiled part
    from websockets.utils import apply_mask

__all__ = [
    "OPEN_MESSAGE_BYTES",
    "STATUS_LINE",
    "ASGIReceiveEvent",
    "ASGISendEvent",
    "ClientDisconnected",
    "Config",
    "FlowControl",
    "Frame",
    "HttpToolsProtocol",
    "InvalidState",
    "Protocol",
    "Request",
    "RequestResponseCycle",
    "ServerState",
    "State",
    "StreamReader",
    "WebSocketsSansIOProtocol",
    "apply_mask",
]

_OF_BOTH = """connection_made connection_lost data_received shutdown config loop logger app_state connections tasks
    scheme"""
_HTTP = f"""{_OF_BOTH} access_logger access_log server_state transport flow client parser headers scope cycle
    pipeline expect_100_continue timeout_keep_alive timeout_keep_alive_task timeout_keep_alive_handler on_message_begin
    on_url on_header on_headers_complete on_body on_message_complete on_response_complete handle_websocket_upgrade
    send_400_response _start_asgi_task _unset_keepalive_if_required"""
_WEBSOCKET = f"""{_OF_BOTH} conn queue frames curr_msg_data_type read_paused writable handshake_initiated
    handshake_complete close_sent disconnected close_timer close_timeout handle_connect handle_cont handle_ping
    handle_pong handle_close handle_parser_exception send_receive_event_to_app start_keepalive stop_keepalive
    keepalive_timeout pause_writing resume_writing on_task_complete receive send"""
_CYCLE = """scope transport flow logger access_logger access_log default_headers message_event expect_100_continue
    keep_alive on_response"""
_CONNECTION = """reader parser parse parser_exc state close_sent fail send_text data_to_send receive_data
    events_received"""
_READER = "buffer at_eof feed_data"


def _require(package: str, of: object, name: str, parts: str) -> None:
    for part in parts.split():
        if not hasattr(of, part):
            raise _unusable(package, f"{name}.{part}")


def _require_arguments(package: str, of: Callable[..., object], name: str, arguments: str) -> None:
    known = inspect.signature(of).parameters
    for argument in arguments.split():
        if argument not in known:
            raise _unusable(package, f"{name}({argument}=)")


def _require_uvicorn() -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    loop = asyncio.new_event_loop()  # which the protocols remember, and do not use yet
    try:
        config = Config(app, interface="asgi3", lifespan="off", log_config=None, ws="none")
        config.load()
        state = ServerState()
        _require("uvicorn", state, "ServerState", "connections tasks default_headers")
        _require("uvicorn", HttpToolsProtocol(config, state, {}, loop), "HttpToolsProtocol", _HTTP)
        _require("uvicorn", WebSocketsSansIOProtocol(config, state, {}, loop), "WebSocketsSansIOProtocol", _WEBSOCKET)
    except (TypeError, AttributeError) as error:
        raise _unusable("uvicorn", str(error)) from error
    finally:
        loop.close()
    _require("uvicorn", FlowControl, "FlowControl", "pause_reading resume_reading pause_writing resume_writing drain")
    _require_arguments("uvicorn", RequestResponseCycle, "RequestResponseCycle", _CYCLE)


def _require_websockets() -> str:
    connection = ServerProtocol()
    _require("websockets", connection, "ServerProtocol", _CONNECTION)
    _require("websockets", StreamReader(), "StreamReader", _READER)
    names = ("current_size", "cur_size")  # from 16.0 on, and before
    for name in names:
        if hasattr(connection, name):
            return name
    raise _unusable("websockets", f"ServerProtocol.{names[0]}")


_require_uvicorn()
OPEN_MESSAGE_BYTES: Final = _require_websockets()
"""Name of the attribute with the size of an incomplete message, which is None between two messages."""
