"""Logs: one line per event on standard error, as text at a terminal and as JSON otherwise.

Invariant: no line holds a key, token or password. Every value passes `redact` after exceptions have been
rendered and before anything is written, whether it comes from EXAI or from a library. EXAI's own lines bypass the
standard library's formatting, and those of one iteration of the event loop are formatted and written together, which
costs less than one by one. `info_each` serves the one line of each request: 2 to 11 us, where a call of structlog costs
11 to 18 us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple, TextIO

import orjson
import structlog
from structlog.contextvars import STRUCTLOG_KEY_PREFIX
from structlog.typing import EventDict, Processor, WrappedLogger

from exai.log_sampling import LogSampling
from exai.settings.addresses import redact as redact_address
from exai.settings.load import LogLevel, LogSettings

MAX_VALUE_CHARS = 16_384
MAX_SECRET_CHARS = 2_048
"""Maximum length at which a secret is recognized even where a value is cut; part of a longer one may be logged."""

MAX_WORD_CHARS = 32
MAX_WAITING_LINES = 1_000
"""Maximum number of lines held until the end of an iteration; a warning is written at once, after all held lines."""

MAX_DEPTH = 6
_PLAIN = (bool, int, float, type(None))
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
_UNCHANGING = frozenset({str, *_PLAIN})
_JSON = orjson.OPT_UTC_Z
_JSON_LINE = _JSON | orjson.OPT_APPEND_NEWLINE
HIDDEN = "***"

LIBRARY_LEVELS = {
    # EXAI logs two lines per connection itself; these loggers would add theirs, and a traceback per lost peer.
    "websockets": logging.WARNING,
    "uvicorn": logging.WARNING,
    "uvicorn.access": logging.ERROR,
    # One line per HTTP request to a provider.
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
    "alembic": logging.WARNING,
    "sqlalchemy": logging.WARNING,
}

_SECRET_NAME = re.compile(r"(?i)^(proxy-)?authorization$|api_?-?key|^(x-)?token$|access_token|password|secret|cookie")
_SECRET_TEXT = (
    # "Authorization: Bearer x", 'apikey=x', '"api_key": "x"', "PGPASSWORD=x" anywhere in a text.
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic)\s+)?[^\s'\",;]+"), rf"\1{HIDDEN}"),
    (
        re.compile(r"(?i)(api[_-]?key|password|passwd|secret|(?<![a-z0-9])token)(['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+"),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{6,}"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{4,2000}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"), HIDDEN),
    # The older form of GLM's keys: 32 hexadecimal digits, a dot, a secret.
    (re.compile(r"\b[0-9a-f]{32}\.[A-Za-z0-9]{10,}"), HIDDEN),
)
# Repetitions in these patterns are bounded if a failed match would be retried from each following character.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[^\s'\"<>]+", re.IGNORECASE)
_SUSPICIOUS = re.compile(r"(?i)://|authorization|api[_-]?key|passw|secret|token|bearer|sk-|eyj|[0-9a-f]{32}\.")
"""Matches wherever one of the patterns above does, in a fraction of their time."""


_sampling = [LogSampling(1.0)]


def log_to_stderr() -> None:
    """Send log lines to standard error if the program has not configured structlog: its output is its own."""
    if not structlog.is_configured():
        # structlog's own tracebacks have the values of variables, such as messages and keys.
        stamp = structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False)
        structlog.configure([*_cleaned(), stamp, _as_text(sys.stderr)], logger_factory=_stderr_logger)


def _cleaned() -> list[Processor]:
    clean: list[Processor] = [structlog.processors.format_exc_info, redact, structlog.processors.add_log_level]
    return [structlog.contextvars.merge_contextvars, structlog.processors.StackInfoRenderer(), *clean]


def _as_text(stream: TextIO) -> Processor:
    traceback = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0, exception_formatter=traceback)


def _stderr_logger(*_: object) -> WrappedLogger:
    return structlog.PrintLogger(sys.stderr)


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send all log lines of this process, of EXAI and of libraries, to `stream` (default: standard error).

    May be called again; the last call applies. Fields bound with `structlog.contextvars` are on every line of their
    context, including lines of libraries.
    """
    stream = stream or sys.stderr
    as_text = settings.format == "text" or (settings.format == "auto" and stream.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        *_cleaned(),
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    text_renderer = _with_formatted_time(_as_text(stream)) if as_text else None
    handler = _Handler(stream, _as_json_lines if text_renderer is None else partial(_as_lines, text_renderer))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, text_renderer or _as_json],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quietest in LIBRARY_LEVELS.items():
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(level, quietest))
    logging.captureWarnings(True)
    _sampling[:] = [LogSampling(settings.sample)]
    structlog.configure(
        processors=[_to_entry],
        logger_factory=lambda *names: _EntryLogger(handler, names[0] if names else "exai"),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )


def log_at(settings: LogSettings, level: LogLevel) -> None:
    """Change the level of all log lines from now on, and log that."""
    configure_logging(settings.model_copy(update={"level": level}))
    structlog.get_logger(__name__).warning("log_level_changed", to=level)


def info_sampled(
    logger: str, event: str, common: Mapping[str, object], lines: Iterable[EventDict], *, is_error: bool
) -> None:
    """Log as `info_each` those lines that the sampling chooses."""
    if structlog.get_config()["processors"] != [_to_entry]:
        info_each(logger, event, common, lines)
    elif logging.getLogger().isEnabledFor(logging.INFO):
        info_each(logger, event, common, _sampling[-1].select(list(lines), is_error=is_error))


def info_each(logger: str, event: str, common: Mapping[str, object], lines: Iterable[EventDict]) -> None:
    """Log `{**common, **line}` for each of `lines`, as `structlog.get_logger(logger).info` would, and write at once.

    The lines share one time and context, and may be modified. `lines` is not iterated if the level is disabled.
    """
    configured = structlog.get_config()
    # A program that uses EXAI as a library, or a test that captures lines, has configured structlog itself.
    if configured["processors"] != [_to_entry]:
        log = structlog.get_logger(logger)
        for line in lines:
            log.info(event, **{**common, **line})
    elif lines and logging.getLogger().isEnabledFor(logging.INFO):
        entry = _LogEntry(logger, "info", {**common, "event": event}, list(lines), copy_context(), datetime.now(UTC))
        configured["logger_factory"](logger).write_now(entry)


class _LogEntry(NamedTuple):
    """Events logged together, usually one; `common` is part of each."""

    logger: str
    level: str
    common: EventDict
    events: Sequence[EventDict]
    context: Context
    at: datetime


class _Handler(logging.StreamHandler[TextIO]):
    """Writes a library's line at once, and EXAI's lines together at the end of an iteration of the loop, in order.

    Held lines are written before the process exits, unless it is killed. A line that cannot be written is lost.
    """

    def __init__(self, stream: TextIO, lines_of: Callable[[Sequence[_LogEntry]], str]) -> None:
        super().__init__(stream)
        self._lines_of = lines_of
        self._waiting: deque[_LogEntry] = deque()
        self._flushing_loop: asyncio.AbstractEventLoop | None = None

    def take(self, entry: _LogEntry, *, can_wait: bool) -> None:
        """Write events, at the latest at the end of this iteration of the event loop."""
        self._waiting.append(entry)
        if not can_wait or len(self._waiting) >= MAX_WAITING_LINES or not self._schedule_flush():
            self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a library's line after all held lines."""
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        """Write all held lines."""
        self.acquire()
        try:
            self._flushing_loop = None
            # Other threads may append lines meanwhile; this flush or the next one writes them.
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            text = self._lines_of(waiting)
            with contextlib.suppress(OSError, ValueError):
                self.stream.write(text)
                self.stream.flush()
        finally:
            self.release()

    def _schedule_flush(self) -> bool:
        """Schedule a flush for the end of this iteration, once; return False without a running event loop."""
        if self._flushing_loop is not None:
            return self._flushing_loop.is_running()
        try:
            self._flushing_loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._flushing_loop.call_soon(self.flush)
        return True


class _EntryLogger:
    """Passes the entries of one logger to the handler, as structlog's underlying logger."""

    def __init__(self, handler: _Handler, name: str) -> None:
        self._handler = handler
        self.name = name

    def write_later(self, entry: _LogEntry) -> None:
        """Write one event later, if its values cannot change until then; else now."""
        [event] = entry.events
        can_wait = _UNCHANGING.issuperset(map(type, event.values())) and "exc_info" not in event
        self._handler.take(entry, can_wait=can_wait)

    def write_now(self, entry: _LogEntry) -> None:
        """Write the events now."""
        self._handler.take(entry, can_wait=False)

    debug = info = write_later
    warning = error = critical = write_now


def _to_entry(logger: _EntryLogger, method: str, event: EventDict) -> tuple[tuple[_LogEntry], dict[str, object]]:
    return (_LogEntry(logger.name, method, {}, (event,), copy_context(), datetime.now(UTC)),), {}


def _parts(entry: _LogEntry) -> tuple[EventDict, list[EventDict], EventDict]:
    """Return what begins each event, the events, and what ends each. Replaces the standard chain of processors."""
    bound = {
        variable.name.removeprefix(STRUCTLOG_KEY_PREFIX): value
        for variable, value in entry.context.items()
        if variable.name.startswith(STRUCTLOG_KEY_PREFIX) and value is not Ellipsis
    }
    common = redact(None, entry.level, {**bound, **entry.common})
    own = {"level": entry.level, "logger": entry.logger, "timestamp": entry.at}
    return common, [redact(None, entry.level, _with_trace(entry.level, event)) for event in entry.events], own


def _with_trace(level: str, event: EventDict) -> EventDict:
    if "exc_info" not in event and "stack_info" not in event:
        return event
    event = structlog.processors.StackInfoRenderer()(None, level, event)
    return structlog.processors.format_exc_info(None, level, event)


def _as_lines(render: Processor, entries: Iterable[_LogEntry]) -> str:
    lines: list[str] = []
    for common, events, own in map(_parts, entries):
        lines += [f"{render(None, own['level'], {**common, **event, **own})!s}\n" for event in events]
    return "".join(lines)


def _as_json_lines(entries: Sequence[_LogEntry]) -> str:
    """Return the lines of `_as_lines` with `_as_json`, using the encoder's own line ends."""
    try:
        return b"".join([part for entry in entries for part in _json_lines(*_parts(entry))]).decode()
    except TypeError:
        return _as_lines(_as_json, entries)


def _json_lines(common: EventDict, events: list[EventDict], own: EventDict) -> list[bytes]:
    """Return the lines of an entry, in parts that only have to be joined."""
    encode = orjson.dumps
    beside = {*common, *own}
    are_apart = len(beside) == len(common) + len(own) and beside.isdisjoint(chain.from_iterable(events))
    if len(events) == 1 or not are_apart or not all(events):
        return [encode({**common, **event, **own}, default=repr, option=_JSON_LINE) for event in events]
    # What they have in common is encoded once: most lines are about the calls that one iteration answers.
    first = encode(common, default=repr, option=_JSON)[:-1] + b","
    last = b"," + encode(own, default=repr, option=_JSON_LINE)[1:]
    parts: list[bytes] = []
    for event in events:
        parts += (first, encode(event, default=repr, option=_JSON)[1:-1], last)
    return parts


def _as_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    del logger, method
    try:
        return orjson.dumps(event, default=repr, option=_JSON).decode()
    except TypeError:  # an integer beyond 64 bits, half a surrogate pair
        return json.dumps(event, default=_to_text)


def _to_text(value: object) -> str:
    return value.strftime(TIME_FORMAT) if isinstance(value, datetime) else repr(value)


def _with_formatted_time(render: Processor) -> Processor:
    """Return a renderer that accepts the time as a datetime, as in EXAI's lines, as well as a text."""

    def rendered(logger: WrappedLogger, method: str, event: EventDict) -> str:
        if isinstance(at := event.get("timestamp"), datetime):
            event["timestamp"] = at.strftime(TIME_FORMAT)
        return str(render(logger, method, event))

    return rendered


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace likely secrets in every value of an event, at any depth; long values are cut."""
    del logger, method
    for name, value in event.items():
        kind = type(value)
        if kind is str and len(value) <= MAX_WORD_CHARS:
            if not value.isalnum():
                event[name] = _clean_word(name, value)
            elif _is_secret(name):
                event[name] = HIDDEN
        elif kind not in _PLAIN and not name.startswith("_"):
            event[name] = _clean(name, value, 0)
    return event


def redact_text(text: str) -> str:
    """Return `text` with keys, tokens and passwords of addresses replaced by `***`."""
    # Each of the patterns needs a character that is neither a letter nor a digit.
    if text.isalnum() or _SUSPICIOUS.search(text) is None:
        return text
    if "://" in text:
        text = _ADDRESS.sub(lambda match: redact_address(match[0]), text)
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=1_024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


@lru_cache(maxsize=1_024)
def _clean_word(name: str, value: str) -> str:
    """Return a short text redacted; cached, because names and codes recur."""
    return HIDDEN if _is_secret(name) else redact_text(value)


def _clean(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if _is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        return _clean_text(value)
    return "..." if depth >= MAX_DEPTH else _clean_inside(value, depth)


def _clean_inside(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean("", each, depth + 1) for each in value]
    return _clean_text(str(value))


def _clean_text(text: str) -> str:
    if len(text) <= MAX_VALUE_CHARS:
        return redact_text(text)
    # The first half of a secret may not look like one, so more is examined than is kept.
    clean = redact_text(text[: MAX_VALUE_CHARS + MAX_SECRET_CHARS])
    return f"{clean[: min(MAX_VALUE_CHARS, len(clean) - MAX_SECRET_CHARS)]}... ({len(text)} characters)"
