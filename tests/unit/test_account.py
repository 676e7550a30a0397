"""The memory held for one owner."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import pytest

from exai.account import Account, hold, request_account
from exai.errors import Overloaded


def test_bytes_beyond_the_limit_are_refused_with_the_limit_and_the_cure() -> None:
    """The error names the setting, since only the operator can raise it, and what the caller can do."""
    account = Account(100)
    with account.hold(60):
        account.take(40)
        with pytest.raises(Overloaded, match=r"EXAI_SERVER__OWNER_MAX_IN_FLIGHT_BYTES of .*files being read") as caught:
            account.take(1, "files being read")
        assert "raise the limit" in str(caught.value)
        assert account.held_bytes == 100
    assert account.held_bytes == 40


def test_one_thing_alone_may_be_larger_than_the_limit() -> None:
    """Else a limit below the size of a message would refuse it for good."""
    account = Account(100)
    with account.hold(500):
        assert account.held_bytes == 500
    assert account.held_bytes == 0


def test_bytes_are_given_back_when_the_block_fails() -> None:
    account = Account(100)
    with pytest.raises(RuntimeError), account.hold(60):
        raise RuntimeError
    assert account.held_bytes == 0


async def test_a_request_and_what_it_starts_share_their_owners_account() -> None:
    """Tasks copy the context, so that a file read in a task of a call counts for the call's owner."""
    account = Account(100)

    async def reads() -> None:
        with hold(60):
            assert account.held_bytes == 60

    request_account.set(account)
    await asyncio.create_task(reads())
    assert account.held_bytes == 0


def test_outside_of_a_request_nothing_is_counted() -> None:
    def reads() -> None:
        with hold(10**12):
            assert request_account.get() is None

    copy_context().run(reads)
