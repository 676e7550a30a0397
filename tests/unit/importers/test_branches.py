"""Branches of conversations with any parents, without recursion."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from exai.importers.reading.branches import BranchTree

NAMES = st.sampled_from([f"n{place}" for place in range(12)])


def _tree(pairs: list[tuple[str, str | None]], hidden: tuple[str, ...] = ()) -> BranchTree[str]:
    tree: BranchTree[str] = BranchTree()
    for name, parent in pairs:
        tree.add(name, parent, name, is_shown=name not in hidden)
    return tree


def _branches(tree: BranchTree[str], active: Any = None) -> list[tuple[list[str], tuple[int, str] | None]]:
    return [(list(each.nodes), each.start) for each in tree.branches(active)]


def test_the_active_branch_is_first_and_other_leaves_begin_where_they_leave_it() -> None:
    tree = _tree([("a", None), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "d"), ("f", "e"), ("g", "e")])

    assert _branches(tree, "g") == [(["a", "b", "d", "e", "g"], None), (["c"], (0, "b")), (["f"], (0, "e"))]


def test_without_an_active_node_the_newest_leaf_is_active() -> None:
    assert _branches(_tree([("a", None), ("b", "a"), ("c", "a")]))[0] == (["a", "c"], None)
    assert _branches(_tree([("a", None), ("b", "a"), ("c", "a")]), "nowhere")[0] == (["a", "c"], None)


def test_what_follows_the_active_node_is_a_fork() -> None:
    assert _branches(_tree([("a", None), ("b", "a"), ("c", "b")]), "a") == [(["a"], None), (["b", "c"], (0, "a"))]


def test_hidden_nodes_connect_and_are_not_in_branches() -> None:
    tree = _tree([("root", None), ("a", "root"), ("h", "a"), ("b", "h"), ("c", "h"), ("x", "c")], ("root", "h", "x"))

    assert _branches(tree, "b") == [(["a", "b"], None), (["c"], (0, "a"))]


def test_missing_and_cyclic_parents_begin_branches_of_their_own() -> None:
    tree = _tree([("a", "gone"), ("b", "a"), ("x", "z"), ("y", "x"), ("z", "y"), ("s", "s")])

    assert _branches(tree, "b") == [(["a", "b"], None), (["x", "y", "z"], None), (["s"], None)]


def test_listed_children_count_where_parents_are_missing() -> None:
    tree = _tree([("a", None), ("b", None), ("c", "gone")])
    tree.claim("a", ["b", "a", 7, None])
    tree.claim("b", ["c"])

    assert _branches(tree) == [(["a", "b", "c"], None)]


def test_a_chain_of_20_000_nodes_with_a_fork_at_each_is_read() -> None:
    pairs: list[tuple[str, str | None]] = [("0", None)]
    for place in range(1, 20_000):
        pairs += [(str(place), str(place - 1)), (f"f{place}", str(place - 1))]
    branches = _branches(_tree(pairs), "19999")

    assert len(branches[0][0]) == 20_000
    assert len(branches) == 20_000


@given(
    pairs=st.lists(st.tuples(NAMES, st.none() | NAMES), max_size=25),
    active=st.none() | NAMES,
    hidden=st.sets(NAMES, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_every_shown_node_is_in_exactly_one_branch(
    pairs: list[tuple[str, str | None]], active: str | None, hidden: set[str]
) -> None:
    branches = _branches(_tree(pairs, tuple(hidden)), active)
    nodes = [each for branch, _ in branches for each in branch]

    assert sorted(nodes) == sorted({name for name, _ in pairs} - hidden)
    for number, (branch, start) in enumerate(branches):
        assert branch
        if start is not None:
            assert start[0] < number
            assert start[1] in branches[start[0]][0]


@given(pairs=st.lists(st.tuples(NAMES, st.none() | NAMES), max_size=12, unique_by=lambda pair: pair[0]))
@settings(max_examples=200, deadline=None)
def test_forks_keep_their_first_message_when_a_branch_grows(pairs: list[tuple[str, str | None]]) -> None:
    before = _branches(_tree(pairs))
    if not before:
        return
    leaf = before[0][0][-1]
    after = _branches(_tree([*pairs, ("new", leaf)]), "new")

    assert after[0][0] == [*before[0][0], "new"]
    assert {branch[0] for branch, _ in after[1:]} == {branch[0] for branch, _ in before[1:]}
