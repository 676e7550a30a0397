"""Items: the JSON texts that programs keep with messages, exact to the last character.

A message's item is text, which EXAI stores without parsing it. So it may hold what neither Postgres nor most parsers
take: U+0000, half of a surrogate pair, integers of any size, NaN.

Invariant: `load_item(dump_item(value))` equals `value`, for every value that JSON of Python can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

ITEM: Final = "exai_item"
"""The field of a message's metadata with its item, or with what is left of a large one."""

TAKEN_FROM_ITEM: Final = "exai_taken_from_item"
"""The field of a message's metadata that says what was taken out of its item, and where."""

UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
NUL_SIGN: Final = "\u2400"
REPLACEMENT: Final = "\ufffd"


def dump_item(value: Any) -> str:
    """Return a value as JSON in ASCII, with escapes for all other characters. Raises `TypeError` or `ValueError`."""
    return json.dumps(value, separators=(",", ":"))


def load_item(text: str) -> Any:
    """Return the value of an item. Raises `ValueError` if the text is not JSON."""
    return json.loads(text)


def readable(text: str) -> str:
    """Return a text that can be a message's content: without U+0000 and halves of surrogate pairs."""
    return UNSTORABLE.sub(lambda found: NUL_SIGN if found[0] == "\0" else REPLACEMENT, text)


def item_in(metadata: Mapping[str, Any]) -> str | None:
    """Return the item of a message's metadata; None without one, or if something was taken out of it."""
    item = None if TAKEN_FROM_ITEM in metadata else metadata.get(ITEM)
    return item if isinstance(item, str) else None
