"""EXAI keeps the rules of conversation-store-conformance; `make conformance-stores` checks all of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conversation_store_conformance import Report, check
from exai.app import open_app
from exai.settings.load import load_settings
from tests.stores.exai_stores import DAEMON, ExaiStore, token_of
from tests.stores.run import OWNERS
from tests.support.daemon import start_daemon

FAST = ("order.[abe]*", "reads.[anru]*", "retries.*", "concurrency.[dops]*", "deletion.*", "state.*", "histories.*")
"""Rules in one process, without those that write much."""

AT_DAEMON = ("retries.*", "deletion.*", "state.*", "histories.*")


@pytest.fixture
def settings(postgres_url: str, redis_url: str, tmp_path: Path) -> Mapping[str, str]:
    return {"EXAI_DATA_DIR": str(tmp_path), "EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url}


async def test_fast_rules_are_kept_in_the_process(settings: Mapping[str, str]) -> None:
    async with open_app(load_settings(dict(settings))) as app:

        @asynccontextmanager
        async def opened(place: str) -> AsyncIterator[ExaiStore]:
            yield ExaiStore(app)

        _assert_kept(await check(opened, rules=FAST))


async def test_fast_rules_are_kept_at_a_daemon(settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = json.dumps({owner: token_of(owner) for owner in OWNERS})
    with start_daemon({**settings, "EXAI_SERVER__TOKENS": tokens}) as daemon:
        monkeypatch.setenv(DAEMON, f"http://127.0.0.1:{daemon.port}")
        _assert_kept(await check("tests.stores.exai_stores:at_daemon", rules=AT_DAEMON), least=20)


def _assert_kept(report: Report, least: int = 35) -> None:
    assert report.passed, report.as_text()
    assert report.counts["passed"] >= least
