"""Write the generated pages of this directory: configuration.md, commands.md and tools.md.

Each page is made from what the program itself uses: the variables and their validation, the parser of the commands,
and the schemas of the tools. `make docs` writes the pages, and a test compares them with the tree.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from exai.app import open_app
from exai.cli.arguments import STATUSES, build_parser
from exai.mcp.features.schemas import output_schema, portable_schema
from exai.mcp.features.tools import ToolSpec
from exai.settings.environment import OLDER_NAMES
from exai.settings.load import Variable, load_settings, show, variables
from exai.tools.registry import build_tools

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GENERATED = "<!-- Written by `make docs`. -->"

SECTIONS: Mapping[str, str] = {
    "database": "Database",
    "cache": "Cache",
    "server": "Server",
    "providers": "Providers",
    "limits": "Limits of requests",
    "budgets": "Budgets",
    "answers": "Answer cache",
    "retention": "Retention",
    "files": "Files",
    "requests": "Stored requests",
    "store": "Encryption of stored content",
    "log": "Log",
    "telemetry": "Telemetry",
    "connect": "The command `exai connect`",
}
BOUNDS: Mapping[str, str] = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
HIDDEN_OPTIONS = frozenset({"help", "env_file", "command"})


def configuration() -> str:
    """Return the page of all variables, by section, with default, range and meaning."""
    explained = _explanations((ROOT / ".env.example").read_text("utf-8"))
    lines = [
        "# Configuration",
        "",
        GENERATED,
        "",
        "EXAI reads these variables from the environment, from files named for them in the directory that",
        "`EXAI_SECRETS_DIR` names, and from a file `.env`, in this order of precedence; empty values count as unset.",
        "No variable is required. `exai config` prints the values in effect with their origin, and",
        "[.env.example](../.env.example) is a file to copy. Lists and objects are written as JSON.",
        "",
    ]
    for section, group in itertools.groupby(variables(), key=_section):
        lines += [f"## {SECTIONS.get(section, section.capitalize() or 'General')}", ""]
        lines += ["| variable | default | meaning |", "|---|---|---|"]
        lines += [_row(each, explained[each.name]) for each in group]
        lines.append("")
    return "\n".join(lines)


def _section(variable: Variable) -> str:
    return variable.path[0] if len(variable.path) > 1 else ""


def _row(variable: Variable, meaning: str) -> str:
    default = "" if variable.field.default_factory else show(variable.field.default)
    bounds = [
        text.format(f"{getattr(each, name):.10g}")
        for each in variable.field.metadata
        for name, text in BOUNDS.items()
        if getattr(each, name, None) is not None
    ]
    older = [each for each in OLDER_NAMES.get(variable.name, ()) if each not in meaning]
    meaning = meaning + (f"; {', '.join(bounds)}" if bounds else "") + (f" (also {', '.join(older)})" if older else "")
    return f"| `{variable.name}` | {f'`{_cell(default)}`' if default else ''} | {_cell(meaning)} |"


def _explanations(example: str) -> dict[str, str]:
    """Return the comment above each variable of .env.example."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in example.splitlines():
        if match := re.fullmatch(r"# ([A-Z][A-Z0-9_]*)=.*", line):
            found[match[1]] = " ".join(comment)
            comment = []
        else:
            comment = [*comment, line.removeprefix("#").strip()] if line.startswith("#") else []
    return found


def commands() -> str:
    """Return the page of all commands: arguments, options and exit statuses."""
    parser = build_parser()
    lines = [
        "# Commands",
        "",
        GENERATED,
        "",
        "In a checkout, `exai` stands for `.venv/bin/exai`. Every command takes `--env-file FILE` (read settings from",
        "this file instead of `.env`) and `--help`.",
        "",
    ]
    for name, purpose, each in _subcommands(parser):
        lines += [f"## {name}", "", f"{purpose[:1].upper()}{purpose[1:]}.", ""]
        actions = [action for action in each._actions if action.dest not in HIDDEN_OPTIONS and action.help]
        if actions:
            lines += ["| argument | meaning |", "|---|---|", *map(_option, actions), ""]
    return "\n".join([*lines, "## Exit status", "", *_statuses(STATUSES)])


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            purposes = {each.dest: each.help or "" for each in action._choices_actions}
            for name, each in action.choices.items():
                yield f"{parser.prog} {name}", purposes[name], each
                yield from _subcommands(each)


def _option(action: argparse.Action) -> str:
    """Return a row. The texts of argparse differ between releases of Python, so its formatter is not used."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = str(value) if action.nargs != 0 else ""
    if action.option_strings:
        written = ", ".join(action.option_strings) + (f" {value}" if value else "")
    else:
        written = f"[{value}]" if action.nargs == "?" else f"{value} ..." if action.nargs in ("*", "+") else value
    meaning = (action.help or "") % {**vars(action), "prog": "exai"}
    return f"| `{_cell(written)}` | {_cell(meaning)} |"


def _statuses(epilog: str) -> Iterator[str]:
    yield from ("| status | meaning |", "|---|---|")
    for line in epilog.splitlines()[1:]:
        number, _, meaning = line.strip().partition(" ")
        yield f"| {number} | {_cell(meaning.strip())} |"
    yield ""


def tools(specs: Iterable[ToolSpec]) -> str:
    """Return the page of all tools: description, arguments and fields of the result."""
    lines = [
        "# Tools",
        "",
        GENERATED,
        "",
        "The arguments and results of every tool, as `tools/list` and the structured content of a result hold them. An",
        "argument without a default may be left out unless it is marked *required*. Every result may also have `notes`",
        "for the caller, and `understood`, which states how arguments in another form were read.",
        "",
    ]
    for spec in specs:
        lines += [f"## {spec.name}", "", spec.description, ""]
        schema = portable_schema(spec.arguments)
        if schema["properties"]:
            lines += ["| argument | type | meaning |", "|---|---|---|"]
            required = schema.get("required", ())
            lines += [_argument(name, part, name in required) for name, part in schema["properties"].items()]
            lines.append("")
        fields = [name for name in output_schema(spec.output)["properties"] if name not in ("notes", "understood")]
        lines += [f"Result: {', '.join(f'`{name}`' for name in fields)}.", ""]
    return "\n".join(lines)


def _argument(name: str, part: Mapping[str, Any], is_required: bool) -> str:
    meaning = part.get("description", "")
    if "default" in part and part["default"] not in ("", [], {}):
        default = part["default"]
        meaning += f" Default: `{str(default).lower() if isinstance(default, bool) else default}`."
    return f"| `{name}`{' *required*' if is_required else ''} | {_cell(_type(part))} | {_cell(meaning.strip())} |"


def _type(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{each}`" for each in part["enum"])
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_type(each) for each in part["anyOf"]))
    if part.get("type") == "array":
        return f"list of {_type(part.get('items', {}))}"
    return str(part.get("type", "any"))


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


STATIC: Mapping[str, Callable[[], str]] = {"configuration.md": configuration, "commands.md": commands}


async def pages() -> dict[str, str]:
    """Return the text of every generated page by its file's name, from an application on embedded servers."""
    with tempfile.TemporaryDirectory(prefix="exai-docs-") as directory:
        async with open_app(load_settings({"HOME": directory, "EXAI_DATA_DIR": f"{directory}/data"}, None)) as app:
            listed = tools(build_tools(app))
    return {**{name: text() for name, text in STATIC.items()}, "tools.md": listed}


def main() -> None:
    """Write the pages, or with `--check` compare those that need no servers."""
    parser = argparse.ArgumentParser(prog="make docs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not current")
    if parser.parse_args().check:
        old = [name for name, text in STATIC.items() if (DOCS / name).read_text("utf-8") != text()]
        sys.exit(f"not current: {', '.join(old)}; run `make docs`" if old else None)
    for name, text in asyncio.run(pages()).items():
        (DOCS / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
