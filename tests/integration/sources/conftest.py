"""Trees of files and git repositories below a root, and the reading of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from exai.files.paths import Roots
from exai.files.sources.bounds import Bounds
from exai.files.sources.collecting import Collected, collect

Read = Callable[..., Collected]


def estimate(text: str) -> int:
    """Four characters a token, so that budgets in these tests are easy to see."""
    return len(text) // 4


class Tree:
    """A root with files."""

    def __init__(self, top: Path) -> None:
        self.top = top.resolve()
        self.closed: list[Path] = []
        self.bounds = Bounds(time.monotonic, time.monotonic() + 60)

    def write(self, name: str, content: str | bytes = "text\n") -> Path:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def git(self, *arguments: str, inside: str = ".") -> str:
        """Run git as the user of the repository."""
        identity = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "A"), ("EMAIL", "a@example.com"), ("DATE", "2026-01-01T00:00:00Z"))
        }
        # A test may change the configuration to something that breaks ordinary commands.
        environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *arguments], cwd=self.top / inside, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, message: str = "change", inside: str = ".") -> str:
        self.git("add", "-A", inside=inside)
        self.git("commit", "-q", "--allow-empty", "-m", message, inside=inside)
        return self.git("rev-parse", "HEAD", inside=inside)

    def read(
        self,
        *entries: str,
        diff: str | None = None,
        directory: Path | str | None = None,
        budget_tokens: int = 100_000,
        roots: Sequence[Path] = (),
    ) -> Collected:
        return collect(
            Roots(roots or [self.top], self.closed),
            self.bounds,
            estimate,
            entries={f"files[{place}]": each for place, each in enumerate(entries)},
            diff=diff,
            directory=None if directory is None else Path(directory),
            budget_tokens=budget_tokens,
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A root without git."""
    top = tmp_path / "root"
    top.mkdir()
    return Tree(top)


@pytest.fixture
def repository(tree: Tree) -> Tree:
    """A root that is a repository with one commit on the branch `main`."""
    tree.git("init", "-q", "-b", "main")
    tree.write("app.py", "".join(f"line {n}\n" for n in range(1, 31)))
    tree.write("lib/util.py", "def util():\n    return 1\n")
    tree.commit("first")
    return tree


def names(collected: Collected) -> list[str]:
    """The names of the files that were read, without their extents."""
    return [each.partition(" (")[0] for each in collected.read]


def texts(collected: Collected) -> dict[str, str]:
    return {content.name: content.data.decode() for content in collected.contents}
