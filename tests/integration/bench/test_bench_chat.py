"""`exai bench --chat` on real servers and a provider in its own process: everything is measured, nothing is left."""

from __future__ import annotations

import json

import asyncpg
import pytest

from exai.bench.chat.run import ChatPlan, chat_as_json, chat_as_text, run_chat
from exai.cli import main as cli

SMALL = ChatPlan(messages=50, chats=3, streams=4, reads=12, rounds=1)


async def test_every_figure_of_a_chat_is_measured_and_no_row_is_left(
    postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes how long is never asserted."""
    monkeypatch.setenv("EXAI_DATABASE__URL", postgres_url)
    monkeypatch.setenv("EXAI_CACHE__URL", redis_url)
    report = await run_chat(SMALL, here=True, progress=lambda _, __: None)
    shown = json.loads(json.dumps(chat_as_json(report)))
    times = {name: value for name, value in shown.items() if name.endswith(("_ms", "_ratio", "_s"))}
    assert len(times) == 11
    assert all(value > 0 for name, value in times.items() if name != "words_s")
    text = chat_as_text(report)
    assert "cached conversation of 50 messages" in text
    assert "beside 4 chats" in text
    assert list(shown["pages"]) == ["0", "1", "5"]
    assert all(value > 0 for pages in shown["pages"].values() for value in pages.values())
    assert "5 open" in text
    sql = await asyncpg.connect(postgres_url)
    assert await sql.fetchval("select count(*) from public.conversations") == 0
    await sql.close()


def test_the_bench_of_chats_is_a_measurement_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option that does not go with it is refused by name."""
    for other in ("--door", "--cloud", "--scale"):
        assert cli.main(["bench", "--chat", other]) == 2
        assert "--chat" in capsys.readouterr().err
