"""A name of a class or of a type alias means one thing in the whole package."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import exai

PACKAGE = Path(exai.__file__).parent


def _type_names(source: str) -> Iterator[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and _is_type_name(target.id):
                    yield target.id
        elif type(node).__name__ == "TypeAlias":
            yield ast.unparse(node).split()[1].partition("[")[0]


def _is_type_name(name: str) -> bool:
    first = name.lstrip("_")[:1]
    return first.isupper() and not name.isupper()


def _where_defined(sources: dict[str, str]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for path, source in sources.items():
        for name in set(_type_names(source)):
            places[name].append(path)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_a_type_name_is_defined_once() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}

    assert len(sources) > 100
    assert _where_defined(sources) == {}


def test_classes_and_aliases_of_every_form_are_seen() -> None:
    first = "class Answer: ...\nClock = Callable[[], float]\nState: TypeAlias = int\n_Entry = dict\nLIMIT = 1\n"
    second = "Answer: TypeAlias = int\nclass Clock: ...\nState = str\nclass _Entry: ...\nLIMIT = 2\n"

    assert sorted(_where_defined({"a.py": first, "b.py": second})) == ["Answer", "Clock", "State", "_Entry"]
