"""The `exai` command.

The invariant is that whatever is wrong comes out as one clear message on standard error and the documented exit
status, never as a traceback. Imports are late: `exai connect` and a container's health check start within a blink.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Coroutine
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TypeVar

from exai import __version__
from exai.errors import ConfigError, DatabaseUnavailable, ExaiError

if TYPE_CHECKING:
    from exai.config import Settings
    from exai.models import Started

Result = TypeVar("Result")

OK, FAILED, MISCONFIGURED, INTERRUPTED = 0, 1, 2, 130

DEFAULT_PORT = 8079
"""Where `exai connect` looks without being told."""

MAX_LATENCY_MS = 1_000
OBJECTS_PER_COLLECTION = 10_000

STATUSES = """\
exit status:
  0    fine; for `health`: healthy
  1    failed; for `health` and `doctor`: something is unhealthy
  2    misconfigured: a setting or an argument is wrong
  3    cannot start, or something needed cannot be reached
  4    the database's schema is not at this release's revision
  130  interrupted
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted. Python flushes once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:  # noqa: BLE001 - the one boundary towards the person who typed the command
        return _report(error)
    return status


def _report(error: Exception) -> int:
    """Print what went wrong and return the status that says so."""
    known = _first_known(error)
    if known is not None:
        print(f"exai: {known}", file=sys.stderr)
        return known.exit_status
    import traceback

    from exai.logs import redact_text

    print(redact_text("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    print("exai: this is a defect of EXAI; please report it with the lines above", file=sys.stderr)
    return FAILED


def _first_known(error: BaseException) -> ExaiError | None:
    """Find our own error, also in the group a failing task makes of it or behind what a library made of it."""
    if isinstance(error, ExaiError):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__,)
    return next((known for each in inner if each is not None and (known := _first_known(each))), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exai",
        description="Stores conversations with language models in Postgres and serves them over MCP.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"exai {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    serve = commands.add_parser("serve", help="start the daemon; without addresses, with its own Postgres and Valkey")
    serve.add_argument("--host", help="address to listen on (EXAI_SERVER__HOST)")
    serve.add_argument("--port", help="port to listen on, 0 for any free one (EXAI_SERVER__PORT)")
    serve.add_argument("--data-dir", help="where the embedded servers keep their data (EXAI_DATA_DIR)")
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the port (default 1)")
    serve.set_defaults(run=_serve)

    # What a parent starts; not for people, so it is not listed.
    worker = commands.add_parser("worker")
    worker.add_argument("--control", type=int, required=True)
    worker.add_argument("--socket", type=int, action="append", required=True)
    worker.set_defaults(run=_worker)

    connect = commands.add_parser("connect", help="be an MCP server on standard input and output, for the daemon")
    connect.add_argument("--url", help="the daemon's address, ws://127.0.0.1:8079/ (EXAI_URL)")
    connect.set_defaults(run=_connect)

    migrate = commands.add_parser("migrate", help="bring the configured database to this release's schema")
    migrate.set_defaults(run=_migrate)

    health = commands.add_parser("health", help="ask a running daemon how it is")
    health.add_argument("--url", help="the daemon's address; default: EXAI_SERVER__HOST and EXAI_SERVER__PORT")
    health.add_argument("--format", choices=("text", "json"), default="text")
    health.set_defaults(run=_health)

    config = commands.add_parser("config", help="show every setting, its value and where it comes from")
    config.add_argument("--format", choices=("text", "json"), default="text")
    config.set_defaults(run=_config)

    doctor = commands.add_parser("doctor", help="examine every part and say what to do about what is wrong")
    doctor.add_argument("--format", choices=("text", "json"), default="text")
    doctor.set_defaults(run=_doctor)

    chat = commands.add_parser("chat", help="talk to a model from the terminal; the conversation is kept")
    chat.add_argument("prompt", nargs="*", help="the question; - stands for standard input; none: talk line by line")
    chat.add_argument("--continue", dest="continuation_id", metavar="ID", help="go on with an earlier conversation")
    chat.add_argument("--model", help="the model to ask; default: the configured one")
    chat.add_argument("--list", action="store_true", dest="list_only", help="list the newest conversations")
    chat.set_defaults(run=_chat)

    _add_archive(commands)

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
    bench.set_defaults(run=_bench)

    version = commands.add_parser("version", help="show the version")
    version.set_defaults(run=_version)
    return parser


def _add_archive(commands: Any) -> None:
    """Add the commands that carry conversations out, in and away."""
    shapes = ("jsonl", "markdown")
    export = commands.add_parser("export", help="write a conversation to a file")
    export.add_argument("name", metavar="ID", help="the continuation id")
    export.add_argument("target", metavar="FILE", nargs="?", default="-", help="NAME.jsonl or NAME.md; default: print")
    export.add_argument("--format", choices=shapes, help="default: by the file's name, else jsonl")
    export.set_defaults(run=_export)

    importing = commands.add_parser("import", help="store an exported conversation; may be repeated")
    importing.add_argument("source", metavar="FILE", help="an export, or - for standard input")
    importing.add_argument("--format", choices=shapes, help="default: by the file's name, else jsonl")
    importing.add_argument("--as", dest="as_name", metavar="ID", help="store it under this name instead of its own")
    importing.set_defaults(run=_import)

    prune = commands.add_parser("prune", help="remove for good what was deleted, and files that nobody has")
    prune.add_argument("--idle-days", type=float, metavar="DAYS", help="first delete what has not changed for so long")
    prune.set_defaults(run=_prune)


def _export(options: argparse.Namespace) -> int:
    from exai.archive import export

    _run(export(_quiet_settings(), options.name, options.target, options.format))
    return OK


def _import(options: argparse.Namespace) -> int:
    from exai.archive import import_file

    print(_run(import_file(_quiet_settings(), options.source, options.format, options.as_name)))
    return OK


def _prune(options: argparse.Namespace) -> int:
    from exai.archive import prune

    print(_run(prune(_quiet_settings(), options.idle_days)))
    return OK


def _quiet_settings() -> Settings:
    """Return the settings, with logs as they say; for commands whose output is a result."""
    from exai.config import load_settings
    from exai.logs import configure_logging

    settings = load_settings()
    configure_logging(settings.log)
    return settings


def _serve(options: argparse.Namespace) -> int:
    from exai.config import load_settings
    from exai.daemon import serve
    from exai.logs import configure_logging

    given = {
        "EXAI_SERVER__HOST": options.host,
        "EXAI_SERVER__PORT": options.port,
        "EXAI_DATA_DIR": options.data_dir,
    }
    given = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(overrides=given)
    configure_logging(settings.log)

    def announce(started: Started) -> None:
        # Nobody reading the banner is no reason not to serve.
        with contextlib.suppress(BrokenPipeError):
            print(banner(settings, started), flush=True)

    if options.workers != 1:
        from exai.workers import serve_with_workers

        return _run(serve_with_workers(settings, options.workers, given, announce))
    _run(serve(settings, announce))
    return OK


def _worker(options: argparse.Namespace) -> int:
    from exai.config import load_settings
    from exai.logs import configure_logging
    from exai.workers import work

    settings = load_settings()
    configure_logging(settings.log)
    _run(work(settings, options.socket, options.control))
    return OK


def banner(settings: Settings, started: Started) -> str:
    """Return what a person needs to know after the start, and what to paste into an MCP client."""
    import json

    from exai.health_client import local_address

    address = local_address(started.host, started.port)
    url = f"ws://{address}/"
    header = ',"headers":{"Authorization":"Bearer YOUR-TOKEN"}' if settings.server.is_guarded else ""
    variables = {"EXAI_URL": url} if started.port != DEFAULT_PORT or header else {}
    variables |= {"EXAI_TOKEN": "YOUR-TOKEN"} if header else {}
    environment = f',"env":{json.dumps(variables, separators=(",", ":"))}' if variables else ""
    lines = [
        f"EXAI {__version__} at {url} (HTTP: http://{address}/mcp)",
        f"  database   {started.database}",
        f"  cache      {started.cache}",
        f"  files      {started.files}",
        f"  providers  {', '.join(started.providers) or 'none'}",
        *(f"  note       {note}" for note in started.notes),
    ]
    if not started.providers:
        lines += [
            "  To ask models, set one of these and start again:",
            "    KIMI_API_KEY=...    Moonshot AI",
            "    GLM_API_KEY=...     Z.ai",
            "    EXAI_PROVIDERS__ENDPOINTS__OLLAMA__BASE_URL=http://localhost:11434/v1    any OpenAI-compatible server",
        ]
    lines += [
        "  For an MCP client, over WebSocket or as a command:",
        f'    {{"mcpServers":{{"exai":{{"type":"ws","url":"{url}"{header}}}}}}}',
        f'    {{"mcpServers":{{"exai":{{"command":{json.dumps(_program())},"args":["connect"]{environment}}}}}}}',
    ]
    return "\n".join(lines)


def _program() -> str:
    """Return this program as another one can start it, from any directory and with any PATH."""
    from pathlib import Path

    beside = Path(sys.executable).with_name("exai.exe" if sys.platform == "win32" else "exai")
    return str(beside) if beside.is_file() else "exai"


def _called_as() -> str:
    """Return how the person who called this program can call it again, ready for a shell."""
    import shlex
    import shutil
    from pathlib import Path

    called = sys.argv[0]
    if Path(called).name != "exai" or shutil.which("exai") == called:
        return "exai"
    return shlex.quote(called)


def _connect(options: argparse.Namespace) -> int:
    from exai.addresses import UnusableAddress, check_websocket
    from exai.environment import read_environment
    from exai.mcp.bridge import run_bridge

    reading = read_environment()

    def found(variable: str) -> str | None:
        value = reading.find(variable)
        return value.text if value else None

    url, token = options.url or found("EXAI_URL"), found("EXAI_TOKEN")
    if url is None:
        from exai.health_client import local_address

        port = found("EXAI_SERVER__PORT") or str(DEFAULT_PORT)
        if not port.isdecimal():
            raise ConfigError("EXAI_SERVER__PORT", "is not a whole number", "Write digits only, or set EXAI_URL")
        url = f"ws://{local_address(found('EXAI_SERVER__HOST') or '127.0.0.1', int(port))}/"
        # The server's own token goes to the server of this machine alone.
        token = token or found("EXAI_SERVER__TOKEN")
    try:
        check_websocket(url)
    except UnusableAddress as error:
        raise ConfigError("--url" if options.url else "EXAI_URL", error.problem, error.cure) from None
    return run_bridge(url, headers={"Authorization": f"Bearer {token}"} if token else None)


def _migrate(_: argparse.Namespace) -> int:
    from exai.config import load_settings
    from exai.logs import configure_logging

    settings = load_settings()
    configure_logging(settings.log)
    setting = "EXAI_DATABASE__MIGRATION_URL" if settings.database.migration_url else "EXAI_DATABASE__URL"
    url = settings.database.migration_url or settings.database.url
    if url is None:
        print(
            "No database address is configured (EXAI_DATABASE__URL, SUPABASE_DB_URL or DATABASE_URL).\n"
            f"The embedded Postgres in {settings.data_dir} is migrated by `exai serve` whenever it starts."
        )
        return OK
    from exai.app import not_reached
    from exai.db.migrate import upgrade
    from exai.db.revision import expected_revision

    try:
        _run(upgrade(url.get_secret_value()))
    except DatabaseUnavailable as error:
        raise not_reached(url.get_secret_value(), setting, error) from error
    print(f"the database is at revision {expected_revision()}")
    return OK


def _health(options: argparse.Namespace) -> int:
    from exai.health_client import ask_health, health_url, local_address

    if options.url:
        from exai.environment import read_environment

        value = read_environment().find("EXAI_TOKEN")
        answer = ask_health(health_url(options.url), value.text if value else None)
    else:
        from exai.config import load_settings

        settings = load_settings()
        token = settings.connect.token or settings.server.token
        address = local_address(settings.server.host, settings.server.port)
        answer = ask_health(health_url(address), token.get_secret_value() if token else None)
    _print_health(answer.url, answer.body, options.format)
    return OK if answer.healthy else FAILED


def _print_health(url: str, body: dict[str, Any], shape: str) -> None:
    if shape == "json":
        import json

        print(json.dumps(body, indent=2))
        return
    ready = "ready" if body.get("ready") else "not ready"
    print(f"EXAI {body.get('version')} at {url}: {body.get('status')}, {ready}")
    for name, each in body.get("components", {}).items():
        latency = "" if each["latency_ms"] is None else f"{each['latency_ms']:.1f} ms"
        print(f"  {name:<12} {each['state']:<9} {latency:>10}  {each['detail']}".rstrip())


def _config(options: argparse.Namespace) -> int:
    from exai.config import describe, load_settings

    settings = load_settings()
    lines = describe(settings)
    if options.format == "json":
        import json

        file = str(settings.env_file) if settings.env_file else None
        print(json.dumps({"env_file": file, "settings": [line._asdict() for line in lines]}, indent=2))
        return OK
    print(f"# {settings.env_file} was read" if settings.env_file else "# no .env file in this directory")
    names = max(len(line.variable) for line in lines)
    for line in lines:
        origin = "" if line.origin == "default" else f"  # {line.origin}"
        print(f"{line.variable:<{names}}  {line.value or '-'}{origin}")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from exai.config import LogSettings, load_settings
    from exai.doctor import examine, table, unusable_settings
    from exai.logs import configure_logging
    from exai.monitoring.metrics import MetricsRecorder

    # What the looked-at libraries have to say is in the findings; between them it would only be noise.
    configure_logging(LogSettings(level="error"))
    try:
        findings = _run(examine(load_settings(), MetricsRecorder()))
        failed = FAILED
    except ConfigError as error:
        findings, failed = unusable_settings(error), MISCONFIGURED
    if options.format == "json":
        import json

        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(table(findings))
    return failed if any(finding.state == "fail" for finding in findings) else OK


def _chat(options: argparse.Namespace) -> int:
    from exai.config import LogSettings, describe, load_settings
    from exai.logs import configure_logging
    from exai.terminal import ChatOptions, Streams, run_chat

    settings = load_settings()
    is_default = any(line.variable == "EXAI_LOG__LEVEL" and line.origin == "default" for line in describe(settings))
    # A person who talks wants to read answers; whoever sets a level wants the log as well.
    configure_logging(LogSettings(level="error") if is_default else settings.log)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # An answer may hold what this terminal's encoding does not.
            stream.reconfigure(errors="replace")
    chat = ChatOptions(tuple(options.prompt), options.continuation_id, options.model, options.list_only, _called_as())
    return _run(run_chat(settings, chat, Streams(sys.stdin, sys.stdout, sys.stderr)))


def _bench(options: argparse.Namespace) -> int:
    from exai.bench.command import bench, bench_door
    from exai.config import LogSettings
    from exai.logs import configure_logging

    if not 0 <= options.latency_ms <= MAX_LATENCY_MS:
        raise ConfigError("--latency-ms", "is out of range", f"Use 0 to {MAX_LATENCY_MS}")
    if options.door and (options.here or options.scale or options.latency_ms):
        raise ConfigError("--door", "needs no servers", "Leave out --here, --scale and --latency-ms")
    configure_logging(LogSettings(level="error"))
    if options.door:
        print(_run(bench_door(quick=options.quick, as_json_text=options.json, error=sys.stderr)))
        return OK
    print(
        _run(
            bench(
                here=options.here,
                quick=options.quick,
                latency_ms=options.latency_ms,
                at_scale=options.scale,
                as_json_text=options.json,
                error=sys.stderr,
            )
        )
    )
    return OK


def _version(_: argparse.Namespace) -> int:
    print(f"exai {__version__}")
    return OK


def _run(main_task: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, on uvloop where it exists."""
    import asyncio
    import gc

    if sys.implementation.name != "cpython":
        return asyncio.run(main_task)
    # What a request makes is freed as soon as nobody holds it; looking for cycles after every 700 objects, as is usual,
    # took a tenth of a page read from the database.
    thresholds = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    try:
        if sys.platform == "win32":
            return asyncio.run(main_task)
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main_task)
    finally:
        gc.set_threshold(*thresholds)
