"""The quick start of the OpenAI Agents SDK with one line changed, as docs/adapters.md shows it."""

from __future__ import annotations

import pytest

pytest.importorskip(
    "agents.testing",
    reason="there is no agents.testing, which newer OpenAI Agents SDKs have; `make test-adapters` runs this",
)

import agents
from agents.testing import ScriptedModel, assistant_message

from exai.client import connect
from exai.models import LOCAL_OWNER, ContinuationId
from tests.adapters.quick_starts import run_quick_start


async def test_the_quick_start_remembers_and_other_clients_read_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ScriptedModel([[assistant_message("San Francisco")], [assistant_message("California")]])
    monkeypatch.setattr("agents.models.multi_provider.MultiProvider.get_model", lambda self, name: model)
    agents.set_tracing_disabled(True)
    await run_quick_start("openai", address)
    assert [item.get("role") for item in model.calls[-1].input] == ["user", "assistant", "user"]
    async with connect(address) as store:
        page = await store.conversations.read(LOCAL_OWNER, ContinuationId("conversation_123"))
    assert [message.content for message in page.messages] == [
        "What city is the Golden Gate Bridge in?",
        "San Francisco",
        "What state is it in?",
        "California",
    ]
