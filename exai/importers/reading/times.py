"""Times of sources: ISO texts with or without a zone, and numbers of seconds, milli-, micro- and nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from exai.conversations.formats import moment


def time_of(given: Any) -> datetime | None:
    """Return a time, None if the value is not one; a time without a zone is in UTC."""
    if given is None or given == "":
        return None
    try:
        time = moment(given)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def first_time(*given: Any) -> datetime | None:
    """Return the first of several values that is a time."""
    return next((time for each in given if (time := time_of(each)) is not None), None)
