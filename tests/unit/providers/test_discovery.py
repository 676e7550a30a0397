"""Errors of an endpoint's list of models affect only the query of that list."""

from __future__ import annotations

import httpx
import pytest
from structlog.testing import capture_logs

from exai.providers.base import Clocks
from exai.providers.discovery import Discovery
from exai.providers.families.kimi import KIMI


@pytest.mark.parametrize("error", [httpx.DecodingError("bad gzip"), httpx.ConnectError("gone"), ZeroDivisionError("x")])
async def test_an_answer_that_cannot_be_read_is_a_note(error: Exception) -> None:
    """The background task that asks all endpoints would end the process otherwise."""

    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        discovery = Discovery(KIMI, "http://127.0.0.1/v1", "", client, Clocks())
        with capture_logs() as logged:
            await discovery.refresh()
    assert discovery.has_answered
    assert discovery.problem
    assert len(logged) == isinstance(error, ZeroDivisionError)
