"""Completion of arguments while a user types them: models, and the caller's own conversations and files.

Invariant: nothing is completed for a prompt or resource that does not exist, and nothing from other owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exai.conversations import ConversationStore
from exai.db.filters import ListFilter
from exai.files.service import FileService
from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError
from exai.mcp.core.protocol import CallContext, Feature
from exai.mcp.features.prompts import MAX_COMPLETIONS, completion_feature
from exai.mcp.features.tools import ToolSpec
from exai.providers.registry import Providers
from exai.tools.prompts import PROMPTS, WHAT, prompts_of_tools
from exai.tools.resources import TEMPLATES


def argument_completion(
    conversations: ConversationStore, files: FileService, providers: Providers, tools: Iterable[ToolSpec]
) -> Feature:
    """Make the completion of the arguments of prompts and resources."""
    return completion_feature(_Completing(conversations, files, providers, tools).complete)


class _Completing:
    def __init__(
        self, conversations: ConversationStore, files: FileService, providers: Providers, tools: Iterable[ToolSpec]
    ) -> None:
        self._tools = {spec.name for spec in prompts_of_tools(tools)}
        self._conversations = conversations
        self._files = files
        self._providers = providers

    async def complete(self, reference: Json, name: str, typed: str, context: CallContext) -> Sequence[str]:
        """Complete a model's name, or the id of a conversation or file by its beginning or by its title or name.

        1 database round trip.
        """
        prompt, template = reference.get("name"), reference.get("uri")
        if prompt not in PROMPTS and prompt not in self._tools and template not in {each.uri for each in TEMPLATES}:
            raise RpcError(INVALID_PARAMS, "Invalid params: there is no such prompt or resource to complete")
        if name == "model":
            return [model for model in self._models() if model.lower().startswith(typed.lower())]
        begins_with_id = prompt in self._tools and name == WHAT.name
        if name == "continuation_id" or begins_with_id or (name == "id" and template == TEMPLATES[0].uri):
            only = ListFilter(part=typed, has_messages=True)
            listed = await self._conversations.list(context.owner, limit=MAX_COMPLETIONS + 1, only=only)
            return [each.continuation_id for each in listed.conversations]
        if name == "file_id" or (name == "id" and template == TEMPLATES[1].uri):
            found = await self._files.find(context.owner, typed, MAX_COMPLETIONS + 1)
            return [each.id for each in found.files]
        return []

    def _models(self) -> list[str]:
        infos = [info for info in self._providers.models() if info.configured]
        return [name for info in infos for name in (info.name, *info.aliases)]
