"""A daemon with a provider, and a model for the clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import daemon, provider
from tests.clients.model_server import ModelServer, model_server

__all__ = ["daemon", "provider"]


@pytest.fixture
def model() -> Iterator[ModelServer]:
    """A model that asks twice."""
    with model_server() as server:
        yield server
