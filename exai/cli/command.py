"""Shared parts of the `exai` commands: exit statuses, reading of settings, and output that any terminal accepts.

Invariant: every command shows from which `.env` file it took settings, since that file may belong to a project.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Mapping
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TypeVar

from exai.cli.terminal_text import shown
from exai.errors import ConfigError, StartupError
from exai.models import LOCAL_OWNER, MAX_OWNER_CHARS, Owner, is_owner_name

if TYPE_CHECKING:
    import argparse

    from exai.settings.environment import Reading
    from exai.settings.load import Settings

Result = TypeVar("Result")

OK, FAILED, MISCONFIGURED, INTERRUPTED = 0, 1, 2, 130

OBJECTS_PER_COLLECTION = 10_000

MOST_CONNECTIONS = 4
"""One for the user's call, and the rest for the leases, the index of words and the metrics beside it."""

SERVER_PACKAGES = ("websockets", "uvicorn", "starlette", "httptools", "jwt", "cryptography")
"""Import names of the packages that the extra `server` installs on every platform."""


def require_server(command: str) -> None:
    """Raise StartupError with the cure if the packages of the extra `server` are not installed."""
    from importlib.util import find_spec

    missing = [name for name in SERVER_PACKAGES if find_spec(name) is None]
    if missing:
        raise StartupError(
            f"exai {command}",
            f"needs packages that are not installed ({', '.join(missing)})",
            'Install them with pip install "exai[server]"',
        )


def with_few_connections(settings: Settings) -> Settings:
    """Return the settings for a command of one user, with at most `MOST_CONNECTIONS` connections to the database.

    Each costs time at the start, and a place of the few that a hosted database has.
    """
    size = min(settings.database.pool_size, MOST_CONNECTIONS)
    return settings.model_copy(update={"database": settings.database.model_copy(update={"pool_size": size})})


def owner_of(options: argparse.Namespace) -> Owner:
    """Return the owner whose conversations and files are used. Raises ConfigError."""
    if options.owner is None:
        return LOCAL_OWNER
    name: str = options.owner
    if not is_owner_name(name):
        raise ConfigError("--owner", "cannot be an owner's name", f"Use up to {MAX_OWNER_CHARS} printable characters")
    return Owner(name)


def read_settings(overrides: Mapping[str, str] | None = None, *, errors_only: bool = False) -> Settings:
    """Return the settings, and configure the log by them; `errors_only` is for commands whose output is a result.

    An explicitly configured level takes precedence.
    """
    from exai.logs import configure_logging
    from exai.settings.load import LogSettings, load_settings

    settings = load_settings(overrides=overrides)
    announce_env_file(settings.reading)
    is_default = settings.reading.find("EXAI_LOG__LEVEL") is None
    configure_logging(LogSettings(level="error") if errors_only and is_default else settings.log)
    return settings


def show_settings(form: str) -> int:
    """Print every setting with its value and origin, secrets hidden, as `text` or `json`. Returns the exit status."""
    from exai.settings.load import describe, load_settings

    settings = load_settings()
    lines = describe(settings)
    if form == "json":
        import json

        file = str(settings.env_file) if settings.env_file else None
        print(json.dumps({"env_file": file, "settings": [line._asdict() for line in lines]}, indent=2))
        return OK
    comment = f"# {settings.env_file} was read" if settings.env_file else "# no .env file in this directory"
    print(shown(comment, sys.stdout))
    names = max(len(line.variable) for line in lines)
    for line in lines:
        origin = "" if line.origin == "default" else f"  # {line.origin}"
        print(shown(f"{line.variable:<{names}}  {line.value or '-'}{origin}", sys.stdout))
    return OK


def announce_env_file(reading: Reading) -> None:
    """Print on standard error from which file settings were read, if any."""
    if reading.env_file is not None:
        line = f"(settings were read from {reading.env_file.absolute()})"
        print(shown(line, sys.stderr), file=sys.stderr, flush=True)


def accept_any_character() -> None:
    """Make standard output and error replace characters that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def run(main_task: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to completion, on uvloop if the extra `server` installed it."""
    import asyncio
    import gc
    from importlib.util import find_spec

    if sys.implementation.name != "cpython":
        return asyncio.run(main_task)
    # Reference counting frees nearly all objects of a request. Collections at the default threshold of 700 objects
    # took a tenth of a page read from the database.
    thresholds = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    try:
        if sys.platform == "win32" or find_spec("uvloop") is None:
            return asyncio.run(main_task)
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main_task)
    finally:
        gc.set_threshold(*thresholds)
