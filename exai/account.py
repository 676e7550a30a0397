"""The bytes that one owner makes this process hold: messages that arrive, wait or run, what calls read, subscriptions.

Invariant: `held_bytes` is the sum of what was counted and not yet given back. It passes the limit only by what cannot
be refused, and by one thing that is held alone, so that a limit below a message's size lets one through at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from exai.errors import Overloaded

SETTING = "EXAI_SERVER__OWNER_MAX_IN_FLIGHT_BYTES"


class Account:
    """One owner's bytes in this process; only the event loop's thread may use it."""

    __slots__ = ("_most_bytes", "held_bytes")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int, what: str = "running requests") -> None:
        """Count bytes until they are given back. Raises `Overloaded`, and then counts nothing."""
        if self.held_bytes and self.held_bytes + size_bytes > self._most_bytes:
            limit = f"{SETTING} of one owner's {what}, in bytes"
            cure = "Wait for other calls to end, ask for less in one call, or raise the limit"
            raise Overloaded(limit, self._most_bytes, cure=cure)
        self.held_bytes += size_bytes

    def charge(self, size_bytes: int) -> None:
        """Count bytes that cannot be refused, such as an answer's, until they are given back."""
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self.held_bytes -= size_bytes

    @contextmanager
    def hold(self, size_bytes: int, what: str = "running requests") -> Iterator[None]:
        """Count bytes for as long as the block runs. Raises `Overloaded` before it begins."""
        self.take(size_bytes, what)
        try:
            yield
        finally:
            self.give(size_bytes)


request_account: ContextVar[Account | None] = ContextVar("request_account", default=None)
"""The account of the owner whose request runs; None where no request does, as in the commands."""


@contextmanager
def hold(size_bytes: int, what: str = "requests' data") -> Iterator[None]:
    """Count bytes in the account of the request that runs, for as long as the block does. Raises `Overloaded`.

    Does nothing outside of a request.
    """
    account = request_account.get()
    if account is None:
        yield
        return
    with account.hold(size_bytes, what):
        yield
