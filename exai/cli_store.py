"""The commands that work on stored conversations: `chat`, `export`, `import`, `prune`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from exai.command import OK, read_settings, run


def chat(options: argparse.Namespace) -> int:
    """Ask a model, or talk with it; `--list` lists conversations."""
    from exai.terminal import ChatOptions, Streams, run_chat

    settings = read_settings(errors_only=True)
    words = ChatOptions(tuple(options.prompt), options.continuation_id, options.model, options.list_only, called_as())
    return run(run_chat(settings, words, Streams(sys.stdin, sys.stdout, sys.stderr)))


def export(options: argparse.Namespace) -> int:
    """Write a conversation to a file or to standard output."""
    from exai.archive import export as write

    run(write(read_settings(), options.name, options.target, options.format))
    return OK


def import_file(options: argparse.Namespace) -> int:
    """Store an exported conversation."""
    from exai.archive import import_file as store

    print(run(store(read_settings(), options.source, options.format, options.as_name)))
    return OK


def prune(options: argparse.Namespace) -> int:
    """Remove what was deleted long enough ago."""
    from exai.archive import prune as remove

    print(run(remove(read_settings(), options.idle_days)))
    return OK


def called_as() -> str:
    """Return how the person who called this program can call it again, ready for a shell."""
    called = sys.argv[0]
    if Path(called).name != "exai" or shutil.which("exai") == called:
        return "exai"
    return shlex.quote(called)
