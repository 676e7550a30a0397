"""The identity of a request: a digest of everything on which its answer depends.

Invariant: two requests have the same identity only if the same body is sent to the same address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from exai.models import CompletionRequest
from exai.providers.base import Family, Model
from exai.providers.completion.request import build_body, encode_body

ABOUT_DELIVERY: Final = ("stream", "stream_options")
"""Fields of a body that ask how an answer is sent, not which."""


def identity_of(family: Family, base_url: str, model: Model, request: CompletionRequest) -> str:
    """Return the digest of the body of a request, with its address and the parts that the body does not contain.

    The body has every parameter and every message in full. What an endpoint has been found to refuse is not considered,
    because other processes may not know it.
    """
    body = build_body(model, family, request)
    for name in ABOUT_DELIVERY:
        body.pop(name, None)
    # A search by a tool is described to the model in a later request of the same completion.
    search = b"search" if request.web_search else b""
    return digest_of((family.name.encode(), base_url.encode(), search, encode_body(body)))


def digest_of(parts: Iterable[bytes]) -> str:
    """Return the digest of some parts. Each is preceded by its length, so that their borders cannot be mistaken."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
