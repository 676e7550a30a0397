"""The documentation: generated pages are current, and every link has a target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import reference

ROOT = Path(__file__).parents[2]
PLACES = ("*.md", "docs/*.md", "docker/**/*.md", "examples/**/*.md")
TEXTS = sorted(path for place in PLACES for path in ROOT.glob(place))
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", ["configuration", "commands"])
def test_generated_page_is_current(page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").read_text("utf-8") == getattr(reference, page)(), "run `make docs`"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_to_files_and_headings(text: Path) -> None:
    broken = [link for link in _links(text) if not _exists(text, link)]
    assert not broken


def test_every_page_of_the_documentation_is_reached_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _links(ROOT / "README.md")}
    assert set((ROOT / "docs").glob("*.md")) <= linked


def _links(text: Path) -> Iterator[str]:
    prose = re.sub(r"(?ms)^```.*?^```$", "", text.read_text("utf-8"))
    for match in LINK.finditer(prose):
        link = match[1] or match[2]
        if not link.startswith(("https://", "http://", "mailto:")):
            yield link


def _exists(text: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (text.parent / name) if name else text
    if not target.exists():
        return False
    return not anchor or anchor in _anchors(target.read_text("utf-8"))


def _anchors(text: str) -> set[str]:
    """Return the names that GitHub gives to the headings of a text."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
