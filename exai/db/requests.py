"""Requests that clients store in `public.requests` for a daemon to answer; each method is one statement.

Invariant: a request is changed only by the claim that holds it, and by its client, which may cancel it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NewType

import orjson

from exai.db.driver.pool import Database
from exai.models import Owner

DAY_S: Final = 86_400.0

ClaimId = NewType("ClaimId", str)

NUL = "\x00"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class ClaimedRequest:
    """A request that this process runs. `left_s` is the time to its deadline; `attempt` counts from 1.

    `arguments` is JSON as the client stored it, which may be nested more deeply than is accepted.
    """

    id: str
    claim: ClaimId
    owner: Owner
    tool: str
    arguments: str
    attempt: int
    left_s: float | None


@dataclass(frozen=True, slots=True)
class RequestQueue:
    """The queue when requests were claimed: those that were waiting (10,000 at most), and the age of the oldest."""

    claimed: Sequence[ClaimedRequest]
    waiting: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class RequestProgress:
    """What there is of a request's answer; None for what has not changed."""

    request: ClaimedRequest
    progress: str | None
    partial: str | None


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The end of a request: the text and the structured answer, or an error."""

    state: Literal["done", "failed"]
    answer: str | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    continuation_id: str | None = None


class RequestRepository:
    """The queue of all daemons, in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, limit: int, *, lease_s: float) -> RequestQueue:
        """Claim at most `limit` requests for `lease_s`. Raises `DatabaseError`."""
        claim = ClaimId(str(uuid.uuid4()))
        rows = await self._database.fetch("claim_requests", claim, limit, lease_s)
        claimed = tuple(
            ClaimedRequest(
                row["id"], claim, Owner(row["owner"]), row["tool"], row["arguments"], row["attempt"],
                row["left_s"],
            )
            for row in rows
            if row["id"] is not None
        )  # fmt: skip
        return RequestQueue(claimed, max(rows[0]["waiting"] - len(claimed), 0), rows[0]["oldest_s"] or 0.0)

    async def touch(self, changes: Sequence[RequestProgress], *, lease_s: float) -> frozenset[str]:
        """Renew the leases of running requests and store their progress; return the ids of those that still run."""
        rows = await self._database.fetch(
            "touch_requests", lease_s, [each.request.id for each in changes], [each.request.claim for each in changes],
            [_storable(each.progress) for each in changes], [_storable(each.partial) for each in changes],
        )  # fmt: skip
        return frozenset(row["id"] for row in rows)

    async def finish(self, request: ClaimedRequest, outcome: RequestOutcome) -> bool:
        """Store the outcome; returns False if the request was cancelled or claimed again meanwhile."""
        rows = await self._database.fetch(
            "finish_request", request.id, request.claim, outcome.state, _storable(outcome.answer),
            _storable_json(outcome.result), _storable_json(outcome.error), _storable(outcome.continuation_id),
        )  # fmt: skip
        return bool(rows[0]["stored"])

    async def release(self, request: ClaimedRequest, *, after_s: float, counts: bool) -> None:
        """Give a request back to the queue, to be claimed after `after_s`; `counts` says whether as an attempt."""
        await self._database.fetch("release_request", request.id, request.claim, after_s, counts)

    async def prune(self, *, read_days: float, keep_days: float) -> int:
        """Remove requests whose answer was read `read_days` ago, and those of `keep_days`; return how many."""
        return len(await self._database.fetch("prune_requests", read_days * DAY_S, keep_days * DAY_S))


def _storable(text: str | None) -> str | None:
    """Return a text as Postgres can store it, which has no character 0."""
    return text if text is None or NUL not in text else text.replace(NUL, REPLACEMENT)


def _storable_json(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    text = orjson.dumps(value).decode()
    return orjson.dumps(_clean(value)).decode() if "\\u0000" in text else text


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, Mapping):
        return {name.replace(NUL, REPLACEMENT): _clean(each) for name, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value
