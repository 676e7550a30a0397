"""Changes of a real repository: what a diff means, and what a hostile repository cannot do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from exai.errors import InvalidArgument, NotConfigured
from tests.integration.sources.conftest import Tree, names, texts
from tests.support.waiting import wait_until


def changed(repository: Tree) -> None:
    """One change that is staged, one that is not, a new file and a deleted one."""
    repository.write("staged.py", "a = 1\n")
    repository.git("add", "staged.py")
    repository.write("app.py", "".join(f"line {n}\n" for n in range(1, 31)).replace("line 20", "line twenty"))
    repository.write("new.py", "b = 2\n")
    (repository.top / "lib/util.py").unlink()


def test_uncommitted_changes_are_patch_new_files_and_whole_changed_files(repository: Tree) -> None:
    changed(repository)
    read = repository.read(diff="uncommitted", directory=repository.top)
    assert read.read == ("diff uncommitted (2 files, +2 -1)", "new.py (1 line)", "app.py (30 lines)")
    assert read.left_out == ("lib/util.py (deleted)",)
    patch = texts(read)["diff uncommitted"]
    assert "-line 20\n+line twenty\n" in patch
    assert "+++ b/staged.py" in patch
    assert "util" not in patch
    assert "20\tline twenty\n" in texts(read)["app.py"]


def test_staged_and_unstaged_changes_are_distinguished(repository: Tree) -> None:
    changed(repository)
    staged = repository.read(diff="staged", directory=repository.top)
    assert staged.read == ("diff staged (1 file, +1 -0)",)
    unstaged = repository.read(diff="unstaged", directory=repository.top)
    assert names(unstaged) == ["diff unstaged", "new.py", "app.py"]


def test_staged_contents_are_those_of_the_index(repository: Tree) -> None:
    """Not of the disk, where the file may have changed again."""
    repository.write("lib/util.py", "staged\n")
    repository.git("add", "-A")
    repository.write("lib/util.py", "on the disk\n")
    assert texts(repository.read(diff="staged", directory=repository.top))["lib/util.py"] == "staged\n"


def test_range_is_read_as_it_was_committed(repository: Tree) -> None:
    repository.git("checkout", "-q", "-b", "topic")
    repository.write("app.py", "one line\n")
    second = repository.commit("second")
    repository.git("checkout", "-q", "main")
    repository.write("lib/util.py", "on main\n")
    repository.commit("third")
    read = repository.read(diff="main...topic", directory=repository.top)
    assert names(read) == ["diff main...topic", "app.py"]
    assert texts(read)["app.py"] == "one line\n"
    assert "lib/util.py" in texts(repository.read(diff="topic..main", directory=repository.top))
    assert texts(repository.read(diff=f"{second}^!", directory=repository.top))["app.py"] == "one line\n"


def test_single_revision_means_everything_since(repository: Tree) -> None:
    repository.write("app.py", "two\n")
    repository.commit("second")
    repository.write("new.py", "new\n")
    read = repository.read(diff="HEAD~1", directory=repository.top)
    assert names(read) == ["diff HEAD~1", "new.py", "app.py"]
    assert "HEAD~1^! is that commit alone" in read.notes[0]
    assert names(repository.read(diff="HEAD", directory=repository.top)) == ["new.py"]


def test_first_commit_and_repository_without_one_are_compared_with_nothing(tree: Tree) -> None:
    tree.git("init", "-q", "-b", "main")
    tree.write("a.py", "a\n")
    assert names(tree.read(diff="uncommitted", directory=tree.top)) == ["a.py"]
    tree.git("add", "-A")
    assert "+a\n" in texts(tree.read(diff="staged", directory=tree.top))["diff staged"]
    tree.commit()
    assert "+a\n" in texts(tree.read(diff="HEAD^!", directory=tree.top))["diff HEAD^!"]


@pytest.mark.parametrize("spec", ["--cached", "--staged", "git diff --staged", "Staged changes", " staged "])
def test_other_words_for_staged_changes(repository: Tree, spec: str) -> None:
    repository.write("staged.py", "a = 1\n")
    repository.git("add", "staged.py")
    repository.write("new.py", "b = 2\n")
    (patch,) = texts(repository.read(diff=spec, directory=repository.top)).values()
    assert "+++ b/staged.py" in patch


def test_range_as_an_argument_of_git(repository: Tree) -> None:
    repository.write("app.py", "two\n")
    repository.commit("second")
    assert "app.py" in texts(repository.read(diff="git diff HEAD~1..HEAD", directory=repository.top))


def test_no_changes_are_said(repository: Tree) -> None:
    read = repository.read("app.py", diff="uncommitted", directory=repository.top)
    assert names(read) == ["app.py"]
    assert read.left_out == (f"diff uncommitted (no changes in {repository.top})",)


def test_range_without_changes_on_the_base_branch_means_the_uncommitted_ones(repository: Tree) -> None:
    repository.write("new.py", "new\n")
    read = repository.read(diff="main...HEAD", directory=repository.top)
    assert names(read) == ["new.py"]
    assert "has no changes, so that the uncommitted ones were read" in read.notes[0]


def test_missing_main_branch_is_looked_for_under_its_other_names(repository: Tree) -> None:
    repository.git("branch", "-m", "main", "master")
    repository.git("checkout", "-q", "-b", "topic")
    repository.write("app.py", "topic\n")
    repository.commit()
    read = repository.read(diff="main...HEAD", directory=repository.top)
    assert "app.py" in names(read)
    assert read.notes == ("diff: there is no main here, so that master was taken",)


@pytest.mark.parametrize(
    "spec",
    [
        "nowhere",
        "main...nowhere",
        "--output=/tmp/x",
        "--no-index",
        "-O/etc/passwd",
        "..--help",
        "main -- x",
        "HEAD:app.py",
        "a\nb",
        "$(touch x)",
        "..",
        "^!",
    ],
)
def test_unknown_revision_is_an_error_and_never_an_option(repository: Tree, spec: str) -> None:
    if spec == "..":
        assert repository.read("app.py", diff=spec, directory=repository.top).left_out
        return
    with pytest.raises(InvalidArgument, match=r"diff: .* is no commit of"):
        repository.read(diff=spec, directory=repository.top)
    assert not (repository.top / "x").exists()


def test_daemon_working_directory_means_nothing(repository: Tree, tmp_path: Path) -> None:
    """A long-lived server is elsewhere: the repository is the one of the given directory, or an error."""
    other = Tree(tmp_path)
    other.git("init", "-q", "-b", "main")
    with pytest.raises(InvalidArgument, match="no git repository"):
        Tree(tmp_path / "root").read(diff="uncommitted", roots=[(tmp_path / "empty")])


def test_repository_is_the_one_of_the_directory_or_of_the_named_files(tree: Tree) -> None:
    for name in ("one", "two"):
        tree.write(f"{name}/{name}.py", "x\n")
        tree.git("init", "-q", "-b", "main", inside=name)
        tree.commit(inside=name)
        tree.write(f"{name}/new-{name}.py", "y\n")
    assert names(tree.read(diff="uncommitted", directory=tree.top / "two")) == ["new-two.py"]
    read = tree.read("one/one.py", diff="uncommitted")
    assert names(read) == ["one/one.py", "new-one.py"]
    with pytest.raises(InvalidArgument, match="several repositories"):
        tree.read("one/one.py", "two/two.py", diff="uncommitted")
    with pytest.raises(InvalidArgument, match="no git repository"):
        tree.read(diff="uncommitted")


def test_only_root_that_is_a_repository_is_the_default(repository: Tree) -> None:
    repository.write("new.py", "y\n")
    assert names(repository.read(diff="uncommitted")) == ["new.py"]


def test_changes_of_the_whole_repository_are_read_from_a_directory_in_it(repository: Tree) -> None:
    changed(repository)
    read = repository.read(diff="uncommitted", directory=repository.top / "lib")
    assert "app.py (30 lines)" in read.read


def test_directory_of_a_repository_is_listed_by_git(repository: Tree) -> None:
    """Tracked files although they are ignored, new files unless they are; repositories inside, too."""
    repository.write("kept.log", "x\n")
    repository.commit()
    repository.write(".gitignore", "*.log\nbuild/\n")
    repository.write("other.log")
    repository.write("build/x.py")
    repository.write("inner/i.py")
    repository.git("init", "-q", inside="inner")
    repository.write("inner/.gitignore", "i2.py\n")
    repository.write("inner/i2.py")
    (repository.top / "link").symlink_to(repository.top / "lib")
    read = repository.read(".")
    assert names(read) == [".gitignore", "app.py", "inner/.gitignore", "inner/i.py", "kept.log", "lib/util.py"]
    assert "link (link to a directory)" in read.left_out
    assert repository.read("build").left_out == ("build/ (holds no file that is not ignored)",)


def test_work_tree_of_another_repository_is_read(repository: Tree) -> None:
    """`git worktree`: the objects are in the main repository."""
    repository.git("worktree", "add", "-q", "-b", "side", str(repository.top / "side"))
    repository.write("side/app.py", "side\n")
    assert texts(repository.read(diff="uncommitted", directory=repository.top / "side"))["app.py"] == "side\n"


def test_renamed_and_odd_names_keep_their_patch(repository: Tree) -> None:
    repository.git("mv", "app.py", "renamed app.py")
    odd = ["with space.py", "tab\there.py", 'quote".py', "back\\slash.py", "ünï.py", "b b/c.py"]
    for name in odd:
        repository.write(name, "old\n")
    repository.git("add", "-A")
    repository.git("commit", "-q", "-m", "names")
    for name in [*odd, "renamed app.py"]:
        repository.write(name, "new content\n")
    read = repository.read(diff="uncommitted", directory=repository.top)
    assert read.read[0] == "diff uncommitted (7 files, +7 -36)"
    assert len(read.read) == 1 + 7
    renamed = repository.read(diff="HEAD~1..HEAD", directory=repository.top)
    assert "rename to renamed app.py" in texts(renamed)["diff HEAD~1..HEAD"]


def test_name_that_is_no_text_keeps_its_patch(repository: Tree) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    repository.write(name, "old\n")
    repository.commit()
    repository.write(name, "new\n")
    read = repository.read(diff="uncommitted", directory=repository.top)
    assert read.read == ("diff uncommitted (1 file, +1 -1)", "caf\ufffd.py (1 line)")
    str(read).encode()


def test_lock_files_and_binaries_of_a_diff_are_left_out_and_said(repository: Tree) -> None:
    for content in ("old", "new"):
        repository.write("package-lock.json", f'{{"a": "{content}"}}\n')
        repository.write("logo.dat", b"\0\1" + content.encode())
        repository.write("kept.py", f"{content}\n")
        if content == "old":
            repository.commit()
    read = repository.read(diff="uncommitted", directory=repository.top)
    assert names(read) == ["diff uncommitted", "kept.py"]
    assert read.left_out == ("logo.dat (binary)", "package-lock.json (lock file)")
    assert "package-lock" not in str(texts(read))


def test_diff_beyond_the_budget_keeps_the_files_that_fit(repository: Tree) -> None:
    repository.write("lib/util.py", "x" * 8_000 + "\n")
    repository.write("app.py", "short\n")
    read = repository.read(diff="uncommitted", directory=repository.top, budget_tokens=600)
    assert names(read) == ["diff uncommitted", "app.py"]
    assert read.left_out[0] == "changes of lib/util.py (outside the token budget: 1 of 1 places)"


def test_patch_of_one_file_beyond_the_budget_is_cut_between_its_places(repository: Tree) -> None:
    repository.write("long.py", "".join(f"{n:07}\n" for n in range(2_000)))
    repository.commit()
    repository.write("long.py", "".join(f"{n:07}{' changed' * (n % 100 == 50)}\n" for n in range(2_000)))
    read = repository.read(diff="uncommitted", directory=repository.top, budget_tokens=400)
    assert read.read == ("diff uncommitted (1 file, +13 -13)",)
    assert read.left_out[0] == "changes of long.py (outside the token budget: 7 of 20 places)"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_repository_of_another_user_is_read(repository: Tree) -> None:
    """As one that is mounted into a container; git alone refuses it."""
    for directory, _, files in os.walk(repository.top):
        for name in (".", *files):
            os.lchown(Path(directory, name), 65_534, 65_534)
    repository.write("new.py", "x\n")
    with pytest.raises(subprocess.CalledProcessError):
        repository.git("status")
    assert names(repository.read(diff="uncommitted")) == ["new.py"]


def test_submodule_is_listed_and_its_own_changes_are_not_looked_for(repository: Tree, tmp_path: Path) -> None:
    """Git would run itself in it, by its configuration."""
    inner = Tree(tmp_path / "root" / "inner")
    inner.write("i.py", "x\n")
    inner.git("init", "-q", "-b", "main")
    inner.commit()
    repository.commit()
    inner.write("i.py", "changed\n")
    inner.git("config", "core.fsmonitor", f"touch {tmp_path}/ran")
    assert repository.read(diff="uncommitted").left_out == (f"diff uncommitted (no changes in {repository.top})",)
    assert "inner/i.py" in names(repository.read("."))
    assert not (tmp_path / "ran").exists()


def test_conflict_is_read(repository: Tree) -> None:
    repository.git("checkout", "-q", "-b", "topic")
    repository.write("app.py", "topic\n")
    repository.commit()
    repository.git("checkout", "-q", "main")
    repository.write("app.py", "main\n")
    repository.commit()
    with pytest.raises(subprocess.CalledProcessError):
        repository.git("merge", "-q", "topic")
    read = repository.read(diff="uncommitted", directory=repository.top)
    assert "<<<<<<<" in texts(read)["app.py"]


def test_closed_files_are_in_no_diff(repository: Tree) -> None:
    """As the settings file of the daemon, which has the keys, below a root; by any of its names."""
    repository.write("settings.env", "KEY=1\n")
    os.link(repository.top / "settings.env", repository.top / "other.env")
    repository.commit()
    (repository.top / "settings.env").write_text("KEY=secret\n")
    repository.closed = [repository.top / "settings.env"]
    for spec in ("uncommitted", "HEAD~1"):
        read = repository.read("app.py", diff=spec, directory=repository.top)
        assert "secret" not in str(texts(read))
        assert "KEY" not in str(texts(read))
        assert "settings.env (may not be read)" in read.left_out
        assert "other.env (may not be read)" in read.left_out


@pytest.fixture
def hostile(repository: Tree, tmp_path: Path) -> Tree:
    """A repository whose configuration names a program for every purpose; each would leave a file."""
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$1\ncat\n")
    program.chmod(0o755)
    repository.write(".gitattributes", "*.py filter=evil diff=evil\n*.txt filter=odd.name diff=evil\n")
    repository.write("a.txt", "old\n")
    repository.commit("attributes")
    settings = {
        "core.fsmonitor": "fsmonitor",
        "core.sshCommand": "ssh",
        "core.pager": "pager",
        "core.editor": "editor",
        "core.askPass": "askpass",
        "credential.helper": "credential",
        "diff.external": "external",
        "diff.evil.command": "command",
        "diff.evil.textconv": "textconv",
        "filter.evil.clean": "clean",
        "filter.evil.smudge": "smudge",
        "filter.odd.name.process": "process",
        "filter.odd.name.required": "",
        "gpg.program": "gpg",
    }
    for name, word in settings.items():
        value = "true" if name.endswith("required") else f"{program} {word}"
        repository.git("config", name, value)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    repository.git("config", "core.hooksPath", str(hooks))
    for hook in ("post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-{hook}\n")
        (hooks / hook).chmod(0o755)
    return repository


@pytest.mark.parametrize("spec", ["uncommitted", "staged", "unstaged", "HEAD~1..HEAD", "HEAD"])
def test_repository_cannot_make_git_run_a_program(hostile: Tree, tmp_path: Path, spec: str) -> None:
    (hostile.top / "app.py").write_text("changed\n")
    (hostile.top / "a.txt").write_text("changed\n")
    index = (hostile.top / ".git" / "index").read_bytes()
    read = hostile.read(".", diff=spec, directory=hostile.top)
    assert read.read
    assert sorted(tmp_path.glob("ran-*")) == []
    assert (hostile.top / ".git" / "index").read_bytes() == index
    assert not list((hostile.top / ".git").glob("*.lock"))


def test_the_same_repository_runs_programs_for_its_user(hostile: Tree, tmp_path: Path) -> None:
    """The test above would show nothing if the configuration had no effect."""
    (hostile.top / "app.py").write_text("changed\n")
    with suppress(subprocess.CalledProcessError):
        hostile.git("diff")
    assert sorted(tmp_path.glob("ran-*"))


def test_filters_with_odd_names_are_refused(hostile: Tree) -> None:
    hostile.git("config", "filter.a=b.clean", "touch /tmp/never")
    with pytest.raises(InvalidArgument, match="filters that cannot be switched off"):
        hostile.read(diff="uncommitted", directory=hostile.top)


def test_missing_objects_are_not_fetched(repository: Tree, tmp_path: Path) -> None:
    """A partial clone would start the program of its remote."""
    repository.git("config", "remote.origin.url", f"ext::touch {tmp_path}/ran")
    repository.git("config", "remote.origin.promisor", "true")
    repository.git("config", "extensions.partialClone", "origin")
    repository.git("config", "protocol.ext.allow", "always")
    blob = repository.git("rev-parse", "HEAD:app.py")
    (repository.top / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    repository.write("app.py", "changed\n")
    with pytest.raises(InvalidArgument, match="could not compare"):
        repository.read(diff="uncommitted", directory=repository.top)
    assert not (tmp_path / "ran").exists()


def test_work_tree_and_objects_have_to_be_below_a_root(tree: Tree, tmp_path: Path) -> None:
    """A file `.git`, a setting or a list of other stores would give the contents of repositories elsewhere."""
    outside = Tree(tmp_path / "outside")
    outside.write("secret.py", "secret\n")
    outside.git("init", "-q", "-b", "main")
    outside.commit()
    outside.write("secret.py", "another secret\n")

    tree.write("by-file/.git", f"gitdir: {outside.top}/.git\n")
    shutil.copytree(outside.top / ".git", tree.top / "by-setting/.git")
    tree.git("config", "core.worktree", str(outside.top), inside="by-setting/.git")
    tree.write("by-store/x", "x\n")
    tree.git("init", "-q", "-b", "main", inside="by-store")
    tree.write("by-store/.git/objects/info/alternates", f"{outside.top}/.git/objects\n")
    for name in ("by-file", "by-setting", "by-store"):
        with pytest.raises(InvalidArgument, match=r"outside the allowed roots|no git repository"):
            tree.read(diff="uncommitted", directory=tree.top / name)
        assert "secret" not in str(texts(tree.read(name)))


def listed_last(store: Path, others: Path) -> None:
    own = "".join(f"{store.parent}/other-{number}\n" for number in range(20))
    (store / "info" / "alternates").write_text(f"{own}{others}\n")


def listed_behind_another(store: Path, others: Path) -> None:
    between = store.parent.parent / "between"
    (between / "info").mkdir(parents=True)
    (store / "info" / "alternates").write_text(f"{between}\n")
    (between / "info" / "alternates").write_text(f"{others}\n")


def listed_in_quotes(store: Path, others: Path) -> None:
    (store / "info" / "alternates").write_text(f'"{others}"\n')


def linked_packs(store: Path, others: Path) -> None:
    shutil.rmtree(store / "pack")
    (store / "pack").symlink_to(others / "pack")


def linked_pack(store: Path, others: Path) -> None:
    for each in (others / "pack").iterdir():
        (store / "pack" / each.name).symlink_to(each)


def linked_objects(store: Path, others: Path) -> None:
    for each in others.glob("??"):
        inner = store.parent.parent / "inner" / each.name
        inner.mkdir(parents=True)
        for file in each.iterdir():
            (inner / file.name).symlink_to(file)
        if not (store / each.name).exists():
            (store / each.name).symlink_to(inner)


@pytest.mark.parametrize(
    "borrow", [listed_last, listed_behind_another, listed_in_quotes, linked_packs, linked_pack, linked_objects]
)
def test_objects_outside_the_roots_are_not_read_however_they_are_borrowed(
    repository: Tree, tmp_path: Path, borrow: Callable[[Path, Path], None]
) -> None:
    """An unpacked archive may hold a repository that refers to others of this machine."""
    outside = Tree(tmp_path / "outside")
    outside.write("secret.py", "first\n")
    outside.git("init", "-q", "-b", "main")
    outside.commit()
    outside.write("secret.py", "a secret of another project\n")
    commit = outside.commit()
    if borrow is not linked_objects:
        outside.git("gc", "-q")
    borrow(repository.top / ".git/objects", outside.top / ".git/objects")
    with pytest.raises(InvalidArgument, match="outside the allowed roots"):
        repository.read(diff=f"{commit}^!", directory=repository.top)
    both = [repository.top, outside.top]
    if borrow not in (listed_last, listed_in_quotes):
        read = repository.read(diff=f"{commit}^!", directory=repository.top, roots=both)
        assert "a secret" in str(texts(read))


def test_index_outside_the_roots_is_not_read(repository: Tree, tmp_path: Path) -> None:
    index = shutil.move(repository.top / ".git/index", tmp_path / "index")
    (repository.top / ".git/index").symlink_to(index)
    with pytest.raises(InvalidArgument, match="outside the allowed roots"):
        repository.read(diff="staged", directory=repository.top)


def test_repository_above_the_root_is_not_read(repository: Tree) -> None:
    repository.write("lib/new.py", "x\n")
    with pytest.raises(InvalidArgument, match="no git repository"):
        repository.read(diff="uncommitted", directory=repository.top / "lib", roots=[repository.top / "lib"])


def test_environment_of_the_daemon_has_no_effect(repository: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.write("new.py", "y\n")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/false")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    assert names(repository.read(diff="uncommitted", directory=repository.top)) == ["new.py"]


def test_without_git_a_diff_is_refused_and_files_are_read(
    repository: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write(".gitignore", "*.log\n")
    repository.write("a.log")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert names(repository.read(".")) == [".gitignore", "app.py", "lib/util.py"]
    with pytest.raises(NotConfigured, match="Install git"):
        repository.read(diff="uncommitted", directory=repository.top)


def has_ended(status: Path) -> bool:
    try:
        return status.read_text().split()[2] == "Z"
    except OSError:
        return True


async def test_time_limit_ends_git(repository: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its children: here a program that never ends in the place of git."""
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/pid\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ends = iter([0.0] * 4)
    repository.bounds.clock = lambda: next(ends, 10.0) if (tmp_path / "pid").exists() else 0.0
    repository.bounds.end_s = 5.0
    read = repository.read("app.py", ".")
    assert read.left_out or read.notes
    status = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    # The signal has been sent; on a loaded machine the kernel ends the process a little later.
    await wait_until(lambda: has_ended(status))
