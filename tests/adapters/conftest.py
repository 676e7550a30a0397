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


@pytest.fixture(scope="module")
def encrypted(backend: Backend, settings: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Settings of another database, whose content is encrypted."""
    for url in fresh(backend.databases, migrated=True):
        yield {**settings, "EXAI_DATABASE__URL": url, "EXAI_STORE__KEYS": f"k1:{'00' * 32}"}


@pytest.fixture(params=["process", "encrypted", "daemon"])
async def store(
    request: pytest.FixtureRequest, settings: Mapping[str, str], encrypted: Mapping[str, str]
) -> AsyncIterator[Store]:
    """The same database in the process and at a daemon, and one with encryption."""
    if request.param != "daemon":
        async with open_app(load_settings(dict(settings if request.param == "process" else encrypted))) as app:
            yield app
    else:
        async with connect(request.getfixturevalue("address")) as client:
            yield client
