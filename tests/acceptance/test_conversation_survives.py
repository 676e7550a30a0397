"""A conversation survives a power cut: a real client, daemon and provider call, end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.client import call, connect
from tests.support.daemon import start_daemon
from tests.support.provider_server import ProviderServer, Reply, glm_answer, kimi_answer


@pytest.mark.parametrize(("family", "answer"), [("KIMI", kimi_answer), ("GLM", glm_answer)])
async def test_conversation_continues_after_sigkill(family: str, answer: Callable[..., Reply], tmp_path: Path) -> None:
    """Acknowledged messages survive the kill, and the model receives each exactly once, in order."""
    async with ProviderServer() as provider:
        settings = {
            "EXAI_DATA_DIR": str(tmp_path / "data"),
            f"EXAI_PROVIDERS__{family}__API_KEY": "sk-test",
            f"EXAI_PROVIDERS__{family}__BASE_URL": provider.base_url,
        }
        provider.script(
            answer("The answer is four.", reasoning="two and two"), answer("As I said: four.", reasoning="again")
        )
        with start_daemon(settings) as daemon:
            async with connect(daemon.url) as session:
                tools = {tool.name for tool in (await session.list_tools()).tools}
                first = await call(session, "chat", prompt="What is two and two?")
                daemon.kill()
        with start_daemon(settings) as daemon:
            async with connect(daemon.url) as session:
                continued = first["continuation_id"]
                second = await call(session, "chat", prompt="Are you sure?", continuation_id=continued)
                page = await call(session, "conversation_get", continuation_id=continued)
            assert daemon.stop() == 0

    own = {"conversation_append", "conversation_get", "conversation_list"}
    assert {"chat", "listmodels", "status", "version", *own} <= tools
    assert first["content"] == "The answer is four."
    assert first["usage"]["input_tokens"] == 11
    assert first["usage"]["cached_tokens"] == 4
    assert provider.chats[-1].body["messages"] == [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "The answer is four."},
        {"role": "user", "content": "Are you sure?"},
    ]
    assert second["continuation_id"] == continued
    assert [(message["seq"], message["role"], message["content"]) for message in page["messages"]] == [
        (1, "user", "What is two and two?"),
        (2, "assistant", "The answer is four."),
        (3, "user", "Are you sure?"),
        (4, "assistant", "As I said: four."),
    ]


async def test_prompt_grows_linearly_over_six_exchanges(tmp_path: Path) -> None:
    """The run that doubled an ancestor's prompt each time: 500 character questions, 2,000 character answers."""
    async with ProviderServer() as provider:
        provider.script(*(kimi_answer("a" * 2_000, reasoning="") for _ in range(6)))
        settings = {
            "EXAI_DATA_DIR": str(tmp_path / "data"),
            "KIMI_API_KEY": "sk-test",
            "EXAI_PROVIDERS__KIMI__BASE_URL": provider.base_url,
        }
        with start_daemon(settings) as daemon:
            async with connect(daemon.url) as session:
                continued: dict[str, str] = {}
                for _ in range(6):
                    answer = await call(session, "chat", prompt="q" * 500, **continued)
                    continued = {"continuation_id": answer["continuation_id"]}
    sizes = [sum(len(part["content"]) for part in chat.body["messages"]) for chat in provider.chats]
    assert sizes == [500 + 2_500 * exchange for exchange in range(6)]
    assert [len(chat.body["messages"]) for chat in provider.chats] == [1, 3, 5, 7, 9, 11]
