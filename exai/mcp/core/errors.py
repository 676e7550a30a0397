"""Deliberate errors in the form in which clients of this protocol receive them.

Invariant: an error carries the same facts for programs whether it is sent as a tool's result or as a JSON-RPC error.
"""

from __future__ import annotations

from typing import Any

from exai.errors import ExaiError, Overloaded, RequestError, ShuttingDown
from exai.mcp.core.jsonrpc import INTERNAL_ERROR, INVALID_PARAMS, RpcError
from exai.mcp.core.versions import OVERLOADED, SHUTTING_DOWN


class ReplyTooLarge(RequestError):
    """An answer exceeds the maximum size of a reply; a smaller page avoids it."""

    code = "reply_too_large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def __str__(self) -> str:
        return (
            f"the reply has {self.size_bytes} bytes and a reply may have {self.limit_bytes}. "
            "The call itself was carried out; ask for a smaller page or fewer items"
        )

    def details(self) -> dict[str, Any]:
        """Return both sizes."""
        return {"size_bytes": self.size_bytes, "limit_bytes": self.limit_bytes}


class ErrorTooLarge(RequestError):
    """A call was refused or failed, and the description of the error exceeds the maximum size of a reply."""

    code = "error_too_large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def __str__(self) -> str:
        return (
            f"the call was not carried out, and its error has {self.size_bytes} bytes where a reply may have "
            f"{self.limit_bytes}. Call again with fewer and shorter arguments"
        )

    def details(self) -> dict[str, Any]:
        """Return both sizes."""
        return {"size_bytes": self.size_bytes, "limit_bytes": self.limit_bytes}


def error_facts(error: ExaiError) -> dict[str, Any]:
    """Return the facts of an error as JSON for programs."""
    return error.report()


def rpc_error(error: ExaiError) -> RpcError:
    """Return the JSON-RPC error for a deliberate error."""
    code = INTERNAL_ERROR
    if isinstance(error, Overloaded):
        code = OVERLOADED
    elif isinstance(error, ShuttingDown):
        code = SHUTTING_DOWN
    elif isinstance(error, RequestError):
        code = INVALID_PARAMS
    return RpcError(code, str(error), error_facts(error))
