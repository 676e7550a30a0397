"""The readers, one module for each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from exai.importers.reading.documents import SourceDocument
from exai.importers.records import SourceItem
from exai.importers.sources import (
    chatgpt,
    claude_ai,
    claude_code,
    codex,
    gemini_cli,
    langgraph,
    librechat,
    open_webui,
    openai_agents,
)

ReadSource = Callable[[SourceDocument], Iterator[SourceItem]]

READERS: Final[Mapping[str, ReadSource]] = {
    module.KIND: module.read
    for module in (chatgpt, claude_ai, claude_code, codex, gemini_cli, langgraph, librechat, open_webui, openai_agents)
}
"""The reader of each kind; conversations that EXAI exported are read by `exai.conversations.transfer`."""
