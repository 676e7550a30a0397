"""`exai doctor`: the checks of an installation and of its port, as a table.

Invariant: it always ends with a list. Each check has a time limit, and a check without a result is a finding too.
"""

from __future__ import annotations

import asyncio
import socket

from exai import doctor
from exai.backends import roots_of
from exai.cache.redis.address import parse_address as parse_cache
from exai.cli.health_client import ask_health, local_address
from exai.cli.outside import check_from_outside
from exai.conversations.turns.budgets import pricing_of
from exai.db.driver.address import parse_address as parse_database
from exai.doctor import LOOK_LIMIT_S, LOOKS
from exai.errors import ConfigError, StartupError
from exai.models import Finding, Recorder
from exai.monitoring.metrics import MetricsRecorder
from exai.program import program
from exai.providers.embeddings import open_embedder
from exai.providers.opening import open_providers
from exai.settings.credentials import check_daemon_token
from exai.settings.environment import read_environment
from exai.settings.load import Settings


async def examine(settings: Settings, recorder: Recorder, limit_s: float = LOOK_LIMIT_S) -> list[Finding]:
    """Run all checks concurrently, each within `limit_s`, and return the findings in a fixed order."""
    names = list(LOOKS)
    before = names.index("postgres")
    looks = {
        **{name: LOOKS[name] for name in names[:before]},
        "port": _port,
        **{name: LOOKS[name] for name in names[before:]},
    }
    return await doctor.examine(settings, recorder, looks, limit_s)


async def check_settings(settings: Settings) -> None:
    """Raise `ConfigError` for what only a part of the daemon finds wrong: an address, a root, a model, a provider.

    Connects to nothing, and starts nothing.
    """
    database, cache = settings.database, settings.cache.url
    addresses = {
        "EXAI_DATABASE__URL": database.url,
        "EXAI_DATABASE__MIGRATION_URL": database.migration_url,
        "EXAI_REQUESTS__LISTEN_URL": settings.requests.listen_url,
    }
    for name, url in addresses.items():
        if url is not None:
            parse_database(url.get_secret_value(), name)
    if cache is not None and not isinstance(cache, str):
        parse_cache(cache.get_secret_value())
    roots_of(settings)
    recorder, pricing = MetricsRecorder(), pricing_of(settings.budgets)
    async with (
        open_providers(settings.providers, recorder=recorder, limits=settings.limits, pricing=pricing),
        open_embedder(settings.answers, settings.providers, recorder, pricing),
    ):
        pass


def from_outside(url: str) -> list[Finding]:
    """Return the findings about a daemon at `url`, with the token of `exai connect`."""
    reading = read_environment()
    token = reading.find("EXAI_TOKEN")
    return check_from_outside(url, token.text if token else None)


def table(findings: list[Finding]) -> str:
    """Return findings as a table of part, state and detail, each cure on a line of its own under its problem."""
    width = max(len(each.part) for each in findings)
    lines = []
    for each in findings:
        lines.append(f"{each.part:<{width}}  {each.state:<4}  {each.detail}")
        if each.cure:
            lines.append(f"{'':<{width}}        -> {each.cure}")
    return "\n".join(lines)


async def _port(settings: Settings, _: Recorder) -> list[Finding]:
    part, server = "port", settings.server
    address = local_address(server.host, server.port)
    if server.port == 0:
        return [Finding(part, "ok", "any free one")]
    token = server.token.get_secret_value() if server.token else None
    try:
        if token is not None:
            check_daemon_token(settings.reading, "EXAI_SERVER__TOKEN")
        answer = await asyncio.to_thread(ask_health, f"http://{address}/health", token, LOOK_LIMIT_S / 2)
        version = f" {answer.body['version']}" if "version" in answer.body else ""
        seen = f"{address} is held by EXAI{version}: {answer.body.get('status')}"
        if answer.healthy:
            return [Finding(part, "ok", seen)]
        return [
            Finding(part, "fail", seen, f"`{program()} health` says which part is down; what follows here says why")
        ]
    except ConfigError as error:
        return [Finding(part, "warn", f"{address}: {error.problem}", error.cure)]
    except StartupError:
        pass
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server.host, server.port))
    except OSError as error:
        return [Finding(part, "fail", f"{address}: {error.strerror}", "Stop what holds it, or set EXAI_SERVER__PORT")]
    return [Finding(part, "ok", f"{address} is free")]
