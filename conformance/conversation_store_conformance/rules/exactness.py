"""Group 2: an item is read as it was given, or it is refused; it is never altered."""

from __future__ import annotations

import math
from typing import Any

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import World, expect_equal, message, refusal

LEVELS = 300
MEGABYTE = 1_000_000


async def _kept(world: World, *items: Any) -> None:
    store, name = await world.open(), world.name()
    await store.append(name, list(items))
    expect_equal(await store.read(name), list(items), "the items")


async def _kept_or_refused(world: World, item: Any) -> None:
    """A refusal leaves what was there, and nothing of the item."""
    store, name = await world.open(), world.name()
    await store.append(name, [message("before")])
    error = await refusal(store.append(name, [item]))
    if error is None:
        expect_equal(await store.read(name), [message("before"), item], "the items")
    else:
        world.note(f"refused: {type(error).__name__}")
        expect_equal(await store.read(name), [message("before")], "the items after a refusal")


@rule("exactness.text")
async def text(world: World) -> None:
    """Texts of all scripts, emoji and quotes are kept."""
    await _kept(
        world,
        message('Grüße, 世界 👩‍👩‍👧 שלום "quoted" \\back \u2028\u2029 \ufffe \U0010ffff'),
        message("%s %(x)s {0} ${x} ' -- ;"),
    )


@rule("exactness.empty-text")
async def empty_text(world: World) -> None:
    """An empty text, and one of blanks, is kept."""
    await _kept(world, message(""), message(" \t "))


@rule("exactness.line-ends")
async def line_ends(world: World) -> None:
    """Line ends of every kind are kept."""
    await _kept(world, message("a\r\nb\rc\nd\x85e\x0b\x0c\n"))


@rule("exactness.normal-forms")
async def normal_forms(world: World) -> None:
    """Composed and decomposed characters stay what they are."""
    await _kept(world, message("é"), message("e\u0301"), message("Å \u212b \ufb01"))


@rule("exactness.json-types")
async def json_types(world: World) -> None:
    """Null, booleans, empty lists and objects, and nested values are kept."""
    await _kept(world, message("x", a=None, b=True, c=False, d=[], e={}, f=[[], {}, [None, ""]], g={"": {"": ""}}))


@rule("exactness.numbers")
async def numbers(world: World) -> None:
    """Integers and fractions are kept, 1 and 1.0 each as it is."""
    await _kept(world, message("x", a=1, b=1.0, c=-0.5, d=0, e=2**53 - 1, f=-(2**53) + 1, g=0.1, h=1e-300))


@rule("exactness.large-integers")
async def large_integers(world: World) -> None:
    """Integers beyond 53 and 64 bits are kept or refused."""
    for number in (2**53 + 1, 2**63, 2**70):
        await _kept_or_refused(world, message("x", number=number))


@rule("exactness.not-a-number")
async def not_a_number(world: World) -> None:
    """NaN and the infinities are kept or refused, and never become null."""
    for number in (math.nan, math.inf, -math.inf):
        await _kept_or_refused(world, message("x", number=number))


@rule("exactness.nul")
async def nul(world: World) -> None:
    """U+0000 in a text or a key is kept or refused."""
    await _kept_or_refused(world, message("a\0b"))
    await _kept_or_refused(world, message("x", **{"k\0": 1}))


@rule("exactness.surrogates")
async def surrogates(world: World) -> None:
    """Half a surrogate pair is kept or refused."""
    await _kept_or_refused(world, message("\ud83d"))
    await _kept_or_refused(world, message("\udc00\ud800"))


@rule("exactness.depth")
async def depth(world: World) -> None:
    """300 levels are kept or refused."""
    value: Any = "deep"
    for _ in range(LEVELS):
        value = [value]
    await _kept_or_refused(world, message("x", value=value))


@rule("exactness.megabyte")
async def megabyte(world: World) -> None:
    """An item of one megabyte is kept."""
    await _kept(world, message('é\\" \n'[:5] * (MEGABYTE // 6)))


@rule("exactness.six-megabytes")
async def six_megabytes(world: World) -> None:
    """An item of six megabytes is kept or refused."""
    await _kept_or_refused(world, message("0123456789" * (6 * MEGABYTE // 10)))


@rule("exactness.key-names")
async def key_names(world: World) -> None:
    """Fields with unusual names are kept."""
    await _kept(
        world, message("x", **{"": 1, "a.b": 2, "$c": 3, "é": 4, "__class__": 5, "id": 6, "created_at": "then"})
    )
