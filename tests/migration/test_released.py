"""The text of a revision, and of what it creates, is fixed from its first release on."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from exai.db.migrations.revision import expected_revision, revision_at
from tests.migration import previous
from tests.support.backend import migrate_by
from tests.support.migrations import value
from tests.support.released import FIXED, NoHistory, changed_since, git, last_release

ROOT = Path(__file__).resolve().parents[2]


def test_released_revisions_are_neither_changed_nor_deleted() -> None:
    """A database that has run a revision never runs it again, so a changed text would make databases differ."""
    try:
        tag = last_release(ROOT)
    except NoHistory as reason:
        pytest.skip(f"released revisions cannot be compared: {reason}")
    if tag is not None:
        changed = changed_since(ROOT, tag)
        assert changed == [], f"part of release {tag}; restore them, and make a new revision with new files instead"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one file of each kind, committed and not released."""
    for directory in FIXED:
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "first.sql").write_text("select 1\n")
    (tmp_path / "alembic" / "schema.sql").write_text("generated\n")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "-c", "user.name=n", "-c", "user.email=n@localhost", "commit", "-q", "--allow-empty", "-m", "x")


def test_before_the_first_release_everything_may_change(repository: Path) -> None:
    """Tags that name no release, and releases of other branches, do not count."""
    git(repository, "tag", "v1.0.0rc1")
    git(repository, "tag", "archive-v1.0.0")
    branch = git(repository, "branch", "--show-current").strip()
    git(repository, "switch", "-q", "-c", "other")
    commit(repository)
    git(repository, "tag", "v1.0.0")
    git(repository, "switch", "-q", branch)
    assert last_release(repository) is None


@pytest.mark.parametrize("directory", FIXED)
def test_a_change_a_deletion_and_a_renaming_are_found(repository: Path, directory: str) -> None:
    """In the working tree as well as committed."""
    git(repository, "tag", "v1.0.0")
    file = repository / directory / "first.sql"
    assert changed_since(repository, "v1.0.0") == []
    for text in ("select 2\n", "select 1", None):
        if text is None:
            file.rename(file.with_name("renamed.sql"))
        else:
            file.write_text(text)
        found = [changed_since(repository, "v1.0.0")]
        commit(repository)
        found.append(changed_since(repository, "v1.0.0"))
        assert found == [[f"{directory}/first.sql"]] * 2


def test_new_files_and_files_that_are_generated_may_change(repository: Path) -> None:
    """The practice: a new revision with new files."""
    git(repository, "tag", "v1.0.0")
    for directory in FIXED:
        (repository / directory / "second.sql").write_text("select 2\n")
    (repository / "alembic" / "schema.sql").write_text("generated again\n")
    commit(repository)
    assert changed_since(repository, "v1.0.0") == []


def test_the_newest_release_counts(repository: Path) -> None:
    """By its number: 1.10 is newer than 1.9, and its files are fixed, too."""
    git(repository, "tag", "v1.9.0")
    added = repository / FIXED[0] / "second.sql"
    added.write_text("select 2\n")
    commit(repository)
    git(repository, "tag", "v1.10.0")
    added.unlink()
    assert last_release(repository) == "v1.10.0"
    assert changed_since(repository, "v1.10.0") == [f"{FIXED[0]}/second.sql"]


def test_without_a_history_the_reason_is_given(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unpacked archive, a shallow clone, a machine without git: none of them may pass for "nothing changed"."""
    with pytest.raises(NoHistory, match="not the root of a git repository"):
        last_release(repository / "alembic")
    commit(repository)
    shallow = tmp_path_factory.mktemp("shallow")
    git(shallow, "clone", "-q", "--depth", "1", repository.as_uri(), "clone")
    with pytest.raises(NoHistory, match="shallow"):
        last_release(shallow / "clone")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoHistory, match="git is not installed"):
        last_release(repository)


def test_without_a_release_the_tests_of_the_last_one_are_not_run_and_that_is_said(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make test-previous` before the first release, and in an unpacked archive."""
    assert previous.main(repository) == 0
    assert "no tag vX.Y.Z" in capsys.readouterr().out
    assert previous.main(repository / "alembic") == 0
    assert "not the root of a git repository" in capsys.readouterr().out


def test_the_last_release_is_unpacked_as_it_was(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The text that the working tree has now."""
    git(repository, "tag", "v1.0.0")
    file = repository / FIXED[0] / "first.sql"
    file.write_text("select 2\n")
    directory = tmp_path_factory.mktemp("previous") / "v1.0.0"
    previous.unpack(repository, "v1.0.0", directory)
    assert (directory / FIXED[0] / "first.sql").read_text() == "select 1\n"


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="make has installed nothing in this checkout")
async def test_a_database_is_migrated_by_another_checkout(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook by which the tests of a release receive the schema of the next one; here both are this tree."""
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    await asyncio.to_thread(migrate_by, ROOT, empty_postgres_url)
    assert await revision_at(empty_postgres_url) == expected_revision()


async def test_every_function_is_called(postgres_url: str) -> None:
    """By a statement, another function or a trigger; a contracting revision drops a version that nothing calls."""
    names = await value(
        postgres_url,
        "select array_agg(proname::text order by 1) from pg_proc where pronamespace = 'exai'::regnamespace",
    )
    sources = await value(
        postgres_url,
        "select array_agg(p.proname || ' ' || pg_get_functiondef(p.oid)) from pg_proc p where p.prokind = 'f'"
        " and p.pronamespace in ('exai'::regnamespace, 'monitoring'::regnamespace, 'public'::regnamespace)",
    )
    triggers = await value(
        postgres_url, "select string_agg(pg_get_triggerdef(oid), ' ') from pg_trigger where not tgisinternal"
    )
    database = ROOT / "exai" / "db"
    texts = [*database.glob("sql/*.sql"), *database.glob("*.py")]
    statements = "".join(path.read_text("utf-8") for path in texts)
    assert len(names) > 40
    callers = statements + triggers

    def is_called(name: str) -> bool:
        call = re.compile(rf"\b{name}\(")
        return bool(call.search(callers)) or any(
            call.search(text) for text in sources if not text.startswith(f"{name} ")
        )

    assert [name for name in names if not is_called(name)] == []
