"""Request keys and digests, by which a repeated request is recognised."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import orjson

from exai.db.lifecycle import IdempotencyKey
from exai.models import TurnId


def request_key(key: str | None) -> str:
    """Return the caller's key, or one that only this call's own retries share."""
    return key if key is not None else str(uuid.uuid4())


def content_hash(*parts: Any) -> str:
    """Return the digest of a request, in which two requests with the same key must agree."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def once(key: str | None, tool: str, *parts: Any) -> IdempotencyKey:
    """Return the deduplication key of a change. Without `key` only retries within this call are deduplicated."""
    return IdempotencyKey(request_key(key), content_hash(tool, *parts), tool, TurnId(str(uuid.uuid4())))
