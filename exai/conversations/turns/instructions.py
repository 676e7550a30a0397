"""Put the instructions of a tool into the messages whose answers they are for. No I/O.

Invariant: a question that was sent with instructions is sent with the same ones in every later turn. They stand at the
end of that message and not in the system prompt, so that the array of a turn begins with that of the previous one
of any tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from exai.models import Message
from exai.token_estimate import text_tokens

INSTRUCTIONS: Final = "instructions"
"""The field of a question's metadata with the name of the instructions that are sent with it."""

_FORM: Final = '<instructions for="the answer to this message">\n{text}\n</instructions>'


class Instructions:
    """The instructions by name. They are not stored: a message has the name only."""

    def __init__(self, texts: Mapping[str, str] = MappingProxyType({})) -> None:
        self._blocks = {name: _FORM.format(text=text) for name, text in texts.items()}
        self._tokens = {name: text_tokens(block) + 1 for name, block in self._blocks.items()}

    def block_of(self, message: Message) -> str | None:
        """Return the text to send at the end of a message, None for a message without known instructions."""
        return self._blocks.get(_name_of(message))

    def tokens_of(self, message: Message) -> int:
        """Return the estimated tokens of `block_of`."""
        return self._tokens.get(_name_of(message), 0)


def with_instructions(message: Message, name: str | None) -> Message:
    """Return a message that is sent with the instructions `name`, or with none."""
    others = {field: value for field, value in message.metadata.items() if field != INSTRUCTIONS}
    return message._replace(metadata=others if name is None else {**others, INSTRUCTIONS: name})


def _name_of(message: Message) -> str:
    # The metadata may be malformed, because callers of append write it freely.
    name = message.metadata.get(INSTRUCTIONS) if message.role == "user" else None
    return name if isinstance(name, str) else ""
