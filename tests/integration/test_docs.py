"""The page of the tools is that of the tools in this tree."""

from __future__ import annotations

from pathlib import Path

from docs.reference import tools
from exai.app import open_app
from exai.settings.load import load_settings
from exai.tools.registry import build_tools

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


async def test_page_of_the_tools_is_current(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    addresses = {"EXAI_DATABASE__URL": postgres_url, "EXAI_CACHE__URL": redis_url, "EXAI_START_WAIT_S": "30"}
    settings = load_settings({"HOME": str(tmp_path), "EXAI_DATA_DIR": str(tmp_path), **addresses}, None)
    async with open_app(settings) as app:
        assert PAGE.read_text("utf-8") == tools(build_tools(app)), "run `make docs`"
