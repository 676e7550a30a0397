"""The rules, by group. A rule is a function that drives a store and raises `Violation`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module

from conversation_store_conformance.world import World

Check = Callable[[World], Awaitable[None]]

GROUPS = (
    "order",
    "exactness",
    "reads",
    "atomicity",
    "retries",
    "concurrency",
    "isolation",
    "deletion",
    "durability",
    "state",
    "histories",
)
MODULES = (
    "order",
    "exactness",
    "reads",
    "writes",
    "concurrency",
    "isolation",
    "deletion",
    "durability",
    "state",
    "histories",
)
RULE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Rule:
    """One rule: `needs` names the capabilities without which it says nothing about a store."""

    id: str
    group: str
    needs: frozenset[str]
    sentence: str
    check: Check


_RULES: dict[str, Rule] = {}


def rule(name: str, *needs: str) -> Callable[[Check], Check]:
    """Declare a rule named `group.name`; its docstring is the sentence that the report shows."""

    def declare(check: Check) -> Check:
        sentence = (check.__doc__ or "").strip().split("\n")[0]
        if name in _RULES or not sentence or name.partition(".")[0] not in GROUPS:
            raise ValueError(f"{name} is not a new rule of a known group with a sentence")
        _RULES[name] = Rule(name, name.partition(".")[0], frozenset(needs), sentence, check)
        return check

    return declare


def all_rules() -> list[Rule]:
    """Return all rules in the order of their groups."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")
    return sorted(_RULES.values(), key=lambda each: GROUPS.index(each.group))
