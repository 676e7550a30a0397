"""Kimi's web search: the model calls a tool of the platform, and EXAI has the platform run the call.

A call is a formula: its tools are listed once, and each call of the model is sent back to be run (a fiber). What the
search found may be encrypted; it is passed to the model as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import orjson

from exai.models import WebSource
from exai.providers.completion.http_client import headers_for, reason_of
from exai.providers.reply.reading import decode
from exai.providers.reply.sources import sources_of

MAX_REPLY_BYTES: Final = 4 * 1_048_576
LIMIT_S: Final = 60.0
"""Longest wait for one search; a failed one is stated to the model, which answers without it."""


class FormulaFailed(Exception):
    """The platform did not run a formula; the argument states why."""


class FormulaTools:
    """The tools of one formula at one provider."""

    def __init__(self, client: httpx.AsyncClient, base_url: str, key: str, uri: str) -> None:
        self._client, self._key = client, key
        self._url = f"{base_url}/formulas/{uri}"
        self._tools: tuple[Mapping[str, Any], ...] = ()
        self._lock = asyncio.Lock()

    async def tools(self) -> Sequence[Mapping[str, Any]]:
        """Return the tools to offer to the model; they are asked for once. Raises `FormulaFailed`."""
        async with self._lock:
            if not self._tools:
                document = await self._send("GET", f"{self._url}/tools", None)
                listed = document.get("tools") if isinstance(document, Mapping) else document
                tools = [tool for tool in listed if isinstance(tool, Mapping)] if isinstance(listed, list) else []
                if not tools:
                    raise FormulaFailed("the provider lists no tool for it")
                self._tools = tuple(tools)
        return self._tools

    async def run(self, name: str, arguments: str) -> tuple[str, tuple[WebSource, ...]]:
        """Have a call of the model run; return what the model receives, and the sources where they are readable.

        Raises `FormulaFailed`.
        """
        document = await self._send("POST", f"{self._url}/fibers", {"name": name, "arguments": arguments})
        context = document.get("context") if isinstance(document, Mapping) else None
        if not isinstance(context, Mapping) or document.get("status") != "succeeded":
            error = document.get("error") if isinstance(document, Mapping) else None
            raise FormulaFailed(str(error or "it did not succeed")[:200])
        readable, encrypted = context.get("output"), context.get("encrypted_output")
        output = readable or encrypted
        text = output if isinstance(output, str) else orjson.dumps(output).decode()
        return text, tuple(sources_of(_value(readable)))

    async def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        content = None if body is None else orjson.dumps(body)
        received = b""
        try:
            async with (
                asyncio.timeout(LIMIT_S),
                self._client.stream(
                    method, url, content=content, headers=headers_for(self._key, "application/json")
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > MAX_REPLY_BYTES:
                        raise FormulaFailed(f"its reply is larger than {MAX_REPLY_BYTES:,} bytes")
                if response.status_code != 200:
                    raise FormulaFailed(f"HTTP {response.status_code}")
            return decode(received)
        except TimeoutError:
            raise FormulaFailed(f"no reply within {LIMIT_S:g} s") from None
        except httpx.HTTPError as error:
            raise FormulaFailed(reason_of(error)) from error
        except ValueError:
            raise FormulaFailed("its reply is not JSON") from None


def _value(output: Any) -> Any:
    if not isinstance(output, str):
        return output
    try:
        return decode(output)
    except ValueError:
        return None
