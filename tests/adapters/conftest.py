"""A store in the process and at a daemon for the tests of adapters, on one database per module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping

import pytest

from exai.app import open_app
from exai.client import connect
from exai.settings.load import load_settings
from exai.store import Store
from tests.conftest import fresh
from tests.support.backend import Backend
from tests.support.daemon import Daemon, start_daemon


@pytest.fixture(scope="module")
def settings(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    for url in fresh(backend.databases, migrated=True):
        yield {
            "EXAI_DATA_DIR": str(tmp_path_factory.mktemp("data")),
            "EXAI_DATABASE__URL": url,
            "EXAI_CACHE__URL": "off",
        }


@pytest.fixture(scope="module")
def running(settings: Mapping[str, str]) -> Iterator[Daemon]:
    with start_daemon(settings) as daemon:
        yield daemon


@pytest.fixture
def address(running: Daemon) -> str:
    return f"http://127.0.0.1:{running.port}"


@pytest.fixture(params=["process", "daemon"])
async def store(request: pytest.FixtureRequest, settings: Mapping[str, str]) -> AsyncIterator[Store]:
    """The same database, in the process and at a daemon."""
    if request.param == "process":
        async with open_app(load_settings(dict(settings))) as app:
            yield app
    else:
        async with connect(request.getfixturevalue("address")) as client:
            yield client
