"""The command by which this process was started, for errors and messages that advise another command, and its report.

A user of a checkout may have no `exai` on the PATH. This module imports nothing heavy, because `exai connect` must
start fast.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

NAME = "exai"


class Started(NamedTuple):
    """The report of a daemon to its starter: its address and the location of its data, without passwords."""

    host: str
    port: int
    database: str
    cache: str
    files: str
    providers: tuple[str, ...]
    notes: tuple[str, ...] = ()


def program() -> str:
    """Return the command of this program as it can be typed again, quoted for a shell; `exai` within other programs."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == NAME:
        return f"{_typed(sys.executable, 'python3', 'python')} -m {NAME}"
    return _typed(sys.argv[0], NAME) if called.stem == NAME else NAME


def _typed(path: str, *names: str) -> str:
    """Return the shortest way to call a program: by its name on the PATH, or by its path from this directory."""
    for name in names:
        if _on_path(name) == os.path.abspath(path):  # noqa: PTH100 - keeps links as they are
            return name
    try:
        here = Path.cwd()
    except OSError:
        return shlex.quote(path)
    return shlex.quote(str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path)


def _on_path(name: str) -> str | None:
    """Return the path of the program that a shell would start by this name."""
    places = (Path(place, name) for place in os.environ.get("PATH", "").split(os.pathsep) if place)
    return next((str(place) for place in places if os.access(place, os.X_OK)), None)
