"""Read the sources of a web search from a reply, in the places where providers put them; no I/O.

Invariant: a source has a web address; titles and addresses are printable and short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from exai.models import WebSource

FIELDS: Final = frozenset({"web_search", "search_info", "search_results", "citations"})
"""Fields of a chunk that hold sources: of GLM, of Qwen, and of several others."""

MAX_SOURCES: Final = 50
MAX_URL_CHARS: Final = 2_000
MAX_TITLE_CHARS: Final = 200

_URLS: Final = ("url", "link", "uri")
_TITLES: Final = ("title", "name", "site_name", "media")
_INNER: Final = ("search_results", "results", "search_result", "url_citation", "sources", "data")
_MAX_DEPTH: Final = 4


def sources_of(value: Any, depth: int = 0) -> Iterator[WebSource]:
    """Yield the sources in a value: a list of results or addresses, or an object that holds one."""
    if depth >= _MAX_DEPTH:
        return
    if isinstance(value, list):
        for each in value[:MAX_SOURCES]:
            yield from sources_of(each, depth + 1)
    elif isinstance(value, str):
        yield from _source(value, "")
    elif isinstance(value, Mapping):
        url = next((value[name] for name in _URLS if isinstance(value.get(name), str)), "")
        title = next((value[name] for name in _TITLES if isinstance(value.get(name), str)), "")
        yield from _source(url, title)
        for name in _INNER:
            if isinstance(value.get(name), list | Mapping):
                yield from sources_of(value[name], depth + 1)


def sources_in(chunk: Mapping[str, Any]) -> Iterator[WebSource]:
    """Yield the sources that a chunk holds beside its choices."""
    for name in sorted(FIELDS & chunk.keys()):
        yield from sources_of(chunk[name])


def _source(url: str, title: str) -> Iterator[WebSource]:
    if url.startswith(("http://", "https://")) and len(url) <= MAX_URL_CHARS and url.isprintable():
        shown = "".join(char for char in " ".join(title.split()) if char.isprintable())
        yield WebSource(shown[:MAX_TITLE_CHARS], url)
