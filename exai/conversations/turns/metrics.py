"""Counts the turns that have ended, with their tokens and cost, in the metrics and in the history."""

from __future__ import annotations

from exai.db.records import TurnEnd
from exai.models import Recorder
from exai.monitoring.events import EventRecorder

UNKNOWN = "unknown"


class TurnMetrics:
    """One per process."""

    def __init__(self, recorder: Recorder, events: EventRecorder) -> None:
        self._recorder, self._events = recorder, events

    def ended(self, end: TurnEnd) -> None:
        """Count one turn."""
        outcome = "ok" if end.state == "finished" else str((end.error or {}).get("code", "failed"))
        model = end.model or UNKNOWN
        cost_usd = None if end.cost_usd is None else float(end.cost_usd)
        self._recorder.count("turns_total", model=model, outcome=outcome)
        if cost_usd:
            self._recorder.count("provider_cost_usd_total", cost_usd, model=model)
        self._events.turn(
            end.owner,
            model,
            outcome,
            usage=end.usage,
            cost_usd=cost_usd,
            seconds=end.took_s,
            turn_id=end.turn_id,
        )
