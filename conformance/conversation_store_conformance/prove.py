"""Proves the rules: the reference store keeps each of them, and each catches the store that breaks it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from conversation_store_conformance.rules import all_rules
from conversation_store_conformance.runner import check
from conversation_store_conformance.wrong import WRONG

SEED = "proof"


async def prove(patterns: Sequence[str] = ("*",)) -> list[str]:
    """Return what is not proven; empty if everything is."""
    report = await check("conversation_store_conformance.reference:open_reference", rules=patterns, seed=SEED)
    problems = [
        f"{each.rule.id}: the reference store: {each.status}: {each.problem or each.reason}"
        for each in report.outcomes
        if each.status != "passed"
    ]
    chosen = [each.id for each in all_rules() if any(fnmatch.fnmatchcase(each.id, pattern) for pattern in patterns)]
    # One after the other: some rules replace the clock of the process.
    for name in chosen:
        if name not in WRONG:
            problems.append(f"{name}: no wrong store")
            continue
        spec = f"conversation_store_conformance.wrong:OPENERS.{name.replace('.', '_').replace('-', '_')}"
        outcome = (await check(spec, rules=[name], seed=SEED)).outcomes[0]
        if outcome.status != "failed":
            problems.append(f"{name}: {WRONG[name].__name__} is not caught: {outcome.status} {outcome.reason}")
    return problems
