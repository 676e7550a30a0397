"""The `exai` command.

Invariant: every error is one clear message on standard error and the documented exit
status, never a traceback. Imports are late so that `exai connect` and a container's health check start fast.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from exai import __version__
from exai.cli import store
from exai.cli.arguments import build_parser, build_worker_parser
from exai.cli.command import (
    FAILED,
    INTERRUPTED,
    MISCONFIGURED,
    OK,
    accept_any_character,
    announce_env_file,
    read_settings,
    require_server,
    run,
    show_settings,
)
from exai.cli.terminal_text import shown
from exai.errors import ConfigError, ExaiError
from exai.settings.environment import ENV_FILE_VARIABLE

if TYPE_CHECKING:
    from exai.program import Started
    from exai.settings.load import Settings

DEFAULT_PORT = 8079
"""The port that `exai connect` dials by default."""

MAX_LATENCY_MS = 1_000


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; wrong usage exits with 2."""
    given = sys.argv[1:] if arguments is None else arguments
    is_worker = given[:1] == ["worker"]
    parser = build_worker_parser() if is_worker else build_parser()
    options = parser.parse_args(given[1:] if is_worker else given)
    if options.command is None:
        parser.print_help(sys.stderr)
        sys.exit(MISCONFIGURED)
    accept_any_character()
    try:
        if options.env_file is not None:
            # Workers, and all other readers of settings, take the file's name from the environment.
            os.environ[ENV_FILE_VARIABLE] = os.path.abspath(options.env_file)  # noqa: PTH100 - keeps links as they are
        status = COMMANDS[options.command](options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe. Python flushes once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:  # noqa: BLE001 - the one error boundary of the commands
        return _report(error)
    return status


def _report(error: Exception) -> int:
    """Print the error and return its exit status."""
    known = _first_known(error)
    if known is not None:
        print(shown(f"exai: {known}", sys.stderr), file=sys.stderr)
        return known.exit_status
    import traceback

    from exai.logs import redact_text

    text = redact_text("".join(traceback.format_exception(error)))
    print(shown(text, sys.stderr), file=sys.stderr, end="")
    print("exai: this is a defect of EXAI; please report it with the lines above", file=sys.stderr)
    return FAILED


def _first_known(error: BaseException) -> ExaiError | None:
    """Return EXAI's own error from within a group made by a failing task, or from behind a library's exception."""
    if isinstance(error, ExaiError):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__,)
    return next((known for each in inner if each is not None and (known := _first_known(each))), None)


def _serve(options: argparse.Namespace) -> int:
    require_server("serve")
    from exai.daemon.serve import serve

    given = {
        "EXAI_SERVER__HOST": options.host,
        "EXAI_SERVER__PORT": options.port,
        "EXAI_DATA_DIR": options.data_dir,
        "EXAI_REQUESTS__ENABLED": "true" if options.requests else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    settings = read_settings(given)

    def announce(started: Started) -> None:
        # A closed standard output must not prevent serving.
        with contextlib.suppress(BrokenPipeError):
            print(banner(settings, started), flush=True)

    if options.workers != 1:
        from exai.daemon.workers import serve_with_workers

        return run(serve_with_workers(settings, options.workers, given, announce))
    run(serve(settings, announce))
    return OK


def _worker(options: argparse.Namespace) -> int:
    from exai.daemon.workers import work
    from exai.logs import configure_logging
    from exai.settings.load import load_settings

    settings = load_settings()
    configure_logging(settings.log)
    run(work(settings, options.socket, options.control))
    return OK


def banner(settings: Settings, started: Started) -> str:
    """Return the text printed after the start, with the configuration to paste into an MCP client."""
    import json

    from exai.cli.health_client import local_address

    address = local_address(started.host, started.port)
    url = f"ws://{address}/"
    header = ',"headers":{"Authorization":"Bearer YOUR-TOKEN"}' if settings.server.is_guarded else ""
    variables = {"EXAI_URL": url} if started.port != DEFAULT_PORT or header else {}
    variables |= {"EXAI_TOKEN": "YOUR-TOKEN"} if header else {}
    environment = f',"env":{json.dumps(variables, separators=(",", ":"))}' if variables else ""
    lines = [
        f"EXAI {__version__} at {url} (HTTP: http://{address}/mcp)",
        f"  page       http://{address}/",
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
            "    DEEPSEEK_API_KEY=..., OPENROUTER_API_KEY=..., DASHSCOPE_API_KEY=...    DeepSeek, OpenRouter, Qwen",
            "    EXAI_PROVIDERS__ENDPOINTS__OLLAMA__BASE_URL=http://localhost:11434/v1    any OpenAI-compatible server",
        ]
    token_option = ' --header "Authorization: Bearer YOUR-TOKEN"' if header else ""
    lines += [
        "  For Claude Code:",
        f"    claude mcp add --transport http exai http://{address}/mcp{token_option}",
        "  For other MCP clients, over HTTP, over WebSocket, or as a command:",
        f'    {{"mcpServers":{{"exai":{{"type":"http","url":"http://{address}/mcp"{header}}}}}}}',
        f'    {{"mcpServers":{{"exai":{{"type":"ws","url":"{url}"{header}}}}}}}',
        f'    {{"mcpServers":{{"exai":{{"command":{json.dumps(_program())},"args":["connect"]{environment}}}}}}}',
    ]
    return "\n".join(lines)


def _program() -> str:
    """Return the command by which another program can start this one, from any directory and with any PATH."""
    from pathlib import Path

    beside = Path(sys.executable).with_name("exai.exe" if sys.platform == "win32" else "exai")
    return str(beside) if beside.is_file() else "exai"


def _connect(options: argparse.Namespace) -> int:
    require_server("connect")
    from exai.mcp.stdio.bridge import run_bridge
    from exai.mcp.stdio.daemon_connection import directory_of_client
    from exai.settings.addresses import UnusableAddress, check_websocket
    from exai.settings.environment import read_environment

    # Editors start this in the directory of the open project, whose `.env` is not trusted with a token.
    reading = read_environment(env_file="checkout")
    announce_env_file(reading)

    def found(variable: str) -> str | None:
        value = reading.find(variable)
        return value.text if value else None

    url, token = options.url or found("EXAI_URL"), found("EXAI_TOKEN")
    if url is None:
        from exai.cli.health_client import local_address

        port = found("EXAI_SERVER__PORT") or str(DEFAULT_PORT)
        if not port.isdecimal():
            raise ConfigError("EXAI_SERVER__PORT", "is not a whole number", "Write digits only, or set EXAI_URL")
        url = f"ws://{local_address(found('EXAI_SERVER__HOST') or '127.0.0.1', int(port))}/"
        # The server's own token is sent to the server of this machine only.
        token = token or found("EXAI_SERVER__TOKEN")
    try:
        check_websocket(url)
    except UnusableAddress as error:
        raise ConfigError("--url" if options.url else "EXAI_URL", error.problem, error.cure) from None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return run_bridge(url, headers={**headers, **directory_of_client(url)})


def _migrate(options: argparse.Namespace) -> int:
    from exai.cli.migrate import migrate

    return migrate(options)


def _health(options: argparse.Namespace) -> int:
    import json

    from exai.cli import health
    from exai.cli.health_client import local_address

    if options.watch is not None and not health.SHORTEST_WATCH_S <= options.watch <= health.LONGEST_WATCH_S:
        cure = f"Use {health.SHORTEST_WATCH_S:g} to {health.LONGEST_WATCH_S:g} seconds"
        raise ConfigError("--watch", "is out of range", cure)
    url, token = _daemon(options)
    is_json = options.format == "json"

    def read() -> health.HealthReading:
        return health.read_health(url, token)

    if options.endpoint is not None:
        with health.open_endpoint(read, options.endpoint) as server:
            host, port = server.server_address[:2]
            print(f"the health of {url} is at http://{local_address(str(host), int(port))}/health", flush=True)
            server.serve_forever()
    if options.watch is not None:
        in_text = health.watch(read, options.watch, in_place=sys.stdout.isatty())
        for text in health.watch_as_json(read, options.watch) if is_json else in_text:
            print(text, flush=True)
    try:
        reading = read()
    except ExaiError as error:
        if is_json:
            print(json.dumps(health.unavailable(error), indent=2))
        raise
    print(json.dumps(reading.as_json(), indent=2) if is_json else shown(reading.as_text(), sys.stdout))
    return OK if reading.healthy else FAILED


def _daemon(options: argparse.Namespace) -> tuple[str, str | None]:
    """Return the URL of the daemon's health route, and the token for it."""
    from exai.cli.health_client import health_url, local_address

    if options.url:
        from exai.settings.environment import read_environment

        reading = read_environment()
        announce_env_file(reading)
        value = reading.find("EXAI_TOKEN")
        return health_url(options.url), value.text if value else None
    from exai.settings.credentials import check_daemon_token

    settings = read_settings()
    token = settings.connect.token or settings.server.token
    if token is not None:
        check_daemon_token(settings.reading, "EXAI_TOKEN" if settings.connect.token else "EXAI_SERVER__TOKEN")
    address = local_address(settings.server.host, settings.server.port)
    return health_url(address), token.get_secret_value() if token else None


def _config(options: argparse.Namespace) -> int:
    if options.check:
        from exai.cli.doctor import check_settings

        run(check_settings(read_settings(errors_only=True)))
        print("the settings are valid")
        return OK
    return show_settings(options.format)


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from exai.cli.doctor import examine, from_outside, table
    from exai.cli.supabase_checks import check_supabase
    from exai.doctor import unusable_settings
    from exai.logs import configure_logging
    from exai.monitoring.metrics import MetricsRecorder
    from exai.settings.load import LogSettings, load_settings

    # The problems of the examined libraries are in the findings; their log lines would only repeat them.
    configure_logging(LogSettings(level="error"))
    try:
        findings = from_outside(options.url) if options.url else run(examine(load_settings(), MetricsRecorder()))
        if options.supabase and not options.url:
            findings += run(check_supabase(load_settings(), options.workers))
        failed = FAILED
    except ConfigError as error:
        findings, failed = unusable_settings(error), MISCONFIGURED
    if options.format == "json":
        import json

        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(shown(table(findings), sys.stdout))
    return failed if any(finding.state == "fail" for finding in findings) else OK


def _drill(options: argparse.Namespace) -> int:
    from exai.cli.drill import breaker

    return breaker(options)


def _bench(options: argparse.Namespace) -> int:
    require_server("bench")
    from exai.bench.command import bench, bench_chat, bench_cloud, bench_door, bench_keys
    from exai.logs import configure_logging
    from exai.settings.load import LogSettings

    if not 0 <= options.latency_ms <= MAX_LATENCY_MS:
        raise ConfigError("--latency-ms", "is out of range", f"Use 0 to {MAX_LATENCY_MS}")
    if options.door and (options.here or options.scale or options.latency_ms):
        raise ConfigError("--door", "needs no servers", "Leave out --here, --scale and --latency-ms")
    if options.cloud and (options.door or options.scale):
        raise ConfigError("--cloud", "is a measurement of its own", "Leave out --door and --scale")
    if options.chat and (options.door or options.scale or options.cloud or options.latency_ms):
        raise ConfigError("--chat", "is a measurement of its own", "Leave out the other measurements and --latency-ms")
    configure_logging(LogSettings(level="error"))
    if options.keys:
        if options.here or options.scale or options.door or options.cloud or options.chat or options.latency_ms:
            raise ConfigError("--keys", "is a measurement of its own", "Leave out all others but --quick and --json")
        print(run(bench_keys(quick=options.quick, as_json_text=options.json, error=sys.stderr)))
        return OK
    if options.chat:
        print(run(bench_chat(here=options.here, quick=options.quick, as_json_text=options.json, error=sys.stderr)))
        return OK
    if options.cloud:
        plan = {"here": options.here, "quick": options.quick, "latency_ms": options.latency_ms}
        print(run(bench_cloud(**plan, as_json_text=options.json, error=sys.stderr)))
        return OK
    if options.door:
        print(run(bench_door(quick=options.quick, as_json_text=options.json, error=sys.stderr)))
        return OK
    print(
        run(
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


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "serve": _serve,
    "worker": _worker,
    "connect": _connect,
    "migrate": _migrate,
    "health": _health,
    "config": _config,
    "doctor": _doctor,
    "validate": store.validate,
    "drill": _drill,
    "chat": store.chat,
    "search": store.search,
    "show": store.show,
    "export": store.export,
    "import": store.import_file,
    "prune": store.prune,
    "blobs": store.blobs,
    "backup": store.backup,
    "restore": store.restore,
    "erase": store.erase,
    "rekey": store.rekey,
    "supabase": store.supabase,
    "bench": _bench,
    "version": _version,
}
