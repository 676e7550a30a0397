"""Check EXAI and other stores against conversation-store-conformance, and print one table (`make conformance-stores`).

EXAI is checked in the process and at a daemon, whose connections go through a proxy that loses replies. Other stores
run in an environment of their own. Exits with 1 if EXAI breaks a rule.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from conversation_store_conformance import as_table, check
from tests.conftest import fresh
from tests.stores import exai_stores
from tests.stores.exai_stores import DAEMON, token_of
from tests.support.backend import Backend, choose, flush
from tests.support.daemon import Daemon, start_daemon
from tests.support.fault_proxy import FaultProxy

ROOT = Path(__file__).resolve().parents[2]
OWNERS = ("local", "alice", "bob", "a", "a/b", "a:b", "A")
PEERS = {
    "openai_sqlite": "OpenAI Agents SQLiteSession",
    "openai_sqlalchemy": "OpenAI Agents SQLAlchemySession (Postgres)",
    "openai_redis": "OpenAI Agents RedisSession",
    "claude_memory": "Claude Agent InMemorySessionStore",
    "adk_database": "ADK DatabaseSessionService (Postgres)",
    "adk_memory": "ADK InMemorySessionService",
    "pydantic_memory": "Pydantic AI InMemoryConversationStore",
}
PEER_LIMIT_S = 900
BEGIN, END = "<!-- measured -->", "<!-- end -->"

Json = dict[str, Any]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="of the environment of the other stores; without it only EXAI is checked")
    parser.add_argument("--rules", action="append", metavar="PATTERN")
    parser.add_argument("--only", help="one store, by its name in this module")
    parser.add_argument("--reports", type=Path, help="a directory for the reports in JSON")
    parser.add_argument("--write", type=Path, help="a page, which is given the table between its marks")
    options = parser.parse_args()
    rules = options.rules or ["*"]
    reports: list[Json] = []
    backend = Backend(choose(os.environ), None)
    with ExitStack() as stack:
        stack.callback(backend.close)
        backend.start()
        if options.only in (None, "in_process"):
            reports.append(_exai_in_process(backend, rules))
        if options.only in (None, "at_daemon"):
            reports.append(_exai_at_daemon(backend, rules))
        for name, title in PEERS.items() if options.python else ():
            if options.only in (None, name):
                reports.append(_peer(options.python, name, title, backend, rules))
    for report in reports:
        if options.reports is not None:
            options.reports.mkdir(parents=True, exist_ok=True)
            file = options.reports / f"{report['store'].replace(' ', '-')}.json"
            file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    table = as_table(reports)
    print(table)
    if options.write is not None:
        _write(options.write, table, reports)
    broken = [each for each in reports if each["store"].startswith("EXAI") and not each["passed"]]
    return 1 if broken else 0


def _write(page: Path, table: str, reports: list[Json]) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    costs = [
        f"| {name} | "
        + " | ".join(_cost(report["costs"].get(name, {})) for report in reports if report["costs"])
        + " |"
        for name in reports[0]["costs"]
    ]
    names = [report["store"] for report in reports if report["costs"]]
    head = [f"Measured on {datetime.now(UTC):%Y-%m-%d}.", "", table]
    if costs:
        head += ["", f"| call, messages | {' | '.join(names)} |", f"|---|{'---|' * len(names)}", *costs]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(head) + f"\n{END}{after}", encoding="utf-8")


def _cost(cost: Mapping[str, float]) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in cost.items()) or "-"


def _exai_in_process(backend: Backend, rules: list[str]) -> Json:
    with _settings(backend) as settings:
        os.environ.update(settings)

        async def lose_cache() -> None:
            await asyncio.to_thread(flush, backend.redis_url)

        exai_stores.HOOKS = exai_stores.Hooks(lose_cache=lose_cache)
        spec = "tests.stores.exai_stores:in_process"
        return asyncio.run(check(spec, name="EXAI in the process", rules=rules, costs=True)).as_json()


def _exai_at_daemon(backend: Backend, rules: list[str]) -> Json:
    with _settings(backend) as settings, ExitStack() as daemons:
        tokens = {"EXAI_SERVER__TOKENS": json.dumps({owner: token_of(owner) for owner in OWNERS})}

        def started() -> Daemon:
            return daemons.enter_context(start_daemon({**settings, **tokens}))

        async def run() -> Json:
            daemon = await asyncio.to_thread(started)
            async with FaultProxy(("127.0.0.1", daemon.port)) as proxy:
                os.environ[DAEMON] = f"http://127.0.0.1:{proxy.port}"

                async def lose_reply() -> None:
                    proxy.drop_reply_to(b"conversations.append")

                async def restart() -> None:
                    nonlocal daemon
                    await asyncio.to_thread(daemon.kill)
                    proxy.reset()
                    daemon = await asyncio.to_thread(started)
                    proxy.upstream = ("127.0.0.1", daemon.port)

                exai_stores.HOOKS = exai_stores.Hooks(lose_reply=lose_reply, restart=restart)
                spec = "tests.stores.exai_stores:at_daemon"
                return (await check(spec, name="EXAI at a daemon", rules=rules, costs=True)).as_json()

        return asyncio.run(run())


@contextmanager
def _settings(backend: Backend) -> Iterator[Mapping[str, str]]:
    flush(backend.redis_url)
    with tempfile.TemporaryDirectory(prefix="exai-stores-") as directory:
        for url in fresh(backend.databases, migrated=True):
            yield {"EXAI_DATA_DIR": directory, "EXAI_DATABASE__URL": url, "EXAI_CACHE__URL": backend.redis_url}


def _peer(python: str, name: str, title: str, backend: Backend, rules: list[str]) -> Json:
    patterns = [argument for rule in rules for argument in ("--rules", rule)]
    command = [python, "-m", "conversation_store_conformance", "check", f"tests.stores.peers:{name}"]
    for url in fresh(backend.databases, migrated=False):
        places = {"EXAI_STORES_URL": _for_sqlalchemy(url), "EXAI_STORES_REDIS": backend.redis_url}
        done = subprocess.run(
            [*command, "--name", title, "--format", "json", *patterns],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "conformance"), str(ROOT))), **places},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PEER_LIMIT_S,
        )
        try:
            report: Json = json.loads(done.stdout)
        except json.JSONDecodeError:
            raise SystemExit(f"{title} could not be checked:\n{done.stderr[-2_000:]}") from None
        return report
    raise AssertionError("one database is made")


def _for_sqlalchemy(url: str) -> str:
    """Return an address of Postgres as SQLAlchemy reads it, with asyncpg."""
    parts = urlsplit(url)
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name in ("host", "port")])
    return parts._replace(scheme="postgresql+asyncpg", query=query).geturl()


if __name__ == "__main__":
    sys.exit(main())
