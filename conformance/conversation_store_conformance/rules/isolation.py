"""Group 7: names and tenants."""

from __future__ import annotations

from conversation_store_conformance.rules import rule
from conversation_store_conformance.world import World, expect, expect_equal, messages, refusal, texts


async def _are_apart(world: World, *names: str) -> None:
    """Names that a store accepts name different conversations; it may refuse a name."""
    store, base = await world.open(), world.name()
    wanted = {}
    for name in names:
        full = name.replace("NAME", base)
        error = await refusal(store.append(full, messages(f"of {name!r}")))
        if error is None:
            wanted[full] = [f"of {name!r}"]
        else:
            world.note(f"refused: {name!r}" if len(name) < 40 else f"refused: {len(name)} characters")
    expect(wanted, "every name was refused")
    for full, items in wanted.items():
        expect_equal(texts(await store.read(full)), items, f"conversation {full!r}")


@rule("isolation.case")
async def case(world: World) -> None:
    """Names that differ in case are different conversations."""
    await _are_apart(world, "NAME-a", "NAME-A", "NAME-straße", "NAME-STRASSE", "NAME-ß")


@rule("isolation.blanks")
async def blanks(world: World) -> None:
    """Names that differ in blanks are different conversations, or are refused."""
    await _are_apart(world, "NAME", "NAME ", " NAME", "NAME\t", "NAME a b", "NAME a  b")


@rule("isolation.slashes")
async def slashes(world: World) -> None:
    """Names with slashes, dots and colons are different conversations, or are refused."""
    await _are_apart(
        world, "NAME", "NAME/", "NAME/a", "NAME//a", "NAME/../NAME", "NAME:a", "NAME\\a", "NAME.", "NAME#a", "NAME?a"
    )


@rule("isolation.escapes")
async def escapes(world: World) -> None:
    """Names that differ only after decoding are different conversations."""
    await _are_apart(world, "NAME/a", "NAME%2Fa", "NAME%252Fa", "NAME+a", "NAME%20a", "NAME&a;")


@rule("isolation.normal-forms")
async def normal_forms(world: World) -> None:
    """Composed and decomposed names are different conversations."""
    await _are_apart(world, "NAME-é", "NAME-e\u0301", "NAME-Å", "NAME-\u212b")


@rule("isolation.long-names")
async def long_names(world: World) -> None:
    """Long names that differ at the end are different conversations, or are refused."""
    for length in (100, 255, 500, 1_000):
        await _are_apart(world, f"NAME-{'x' * length}-a", f"NAME-{'x' * length}-b", "NAME")


@rule("isolation.wildcards", "delete")
async def wildcards(world: World) -> None:
    """Deleting a name with characters that are wildcards elsewhere deletes nothing else."""
    store, base = await world.open(), world.name()
    names = [f"{base}-axb", f"{base}-ab", f"{base}-a/b"]
    for name in names:
        await store.append(name, messages(name))
    for wild in ("a%b", "a_b", "a*b", "a?b", "%", "*", "[a]*"):
        await refusal(store.delete(f"{base}-{wild}"))
    for name in names:
        expect_equal(texts(await store.read(name)), [name], f"conversation {name!r}")


@rule("isolation.prefixes", "delete")
async def prefixes(world: World) -> None:
    """Deleting a conversation leaves those whose names begin with its name, unless they are its children."""
    store, name = await world.open(), world.name()
    others = [f"{name}-a", f"{name}x", f"{name}."]
    for each in (name, *others):
        await store.append(each, messages(each))
    await store.delete(name)
    for each in others:
        expect_equal(texts(await store.read(each)), [each], f"conversation {each!r}")


@rule("isolation.tenants-read", "tenant")
async def tenants_read(world: World) -> None:
    """A tenant does not read what another one has under the same name."""
    store, name = await world.open(), world.name()
    alice, bob = store.tenant("alice"), store.tenant("bob")
    await alice.append(name, messages("hers"))
    expect_equal(texts(await bob.read(name)), [], "the other tenant's read")
    if await refusal(bob.append(name, messages("his"))) is None:
        expect_equal(texts(await bob.read(name)), ["his"], "the other tenant's read")
    else:
        world.note("refused: a name that another tenant has")
    expect_equal(texts(await alice.read(name)), ["hers"], "the first tenant's read")


@rule("isolation.tenants-list", "tenant", "names")
async def tenants_list(world: World) -> None:
    """A tenant's list has only its own conversations."""
    store, name, other = await world.open(), world.name(), world.name("other")
    alice, bob = store.tenant("alice"), store.tenant("bob")
    await alice.append(name, messages("hers"))
    await bob.append(other, messages("his"))
    expect(name in await alice.names(), "a tenant's own conversation is not listed")
    expect(other not in await alice.names(), "a conversation of another tenant is listed")
    expect(name not in await bob.names(), "a conversation of another tenant is listed")


@rule("isolation.tenants-delete", "tenant", "delete")
async def tenants_delete(world: World) -> None:
    """A tenant that deletes a name does not delete another tenant's conversation."""
    store, name = await world.open(), world.name()
    alice, bob = store.tenant("alice"), store.tenant("bob")
    await alice.append(name, messages("hers"))
    await refusal(bob.delete(name))
    expect_equal(texts(await alice.read(name)), ["hers"], "the conversation")


@rule("isolation.tenant-names", "tenant")
async def tenant_names(world: World) -> None:
    """Tenant and name are not joined in a way that makes two pairs one."""
    store, base = await world.open(), world.name()
    pairs = [("a", f"b/{base}"), ("a/b", base), ("a", f"b:{base}"), ("a:b", base), ("A", base), ("a", base)]
    stored = []
    for tenant, name in pairs:
        if await refusal(store.tenant(tenant).append(name, messages(f"{tenant}|{name}"))) is None:
            stored.append((tenant, name))
    for tenant, name in stored:
        expect_equal(texts(await store.tenant(tenant).read(name)), [f"{tenant}|{name}"], f"{name!r} of {tenant!r}")


@rule("isolation.tenants-retry", "tenant", "append_once")
async def tenants_retry(world: World) -> None:
    """A request key of one tenant is free for every other."""
    store, name, key = await world.open(), world.name(), world.name("key")
    await store.tenant("alice").append_once(name, messages("hers"), key)
    await store.tenant("bob").append_once(name, messages("his"), key)
    expect_equal(texts(await store.tenant("bob").read(name)), ["his"], "the other tenant's conversation")
