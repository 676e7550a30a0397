"""What the overview of the page says: the problems in the words of `exai doctor`, and what happened.

Invariant: a problem is stated once, by doctor if it has examined the part, otherwise as health states it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from exai.models import Finding
from exai.monitoring.health import HealthReport

DOCTORS_NAMES: Final = {"database": "postgres", "cache": "redis", "storage": "files"}
"""Doctor's names of the components of health; a provider is `provider NAME`."""

NO_PROVIDER: Final = {
    "part": "providers",
    "detail": "no model can be asked",
    "cure": "Set the key of a provider, such as KIMI_API_KEY, and start EXAI again",
}


def problems_of(
    report: HealthReport, findings: Sequence[Finding], providers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what is wrong: the components that are down or degraded, and doctor's findings with their cures."""
    examined = {each.part for each in findings}
    wrong = [
        {"part": each.name, "detail": f"{each.state}: {each.detail}", "cure": "", "since": each.since.isoformat()}
        for each in report.components
        if each.state in ("down", "degraded")
        and not {each.name, DOCTORS_NAMES.get(each.name, f"provider {each.name}")} & examined
    ]
    found = [{"part": each.part, "detail": each.detail, "cure": each.cure} for each in findings]
    return wrong + found + ([] if any(each["configured"] for each in providers) else [NO_PROVIDER])


def states_of(report: HealthReport) -> list[dict[str, Any]]:
    """Return the components that are down or degraded, without the details that only the operator may see."""
    return [
        {"part": each.name, "detail": each.state, "cure": "", "since": each.since.isoformat()}
        for each in report.components
        if each.state in ("down", "degraded")
    ]


def event_text(kind: str, data: Mapping[str, Any], *, with_details: bool = True) -> str:
    """Return an event of the history in words. Data of other programs may lack any field."""
    labels = data.get("labels") or {}
    match kind:
        case "health_change":
            change = f"{labels.get('component')} was {data.get('before')}, is {labels.get('state')}"
            return f"{change}: {data['detail']}" if with_details and data.get("detail") else change
        case "metrics_batch":
            reason = data.get("error") or "their times were moved"
            return f"metrics of {data.get('source') or 'a program'} were {data.get('status')}: {reason}"
        case _:
            figures = "".join(f", {number} {name}" for name, number in (data.get("figures") or {}).items())
            ended = f"exai {labels.get('command')}: {labels.get('outcome')}"
            return f"{ended} after {data['value']:.1f} s{figures}" if isinstance(data.get("value"), float) else ended
