"""Names that models give to arguments and roles, because other tools use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from exai.mcp.core.jsonrpc import Json

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "prompt": (
        "question",
        "query",
        "message",
        "input",
        "text",
        "user_prompt",
        "instruction",
        "step",
        "problem",
        "task",
        "claim",
        "statement",
        "thought",
    ),
    "query": ("q", "words", "search", "search_query", "prompt", "text", "keywords"),
    "continuation_id": ("conversation_id", "conversation", "thread_id", "chat_id", "session_id", "id"),
    "file_id": ("id", "file"),
    "file_ids": ("files", "ids", "file_id"),
    "files": ("file_ids", "file", "file_id", "paths", "path", "file_paths", "absolute_file_paths", "relevant_files"),
    "focus": ("focus_on", "focus_areas", "review_focus", "audit_focus", "review_type", "analysis_type"),
    "findings": ("issues_found", "issues", "finding"),
    "diff": ("git_diff", "compare_to", "range", "base_ref"),
    "hypothesis": ("theory", "suspected_cause"),
    "target": ("target_description", "symbol", "function"),
    "revises": ("revises_step_number", "revises_step", "revises_thought"),
    "branch": ("branch_id", "branch_name"),
    "system": ("system_prompt", "system_message", "instructions"),
    "model": ("model_name", "model_id"),
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "thinking": ("thinking_mode", "reasoning_effort", "effort"),
    "content": ("text", "body", "data"),
    "content_base64": ("base64", "data_base64", "blob"),
    "name": ("filename", "file_name"),
    "path": ("file_path", "filepath"),
    "part": ("title", "query", "search", "text", "name"),
    "media_type": ("mime_type", "content_type"),
    "messages": ("message",),
    "text": ("content", "data", "export", "markdown", "jsonl"),
    "limit": ("max_results", "count", "page_size", "top_k"),
    "cursor": ("next_cursor", "page_token"),
    "before_seq": ("next_before_seq",),
    "after_seq": ("next_after_seq",),
    "after": ("next_after",),
    "char_offset": ("next_char_offset", "next_offset"),
    "offset": ("next_offset",),
    "tags": ("tag", "labels"),
    "title": ("name",),
    "at_seq": ("seq",),
    "expected_revision": ("revision",),
    "since": ("after", "from", "start"),
    "until": ("before", "to", "end"),
    "role": ("sender", "author"),
    "web_search": ("use_websearch", "websearch", "use_web_search", "search_web"),
}
"""Synonyms that models use for an argument, most likely first."""

OLDER_ARGUMENTS: Final = frozenset(
    {
        *(
            "step_number",
            "total_steps",
            "thought_number",
            "total_thoughts",
            "next_step_required",
            "next_thought_needed",
            "use_assistant_model",
        ),
        *("more_steps_needed", "needs_more_thoughts", "confidence", "files_checked", "relevant_context", "temperature"),
        *("backtrack_from_step", "is_step_revision", "is_revision", "is_branch_point", "branch_from_step"),
        *("branch_from_thought", "severity_filter", "standards", "threat_level", "security_scope", "trace_mode"),
        *("compliance_requirements", "refactor_type", "output_format", "style_guide_examples", "include_staged"),
        *("include_unstaged", "precommit_type", "review_validation_type", "problem_context", "images", "websearch"),
        *("use_websearch", "thinking_mode", "hypothesis", "document_complexity", "document_flow", "update_existing"),
        *("current_model_index", "model_responses", "consensus_prompt"),
        *("comments_on_complex_logic", "num_files_documented", "total_files_to_document"),
    }
)
"""Arguments of the workflow tools of other systems that have no meaning here, because the server counts and reads."""

WANTS_NO_MODEL: Final[Mapping[str, bool]] = {
    "next_step_required": True,
    "next_thought_needed": True,
    "use_assistant_model": False,
}
"""Those of them that ask for a step without a model, with the value by which they do."""

ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
    "function": "tool",
}
"""The roles of messages, by their names in other systems."""

EFFORTS: Final[Mapping[str, str]] = {"minimal": "low", "medium": "high", "xhigh": "max", "maximum": "max"}
"""Amounts of reasoning in other systems, as the providers understand them."""

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def argument_for(name: str, properties: Json, found: Json) -> str | None:
    """Return the argument that has this synonym and no value yet; the most likely one if there are several."""
    free = [target for target in properties if found.get(target) in (None, "")]
    targets = [target for target in free if name in SYNONYMS.get(target, ())]
    ranks = [SYNONYMS[target].index(name) for target in targets]
    return targets[ranks.index(min(ranks))] if ranks else None


def own_spelling(name: str) -> str:
    """Return a name in the spelling of this project's schemas."""
    return _CAMEL.sub("_", name.strip()).replace("-", "_").replace(" ", "_").lower()
