"""Tests of the suite itself; `python -m unittest discover tests` needs nothing but Python."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from conversation_store_conformance import CAPABILITIES, Store, as_table, capabilities_of, check
from conversation_store_conformance.__main__ import main
from conversation_store_conformance.prove import prove
from conversation_store_conformance.reference import ReferenceStore, open_reference
from conversation_store_conformance.rules import GROUPS, all_rules
from conversation_store_conformance.world import same
from conversation_store_conformance.wrong import OPENERS, WRONG

HERE = Path(__file__).resolve().parents[1]
IN_PROCESS = ["reads.*", "retries.*", "concurrency.*", "isolation.*", "deletion.*", "state.*", "histories.*"]
IN_PROCESS += ["exactness.[a-f]*", "exactness.[j-r]*", "exactness.t*", "order.[abeo]*", "order.w*", "atomicity.[cu]*"]


class Minimal(Store):
    """A store with nothing but what is required, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    async def append(self, name: str, items: object) -> None:
        before = json.loads(self.kept.get(name, "[]"))
        self.kept[name] = json.dumps([*before, *items])  # type: ignore[misc]

    async def read(self, name: str) -> list[object] | None:
        return json.loads(self.kept[name]) if name in self.kept else None


@asynccontextmanager
async def open_minimal(place: str) -> AsyncIterator[Store]:  # noqa: ARG001
    yield Minimal()


class Suite(unittest.TestCase):
    def test_rules_have_sentences_and_wrong_stores(self) -> None:
        rules = all_rules()
        self.assertGreaterEqual(len(rules), 60)
        self.assertEqual({each.group for each in rules}, set(GROUPS))
        self.assertEqual({each.id for each in rules}, set(WRONG))
        for each in rules:
            self.assertLessEqual(each.needs, set(CAPABILITIES), each.id)
            self.assertTrue(each.sentence.endswith("."), each.id)

    def test_rules_in_the_process_catch_their_wrong_stores(self) -> None:
        self.assertEqual(asyncio.run(prove(IN_PROCESS)), [])

    def test_capabilities_are_those_that_a_class_overrides(self) -> None:
        self.assertEqual(capabilities_of(Minimal()), {"batches"})
        with TemporaryDirectory() as place:
            store = ReferenceStore(place)
            self.assertEqual(capabilities_of(store), set(CAPABILITIES))
            store.lacks = frozenset({"pop"})
            self.assertNotIn("pop", capabilities_of(store))
            store.close()

    def test_rules_without_their_capability_are_skipped_with_the_reason(self) -> None:
        report = asyncio.run(check(open_minimal, rules=["reads.*"]))
        by_id = {each.rule.id: each for each in report.outcomes}
        self.assertEqual(by_id["reads.unknown"].status, "passed")
        self.assertEqual(by_id["reads.newest"].reason, "the store has no newest")
        self.assertTrue(report.passed)

    def test_a_declared_divergence_passes_and_a_stale_one_fails(self) -> None:
        given = {"reads.newest": "newest first, as documented"}
        report = asyncio.run(check(OPENERS.reads_newest, rules=["reads.newest"], diverges=given))
        self.assertEqual([each.status for each in report.outcomes], ["diverges"])
        self.assertTrue(report.passed)
        report = asyncio.run(check(open_reference, rules=["reads.newest"], diverges=given))
        self.assertIn("remove the declaration", report.outcomes[0].problem)
        self.assertFalse(report.passed)
        with self.assertRaisesRegex(ValueError, "no rule reads.oldest"):
            asyncio.run(check(open_reference, diverges={"reads.oldest": "x"}))
        with self.assertRaisesRegex(ValueError, "no rule matches"):
            asyncio.run(check(open_reference, rules=["nothing.*"]))

    def test_a_failing_history_is_repeated_by_its_seed_and_short(self) -> None:
        first, again = (
            asyncio.run(check(OPENERS.histories_random, rules=["histories.random"], seed="7")).outcomes[0] for _ in "ab"
        )
        self.assertEqual((first.problem, first.history), (again.problem, again.history))
        self.assertLessEqual(len(first.history), 4)
        self.assertTrue(any(each.startswith("pop") for each in first.history), first.history)

    def test_an_error_of_the_store_fails_the_rule_and_is_shown(self) -> None:
        report = asyncio.run(check(OPENERS.reads_unknown, rules=["reads.unknown"], seed="1"))
        self.assertIn("raised KeyError", report.outcomes[0].problem)
        self.assertIn("read(", report.as_text())
        self.assertIn("| `reads.unknown` |", report.as_markdown())

    def test_reports_of_stores_become_one_table(self) -> None:
        reports = [
            asyncio.run(check(opener, rules=["reads.newest", "reads.unknown"], name=name, seed="1")).as_json()
            for name, opener in (("right", open_reference), ("wrong", OPENERS.reads_newest), ("small", open_minimal))
        ]
        table = as_table(json.loads(json.dumps(reports)))
        self.assertIn("| `reads.newest` | ok | **no** | - |", table)
        self.assertIn("| **kept** | 2 of 2 | 1 of 2 | 1 of 1 |", table)

    def test_values_are_compared_with_their_types(self) -> None:
        self.assertFalse(same([1], [1.0]))
        self.assertFalse(same({"a": True}, {"a": 1}))
        self.assertTrue(same([float("nan"), {"a": (1, 2)}], [float("nan"), {"a": [1, 2]}]))

    def test_the_command_checks_a_store_and_lists_rules(self) -> None:
        spec = "conversation_store_conformance.reference:open_reference"
        for form in ("text", "json", "markdown"):
            status, text = _output("check", spec, "--rules", "reads.again", "--costs", "--format", form)
            self.assertEqual(status, 0)
            self.assertIn("reads.again", text)
        wrong = "conversation_store_conformance.wrong:OPENERS.reads_newest"
        self.assertEqual(_output("check", wrong, "--rules", "reads.newest")[0], 1)
        self.assertEqual(_output("check", wrong, "--rules", "reads.newest", "--diverges", "reads.newest=known")[0], 0)
        self.assertEqual(len(_output("rules")[1].splitlines()), len(all_rules()))

    def test_the_suite_needs_only_python(self) -> None:
        allowed = {"conversation_store_conformance", "google", "pydantic_ai"}
        for path in (HERE / "conversation_store_conformance").rglob("*.py"):
            for found in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text("utf-8"), re.MULTILINE):
                self.assertTrue(found in allowed or found in _standard(), f"{path.name} imports {found}")

    def test_the_readme_names_the_number_of_rules_and_runs(self) -> None:
        text = (HERE / "README.md").read_text("utf-8")
        self.assertIn(f"{len(all_rules())} rules", text)
        program = re.search(r"```python\n(.*?)```", text, re.DOTALL)
        assert program is not None
        exec(compile(program[1], "README.md", "exec"), {"__name__": "example"})  # noqa: S102


def _output(*arguments: str) -> tuple[int, str]:
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        status = main(list(arguments))
    return status, written.getvalue()


def _standard() -> frozenset[str]:
    import sys

    return frozenset(sys.stdlib_module_names)


if __name__ == "__main__":
    unittest.main()
