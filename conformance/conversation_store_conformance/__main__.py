"""The command: check a store, list the rules, prove them, or make a table of reports."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path

from conversation_store_conformance.prove import prove
from conversation_store_conformance.report import as_json_text, as_table
from conversation_store_conformance.rules import all_rules
from conversation_store_conformance.runner import check


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if a rule failed."""
    parser = argparse.ArgumentParser(prog="conversation-store-conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="check a store against the rules")
    checking.add_argument("store", help="the function that opens it, as MODULE:NAME")
    checking.add_argument("--name", default="", help="of the store, for the report")
    checking.add_argument("--rules", action="append", metavar="PATTERN", help="such as 'order.*'; repeatable")
    checking.add_argument(
        "--diverges", action="append", default=[], metavar="RULE=REASON", help="a rule known to be broken"
    )
    checking.add_argument("--seed", default="", help="repeats a run")
    checking.add_argument("--costs", action="store_true", help="also measure appends and reads")
    checking.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    commands.add_parser("rules", help="list the rules")
    proving = commands.add_parser("prove", help="check that each rule catches a store that breaks it")
    proving.add_argument("--rules", action="append", metavar="PATTERN")
    table = commands.add_parser("table", help="print reports in JSON as one table")
    table.add_argument("reports", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    # asyncio warns of a killed process that was waited for elsewhere.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    if options.command == "rules":
        for each in all_rules():
            needs = f" [{', '.join(sorted(each.needs))}]" if each.needs else ""
            print(f"{each.id:<36} {each.sentence}{needs}")
        return 0
    if options.command == "table":
        print(as_table([json.loads(path.read_text(encoding="utf-8")) for path in options.reports]))
        return 0
    if options.command == "prove":
        problems = asyncio.run(prove(options.rules or ["*"]))
        print("\n".join(problems) or "every rule catches its wrong store, and the reference keeps every rule")
        return 1 if problems else 0
    sys.path.insert(0, str(Path.cwd()))
    diverges = dict(each.partition("=")[::2] for each in options.diverges)
    report = asyncio.run(
        check(
            options.store,
            name=options.name,
            rules=options.rules or ["*"],
            diverges=diverges,
            seed=options.seed,
            costs=options.costs,
        )
    )
    if options.format == "json":
        print(as_json_text(report))
    else:
        print(report.as_markdown() if options.format == "markdown" else report.as_text())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
