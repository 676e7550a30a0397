"""Determine whether writes can succeed, for health (through the pool) and `exai doctor` (on one connection)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from exai.program import program

READ_ONLY_CURE: Final = (
    "If the server's disk is full (Supabase then sets this), free space or enlarge it; else reset "
    "default_transaction_read_only of the database and the role"
)
REPLICA_CURE: Final = "Give the primary's address"
RIGHTS_CURE: Final = f"Grant them, or use the role that ran `{program()} migrate`"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why writes are refused, and the cure."""

    problem: str
    cure: str

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"{self.problem}. {self.cure}"


def obstacle_of(row: Mapping[str, Any]) -> Obstacle | None:
    """Return the obstacle that a row of the statement `standing` shows, None if writes can succeed."""
    if row["is_replica"]:
        return Obstacle("it is a read replica", REPLICA_CURE)
    if row["is_read_only"]:
        return Obstacle("it only takes reads (default_transaction_read_only is on)", READ_ONLY_CURE)
    if row["lacking"]:
        return Obstacle(f"the role lacks rights on {', '.join(row['lacking'])}", RIGHTS_CURE)
    return None
