"""The files of the page: those of other people are what the lock says, and ours are ours to read."""

from __future__ import annotations

import hashlib
import re
import runpy
from pathlib import Path

import pytest

from exai.web.assets import STATIC, read_assets

ROOT = Path(__file__).resolve().parents[3]
BUILD = runpy.run_path(str(ROOT / "requirements" / "page" / "build.py"))
OURS = sorted(path for path in STATIC.glob("*.js") if path.name != "vendor.js")
MAX_LINES = 400


def test_the_bundle_is_what_the_lock_pins() -> None:
    """`make page` writes it; its first line has the digests of its inputs and of its content."""
    first, content = (STATIC / "vendor.js").read_bytes().split(b"\n", 1)
    made, found = re.findall(rb"inputs ([0-9a-f]{64}); content ([0-9a-f]{64})", first)[0]
    assert made.decode() == BUILD["inputs_digest"](), "run `make page`"
    assert found.decode() == hashlib.sha256(content).hexdigest(), "vendor.js was edited; run `make page`"


def test_the_licences_of_the_bundled_packages_lie_beside_it() -> None:
    licences = (STATIC / "vendor-licenses.txt").read_text(encoding="utf-8")
    packages = BUILD["packages_of"]()
    assert [name for name, version in packages.items() if f"{name} {version}" not in licences] == []
    assert set(packages) == {"dompurify", "highlight.js", "htm", "marked", "preact", "uplot"}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_modules_are_short_and_name_their_purpose(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES
    assert lines[0].startswith("// ")
    assert max(map(len, lines)) <= 170


def test_every_import_and_export_of_our_modules_is_used() -> None:
    """No tool of ours reads JavaScript for dead code, so this does."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in OURS}
    for name, text in texts.items():
        for names, source in re.findall(r"^import \{([^}]+)\} from \"\./([\w.]+)\";", text, re.MULTILINE):
            for each in filter(None, map(str.strip, names.split(","))):
                assert len(re.findall(rf"\b{each}\b", text)) > 1, f"{name} does not use {each}"
                assert source == "vendor.js" or re.search(rf"export .*\b{each}\b", texts[source]), f"{source}: {each}"
        for each in re.findall(r"^export (?:async )?(?:function\*?|const|class) (\w+)", text, re.MULTILINE):
            others = (other for other_name, other in texts.items() if other_name != name)
            used = re.compile(rf"import \{{[^}}]*\b{each}\b|import\(\"\./{name}\"\)\.then\(\(\{{ {each} \}}\)")
            assert any(map(used.search, others)), f"{name} exports {each}"


def test_the_pictures_of_the_documentation_are_there() -> None:
    """`make screenshots` writes them."""
    names = {
        f"page-{view}-{shape}.png" for view in ("conversation", "overview") for shape in ("light", "dark", "phone")
    }
    assert {path.name for path in (ROOT / "docs").glob("page-*.png")} == names
    shown = set(re.findall(r'"docs/(page-[\w-]+\.png)"', (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown == {name for name in names if "phone" not in name}


def test_no_file_is_loaded_from_elsewhere_and_nothing_is_parsed_as_html() -> None:
    for path in OURS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), path.name
        assert "https://" not in text.replace("https?", ""), path.name
    assert set(read_assets().modules) == {path.name for path in STATIC.glob("*.js")}


def test_modules_are_served_without_the_comments_that_fill_their_lines() -> None:
    """Nothing else is left out: what remains are lines of the file, in their order."""
    for path in OURS:
        kept = read_assets().files[path.name].content.decode().splitlines()
        lines = iter(path.read_text("utf-8").splitlines())
        assert all(line in lines for line in kept), path.name
        assert not [line for line in kept if line.strip().startswith(("//", "/**", "* "))], path.name
        left_out = set(path.read_text("utf-8").splitlines()) - set(kept)
        assert all(re.match(r"\s*(//|/\*\*|\*|[A-Z`].*\*/|\w)", line) for line in left_out), path.name
        for line in left_out:
            assert not re.match(r"\s*(import|export|const|let|if|for|return|function|async)\b", line), line
