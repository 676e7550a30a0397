"""The list of everything that clients are offered: a new tool is one module and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exai.app import App
from exai.mcp.core.protocol import Feature
from exai.mcp.features.tools import ToolRegistry
from exai.monitoring.figures import figures
from exai.tools.chat import chat_tool
from exai.tools.completion import argument_completion
from exai.tools.conversations.append import append_tool
from exai.tools.conversations.lifecycle import delete_tool, fork_tool, update_tool
from exai.tools.conversations.read import get_tool, list_tool
from exai.tools.conversations.search import search_tool
from exai.tools.conversations.transfer import export_tool, import_tool
from exai.tools.files import file_tools
from exai.tools.prompts import prompt_feature
from exai.tools.resources import resource_feature
from exai.tools.status import status_tools
from exai.tools.tasks import TurnTasks
from exai.tools.usage import usage_tool
from exai.tools.workflow import workflow_tools

INSTRUCTIONS = (
    "EXAI asks models and stores every conversation. Pass the continuation_id of an answer to continue its "
    "conversation, today or weeks later; conversation_list and conversation_search find earlier ones. The first line "
    "of an answer's text holds what the next call needs."
)


def build_tools(app: App) -> ToolRegistry:
    """Make all tools, in the order in which they are listed."""
    return ToolRegistry(
        (
            chat_tool(app.chat, app.files),
            append_tool(app.conversations, app.files),
            get_tool(app.conversations),
            list_tool(app.conversations),
            search_tool(app.conversations),
            fork_tool(app.conversations),
            update_tool(app.conversations),
            delete_tool(app.conversations),
            export_tool(app.transfer),
            import_tool(app.transfer),
            *file_tools(app.files),
            *status_tools(app.providers, lambda: health_report(app)),
            usage_tool(app.ledger),
            *workflow_tools(app.workflows),
        )
    )


def build_features(app: App) -> Sequence[Feature]:
    """Make what clients are offered beside tools."""
    return (
        resource_feature(app.conversations, app.files),
        prompt_feature(app.conversations),
        argument_completion(app.conversations, app.files, app.providers),
    )


def build_tasks(app: App, tools: ToolRegistry) -> TurnTasks:
    """Make the store of the calls that outlast their connection, for all tools whose answer can be made later."""
    answers = {spec.name: spec.answer_from for spec in tools if spec.answer_from is not None}
    return TurnTasks(app.chat, answers)


def health_report(app: App) -> dict[str, Any]:
    """Return what `status` shows: health, and the figures beside it."""
    return {**app.health.report().as_json(), **figures(app.recorder, app.settings.cache.max_staleness_s)}
