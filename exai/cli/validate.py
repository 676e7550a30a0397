"""`exai validate`: checks the promises of the store on the configured database, and leaves nothing there."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict

from exai.cli.command import FAILED, OK, read_settings, run
from exai.db.validate import validate
from exai.doctor import embedded_address
from exai.errors import DatabaseUnavailable, StartupError
from exai.logs import configure_logging
from exai.models import Finding
from exai.monitoring.metrics import MetricsRecorder
from exai.settings.addresses import redact
from exai.settings.load import LogSettings, Settings

LIMIT_S = 30.0


def command(options: argparse.Namespace) -> int:
    """Run the command: one line for each promise. Returns the exit status."""
    settings = read_settings()
    configure_logging(LogSettings(level="error"))
    findings = run(_validated(settings))
    if options.format == "json":
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print("\n".join(map(_line, findings)))
    return OK if all(finding.state == "ok" for finding in findings) else FAILED


async def _validated(settings: Settings) -> list[Finding]:
    url = _url(settings)
    try:
        async with asyncio.timeout(LIMIT_S):
            return await validate(settings.database, url, MetricsRecorder())
    except TimeoutError as error:
        raise StartupError(redact(url), f"no answer within {LIMIT_S:g} s", "Check the network") from error
    except DatabaseUnavailable as error:
        raise StartupError(redact(url), error.problem, error.cure) from error


def _url(settings: Settings) -> str:
    if settings.database.url is not None:
        return settings.database.url.get_secret_value()
    found = embedded_address(settings, "postgres")
    if isinstance(found, Finding):
        raise StartupError("the embedded Postgres", found.detail, found.cure or "Start the daemon")
    return found


def _line(finding: Finding) -> str:
    word = "PASS" if finding.state == "ok" else "FAIL"
    cure = f". {finding.cure}" if finding.cure else ""
    return f"{word}  {finding.part:<16}  {finding.detail}{cure}"
