"""One daemon with two owners for each attack; every test of this directory is an attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attack import TOKENS, Target
from tests.support.daemon import start_daemon

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.attack)


@pytest.fixture
def target_settings() -> dict[str, str]:
    """Further variables of the daemon; a test module may override this fixture."""
    return {}


@pytest.fixture
def target(postgres_url: str, redis_url: str, tmp_path: Path, target_settings: dict[str, str]) -> Iterator[Target]:
    """A daemon on the suite's servers that knows alice and mallory."""
    settings = {
        "EXAI_DATA_DIR": str(tmp_path),
        "EXAI_DATABASE__URL": postgres_url,
        "EXAI_CACHE__URL": redis_url,
        "EXAI_SERVER__TOKENS": TOKENS,
        **target_settings,
    }
    with start_daemon(settings) as daemon:
        yield Target(daemon)
