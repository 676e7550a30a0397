"""Pagination of lists that are held in memory.

Invariant: a cursor is the position of the next item, so pages neither overlap nor omit anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exai.mcp.core.jsonrpc import INVALID_PARAMS, Json, RpcError

PAGE_ITEMS = 200


def paged(items: Sequence[Json], params: Json, name: str) -> dict[str, Any]:
    """Return one page of a list result. Raises `RpcError` for a cursor that this server did not issue."""
    cursor = params.get("cursor")
    start = 0
    if cursor is not None and cursor != "":
        if not isinstance(cursor, str) or not cursor.isdecimal() or not 0 < int(cursor[:9]) < len(items):
            raise RpcError(INVALID_PARAMS, "Invalid params: unknown cursor; begin again without one")
        start = int(cursor[:9])
    page: dict[str, Any] = {name: list(items[start : start + PAGE_ITEMS])}
    if start + PAGE_ITEMS < len(items):
        page["nextCursor"] = str(start + PAGE_ITEMS)
    return page
