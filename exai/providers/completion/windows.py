"""Recognize refusals of prompts that are too long for their model, and the numbers in them; no I/O.

Half of the servers have no error code for this, so known sentences are recognized, too. They are searched in refusals
only, and determine only how much of the history the next request contains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from exai.providers.completion.failures import Failure
from exai.providers.reply.reading import tokens

MIN_WINDOW: Final = 256
MAX_READ_CHARS: Final = 4_000

_CODES: Final = frozenset(
    {
        "context_length_exceeded",
        "context_window_exceeded",
        "exceed_context_size_error",
        "model_context_window_exceeded",
        "string_above_max_length",
        "request_too_large",
        "prompt_too_long",
        "max_context_length_exceeded",
        "1261",
    }
)
_WORDS: Final = re.compile(
    r"context[\s_-]*(?:length|window|size|limit)|maximum\s+context|max(?:imum)?[\s_-]*(?:model[\s_-]*len|prompt\s+length)"
    r"|(?:prompt|input|request|messages?|conversation)\s+(?:is|are|was)\s+too\s+(?:long|large)"
    r"|(?:prompt|input)\s+(?:token\s+count|length).{0,80}(?:exceed|range|maximum|limit)|too\s+many\s+(?:input\s+|total\s+)?tokens"
    r"|prompt\s+exceeds|input\s+exceeds|exceed(?:s|ed)?\s+(?:the\s+)?(?:model.{0,3}s?\s+)?(?:max(?:imum)?\s+)?"
    r"(?:number\s+of\s+)?(?:input\s+|prompt\s+)?(?:tokens?|length|model\s+token\s+limit)|reduce\s+the\s+length|range\s+of\s+input\s+length"
    r"|inputs?.{0,3}\s+tokens\s*\+|exceeded\s+model\s+token\s+limit|n_ctx|kv\s+cache\s+is\s+full|when\s+context\s+the\s+overflows"
    r"|prompt\s+contains\s+\d+\s+tokens|longer\s+than\s+the\s+(?:model|maximum)|inputs?\W{0,3}\s*must\s+have\s+less"
    r"|上下文|超长|过长|(?:超过|超出).{0,12}长度",
    re.IGNORECASE | re.DOTALL,
)
_BEYOND: Final = re.compile(
    r"(?:tokens?|length|messages)\b[^.]{0,60}\b(?:exceeds?|(?:greater|larger|more|longer)\s+than)\b[^.]{0,40}"
    r"(?:limit|max)",
    re.IGNORECASE,
)
_OF_THE_OUTPUT: Final = re.compile(
    r"max_(?:completion_|output_|new_)?tokens|(?:completion|output|generated?)\s+(?:tokens|length)", re.IGNORECASE
)
_NUMBER: Final = r"(\d[\d,_]{1,14})"
_LIMITS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"(?:maximum|max)\s+(?:context|prompt|model|input|sequence)?[\s_-]*(?:length|window|size|len|tokens?)\D{{0,40}}?{_NUMBER}",
        rf"context\s*(?:length|window|size|limit)\D{{0,40}}?{_NUMBER}",
        rf"maximum\s+number\s+of\s+(?:input\s+)?tokens\s+(?:allowed)?\D{{0,10}}{_NUMBER}",
        rf"token\s+limit\D{{0,20}}{_NUMBER}",
        rf"{_NUMBER}\s+(?:token\s+)?(?:maximum|max\b|limit)",
        rf"(?:limit|n_ctx|at\s+most|up\s+to)\D{{0,10}}{_NUMBER}",
        rf"\[\s*\d+\s*,\s*{_NUMBER}\s*\]",
        rf"(?:<=|less\s+than|cannot\s+exceed)\D{{0,10}}{_NUMBER}",
        rf"max(?:imum|_seq_len)?[\s:=(]{{0,4}}{_NUMBER}",
    )
)
_SENT: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"(?:input|prompt|messages)\D{{0,30}}(?:resulted\s+in|contains?|has|have|of)\s+(?:at\s+least\s+)?{_NUMBER}\s+(?:input\s+)?tokens",
        rf"(?:requested|resulted\s+in|contains|request\s+has|sent)\D{{0,20}}{_NUMBER}\s*(?:input\s+)?tokens",
        rf"{_NUMBER}\s+(?:tokens\s+)?in\s+the\s+(?:messages|prompt|input)",
        rf"token\s+count\D{{0,12}}{_NUMBER}",
        rf"(?:prompt|input)\s+is\s+too\s+long:?\s+{_NUMBER}",
        rf"n_prompt_tokens\D{{0,6}}{_NUMBER}",
        rf"request\s+\(?{_NUMBER}\s+tokens",
        rf"(?:passed|current\s+length\s+is|total\s+length|given|received|requested)\W{{0,3}}{_NUMBER}",
        rf"(?:input|prompt|messages)\D{{0,12}}{_NUMBER}[^.\d]{{0,12}}(?:is\b|exceeds?|which)",
    )
)


@dataclass(frozen=True, slots=True)
class TooLong:
    """A refusal of a prompt for its length: its limit and its size in tokens, if the server states them."""

    limit_tokens: int | None
    sent_tokens: int | None


def too_long(failure: Failure) -> TooLong | None:
    """Return the refusal of a prompt for its length, None for any other failure."""
    said = failure.message[:MAX_READ_CHARS]
    named = failure.code in _CODES or failure.kind in _CODES or failure.status == 413
    is_said = _WORDS.search(said) or (_BEYOND.search(said) and not _OF_THE_OUTPUT.search(said))
    if not named and (failure.status in (401, 403, 429) or not is_said):
        return None
    limit = failure.limit_tokens or _first(_LIMITS, said)
    sent = failure.sent_tokens or _first(_SENT, said)
    if limit is not None and sent is not None and sent < limit:
        # The number includes the requested output or was misread, so it is not the length of the prompt.
        sent = None
    return TooLong(limit, sent)


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> int | None:
    for pattern in patterns:
        for found in pattern.finditer(text):
            number = tokens(re.sub(r"[,_]", "", found[1]))
            if number >= MIN_WINDOW:
                return number
    return None
