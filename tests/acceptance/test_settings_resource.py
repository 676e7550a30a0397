"""The settings as a resource: what the page shows of them."""

from __future__ import annotations

import json

from tests.support.daemon import Daemon
from tests.support.stateless import stateless

SETTINGS = "exai://settings"


async def test_the_only_owner_reads_the_settings_without_secrets(daemon: Daemon) -> None:
    """With the place each comes from; one of several owners is refused, as the page's own tests show."""
    async with stateless(f"http://127.0.0.1:{daemon.port}") as client:
        read = await client.ask("resources/read", uri=SETTINGS)
        listed = await client.ask("resources/list")
    text = read["result"]["contents"][0]["text"]
    lines = {each["variable"]: each for each in json.loads(text)["settings"]}
    assert lines["EXAI_PROVIDERS__FIRST_TOKEN_TIMEOUT_S"]["value"] == "1.5"
    assert lines["EXAI_PROVIDERS__FIRST_TOKEN_TIMEOUT_S"]["origin"]
    assert "sk-test" not in text
    assert "glm-test" not in text
    assert SETTINGS not in {each["uri"] for each in listed["result"]["resources"]}
