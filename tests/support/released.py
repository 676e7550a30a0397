"""What the last release contained of the migrations, by git, to hold later revisions to it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

FIXED: Final = ("alembic/versions", "alembic/functions", "alembic/tables", "alembic/triggers")
RELEASE: Final = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


class NoHistory(Exception):
    """The directory's history cannot be read; the text has the reason."""


def last_release(root: Path) -> str | None:
    """The newest release tag vX.Y.Z that HEAD contains, None before the first release.

    Raises:
        NoHistory: git is not installed, `root` is not the root of a repository, or the clone is shallow.

    """
    if shutil.which("git") is None:
        raise NoHistory("git is not installed")
    if not (root / ".git").exists():
        raise NoHistory(f"{root} is not the root of a git repository")
    tags = [match for match in map(RELEASE.fullmatch, git(root, "tag", "--merged", "HEAD").split()) if match]
    if tags:
        return max(tags, key=lambda match: [int(number) for number in match.groups()])[0]
    if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise NoHistory("the clone is shallow and has no release tag; run git fetch --unshallow --tags")
    return None


def changed_since(root: Path, tag: str) -> list[str]:
    """Files of released migrations that the working tree lacks or has with another text; new files do not count."""
    lines = git(root, "diff", "--name-status", "--no-renames", "--diff-filter=a", tag, "--", *FIXED).splitlines()
    return sorted(line.split("\t")[1] for line in lines)


def git(root: Path, *arguments: str) -> str:
    """Run git in `root`, regardless of a repository in the environment."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    settings = ("-c", "core.quotePath=false", "-c", "core.autocrlf=false", "-c", f"safe.directory={root}")
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NoHistory(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
