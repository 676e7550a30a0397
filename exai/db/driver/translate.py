"""Translate the driver's exceptions into `exai.errors`, and decide whether a statement may be retried.

The decision uses the exception class, then the sqlstate, and never the message text: asyncpg reports a terminated
backend as a lost connection with an sqlstate of its own.

Invariant: `TranslatedError.outcome` is `nothing` only if nothing was written, and `unknown` if the reply was lost after
the statement had been sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import orjson
from asyncpg.exceptions import InterfaceError, InternalClientError, PostgresConnectionError, PostgresError

from exai.db.driver.writability import READ_ONLY_CURE, RIGHTS_CURE
from exai.errors import (
    BudgetExceeded,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    ExaiError,
    OutcomeUnknown,
    SchemaMismatch,
    ShuttingDown,
    StorageFull,
)
from exai.program import program

DEPENDENCY: Final = "database"

CommitOutcome = Literal["nothing", "unknown"]
StatementPhase = Literal["connecting", "waiting", "sent"]
"""State of the statement at the failure: opening a connection, waiting for a free one, or sent."""

NO_REPLY: Final = "no reply came in time"
MIGRATE: Final = f"Run `{program()} migrate` (or `alembic upgrade head`) with this release"


@dataclass(frozen=True, slots=True)
class TranslatedError:
    """The error for the caller. `outcome` as described above; `again` if an immediate retry is likely to succeed."""

    error: ExaiError
    outcome: CommitOutcome
    again: bool


def _busy(problem: str, cure: str = "Try again shortly") -> DatabaseBusy:
    return DatabaseBusy(DEPENDENCY, problem, cure)


def _unavailable(problem: str, cure: str = "Try again shortly") -> DatabaseUnavailable:
    return DatabaseUnavailable(DEPENDENCY, problem, cure)


def unknown_outcome(problem: str) -> OutcomeUnknown:
    """Return the error for a statement that may or may not have been executed."""
    return OutcomeUnknown(DEPENDENCY, problem, "Repeat the request with the same idempotency key")


def judge(error: BaseException, phase: StatementPhase) -> TranslatedError | None:
    """Translate `error`; None if it is not the driver's (cancellation, a defect in EXAI)."""
    match error:
        case PostgresError() if not isinstance(error, PostgresConnectionError):
            return _by_sqlstate(error, phase)
        case TimeoutError():
            return _timed_out(phase)
        case InterfaceError():
            return _misused(error)
        case PostgresError() | OSError() | InternalClientError():
            # asyncpg raises `InternalClientError` if the server has ended the session and the socket is still open.
            return _connection_lost(phase)
        case Exception() if type(error).__module__.startswith("asyncpg."):
            # The driver's own errors: a host of the wrong kind among several, or a defect.
            again = phase != "sent"
            found = _unavailable(f"cannot connect ({type(error).__name__})") if again else _defect(error)
            return TranslatedError(found, "nothing", again=again)
    return None


def _misused(error: InterfaceError) -> TranslatedError:
    if "pool is clos" in str(error):
        # The driver has no class of its own for this one.
        return TranslatedError(ShuttingDown(), "nothing", again=False)
    if isinstance(error, ValueError):
        return TranslatedError(_unavailable(f"cannot connect: {error}", "Correct the address"), "nothing", again=False)
    # The remaining case is a connection found closed before the statement was written to it.
    return TranslatedError(_unavailable("the connection was closed"), "nothing", again=True)


def _connection_lost(phase: StatementPhase) -> TranslatedError:
    if phase == "sent":
        return TranslatedError(unknown_outcome("the connection was lost before the reply came"), "unknown", again=True)
    return TranslatedError(_unavailable("no connection could be made"), "nothing", again=True)


def _timed_out(phase: StatementPhase) -> TranslatedError:
    if phase == "sent":
        return TranslatedError(unknown_outcome(NO_REPLY), "unknown", again=False)
    if phase == "waiting":
        return TranslatedError(_busy("all connections of the pool are in use"), "nothing", again=False)
    return TranslatedError(_unavailable("no connection could be made in time"), "nothing", again=False)


def _defect(error: BaseException) -> DatabaseError:
    return DatabaseError(DEPENDENCY, f"the driver refused the statement ({type(error).__name__})")


OVER_BUDGET: Final = "EXB01"
"""The sqlstate by which `exai.reserve_v1` refuses; its detail holds the facts."""

READ_ONLY: Final = "25006"

_AGAIN: Final = frozenset({"23503", "40001", "40P01", "53300", "57P03"})
"""Nothing was written and the cause is transient. 55P03 and 57014 wrote nothing either, but used up their timeout."""

_BUSY: Final = {
    # Statements check rows before they refer to them, so a row was removed in between. A retry reports it as missing.
    "23503": "something it needs was removed at the same time",
    "40001": "two transactions were in each other's way",
    "40P01": "two transactions waited for each other",
    "55P03": "another writer holds the conversation",
    "57014": "the statement took too long and was cancelled",
    "53200": "the server is out of memory",
    "53300": "the server has no connection left",
    "54000": "a limit of the server was reached",
}

_REFUSING: Final = {
    "57P03": ("the server is starting or stopping",),
    READ_ONLY: ("the server only takes reads", READ_ONLY_CURE),
    "42501": ("the role lacks a right on a table or function", RIGHTS_CURE),
}

_NOT_MIGRATED: Final = frozenset({"42P01", "42703", "42883", "3F000", "42804"})
_ENTRY: Final = frozenset({"28000", "28P01", "3D000", "08P01", "42501"})
_UNNAMED: Final = frozenset({"26000", "42P05"})


def _by_sqlstate(error: Exception, phase: StatementPhase) -> TranslatedError:
    state = str(getattr(error, "sqlstate", None) or "")
    if state in _BUSY:
        return TranslatedError(_busy(_BUSY[state]), "nothing", again=state in _AGAIN)
    if state in {"57P01", "57P02", "57P05"}:
        return _connection_lost(phase)
    if state in _REFUSING and (phase == "sent" or state not in _ENTRY):
        return TranslatedError(_unavailable(*_REFUSING[state]), "nothing", again=state in _AGAIN)
    if state == OVER_BUDGET:
        return TranslatedError(BudgetExceeded(**orjson.loads(getattr(error, "detail", ""))), "nothing", again=False)
    if state in {"53100", "58030"}:
        full = StorageFull(DEPENDENCY, "the disk is full or cannot be written", "Free space; reads go on")
        return TranslatedError(full, "nothing", again=False)
    return TranslatedError(_permanent(error, state), "nothing", again=False)


def _permanent(error: Exception, state: str) -> ExaiError:
    if state in _NOT_MIGRATED:
        return SchemaMismatch(DEPENDENCY, f"the schema does not fit this release (sqlstate {state})", MIGRATE)
    if state in _ENTRY:
        cure = "Check user, password, database and the user's rights"
        return DatabaseUnavailable(DEPENDENCY, f"refused to let us in ({type(error).__name__}, sqlstate {state})", cure)
    if state in _UNNAMED:
        cure = "Another program with named statements shares this pooler; give it its own pool"
        return DatabaseError(DEPENDENCY, f"the pooler mixed up prepared statements (sqlstate {state})", cure)
    constraint = getattr(error, "constraint_name", None)
    about = f", constraint {constraint}" if constraint else ""
    return DatabaseError(DEPENDENCY, f"{type(error).__name__} (sqlstate {state}{about})")
