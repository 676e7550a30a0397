"""Random histories of all capabilities, compared with a model; a history that fails is made as short as possible."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import Violation, World, message, same, shown, texts

HISTORIES = 6
STEPS = 30
MAX_RUNS = 400

Step = tuple[str, tuple[Any, ...]]


class Model:
    """What a correct store holds: a list of items for each name."""

    def __init__(self) -> None:
        self.items: dict[str, list[Any]] = {}

    def apply(self, operation: str, name: str, *more: Any) -> Any:
        """Carry out an operation, and return what a store has to return."""
        items = self.items.setdefault(name, [])
        if operation == "append":
            items += more[0]
        elif operation == "append_identified":
            for key, item in more[0]:
                if all(each.get("key") != key for each in items):
                    items.append(item)
        elif operation in ("delete", "clear"):
            items.clear()
        elif operation == "rewind":
            del items[more[0] :]
        elif operation == "pop":
            return items.pop() if items else None
        elif operation == "newest":
            return items[-more[0] :] if more[0] else []
        return list(items) if operation == "read" else None


@rule("histories.random")
async def random_histories(world: World) -> None:
    """Random histories have the results that a simple model has."""
    usable = [
        name
        for name in ("append", "read", "append_identified", "delete", "clear", "pop", "newest", "rewind")
        if name in ("append", "read") or name in world.capabilities
    ]
    store = await world.open()
    for number in range(HISTORIES):
        steps = _history(Random(f"{world.seed}:{number}"), usable)  # noqa: S311 - repeatable
        world.history.clear()
        problem = await _run(store, steps, world)
        if problem is not None:
            steps, problem = await _shortest(store, steps, world, problem)
            raise Violation(problem, [f"{name}({', '.join(map(shown, given))})" for name, given in steps])


def _history(random: Random, usable: Sequence[str]) -> list[Step]:
    steps: list[Step] = []
    for number in range(STEPS):
        operation, name = random.choice(usable), random.choice(["x", "y", "z"])
        if operation == "append":
            steps.append((operation, (name, [message(f"{number}.{n}") for n in range(random.randint(0, 3))])))
        elif operation == "append_identified":
            keys = [str(random.randint(0, 9)) for _ in range(random.randint(1, 3))]
            steps.append((operation, (name, [(key, message(f"{number}", key=key)) for key in keys])))
        elif operation == "newest":
            steps.append((operation, (name, random.randint(0, 5))))
        elif operation == "rewind":
            steps.append((operation, (name, random.randint(0, 4))))
        else:
            steps.append((operation, (name,)))
    return steps


async def _run(store: Any, steps: Sequence[Step], world: World) -> str | None:
    """Carry out a history on fresh names, and return what was wrong."""
    model = Model()
    names = {each: world.name(each) for each in "xyz"}
    for number, (operation, (name, *given)) in enumerate([*steps, *(("read", (each,)) for each in "xyz")], 1):
        more = given
        if operation == "rewind":
            # A conversation that is shorter cannot be rewound.
            more = [min(given[0], len(model.items.get(name, [])))]
            if not model.items.get(name):
                continue
        wanted = model.apply(operation, name, *more)
        try:
            found = await getattr(store, operation)(names[name], *more)
        except Exception as error:  # noqa: BLE001 - the history shows it
            return f"step {number} raised {type(error).__name__}: {str(error)[:200]}"
        if operation in ("read", "newest"):
            found = list(found or ())
        if operation in ("read", "newest", "pop") and not same(found, wanted):
            return f"step {number}, {operation} of {name!r}: expected {_brief(wanted)}, found {_brief(found)}"
    return None


def _brief(value: Any) -> Any:
    return texts(value) if isinstance(value, list) else value


async def _shortest(store: Any, steps: list[Step], world: World, problem: str) -> tuple[list[Step], str]:
    """Remove steps as long as the history fails (delta debugging)."""
    size, runs = max(1, len(steps) // 2), 0
    while runs < MAX_RUNS:
        start, removed = 0, False
        while start < len(steps) and runs < MAX_RUNS:
            fewer = steps[:start] + steps[start + size :]
            runs += 1
            if (found := await _run(store, fewer, world)) is not None:
                steps, problem, removed = fewer, found, True
            else:
                start += size
        if size == 1 and not removed:
            break
        size = max(1, size // 2) if not removed or size > 1 else 1
    return steps, problem
