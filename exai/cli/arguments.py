"""The commands of the `exai` program and their options."""

from __future__ import annotations

import argparse
from typing import Any

from exai import __version__

STATUSES = """\
exit status:
  0    success; for `health`: healthy
  1    failed; for `health` and `doctor`: a component is unhealthy; for `validate` and `drill`: FAIL
  2    misconfigured: a setting or an argument is invalid
  3    a component cannot be started or reached
  4    the database schema is not at the revision of this release (run `exai migrate`)
  130  interrupted
"""

CACHES = ("off", "use", "refresh")
SHAPES = ("jsonl", "markdown")
STORES = ("postgres", "directory", "supabase", "s3")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; its result has the command's name as `command`, or None if none was given."""
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
    _add_blobs(commands)
    _add_drill(commands)
    _add_backup(commands)
    _add_erase(commands)
    _add_rekey(commands)
    _add_supabase(commands)
    _add_bench(commands)
    commands.add_parser("version", help="show the version")
    for each in commands.choices.values():
        # Accepted after the command as well, where most users put options.
        _add_env_file(each, argparse.SUPPRESS)
    return parser


def build_worker_parser() -> argparse.ArgumentParser:
    """Return the parser of `exai worker`, which is started by a parent process and omitted from the help."""
    worker = argparse.ArgumentParser(prog="exai worker")
    worker.add_argument("--control", type=int, required=True)
    worker.add_argument("--socket", type=int, action="append", required=True)
    worker.set_defaults(command="worker", env_file=None)
    return worker


def _add_env_file(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--env-file",
        metavar="FILE",
        default=default,
        help="read settings from this file instead of .env (EXAI_ENV_FILE)",
    )


def _add_service(commands: Any) -> None:
    """Add the commands that run, reach or examine a daemon."""
    serve = commands.add_parser(
        "serve", help="start the daemon, with its own Postgres and Valkey unless others are configured"
    )
    serve.add_argument("--host", help="address to listen on; default: 127.0.0.1 (EXAI_SERVER__HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for any free port; default: 8079 (EXAI_SERVER__PORT)")
    serve.add_argument("--data-dir", help="data directory of the embedded servers (EXAI_DATA_DIR)")
    serve.add_argument(
        "--requests",
        action="store_true",
        help="also answer the requests that clients store in the database (EXAI_REQUESTS__ENABLED)",
    )
    serve.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of processes that share the port (default: 1)"
    )

    connect = commands.add_parser("connect", help="connect a client on standard input and output to the running daemon")
    connect.add_argument("--url", help="address of the daemon; default: ws://127.0.0.1:8079/ (EXAI_URL)")

    migrate = commands.add_parser("migrate", help="migrate the configured database to the schema of this release")
    migrate.add_argument(
        "--check",
        action="store_true",
        help="change nothing; print the pending migrations, and exit with 4 if there are any",
    )

    health = commands.add_parser("health", help="show the state of the running daemon")
    health.add_argument("--url", help="address of the daemon; default: EXAI_SERVER__HOST and EXAI_SERVER__PORT")
    health.add_argument("--format", choices=("text", "json"), default="text")
    often = health.add_mutually_exclusive_group()
    often.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="show it again and again, in place on a terminal (default: every 2 s)",
    )
    often.add_argument(
        "--endpoint", metavar="[HOST:]PORT", help="serve the report as JSON: HTTP 200, or 503 if it is not healthy"
    )

    config = commands.add_parser("config", help="show every setting with its value and origin")
    config.add_argument("--format", choices=("text", "json"), default="text")
    config.add_argument(
        "--check", action="store_true", help="only say whether a daemon could use the settings; connects to nothing"
    )

    doctor = commands.add_parser("doctor", help="examine every component and name the cure for each problem")
    doctor.add_argument("--format", choices=("text", "json"), default="text")
    doctor.add_argument(
        "--supabase", action="store_true", help="also examine addresses, keys and rights of a Supabase project"
    )
    doctor.add_argument(
        "--workers", type=int, default=1, metavar="N", help="with --supabase: processes of `exai serve`"
    )
    doctor.add_argument("--url", help="examine only this address of a daemon, as a client at another place sees it")

    validate = commands.add_parser("validate", help="check the promises of the store on the database; leaves no row")
    validate.add_argument("--format", choices=("text", "json"), default="text")


def _add_store(commands: Any) -> None:
    """Add the commands that ask models and read conversations."""
    chat = commands.add_parser("chat", help="ask a model from the terminal; the conversation is stored")
    chat.add_argument(
        "prompt",
        nargs="*",
        help="the question; - stands for standard input; without it, each line typed at the terminal is a question",
    )
    earlier = chat.add_mutually_exclusive_group()
    earlier.add_argument(
        "--continue",
        dest="continuation_id",
        metavar="ID",
        help="continue this conversation; the beginning of its id is enough",
    )
    earlier.add_argument("--last", action="store_true", help="continue the conversation that changed last")
    chat.add_argument("--model", help="the model to ask; default: EXAI_PROVIDERS__DEFAULT_MODEL")
    chat.add_argument(
        "--cache",
        choices=CACHES,
        default="off",
        help="use: take an answer that was given to the same prompt before; refresh: ask anew and keep the answer",
    )
    chat.add_argument(
        "--reread",
        action="store_true",
        help="with --continue or --last: read the files of the conversation that have changed on disk again",
    )
    chat.add_argument("--list", action="store_true", dest="list_only", help="list the newest conversations")

    search = commands.add_parser("search", help="find messages and titles by their words")
    search.add_argument(
        "words", nargs="+", help='words, "a phrase", or, begin*, -without; write -- before words that begin with -'
    )
    search.add_argument("--tag", action="append", default=[], help="only conversations with this tag; may be repeated")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="number of results (default: 20)")

    show = commands.add_parser("show", help="print the newest messages of a conversation")
    show.add_argument("name", metavar="ID", help="continuation_id, or its beginning")
    show.add_argument("--limit", type=int, default=50, metavar="N", help="number of messages (default: 50)")
    for each in (chat, search, show):
        _add_owner(each)


def _add_owner(command: argparse.ArgumentParser) -> None:
    command.add_argument("--owner", help="work on the conversations of this owner (default: local)")


def _add_archive(commands: Any) -> None:
    """Add the commands that export, import and remove conversations."""
    export = commands.add_parser("export", help="write a conversation to a file")
    export.add_argument("name", metavar="ID", help="continuation_id, or its beginning")
    export.add_argument(
        "target", metavar="FILE", nargs="?", default="-", help="NAME.jsonl or NAME.md; default: standard output"
    )
    export.add_argument("--format", choices=SHAPES, help="default: by the name of the file, else jsonl")

    importing = commands.add_parser(
        "import",
        help="store conversations of other programs, or exported ones; an import may be repeated",
        description="Stores conversations from the files of other programs. Each message is stored once, so an import "
        "can be repeated when the files have grown, and continued when it was interrupted.",
    )
    importing.add_argument(
        "source",
        nargs="+",
        metavar="[KIND] PATH",
        help="files, directories or archives; or - for an exported conversation from standard input. The kind is "
        "recognised, or is one of chatgpt, claude-ai, claude-code, codex, gemini-cli, openai-agents, langgraph, "
        "librechat, open-webui, exai; claude-code, codex and gemini-cli without a path read the directory of that "
        "program, and langgraph also reads a Postgres database, given by its address",
    )
    importing.add_argument("--dry-run", action="store_true", help="read everything, and store nothing")
    importing.add_argument(
        "--watch", action="store_true", help="go on, and import what is added; what is deleted there stays here"
    )
    importing.add_argument("--json", action="store_true", help="print the report as JSON")
    importing.add_argument(
        "--format", choices=SHAPES, help="of one exported conversation; default: by the name of the file, else jsonl"
    )
    importing.add_argument(
        "--as", dest="as_name", metavar="ID", help="store one exported conversation with this continuation_id"
    )

    for each in (export, importing):
        _add_owner(each)

    prune = commands.add_parser(
        "prune", help="remove deleted conversations, and files without a conversation, permanently"
    )
    prune.add_argument(
        "--idle-days",
        type=float,
        metavar="DAYS",
        help="first delete conversations that have not changed for so many days",
    )
    prune.add_argument(
        "--dry-run",
        action="store_true",
        help="remove nothing; count the conversations and the bytes without a file, and name the files without bytes",
    )


def _add_blobs(commands: Any) -> None:
    blobs = commands.add_parser("blobs", help="move the bytes of files into another store, or verify them")
    actions = blobs.add_subparsers(metavar="action", dest="action", required=True)
    migrate = actions.add_parser("migrate", help="move all contents; it may be interrupted and repeated")
    migrate.add_argument("source", metavar="FROM", choices=STORES, help="one of " + ", ".join(STORES))
    migrate.add_argument("target", metavar="TO", choices=STORES, help="the store to move them into")
    verify = actions.add_parser("verify", help="read all contents and compare them with their digests")
    verify.add_argument("stores", metavar="STORE", nargs="*", help="default: all that are configured")
    link = actions.add_parser("link", help="print an address from which a file can be downloaded for a while")
    link.add_argument("name", metavar="FILE_ID")
    link.add_argument(
        "--lifetime-s", type=int, default=3_600, metavar="SECONDS", help="how long it is valid; default: an hour"
    )
    _add_owner(link)
    verify.add_argument(
        "--repair", action="store_true", help="mark lost contents, so that giving them again stores them again"
    )


def _add_drill(commands: Any) -> None:
    drill = commands.add_parser("drill", help="show how EXAI reacts to a failure, with a stand-in that fails")
    failures = drill.add_subparsers(metavar="what", dest="what", required=True)
    breaker = failures.add_parser(
        "breaker", help="let a provider fail and recover, and show the states of its circuit breaker; takes 20 s"
    )
    breaker.add_argument("--format", choices=("text", "json"), default="text", help="default: text")


def _add_backup(commands: Any) -> None:
    backup = commands.add_parser(
        "backup",
        help="write everything in the database, and the contents of all files, into a directory",
        description="Writes all of EXAI's tables, as they are at one moment, and the contents of all files into a new "
        "directory. Daemons may go on. A backup that was broken off is none; the same command starts it over.",
    )
    backup.add_argument("directory", metavar="DIRECTORY", help="a directory that does not exist yet or is empty")
    backup.add_argument(
        "--base",
        metavar="EARLIER",
        help="the directory of an earlier backup: its contents of files are linked instead of copied; "
        "it may be removed afterwards",
    )
    backup.add_argument("--verify", action="store_true", help="write nothing; compare a backup with its digests")
    restore = commands.add_parser(
        "restore",
        help="restore a backup into the configured database, which has to be empty",
        description="Verifies a backup, brings the configured database to its revision, fills it in one transaction, "
        "and migrates it to the schema of this release. The contents of files go into the selected store. A "
        "restoration that was broken off leaves no row and may be repeated. The history that daemons have recorded in "
        "the empty database is replaced.",
    )
    restore.add_argument("directory", metavar="DIRECTORY", help="the directory of a backup")
    restore.add_argument(
        "--owner",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="give the rows of the owner OLD to the owner NEW; may be repeated",
    )
    for each in (backup, restore):
        asking = each.add_mutually_exclusive_group()
        if each is backup:
            asking.add_argument(
                "--passphrase", action="store_true", help="encrypt with a passphrase, asked for at the terminal"
            )
        asking.add_argument(
            "--passphrase-file", metavar="FILE", help="read the passphrase of the backup from this file"
        )


def _add_erase(commands: Any) -> None:
    erase = commands.add_parser(
        "erase",
        help="erase an owner or a conversation at once and for good: rows, files, cached pages, history",
        description="Erases at once what `exai prune` would remove after a week, and everything else of an owner: rows "
        "of all tables, contents of files, pages and answers in the cache, history. Asks for confirmation.",
    )
    subjects = erase.add_subparsers(metavar="subject", dest="subject", required=True)
    owner = subjects.add_parser("owner", help="erase everything of an owner")
    owner.add_argument("name", metavar="NAME", help="the owner")
    conversation = subjects.add_parser(
        "conversation", help="erase one conversation, and the files that only it has; its cost stays in the reports"
    )
    conversation.add_argument("name", metavar="ID", help="the whole continuation_id")
    conversation.add_argument("--forks", action="store_true", help="erase its forks too, which show its messages")
    _add_owner(conversation)
    for each in (owner, conversation):
        each.add_argument("--dry-run", action="store_true", help="erase nothing; count what would be erased")
        each.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def _add_rekey(commands: Any) -> None:
    rekey = commands.add_parser(
        "rekey",
        help="encrypt what is stored with the newest key, or decrypt it; it may be interrupted and repeated",
        description="Brings everything stored to the first of EXAI_STORE__KEYS, or to plain text if that is `plain`, "
        "in small batches while daemons serve. Give all daemons the same keys first.",
    )
    rekey.add_argument("--dry-run", action="store_true", help="change nothing; count the rows to be changed")
    rekey.add_argument("--index", action="store_true", help="index words again, after a change of EXAI_STORE__SEARCH")


def _add_supabase(commands: Any) -> None:
    supabase = commands.add_parser("supabase", help="set the rights of Supabase's roles on EXAI's tables")
    actions = supabase.add_subparsers(metavar="action", dest="action", required=True)
    grant = actions.add_parser("grant", help="grant the roles that exist what they need; it may be repeated")
    grant.add_argument(
        "--adopted", action="store_true", help="also on tables of an older system, whose clients then lose their rights"
    )
    grant.add_argument("--no-realtime", action="store_true", help="publish and broadcast no changes")


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure the cost of each operation beside the least possible")
    bench.add_argument("--here", action="store_true", help="use the configured servers; default: embedded servers")
    bench.add_argument("--latency-ms", type=float, default=0.0, metavar="MS", help="latency to add in each direction")
    bench.add_argument(
        "--quick", action="store_true", help="little data and one round: counts are exact, times are not"
    )
    bench.add_argument(
        "--scale", action="store_true", help="measure how costs grow up to a million conversations; takes minutes"
    )
    bench.add_argument(
        "--door", action="store_true", help="measure the cost of calls and connections beside an echo server"
    )
    bench.add_argument(
        "--cloud", action="store_true", help="measure 1 to 64 callers with the database 10 ms (or --latency-ms) away"
    )
    bench.add_argument(
        "--chat",
        action="store_true",
        help="measure what EXAI adds to a model's answer, and reads through a daemon beside 200 chats",
    )
    bench.add_argument(
        "--keys", action="store_true", help="measure operations with encryption beside those without, in one run"
    )
    bench.add_argument("--json", action="store_true", help="print the results as JSON")
