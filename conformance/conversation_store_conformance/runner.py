"""Runs the rules over a store."""

from __future__ import annotations

import asyncio
import fnmatch
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal

from conversation_store_conformance.costs import measure
from conversation_store_conformance.report import Report
from conversation_store_conformance.rules import RULE_TIMEOUT_S, Rule, all_rules
from conversation_store_conformance.specs import load, spec_of
from conversation_store_conformance.store import CAPABILITIES, OpenStore, capabilities_of
from conversation_store_conformance.world import MAX_HISTORY, NotApplicable, Violation, World

Status = Literal["passed", "failed", "skipped", "diverges"]


@dataclass(frozen=True)
class Outcome:
    """What a rule found. `history` is the calls before a violation, `reason` that of a skip or a divergence."""

    rule: Rule
    status: Status
    problem: str = ""
    reason: str = ""
    notes: Sequence[str] = ()
    history: Sequence[str] = ()
    took_s: float = 0.0


@dataclass
class Choice:
    """Which rules run, and how."""

    rules: Sequence[str] = ("*",)
    diverges: Mapping[str, str] = field(default_factory=dict)
    seed: str = ""
    costs: bool = False
    place: str | None = None


@dataclass(frozen=True)
class Subject:
    """The store that is checked, and how another process opens it."""

    opener: OpenStore
    spec: str | None
    place: str
    capabilities: frozenset[str]


async def check(
    open_store: OpenStore | str,
    *,
    name: str = "",
    rules: Sequence[str] = ("*",),
    diverges: Mapping[str, str] | None = None,
    seed: str = "",
    costs: bool = False,
    place: str | None = None,
) -> Report:
    """Check a store against the rules whose ids match one of the patterns in `rules`.

    `open_store` is a function that opens the store, or its name as `MODULE:NAME`, which rules with several processes
    need if the function cannot be found by its module. `diverges` names rules that the store is known to
    break, each with the reason; such a rule fails if the store keeps it. A `seed` repeats a run. `place` is the
    directory that the store is opened at, by default a temporary one. Raises `ValueError` for an unknown rule.
    """
    opener = load(open_store) if isinstance(open_store, str) else open_store
    spec = open_store if isinstance(open_store, str) else spec_of(opener)
    choice = Choice(rules, dict(diverges or {}), seed or secrets.token_hex(4), costs, place)
    known = all_rules()
    if unknown := choice.diverges.keys() - {each.id for each in known}:
        raise ValueError(f"there is no rule {min(unknown)}")
    chosen = [each for each in known if any(fnmatch.fnmatchcase(each.id, pattern) for pattern in choice.rules)]
    if not chosen:
        raise ValueError(f"no rule matches {', '.join(choice.rules)}")
    with tempfile.TemporaryDirectory(prefix="conformance-") as temporary:
        where = choice.place or temporary
        async with opener(where) as store:
            capabilities = capabilities_of(store)
        subject = Subject(opener, spec, where, capabilities)
        outcomes = [await _outcome(each, subject, choice) for each in chosen]
        found = await measure(opener, where) if choice.costs else {}
    lacking = [each for each in CAPABILITIES if each not in capabilities]
    return Report(name or spec or "store", choice.seed, sorted(capabilities), lacking, outcomes, found)


async def _outcome(rule: Rule, subject: Subject, choice: Choice) -> Outcome:
    if missing := sorted(rule.needs - subject.capabilities):
        return Outcome(rule, "skipped", reason=f"the store has no {', '.join(missing)}")
    began_s = time.monotonic()
    seed = f"{choice.seed}:{rule.id}"
    world = World(subject.opener, subject.spec, subject.place, seed, AsyncExitStack(), subject.capabilities)
    problem, history = "", list[str]()
    try:
        async with asyncio.timeout(RULE_TIMEOUT_S) as limit, world.stack:
            await rule.check(world)
    except NotApplicable as error:
        return Outcome(rule, "skipped", reason=str(error), took_s=time.monotonic() - began_s)
    except Exception as error:  # noqa: BLE001 - any exception of the store breaks the rule
        problem, found = _described(error)
        if limit.expired():
            problem = f"did not end within {RULE_TIMEOUT_S:g} s"
        history = list(found or ())
    history = history or world.history[-MAX_HISTORY:]
    took_s = time.monotonic() - began_s
    reason = choice.diverges.get(rule.id)
    if problem and reason is not None:
        return Outcome(rule, "diverges", problem, reason, world.notes, (), took_s)
    if problem:
        return Outcome(rule, "failed", problem, notes=world.notes, history=history, took_s=took_s)
    if reason is not None:
        kept = f"declared as a divergence ({reason}), and kept: remove the declaration"
        return Outcome(rule, "failed", kept, notes=world.notes, took_s=took_s)
    return Outcome(rule, "passed", notes=world.notes, took_s=took_s)


def _described(error: BaseException) -> tuple[str, Sequence[str] | None]:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Violation):
        return str(error), error.history
    return f"raised {type(error).__name__}: {str(error)[:500]}", None
