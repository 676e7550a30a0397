"""The store as programs use it: whole applications on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fault.service import Servers, servers


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Servers]:
    """The suite's servers and a provider; applications are opened on them."""
    async with servers(postgres_url, redis_url, tmp_path) as opened:
        yield opened
