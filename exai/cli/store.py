"""The commands that work on stored conversations, from `chat` to `erase`."""

from __future__ import annotations

import argparse
import sys

from exai.cli.command import OK, owner_of, read_settings, run
from exai.cli.terminal_text import shown
from exai.program import program


def chat(options: argparse.Namespace) -> int:
    """Ask a model once or interactively; `--list` lists conversations."""
    from exai.cli.chat import ChatOptions, Streams, run_chat

    settings = read_settings(errors_only=True)
    asked = ChatOptions(
        tuple(options.prompt),
        options.continuation_id,
        options.model,
        options.list_only,
        program(),
        options.last,
        owner_of(options),
        options.cache,
        reread=options.reread,
    )
    return run(run_chat(settings, asked, Streams(sys.stdin, sys.stdout, sys.stderr)))


def search(options: argparse.Namespace) -> int:
    """Search messages by words."""
    from exai.cli.browse import Output
    from exai.cli.browse import search as find
    from exai.db.search import SearchQuery

    output = Output(sys.stdout, sys.stderr, program())
    query = SearchQuery(owner_of(options), " ".join(options.words), tags=options.tag)
    run(find(read_settings(errors_only=True), query, options.limit, output))
    return OK


def show(options: argparse.Namespace) -> int:
    """Print the newest messages of a conversation."""
    from exai.cli.browse import Output
    from exai.cli.browse import show as write

    output = Output(sys.stdout, sys.stderr, program())
    run(write(read_settings(errors_only=True), owner_of(options), options.name, options.limit, output))
    return OK


def export(options: argparse.Namespace) -> int:
    """Write a conversation to a file or to standard output."""
    from exai.cli.archive import export as write

    run(write(read_settings(), options.name, options.target, options.format, owner_of(options)))
    return OK


def import_file(options: argparse.Namespace) -> int:
    """Store an exported conversation, or the conversations of other programs."""
    from exai.cli.importing import import_files, is_own_export, sources_of

    if not is_own_export(options):
        return import_files(options)
    from exai.cli.archive import import_file as store

    (source,) = sources_of(options)[1]
    done = run(store(read_settings(), source, options.format, options.as_name, owner_of(options)))
    print(shown(done, sys.stdout))
    return OK


def prune(options: argparse.Namespace) -> int:
    """Remove deleted conversations and files whose retention has passed."""
    from exai.cli.blobs import prune as remove

    return remove(options)


def blobs(options: argparse.Namespace) -> int:
    """Move or verify the bytes of files."""
    from exai.cli.blobs import blobs as work

    return work(options)


def validate(options: argparse.Namespace) -> int:
    """Check the promises of the store."""
    from exai.cli.validate import command

    return command(options)


def backup(options: argparse.Namespace) -> int:
    """Write a backup, or verify one."""
    from exai.cli.backup import backup as write

    return write(options)


def restore(options: argparse.Namespace) -> int:
    """Restore a backup."""
    from exai.cli.backup import restore as read

    return read(options)


def erase(options: argparse.Namespace) -> int:
    """Erase an owner or a conversation."""
    from exai.cli.erase import erase as remove

    return remove(options)


def rekey(options: argparse.Namespace) -> int:
    """Bring what is stored to the newest key."""
    from exai.cli.rekey import rekey as work

    return work(options)


def supabase(options: argparse.Namespace) -> int:
    """Set the rights of Supabase's roles."""
    from exai.cli.supabase import supabase as work

    return work(options)
