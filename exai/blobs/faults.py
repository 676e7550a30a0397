"""The errors of stores that are asked over a network, by what the caller can do about them."""

from __future__ import annotations

from exai.errors import BlobError


class StoreAway(BlobError):
    """The store did not answer, or answered that it cannot now; the same request may succeed later."""

    def __init__(self, store: str, problem: str, cure: str, *, wait_s: float | None = None) -> None:
        super().__init__(store, problem, cure)
        self.wait_s = wait_s


class StoreRefused(BlobError):
    """The store answered that it will not do this; a repetition would be refused too."""

    retryable = False


class BlobMissing(BlobError):
    """The store has no such bytes."""

    retryable = False


class StoreExists(StoreRefused):
    """What was to be made is there already."""
