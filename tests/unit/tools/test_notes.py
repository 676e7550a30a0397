"""Notes to the caller: in the structure and in the text, once in each."""

from __future__ import annotations

from typing import Any

from exai.mcp.core.protocol import CallContext
from exai.mcp.features.results import call_result
from exai.models import LOCAL_OWNER
from exai.providers.naming import SET_A_KEY
from exai.providers.opening import open_providers
from exai.settings.load import LimitSettings, ProvidersSettings
from exai.tools.conversations.transfer import ImportOutput
from exai.tools.status import ListModelsArguments, status_tools
from tests.support.mcp_server import Recording


async def _silent(sentence: str) -> None:
    pass


async def _no_budgets(owner: str) -> tuple[()]:
    return ()


async def test_both_forms_of_the_list_of_models_say_how_to_configure_one() -> None:
    """Clients that show the structure alone would show a model nothing that it can advise."""
    async with open_providers(ProvidersSettings(), recorder=Recording(), limits=LimitSettings()) as providers:
        spec = status_tools(providers, dict, _no_budgets)[0]
        result: Any = call_result(await spec.handler(ListModelsArguments(), CallContext(LOCAL_OWNER, "1", _silent)))
    note = f"No model is configured. {SET_A_KEY}"
    assert result["structuredContent"]["notes"] == [note]
    assert result["content"][0]["text"].startswith(f"note: {note}\n\ndefault: None\n")


def test_the_text_of_an_import_has_each_note_once() -> None:
    """The notes before the body are made from the structure."""
    note = "a.txt was not stored"
    output = ImportOutput(continuation_id="c", messages=3, stored=2, revision=5, restored=True, notes=[note])
    result: Any = call_result(output)
    text = result["content"][0]["text"]
    assert text.count(note) == 1
    assert text.endswith(
        "2 of 3 messages were stored; the others existed already.\nThe conversation was deleted and has been restored."
    )
    assert result["structuredContent"]["notes"] == [note]
