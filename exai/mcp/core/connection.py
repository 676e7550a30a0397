"""The MCP core without I/O: one `Connection` turns a peer's messages into actions and outcomes into messages.

Invariant: every request is either refused at once or admitted. An admitted request gets exactly one answer unless its
peer cancels it, and nothing is sent for it after that answer. The core serves both protocol eras message by message
and does not depend on the transport.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from exai.errors import ExaiError, Overloaded, ShuttingDown
from exai.mcp.core import jsonrpc, versions
from exai.mcp.core.errors import ErrorTooLarge, ReplyTooLarge, rpc_error
from exai.mcp.core.jsonrpc import INVALID_PARAMS, METHOD_NOT_FOUND, Json, JsonRpcMessage, Malformed, RequestId, RpcError
from exai.mcp.core.protocol import (
    LIST_FILTERS,
    Action,
    Call,
    Cancel,
    ClientInfo,
    Ignore,
    ListKind,
    Method,
    Send,
    Start,
    Surface,
    refusal,
)
from exai.mcp.core.subscriptions import Budget, Subscriptions
from exai.mcp.core.versions import Cacheable

MAX_SUBSCRIPTIONS = 16
"""Open `subscriptions/listen` requests of one connection."""

DISCOVER_CACHE = Cacheable(60_000, "private")


class Connection:
    """The protocol state of one peer: of a WebSocket for its lifetime, of an HTTP request for that request.

    `version` is given if the transport knows the legacy revision without a handshake (HTTP); else `initialize` sets it.
    `directory` is set by the transport, if the client names one.
    """

    def __init__(
        self,
        surface: Surface,
        *,
        max_in_flight: int,
        reply_max_bytes: int,
        version: str | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.surface = surface
        self.version = version
        self.client = ClientInfo()
        self.directory = self.trace_parent = ""
        self.in_flight: dict[RequestId, Call] = {}
        self.listening: dict[RequestId, Json] = {}
        self._subscriptions = Subscriptions(budget, surface.schemes)
        self._is_handshaken = False
        self._max_in_flight = max_in_flight
        self._reply_max_bytes = reply_max_bytes

    # Incoming messages.

    def accept(self, message: JsonRpcMessage) -> Action:
        """Process one message. Never raises."""
        if isinstance(message, jsonrpc.Request):
            try:
                return self._admit(message)
            except RpcError as error:
                return refusal(message.id, error)
        if isinstance(message, jsonrpc.Notification):
            return self._accept_notification(message)
        return refusal(message.id, message.error) if isinstance(message, Malformed) else Ignore()

    def _accept_notification(self, message: jsonrpc.Notification) -> Action:
        if message.method != "notifications/cancelled":
            return Ignore()
        target = jsonrpc.as_id(message.params.get("requestId"))
        if target is None:
            return Ignore()
        if self.listening.pop(target, None) is not None:
            self._subscriptions.unlisten(target)
            return Ignore()
        return Cancel(target) if self.in_flight.pop(target, None) is not None else Ignore()

    def _admit(self, request: jsonrpc.Request) -> Action:
        if request.id in self.in_flight or request.id in self.listening:
            raise RpcError(jsonrpc.INVALID_REQUEST, f"Invalid Request: id {request.id!r} is already in use")
        if request.method == "initialize":
            return self._initialize(request)
        meta = request.params.get("_meta")
        if meta == []:
            meta = None
        if meta is not None and not isinstance(meta, dict):
            raise RpcError(INVALID_PARAMS, "Invalid params: _meta must be an object")
        if meta is not None and versions.META_VERSION in meta:
            return self._modern(request, meta)
        return self._legacy(request, meta or {})

    # The stateless era.

    def _modern(self, request: jsonrpc.Request, meta: Json) -> Action:
        version, capabilities = meta[versions.META_VERSION], meta.get(versions.META_CAPABILITIES)
        if not isinstance(version, str):
            raise RpcError(INVALID_PARAMS, f"Invalid params: _meta.{versions.META_VERSION} must be a string")
        if version not in versions.MODERN_VERSIONS:
            facts = {"supported": list(versions.MODERN_VERSIONS), "requested": version[: jsonrpc.MAX_ID_CHARS]}
            raise RpcError(versions.UNSUPPORTED_VERSION, "Unsupported protocol version", facts)
        if capabilities == []:
            capabilities = {}
        if not isinstance(capabilities, dict):
            raise RpcError(INVALID_PARAMS, f"Invalid params: _meta.{versions.META_CAPABILITIES} must be an object")
        client = _client(meta.get(versions.META_CLIENT), capabilities)
        if request.method == "server/discover":
            return self._answer(request, Method(request.method, cacheable=DISCOVER_CACHE), version, self._discovery())
        if request.method == "subscriptions/listen" and self.surface.has_subscriptions:
            return self._listen(request, client)
        if request.method in versions.REMOVED_METHODS:
            raise _unknown(request.method)
        method = self.surface.methods.get(request.method)
        if method is None:
            raise _unknown(request.method)
        if method.extension is not None:
            versions.require_extension(client.capabilities, method.extension)
        return self._start(request, method, version, client, meta)

    def _discovery(self) -> Json:
        found: dict[str, Any] = {
            "supportedVersions": list(versions.MODERN_VERSIONS),
            "capabilities": self.surface.capabilities,
        }
        if self.surface.instructions:
            found["instructions"] = self.surface.instructions
        return found

    def _listen(self, request: jsonrpc.Request, client: ClientInfo) -> Action:
        wanted = request.params.get("notifications")
        wanted = {} if wanted == [] else wanted
        if not isinstance(wanted, dict):
            raise RpcError(INVALID_PARAMS, "Invalid params: notifications must be an object")
        if "taskIds" in wanted and versions.TASKS in self.surface.capabilities.get("extensions", {}):
            versions.require_extension(client.capabilities, versions.TASKS)
        if len(self.listening) >= MAX_SUBSCRIPTIONS:
            self._subscriptions.note_limited("connection_subscriptions")
            raise rpc_error(Overloaded("subscriptions of one connection", MAX_SUBSCRIPTIONS))
        granted: dict[str, Any] = {
            name: True
            for name, (change, _) in LIST_FILTERS.items()
            if wanted.get(name) is True and self.surface.announces(change)
        }
        uris = wanted.get("resourceSubscriptions")
        if isinstance(uris, list) and self.surface.announces_updates:
            granted["resourceSubscriptions"] = self._subscriptions.listen(request.id, uris)
        self.listening[request.id] = granted
        params = {"_meta": {versions.META_SUBSCRIPTION: request.id}, "notifications": granted}
        return Send(jsonrpc.encode_notification("notifications/subscriptions/acknowledged", params))

    # The initialize era.

    def _initialize(self, request: jsonrpc.Request) -> Action:
        asked = request.params.get("protocolVersion")
        version = asked if asked in versions.LEGACY_VERSIONS else versions.LATEST_LEGACY
        self.version = version
        self._is_handshaken = True
        capabilities = request.params.get("capabilities")
        self.client = _client(request.params.get("clientInfo"), capabilities if isinstance(capabilities, dict) else {})
        result: dict[str, Any] = {
            "protocolVersion": version,
            "capabilities": versions.without_extensions(self.surface.capabilities),
            "serverInfo": versions.described(self.surface.info, version),
        }
        if self.surface.instructions:
            result["instructions"] = self.surface.instructions
        return self._answer(request, Method("initialize"), version, result)

    def _legacy(self, request: jsonrpc.Request, meta: Json) -> Action:
        name = request.method
        method = self.surface.methods.get(name)
        if method is None or method.extension is not None:
            return self._legacy_own(request)
        if self.version is None:
            raise RpcError(
                INVALID_PARAMS,
                f"Invalid params: {name} came before initialize, and without the _meta of {versions.MODERN}",
            )
        return self._start(request, method, self.version, self.client, meta)

    def _legacy_own(self, request: jsonrpc.Request) -> Action:
        """Serve the methods of the initialize era that belong to no feature."""
        name = request.method
        if name == "ping":
            return self._answer(request, Method("ping"), self.version or versions.LATEST_LEGACY, {})
        if name in ("server/discover", "subscriptions/listen"):
            problem = (
                f"Invalid params: {name} needs _meta with {versions.META_VERSION} and {versions.META_CAPABILITIES}"
            )
            raise RpcError(INVALID_PARAMS, problem)
        if name in ("resources/subscribe", "resources/unsubscribe") and self.surface.announces_updates:
            return self._subscribe(request)
        raise _unknown(name)

    def _subscribe(self, request: jsonrpc.Request) -> Action:
        uri = request.params.get("uri")
        if not isinstance(uri, str):
            raise RpcError(INVALID_PARAMS, "Invalid params: uri must be a string")
        if request.method == "resources/unsubscribe":
            self._subscriptions.discard(uri)
        else:
            self._subscriptions.add(uri)
        return self._answer(request, Method(request.method), self.version or versions.LATEST_LEGACY, {})

    # Both versions.

    def _start(self, request: jsonrpc.Request, method: Method, version: str, client: ClientInfo, meta: Json) -> Action:
        token = meta.get("progressToken")
        if token is not None and (token := jsonrpc.as_id(token)) is None:
            raise RpcError(INVALID_PARAMS, "Invalid params: progressToken must be a string or an integer")
        call = Call(request.id, method, request.params, version, client, token)
        if method.answer is not None:
            return self._answer(request, method, version, method.answer(call))
        if len(self.in_flight) >= self._max_in_flight:
            self._subscriptions.note_limited("connection_requests")
            raise rpc_error(Overloaded("requests in flight on one connection", self._max_in_flight))
        self.in_flight[request.id] = call
        return Start(call)

    def _answer(self, request: jsonrpc.Request, method: Method, version: str, result: Json) -> Send:
        shape = versions.shaped(result, version, method.cacheable, self.surface.info)
        return Send(jsonrpc.encode_result(request.id, shape))

    # Outgoing messages.

    def complete(self, call: Call, result: Json) -> Send | None:
        """Return the answer to a call, or None if its peer cancelled it. Raises if the result is not JSON."""
        shape = versions.shaped(result, call.version, call.method.cacheable, self.surface.info)
        data = jsonrpc.encode_result(call.id, shape)
        if len(data) > self._reply_max_bytes:
            data = self._oversized(call, len(data), result)
        return Send(data) if self._remove_call(call) else None

    def fail(self, call: Call, error: RpcError | ExaiError) -> Send | None:
        """Return the error answer to a call, or None if its peer cancelled it."""
        if isinstance(error, ExaiError):
            if call.method.as_result is not None and not isinstance(error, ShuttingDown):
                return self.complete(call, call.method.as_result(error))
            error = rpc_error(error)
        return refusal(call.id, error) if self._remove_call(call) else None

    def progress(self, call: Call, count: int, message: str, part: Json | None = None) -> bytes | None:
        """Return a progress notification, or None if the client did not ask for progress or the call has ended.

        `part` is a part of the answer, for a client that takes parts.
        """
        if call.progress_token is None or self.in_flight.get(call.id) is not call:
            return None
        params: dict[str, Any] = {"progressToken": call.progress_token, "progress": count}
        if call.version >= "2025-03-26":
            params["message"] = message
        if part is not None:
            params["_meta"] = {versions.META_PART: part}
        return jsonrpc.encode_notification("notifications/progress", params)

    def list_changed(self, change: ListKind) -> list[bytes]:
        """Return the notifications for this peer after a list changed."""
        found = []
        for name, (kind, method) in LIST_FILTERS.items():
            if kind != change or not self.surface.announces(kind):
                continue
            if self._is_handshaken:
                found.append(jsonrpc.encode_notification(method, {}))
            found += [_tagged(method, key, {}) for key, granted in self.listening.items() if granted.get(name)]
        return found

    @property
    def is_listening(self) -> bool:
        """Return whether this peer is notified of changes of resources."""
        return (self._is_handshaken and self.surface.announces("resources")) or bool(self.listening)

    def subscribed_among(self, uris: Set[str]) -> set[str]:
        """Return those of `uris` whose changes this peer subscribed to."""
        return self._subscriptions.among(uris)

    def resource_updated(self, uri: str) -> list[bytes]:
        """Return the notifications for this peer after one resource changed."""
        method = "notifications/resources/updated"
        found = [jsonrpc.encode_notification(method, {"uri": uri})] if self._subscriptions.is_single(uri) else []
        found += [_tagged(method, key, {"uri": uri}) for key in self._subscriptions.listening_to(uri)]
        return found

    def end(self) -> None:
        """Drop the calls and subscriptions of a disconnected peer."""
        self.in_flight.clear()
        self.listening.clear()
        self._subscriptions.end()

    def end_listening(self) -> list[bytes]:
        """End every subscription from the server's side, and return the messages that announce it."""
        ended, self.listening = self.listening, {}
        for key in ended:
            self._subscriptions.unlisten(key)
        return [
            jsonrpc.encode_result(
                key,
                versions.shaped({"_meta": {versions.META_SUBSCRIPTION: key}}, versions.MODERN, None, self.surface.info),
            )
            for key in ended
        ]

    def _remove_call(self, call: Call) -> bool:
        if self.in_flight.get(call.id) is not call:
            return False
        del self.in_flight[call.id]
        return True

    def _oversized(self, call: Call, size_bytes: int, result: Json) -> bytes:
        error: ExaiError = ReplyTooLarge(size_bytes, self._reply_max_bytes)
        if result.get("isError"):
            error = ErrorTooLarge(size_bytes, self._reply_max_bytes)
        if call.method.as_result is None:
            return jsonrpc.encode_error(call.id, rpc_error(error))
        shape = versions.shaped(call.method.as_result(error), call.version, None, self.surface.info)
        return jsonrpc.encode_result(call.id, shape)


def _unknown(method: str) -> RpcError:
    return RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")


def _tagged(method: str, id: RequestId, params: Json) -> bytes:  # noqa: A002
    return jsonrpc.encode_notification(method, {**params, "_meta": {versions.META_SUBSCRIPTION: id}})


def _client(info: object, capabilities: Json) -> ClientInfo:
    capabilities = versions.declared(capabilities)
    if not isinstance(info, dict):
        return ClientInfo(capabilities=capabilities)
    name, version = info.get("name"), info.get("version")
    return ClientInfo(
        name[:100] if isinstance(name, str) else "", version[:100] if isinstance(version, str) else "", capabilities
    )
