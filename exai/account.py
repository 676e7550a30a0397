"""The memory that one owner occupies in this process: incoming, waiting and running messages, reads, subscriptions.

Invariant: `held_bytes` is the sum of all bytes counted and not yet released. It exceeds the limit only by bytes that
cannot be refused, and by one item that is held alone, so that a limit below a message's size admits one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from exai.errors import Overloaded

SETTING = "EXAI_SERVER__OWNER_MAX_IN_FLIGHT_BYTES"


class Account:
    """One owner's bytes in this process. For the event loop's thread only.

    `on_refusal` is called with the name of the limit whenever bytes are refused.
    """

    __slots__ = ("_most_bytes", "_on_refusal", "held_bytes")

    def __init__(self, most_bytes: int, on_refusal: Callable[[str], None] | None = None) -> None:
        self._most_bytes, self._on_refusal = most_bytes, on_refusal
        self.held_bytes = 0

    def take(self, size_bytes: int, what: str = "running requests") -> None:
        """Count bytes until they are released with `give`. Raises `Overloaded`, and then counts nothing."""
        if self.held_bytes and self.held_bytes + size_bytes > self._most_bytes:
            if self._on_refusal is not None:
                self._on_refusal("in_flight_bytes")
            limit = f"{SETTING} of one owner's {what}, in bytes"
            cure = "Wait for other calls to end, ask for less in one call, or raise the limit"
            raise Overloaded(limit, self._most_bytes, cure=cure)
        self.held_bytes += size_bytes

    def charge(self, size_bytes: int) -> None:
        """Count bytes that cannot be refused, such as an answer's, until they are released with `give`."""
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Release counted bytes."""
        self.held_bytes -= size_bytes

    @contextmanager
    def hold(self, size_bytes: int, what: str = "running requests") -> Iterator[None]:
        """Count bytes while the block runs. Raises `Overloaded` before it begins."""
        self.take(size_bytes, what)
        try:
            yield
        finally:
            self.give(size_bytes)


request_account: ContextVar[Account | None] = ContextVar("request_account", default=None)
"""The account of the current request's owner; None outside of requests, as in the commands."""


@contextmanager
def hold(size_bytes: int, what: str = "requests' data") -> Iterator[None]:
    """Count bytes in the account of the current request while the block runs. Raises `Overloaded`.

    Does nothing outside of a request.
    """
    account = request_account.get()
    if account is None:
        yield
        return
    with account.hold(size_bytes, what):
        yield
