"""Requests of a client to one daemon, repeated until their deadline while the daemon cannot be reached.

Invariant: a write is repeated only as the same request with the same key, which the daemon carries out once. An answer
is that of the daemon or an error that says whether the write may have happened.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import math
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

from exai.client.failures import DAEMON, failure_of
from exai.client.pools import HttpPools
from exai.errors import (
    DaemonUnavailable,
    DeadlineExceeded,
    DependencyError,
    ExaiError,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    ShuttingDown,
    Unauthorized,
)
from exai.mcp.core import versions
from exai.mcp.core.jsonrpc import METHOD_NOT_FOUND
from exai.models import Owner
from exai.resilience import remaining_s
from exai.store import wire

PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 1.0
DISCOVER: Final = "server/discover"
LARGE_BYTES: Final = 1_048_576
"""A request below it is accepted by every daemon."""

MAX_RESTARTS: Final = 5
"""How often a long answer is begun again because it changed meanwhile."""

NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
JSON: Final = "application/json"
STREAM: Final = "text/event-stream"
AWAY_STATUSES: Final = frozenset({502, 503, 504})
REPEAT: Final = "Repeat the request with the same idempotency key"

TOKEN: Final = re.compile(r"[\x21-\x7e]+")
"""Characters that an Authorization header can hold."""

TokenSource = str | Callable[[Owner], str | None] | None
"""The token of a client, or a function that returns the token of an owner."""

OnPart = Callable[[Mapping[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class DaemonCall:
    """One call of an operation, and what became of its attempts so far.

    A write with a `key` is repeated also after a loss of its outcome. `on_part` receives parts of an answer.
    """

    operation: str
    owner: Owner
    parameters: Mapping[str, Any]
    is_write: bool = False
    key: str | None = None
    timeout_s: float | None = None
    on_part: OnPart | None = None
    attempts: int = 0
    was_sent: bool = False
    is_waiting: bool = False
    problem: str = ""

    @property
    def may_be_done(self) -> bool:
        """Return whether the daemon may have carried the call out."""
        return self.was_sent or self.is_waiting


class StoreConnection:
    """The connections to one daemon; safe for any number of tasks of one event loop."""

    def __init__(self, pools: HttpPools, url: str, token: TokenSource, timeout_s: float) -> None:
        self._pools, self._url, self._token, self._timeout_s = pools, url, token, timeout_s
        self._ids = itertools.count(1)

    async def send(self, call: DaemonCall) -> Any:
        """Carry out a call and return its value.

        Raises the errors of the operation, `DaemonUnavailable`, `DeadlineExceeded`, `Unauthorized`, `Overloaded`, or
        `OutcomeUnknown` for a write.
        """
        limit_s = min(self._timeout_s if call.timeout_s is None else call.timeout_s, remaining_s() or math.inf)
        try:
            async with asyncio.timeout(limit_s) as scope:
                value = await self._whole(call, await self._until_answered(call, call.parameters, scope), scope)
        except TimeoutError:
            raise self._late(call, limit_s) from None
        return wire.decode(wire.OPERATIONS[call.operation].result, value)

    async def _until_answered(
        self, call: DaemonCall, parameters: Mapping[str, Any], scope: asyncio.Timeout
    ) -> Mapping[str, Any]:
        streams = call.on_part is not None
        method = wire.PREFIX + call.operation
        body = self._message(method, parameters, streams=streams)
        headers = self._headers(method, call.owner, streams=streams)
        while True:
            call.attempts += 1
            call.is_waiting = True
            pause_s = min(MAX_PAUSE_S, PAUSE_S * 2 ** min(call.attempts, 10)) * (0.5 + random.random() / 2)  # noqa: S311
            try:
                return await self._ask(body, headers, call.on_part)
            except NOT_SENT as error:
                call.problem = _reason(error)
            except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
                raise DependencyError(DAEMON, f"cannot be asked: {_reason(error)}") from error
            except httpx.TransportError as error:
                call.was_sent, call.problem = True, _reason(error)
                if len(body) > LARGE_BYTES:
                    await self._check_size(call, len(body))
            except (ShuttingDown, DaemonUnavailable) as error:
                call.problem = str(error)
            except OutcomeUnknown as error:
                if call.key is None:
                    raise
                call.was_sent, call.problem = True, str(error)
            except Overloaded as error:
                if error.retry_after_s is None or error.retry_after_s > _left_s(scope):
                    raise
                call.problem, pause_s = str(error), max(pause_s, error.retry_after_s)
            call.is_waiting = False
            await asyncio.sleep(pause_s)

    async def _check_size(self, call: DaemonCall, size_bytes: int) -> None:
        """Raise `InvalidArgument` for a request that exceeds the daemon's limit.

        A daemon that refuses a request before all of it was sent may close the connection before the refusal is read.
        """
        given = self._message(DISCOVER, {}, streams=False), self._headers(DISCOVER, call.owner, streams=False)
        try:
            found = await self._ask(*given, None)
        except (httpx.TransportError, ExaiError):
            return  # The call itself is repeated.
        limit = found["capabilities"].get("extensions", {}).get(wire.EXTENSION, {}).get(wire.MAX_BYTES)
        if limit is not None and size_bytes > limit:
            raise _too_large(size_bytes)

    async def _ask(self, body: bytes, headers: Mapping[str, str], on_part: OnPart | None) -> Mapping[str, Any]:
        with self._pools.borrow() as http:
            if on_part is None:
                response = await http.post(self._url, content=body, headers=headers)
                return _result_of(response.status_code, response.headers, response.content, len(body))
            async with http.stream("POST", self._url, content=body, headers=headers) as streamed:
                return await _answer_of(streamed, on_part, len(body))

    async def _whole(self, call: DaemonCall, result: Mapping[str, Any], scope: asyncio.Timeout) -> Any:
        """Return the value of an answer, whose further parts are asked for if it is too long for one."""
        if "value" in result:
            return result["value"]
        joined, restarts = bytearray(), 0
        while True:
            part = result["part"]
            if part["offset"] != len(joined):
                # The answer has changed, and is sent from its beginning.
                restarts += 1
                joined.clear()
                if restarts > MAX_RESTARTS:
                    raise DependencyError(DAEMON, "an answer changed while it was read", "Read a smaller page")
            joined += base64.b64decode(part["data"])
            if len(joined) >= part["size_bytes"]:
                break
            later = {"offset": len(joined), "sha256": part["sha256"]}
            result = await self._until_answered(call, {**call.parameters, "part": later}, scope)
        if hashlib.sha256(joined).hexdigest() != part["sha256"]:
            raise DependencyError(DAEMON, "an answer in parts does not have its digest", "Call again")
        return orjson.loads(joined)

    def _message(self, method: str, parameters: Mapping[str, Any], *, streams: bool) -> bytes:
        number = next(self._ids)
        meta: dict[str, Any] = {
            versions.META_VERSION: versions.MODERN,
            versions.META_CAPABILITIES: {"extensions": {wire.EXTENSION: {}}},
        }
        if streams:
            meta |= {"progressToken": number, versions.META_PARTS: True}
        message = {
            "jsonrpc": "2.0",
            "id": number,
            "method": method,
            "params": {**parameters, "_meta": meta},
        }
        try:
            return wire.encode(message)
        except TypeError as error:
            raise InvalidArgument(method, f"cannot be sent as JSON: {error}", "Use plain JSON values") from None

    def _headers(self, method: str, owner: Owner, *, streams: bool) -> Mapping[str, str]:
        headers = {
            "content-type": JSON,
            "accept": f"{JSON}, {STREAM}" if streams else JSON,
            "mcp-protocol-version": versions.MODERN,
            "mcp-method": method,
        }
        token = self._token(owner) if callable(self._token) else self._token
        if token is None:
            return headers
        if not isinstance(token, str) or TOKEN.fullmatch(token) is None:
            raise InvalidArgument("token", "cannot be sent in a header", "Give the token without spaces, or None")
        return {**headers, "authorization": f"Bearer {token}"}

    def _late(self, call: DaemonCall, limit_s: float) -> ExaiError:
        reason = f" ({call.problem})" if call.problem else ""
        if call.is_write and call.may_be_done:
            facts = {} if call.key is None else {"idempotency_key": call.key}
            return OutcomeUnknown(DAEMON, f"no answer within {limit_s:g} s{reason}", REPEAT, **facts)
        if call.is_waiting:
            return DeadlineExceeded(f"the daemon at {self._url}", limit_s)
        cure = "Start the daemon, or correct its address"
        return DaemonUnavailable(DAEMON, f"no answer from {self._url} within {limit_s:g} s{reason}", cure)


def _left_s(scope: asyncio.Timeout) -> float:
    until = scope.when()
    return math.inf if until is None else until - asyncio.get_running_loop().time()


async def _answer_of(streamed: httpx.Response, on_part: OnPart, sent_bytes: int) -> Mapping[str, Any]:
    """Return the result of an answer in parts, which `on_part` receives."""
    if not streamed.headers.get("content-type", "").startswith(STREAM):
        return _result_of(streamed.status_code, streamed.headers, await streamed.aread(), sent_bytes)
    async for message in _messages(streamed):
        if "method" not in message:
            return _checked(message)
        part = message.get("params", {}).get("_meta", {}).get(versions.META_PART)
        if part is not None:
            await on_part(part)
    raise httpx.RemoteProtocolError("the stream ended before its answer")


async def _messages(response: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield orjson.loads(line[5:])


def _result_of(status: int, headers: httpx.Headers, content: bytes, sent_bytes: int) -> Mapping[str, Any]:
    """Return the result of the answer to a request of `sent_bytes`, or raise its error."""
    if status == 401:
        raise Unauthorized
    if headers.get("content-type", "").startswith(JSON):
        try:
            return _checked(orjson.loads(content))
        except orjson.JSONDecodeError:
            raise httpx.RemoteProtocolError("the answer is not JSON") from None
    if status in AWAY_STATUSES:
        raise DaemonUnavailable(DAEMON, f"HTTP status {status}")
    if status == 413:
        raise _too_large(sent_bytes)
    if status == 429:
        raise Overloaded("requests of this owner", 0, retry_after_s=_seconds(headers.get("retry-after")))
    raise DependencyError(DAEMON, f"answered with HTTP status {status}", "Check the address, which ends in /mcp")


def _too_large(size_bytes: int) -> InvalidArgument:
    cure = "Send less at once, or raise the daemon's EXAI_SERVER__MESSAGE_MAX_BYTES (by default 8,388,608)"
    return InvalidArgument("request", f"is {size_bytes:,} bytes, more than the daemon accepts", cure)


def _checked(message: Mapping[str, Any]) -> Mapping[str, Any]:
    error = message.get("error")
    if error is not None:
        facts = error.get("data") or {}
        if error.get("code") == METHOD_NOT_FOUND:
            raise DependencyError(
                DAEMON, str(error.get("message")), "Update the daemon: it does not have this operation"
            )
        raise failure_of({"message": error.get("message"), **facts})
    result: Mapping[str, Any] = message["result"]
    if result.get("isError"):
        raise failure_of(result["error"])
    return result


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 1.0))
    except ValueError:
        return 1.0


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
