"""Driver errors become ours by class and sqlstate, with the truth about whether anything was written."""

from __future__ import annotations

import asyncpg
import pytest

from exai import errors
from exai.db.driver.translate import judge


def postgres_error(sqlstate: str) -> Exception:
    """As the driver makes it from a server's answer."""
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "text", "S": "ERROR"})
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize(
    ("sqlstate", "kind", "again"),
    [
        ("40001", errors.DatabaseBusy, True),
        ("40P01", errors.DatabaseBusy, True),
        ("53300", errors.DatabaseBusy, True),
        ("55P03", errors.DatabaseBusy, False),
        ("57014", errors.DatabaseBusy, False),
        ("53200", errors.DatabaseBusy, False),
        ("57P03", errors.DatabaseUnavailable, True),
        ("25006", errors.DatabaseUnavailable, False),
        ("53100", errors.StorageFull, False),
        ("28P01", errors.DatabaseUnavailable, False),
        ("3D000", errors.DatabaseUnavailable, False),
        ("42P01", errors.SchemaMismatch, False),
        ("42883", errors.SchemaMismatch, False),
        ("26000", errors.DatabaseError, False),
        ("42P05", errors.DatabaseError, False),
        ("23505", errors.DatabaseError, False),
        ("22021", errors.DatabaseError, False),
    ],
)
def test_server_errors_wrote_nothing(sqlstate: str, kind: type[Exception], again: bool) -> None:
    """An error answer means the statement was rolled back; only passing causes are worth repeating at once."""
    verdict = judge(postgres_error(sqlstate), "sent")
    assert verdict is not None
    assert type(verdict.error) is kind
    assert (verdict.outcome, verdict.again) == ("nothing", again)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        postgres_error("57P01"),
        postgres_error("57P02"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_a_lost_reply_is_an_unknown_outcome_only_after_sending(error: Exception) -> None:
    """The driver reports a terminated backend with an sqlstate of its own, so the class decides."""
    sent, before = judge(error, "sent"), judge(error, "connecting")
    assert sent is not None
    assert before is not None
    assert (type(sent.error), sent.outcome) == (errors.OutcomeUnknown, "unknown")
    assert (type(before.error), before.outcome) == (errors.DatabaseUnavailable, "nothing")


def test_an_exhausted_pool_is_busy_and_not_worth_an_immediate_repeat() -> None:
    """Repeating would only queue longer."""
    verdict = judge(TimeoutError(), "waiting")
    assert verdict is not None
    assert (type(verdict.error), verdict.again) == (errors.DatabaseBusy, False)


def test_a_connection_found_closed_wrote_nothing() -> None:
    """It was closed before the statement was written to it."""
    verdict = judge(asyncpg.InterfaceError("connection is closed"), "sent")
    assert verdict is not None
    assert (verdict.outcome, verdict.again) == ("nothing", True)


def test_our_own_defects_are_not_translated() -> None:
    """A TypeError in our code is not the database's fault."""
    assert judge(TypeError("x"), "sent") is None


def test_no_message_text_of_the_server_reaches_the_caller() -> None:
    """It may quote content."""
    error = asyncpg.PostgresError.new({"C": "23505", "M": "Key (content)=(secret) exists", "S": "ERROR"})
    verdict = judge(error, "sent")
    assert verdict is not None
    assert "secret" not in str(verdict.error)
