"""Limits on the size of functions, modules and packages of EXAI."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import exai

PACKAGE = Path(exai.__file__).parent
ARCHITECTURE = PACKAGE.parent / "ARCHITECTURE.md"
MAX_FUNCTION_LINES = 69
MAX_MODULE_LINES = 400
MAX_PACKAGE_MODULES = 12
SOURCES = {path.relative_to(PACKAGE.parent): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def _functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def _module_counts() -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in SOURCES:
        if path.name != "__init__.py":
            counts[path.parent.as_posix()] = counts.get(path.parent.as_posix(), 0) + 1
    return counts


def test_no_function_has_70_lines() -> None:
    found = [(path, *function) for path, source in SOURCES.items() for function in _functions(source)]

    assert len(found) > 1_000
    assert [each for each in found if each[2] > MAX_FUNCTION_LINES] == []


def test_length_of_a_function_includes_its_nested_functions() -> None:
    source = "async def outer():\n" + "    def inner():\n        pass\n" * 3

    assert list(_functions(source)) == [("outer", 7), *[("inner", 2)] * 3]


def test_no_module_has_more_than_400_lines() -> None:
    assert {path: count for path, source in SOURCES.items() if (count := source.count("\n")) > MAX_MODULE_LINES} == {}


def test_packages_of_more_than_12_modules_are_listed_with_a_reason() -> None:
    """The list of larger packages in ARCHITECTURE.md contains exactly these packages."""
    if not ARCHITECTURE.exists():
        pytest.skip("ARCHITECTURE.md is not beside an installed package")
    larger = {package for package, count in _module_counts().items() if count > MAX_PACKAGE_MODULES}
    listed = re.findall(r"^\* `(exai(?:/\w+)*)/`: \w.{20,}", ARCHITECTURE.read_text("utf-8"), re.MULTILINE)

    assert larger == set(listed)
