"""One daemon with its own servers and one provider for all acceptance tests that do not kill it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import fresh
from tests.support.backend import Backend
from tests.support.daemon import Daemon, start_daemon
from tests.support.provider_server import ProviderServer


@pytest.fixture
async def provider() -> AsyncIterator[ProviderServer]:
    """A provider on loopback; it echoes unless a test scripts it."""
    async with ProviderServer() as server:
        yield server


@pytest.fixture
def daemon(provider: ProviderServer, postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the suite's servers that asks `provider` as Kimi and as GLM; deadlines are short."""
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "KIMI_API_KEY": "sk-test",
        "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        "GLM_API_KEY": "glm-test",
        "EXAI_PROVIDERS__GLM__BASE_URL": provider.base_url,
        "EXAI_PROVIDERS__FIRST_TOKEN_TIMEOUT_S": "1.5",
        "EXAI_PROVIDERS__STREAM_IDLE_TIMEOUT_S": "1.5",
        "EXAI_PROVIDERS__MAX_ATTEMPTS": "2",
        "WORKFLOW_TOOL_TIMEOUT_SECS": "8",
    }
    with start_daemon(settings) as running:
        yield running


@pytest.fixture(scope="module")
def shared_daemon(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a cache or a provider for all tests of a module, which neither configure nor stop it."""
    for url in fresh(backend.databases, migrated=True):
        settings = {
            "EXAI_DATA_DIR": str(tmp_path_factory.mktemp("data")),
            "EXAI_DATABASE__URL": url,
            "EXAI_CACHE__URL": "off",
        }
        with start_daemon(settings) as running:
            yield running
