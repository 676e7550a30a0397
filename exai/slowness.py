"""Reports slow operations, with their waiting times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from exai.models import Recorder

SLOW_S: Final = 0.5

log = structlog.get_logger(__name__)


def note_slow(recorder: Recorder, operation: str, took_s: float, waits: Mapping[str, float], rest: str) -> None:
    """Count and log an operation that took at least `SLOW_S`; `rest` names the wait that fills the remaining time."""
    shares = {**waits, rest: max(0.0, took_s - sum(waits.values()))}
    longest = max(shares, key=lambda name: shares[name])
    recorder.observe("slow_operation_seconds", took_s, operation=operation, waited_for=longest)
    waited_ms = {name: round(seconds * 1000) for name, seconds in shares.items() if seconds >= 0.001}
    log.warning("slow_operation", operation=operation, ms=round(took_s * 1000), waited_ms=waited_ms)
