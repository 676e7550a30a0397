"""Applications with keys, on real servers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import SecretStr

from exai.settings.load import StoreSettings
from tests.integration.conversations.conftest import Rig, open_rig


def key(name: str) -> str:
    """A key of that name, as the setting has it."""
    return f"{name}:{base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()}"


def store_of(*names: str, **others: Any) -> StoreSettings:
    """The settings of a store with these keys, the newest first."""
    written = ",".join(name if name == "plain" else key(name) for name in names)
    return StoreSettings(keys=SecretStr(written) if names else None, **others)


class OpenRig(Protocol):
    """Opens an application with the keys of these names on the database and the cache of a test."""

    def __call__(self, *names: str, **others: Any) -> AbstractAsyncContextManager[Rig]: ...


@pytest.fixture
def with_keys(postgres_url: str, redis_url: str, tmp_path: Path) -> OpenRig:
    """Open applications on the same servers, one after the other or at once."""

    def opened(*names: str, **others: Any) -> AbstractAsyncContextManager[Rig]:
        return open_rig(postgres_url, redis_url, tmp_path, store=store_of(*names, **others))

    return opened


@pytest.fixture
async def rig(with_keys: OpenRig) -> AsyncIterator[Rig]:
    """An application with one key."""
    async with with_keys("k1") as opened_rig:
        yield opened_rig
