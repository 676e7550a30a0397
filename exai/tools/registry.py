"""The list of everything that clients are offered: a new tool is one module and one line here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from exai.app import App
from exai.mcp.core.protocol import Feature
from exai.mcp.features.tools import ToolRegistry, ToolSpec
from exai.monitoring.figures import figures
from exai.settings.load import describe
from exai.tools.chat import chat_tool
from exai.tools.completion import argument_completion
from exai.tools.consensus import consensus_tool
from exai.tools.conversations.append import append_tool
from exai.tools.conversations.lifecycle import delete_tool, fork_tool, update_tool
from exai.tools.conversations.read import get_tool, list_tool
from exai.tools.conversations.search import search_tool
from exai.tools.conversations.transfer import export_tool, import_tool
from exai.tools.files import file_tools
from exai.tools.prompts import prompt_feature
from exai.tools.resources import resource_feature
from exai.tools.status import status_tools
from exai.tools.store import store_feature
from exai.tools.tasks import TurnTasks
from exai.tools.usage import usage_tool
from exai.tools.workflow import workflow_tools

INSTRUCTIONS = (
    "EXAI asks Kimi, GLM and other models, and stores every conversation.\n"
    "One contract for every tool that asks a model: prompt says what is wanted and why; files names paths, "
    "directories, globs, parts (a.py:10-80) or file_ids, which the server reads itself; continuation_id continues "
    "a conversation that any of these tools began, today or weeks later. So debug, chat, codereview and precommit "
    "can share one conversation. Nothing on disk is changed.\n"
    "Choose by the task: chat for a question or a second opinion, debug for why something fails, codereview for "
    "changes or files, precommit before a commit, planner for a plan, secaudit for vulnerabilities, consensus for "
    "several models at once. One call is a whole analysis; ask_model false records a step without a model.\n"
    "The first line of an answer's text holds what the next call needs; next says what to do. complete: false "
    "means that the model still works: read the answer later with conversation_get. conversation_search and "
    "conversation_list find earlier conversations."
)
"""What clients tell their model about the server; Claude Code shows the first 2 KB."""

CORE: Final = frozenset(
    ("chat", "codereview", "debug", "consensus", "conversation_get", "conversation_search", "listmodels")
)
"""The tools of `EXAI_TOOLS=core`, for clients that limit the number of tools and for models with small windows."""


def build_tools(app: App) -> ToolRegistry:
    """Make all tools, in the order in which they are listed."""
    return _offered(
        app,
        (
            chat_tool(app.chat, app.files, app.sources),
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
            *status_tools(app.providers, lambda: health_report(app), app.ledger.budgets),
            usage_tool(app.ledger),
            *workflow_tools(app.workflows),
            consensus_tool(app.consensus),
        ),
    )


def _offered(app: App, tools: Iterable[ToolSpec]) -> ToolRegistry:
    only_core = app.settings.tools == "core"
    return ToolRegistry(each for each in tools if each.name in CORE or not only_core)


def build_features(app: App, tools: ToolRegistry) -> Sequence[Feature]:
    """Return the features that the server offers in addition to its tools."""
    described = partial(describe, app.settings) if app.settings.server.has_one_owner else None
    return (
        resource_feature(app.conversations, app.files, described),
        prompt_feature(app.conversations, tools),
        argument_completion(app.conversations, app.files, app.providers, tools),
        store_feature(app),
    )


def build_tasks(app: App, tools: ToolRegistry) -> TurnTasks:
    """Make the store of the calls that outlast their connection, for all tools whose answer can be made later."""
    answers = {spec.name: spec.answer_from for spec in tools if spec.answer_from is not None}
    return TurnTasks(app.chat, answers)


def health_report(app: App) -> dict[str, Any]:
    """Return what `status` shows: health, without details if it has several owners, and the figures beside it."""
    report = app.health.report().as_json(with_details=app.settings.server.has_one_owner)
    return {**report, **figures(app.recorder, app.settings.cache.max_staleness_s)}
