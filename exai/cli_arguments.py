"""What the `exai` command accepts: its commands and their options, and nothing about what they do."""

from __future__ import annotations

import argparse
from typing import Any

from exai import __version__

STATUSES = """\
exit status:
  0    fine; for `health`: healthy
  1    failed; for `health` and `doctor`: something is unhealthy
  2    misconfigured: a setting or an argument is wrong
  3    cannot start, or something needed cannot be reached
  4    the database's schema is not at this release's revision
  130  interrupted
"""

SHAPES = ("jsonl", "markdown")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; what it returns has the command's name as `command`, None when none was given."""
    parser = argparse.ArgumentParser(
        prog="exai",
        description="Stores conversations with language models in Postgres and serves them over MCP.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"exai {__version__}")
    _add_env_file(parser, None)
    commands = parser.add_subparsers(metavar="command", dest="command")
    _add_service(commands)
    _add_store(commands)
    _add_archive(commands)
    _add_bench(commands)
    commands.add_parser("version", help="show the version")
    for each in commands.choices.values():
        # Accepted behind the command as well, where most people write options.
        _add_env_file(each, argparse.SUPPRESS)
    return parser


def _add_env_file(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--env-file",
        metavar="FILE",
        default=default,
        help="read settings from this file instead of .env (EXAI_ENV_FILE)",
    )


def _add_service(commands: Any) -> None:
    """Add the commands that run, reach or examine a daemon."""
    serve = commands.add_parser("serve", help="start the daemon; without addresses, with its own Postgres and Valkey")
    serve.add_argument("--host", help="address to listen on (EXAI_SERVER__HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for any free one (EXAI_SERVER__PORT)")
    serve.add_argument("--data-dir", help="where the embedded servers keep their data (EXAI_DATA_DIR)")
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the port (default 1)")

    # What a parent starts; not for people, so it is not listed.
    worker = commands.add_parser("worker")
    worker.add_argument("--control", type=int, required=True)
    worker.add_argument("--socket", type=int, action="append", required=True)

    connect = commands.add_parser("connect", help="be an MCP server on standard input and output, for the daemon")
    connect.add_argument("--url", help="the daemon's address, ws://127.0.0.1:8079/ (EXAI_URL)")

    commands.add_parser("migrate", help="bring the configured database to this release's schema")

    health = commands.add_parser("health", help="ask a running daemon how it is")
    health.add_argument("--url", help="the daemon's address; default: EXAI_SERVER__HOST and EXAI_SERVER__PORT")
    health.add_argument("--format", choices=("text", "json"), default="text")

    config = commands.add_parser("config", help="show every setting, its value and where it comes from")
    config.add_argument("--format", choices=("text", "json"), default="text")

    doctor = commands.add_parser("doctor", help="examine every part and say what to do about what is wrong")
    doctor.add_argument("--format", choices=("text", "json"), default="text")


def _add_store(commands: Any) -> None:
    """Add the commands that talk and read."""
    chat = commands.add_parser("chat", help="talk to a model from the terminal; the conversation is kept")
    chat.add_argument("prompt", nargs="*", help="the question; - stands for standard input; none: talk line by line")
    earlier = chat.add_mutually_exclusive_group()
    earlier.add_argument("--continue", dest="continuation_id", metavar="ID", help="go on with an earlier conversation")
    earlier.add_argument("--last", action="store_true", help="go on with the conversation that was changed last")
    chat.add_argument("--model", help="the model to ask; default: the configured one")
    chat.add_argument("--list", action="store_true", dest="list_only", help="list the newest conversations")

    search = commands.add_parser("search", help="find messages by their words")
    search.add_argument("words", nargs="+", help='as in a search box: "a phrase", or, -without; put -- before these')
    search.add_argument("--tag", action="append", default=[], help="only conversations with this tag; may be repeated")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="how many of the best to show (default 20)")

    show = commands.add_parser("show", help="print the newest messages of a conversation")
    show.add_argument("name", metavar="ID", help="the continuation id, or its beginning")
    show.add_argument("--limit", type=int, default=50, metavar="N", help="how many messages (default 50)")
    for each in (chat, search, show):
        _add_owner(each)


def _add_owner(command: argparse.ArgumentParser) -> None:
    command.add_argument("--owner", help="whose conversations, where a daemon has several owners (default: local)")


def _add_archive(commands: Any) -> None:
    """Add the commands that carry conversations out, in and away."""
    export = commands.add_parser("export", help="write a conversation to a file")
    export.add_argument("name", metavar="ID", help="the continuation id, or its beginning")
    export.add_argument("target", metavar="FILE", nargs="?", default="-", help="NAME.jsonl or NAME.md; default: print")
    export.add_argument("--format", choices=SHAPES, help="default: by the file's name, else jsonl")

    importing = commands.add_parser("import", help="store an exported conversation; may be repeated")
    importing.add_argument("source", metavar="FILE", help="an export, or - for standard input")
    importing.add_argument("--format", choices=SHAPES, help="default: by the file's name, else jsonl")
    importing.add_argument("--as", dest="as_name", metavar="ID", help="store it under this name instead of its own")

    for each in (export, importing):
        _add_owner(each)

    prune = commands.add_parser("prune", help="remove for good what was deleted, and files that nobody has")
    prune.add_argument("--idle-days", type=float, metavar="DAYS", help="first delete what has not changed for so long")


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure what each operation costs, beside the least that could be done")
    bench.add_argument("--here", action="store_true", help="on the configured servers; default: embedded ones")
    bench.add_argument("--latency-ms", type=float, default=0.0, metavar="MS", help="latency to add, each way")
    bench.add_argument(
        "--quick", action="store_true", help="little data and one round: counts are exact, times are not"
    )
    bench.add_argument(
        "--scale", action="store_true", help="whether costs grow with what is stored: a million conversations, minutes"
    )
    bench.add_argument("--door", action="store_true", help="what calls and connections cost the door, beside an echo")
    bench.add_argument("--json", action="store_true", help="everything as JSON")
