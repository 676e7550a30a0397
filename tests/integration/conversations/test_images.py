"""Images in prompts: sent to models that read them, within their limits, and named to all others."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from exai.app import open_app
from exai.conversations import ChatRequest, ChatResult
from exai.errors import InvalidArgument
from exai.files.loading import FileContent
from exai.models import LOCAL_OWNER, ContinuationId, FileId
from exai.settings.load import ProviderSettings
from tests.integration.conversations.conftest import Rig, open_rig
from tests.integration.conversations.test_prefix import prefix_changes
from tests.support.provider_server import kimi_error

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256))
SEES, BLIND = "kimi-k3", "small-8k"


@pytest.fixture
async def rig(postgres_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(postgres_url, redis_url, tmp_path) as opened:
        yield opened


async def put(rig: Rig, data: bytes, name: str = "shot.png", media_type: str = "image/png") -> FileId:
    (file,) = await rig.app.files.put(LOCAL_OWNER, [FileContent(name, data, media_type)])
    return file.id


async def ask(rig: Rig, model: str, files: list[FileId], name: ContinuationId | None = None) -> ChatResult:
    return await rig.app.chat.run(ChatRequest(LOCAL_OWNER, "What?", model=model, files=files, continuation_id=name))


def images_of(body: Any) -> list[str]:
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


async def test_image_is_sent_as_a_part_to_a_model_that_reads_images_in_every_turn(rig: Rig) -> None:
    """The text comes first, then the image under its name; later turns begin with the same bytes."""
    first = await ask(rig, SEES, [await put(rig, PNG)])
    await ask(rig, SEES, [], first.continuation_id)
    body = rig.provider.chats[0].body
    text = body["messages"][0]["content"][0]
    assert text["type"] == "text"
    assert "What?" in text["text"]
    assert 'name="shot.png"' in text["text"]
    assert images_of(body) == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"]
    assert images_of(rig.provider.chats[1].body) == images_of(body)
    assert prefix_changes(rig.provider) == 0
    assert first.notes == ()


async def test_model_without_images_receives_a_line_and_the_caller_a_note(rig: Rig) -> None:
    """Nothing is left out in silence."""
    result = await ask(rig, BLIND, [await put(rig, PNG)])
    (message,) = rig.provider.chats[0].body["messages"]
    assert isinstance(message["content"], str)
    assert "small-8k reads none" in message["content"]
    assert any("shot.png" in note and "small-8k reads none" in note for note in result.notes)


async def test_what_only_claims_to_be_an_image_is_not_sent_as_one(rig: Rig) -> None:
    """A provider refuses the whole request for one part that it cannot decode."""
    result = await ask(rig, SEES, [await put(rig, b"\x00\x01\x02" * 50)])
    assert images_of(rig.provider.chats[0].body) == []
    assert any("not a PNG" in note for note in result.notes)


async def test_image_beyond_the_models_size_is_left_out_with_a_note(rig: Rig) -> None:
    """The limit is the model's."""
    result = await ask(rig, SEES, [await put(rig, PNG + bytes(8_388_608))])
    assert images_of(rig.provider.chats[0].body) == []
    assert any("larger than the 8,388,608 bytes" in note for note in result.notes)


async def test_no_more_images_are_sent_than_the_model_reads(rig: Rig) -> None:
    """A question with more is refused; of earlier turns the newest are sent, in blocks."""
    images = [await put(rig, PNG + bytes([at])) for at in range(60)]
    with pytest.raises(InvalidArgument, match="50 images"):
        await ask(rig, SEES, images)
    assert rig.provider.chats == []
    first = await ask(rig, SEES, images[:30])
    await ask(rig, SEES, images[30:], first.continuation_id)
    sent = images_of(rig.provider.chats[1].body)
    assert len(sent) == 30
    assert sent[-1].endswith(base64.b64encode(PNG + bytes([59])).decode())


async def test_another_model_of_the_chain_that_reads_no_images_is_noted(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The answer is about a picture that its model has not seen."""
    async with open_rig(postgres_url, redis_url, tmp_path, fallback=[BLIND]) as rig:
        rig.provider.script(kimi_error(404, "resource_not_found_error"))
        result = await ask(rig, SEES, [await put(rig, PNG)])
        assert (result.model, result.instead_of) == (BLIND, SEES)
        assert "small-8k reads no images, so that the 1 of the prompt were left out" in result.notes
        assert images_of(rig.provider.chats[1].body) == []


def sized(width: int, height: int) -> bytes:
    return PNG[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + PNG[24:]


GLM_SEES = "glm-5v-turbo"


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"GIF89a" + bytes(200), "a.gif", "image/gif, and glm-5v-turbo reads png, jpeg only"),
        (sized(6_001, 10), "wide.png", "6,001 x 10 pixels, and glm-5v-turbo reads at most 6,000 a side"),
        (sized(10, 9_000), "tall.png", "10 x 9,000 pixels"),
    ],
)
async def test_image_beyond_the_limits_of_its_model_is_left_out_with_the_limit(
    rig: Rig, data: bytes, name: str, reason: str
) -> None:
    """Formats and sides as the models file states them."""
    providers = rig.app.settings.providers
    glm = ProviderSettings(api_key=SecretStr("sk-test"), base_url=rig.provider.base_url)
    settings = rig.app.settings.model_copy(update={"providers": providers.model_copy(update={"glm": glm})})
    kept = await put(rig, sized(6_000, 6_000), "kept.png")
    left = await put(rig, data, name, f"image/{name[-3:]}")
    async with open_app(settings) as app:
        result = await app.chat.run(ChatRequest(LOCAL_OWNER, "What?", model=GLM_SEES, files=[kept, left]))
    assert len(images_of(rig.provider.chats[0].body)) == 1
    assert any(name in note and reason in note for note in result.notes)


async def test_images_beyond_the_bytes_of_a_request_are_left_out(rig: Rig, tmp_path: Path) -> None:
    """As the models file states them; the first ones are sent."""
    described = tmp_path / "described.toml"
    described.write_text('[models."kimi-k3"]\nimages = { count = 50, size_bytes = 1000, total_bytes = 1000 }\n')
    providers = rig.app.settings.providers.model_copy(update={"models_file": described})
    images = [await put(rig, PNG + bytes([at]), f"{at}.png") for at in range(5)]
    async with open_app(rig.app.settings.model_copy(update={"providers": providers})) as app:
        result = await app.chat.run(ChatRequest(LOCAL_OWNER, "What?", model=SEES, files=images))
    assert len(images_of(rig.provider.chats[0].body)) == 3
    left = [note for note in result.notes if "at most 1,000 bytes together" in note]
    assert [note.split()[1] for note in left] == ["3.png", "4.png"]
