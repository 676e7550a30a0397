"""What `make release` refuses, and that it builds the same bytes twice, of all committed files and no others."""

from __future__ import annotations

import datetime as dt
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
TODAY = dt.date(2031, 5, 7)
AUTHOR = ("-c", "user.name=Test", "-c", "user.email=test@example.org")


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "requirements" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit, which could be released on `TODAY`."""
    (tmp_path / "exai").mkdir()
    (tmp_path / "alembic").mkdir()
    (tmp_path / "alembic/first.sql").write_text("select 1\n")
    (tmp_path / ".gitignore").write_text("dist/\n")
    (tmp_path / "exai/__init__.py").write_text('__version__ = "3.1.4"\n')
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "exai"\nversion = "3.1.4"\nrequires-python = ">=3.11"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["exai"]\n'
        '[tool.hatch.build.targets.wheel.force-include]\n"alembic" = "exai/db/alembic"\n'
    )
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 3.1.4, 2031-05-07\n\n## 3.1.3, 2030-01-01\n")
    for command in (("init", "-q"), ("add", "-A"), (*AUTHOR, "commit", "-q", "-m", "Begin")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_tree_that_is_ready_is_built_into_the_same_bytes_twice(release: ModuleType, tree: Path) -> None:
    assert release.version_of(tree) == "3.1.4"
    release.check_repository(tree, "v3.1.4")
    release.check_changelog(tree, "3.1.4", TODAY)
    built = release.build_twice(tree, tree / "dist")
    assert set(built) == {"exai-3.1.4-py3-none-any.whl", "exai-3.1.4.tar.gz"}
    release.check_contents(tree, tree / "dist", "3.1.4")


@pytest.mark.parametrize(
    ("configuration", "problem"),
    [
        ('[tool.hatch.build.targets.wheel]\npackages = ["exai"]\n', r"whl lacks exai/db/alembic/first\.sql"),
        ('[tool.hatch.build.targets.sdist]\nexclude = ["CHANGELOG.md"]\n', r"tar\.gz lacks CHANGELOG\.md"),
        ('[tool.hatch.build]\nartifacts = ["kept.env"]\n', r"tar\.gz has, though it is not committed, kept\.env"),
    ],
)
def test_distributions_without_a_file_or_with_a_foreign_one_are_refused(
    release: ModuleType, tree: Path, configuration: str, problem: str
) -> None:
    """A key in an ignored file must not be published, and a wheel without its migrations is of no use."""
    file = tree / "pyproject.toml"
    text = file.read_text()
    has_wheel = "targets.wheel]" in configuration
    file.write_text((text[: text.index("[tool")] if has_wheel else text) + configuration)
    (tree / ".gitignore").write_text("dist/\nkept.env\n")
    (tree / "kept.env").write_text("KEY=secret\n")
    subprocess.run(["git", *AUTHOR, "commit", "-q", "-am", "Change"], cwd=tree, check=True)
    release.check_repository(tree, "v3.1.4")
    release.build_twice(tree, tree / "dist")
    with pytest.raises(release.Refused, match=problem):
        release.check_contents(tree, tree / "dist", "3.1.4")


def test_two_versions_are_refused(release: ModuleType, tree: Path) -> None:
    (tree / "exai/__init__.py").write_text('__version__ = "3.1.5"\n')
    with pytest.raises(release.Refused, match=r"3\.1\.4.*3\.1\.5"):
        release.version_of(tree)


@pytest.mark.parametrize("heading", ["3.1.4, unreleased", "3.1.3, 2031-05-07", "3.1.4, 2031-05-06"])
def test_changelog_of_another_version_or_day_is_refused(release: ModuleType, tree: Path, heading: str) -> None:
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
    with pytest.raises(release.Refused, match=r"## 3\.1\.4, 2031-05-07"):
        release.check_changelog(tree, "3.1.4", TODAY)


def test_changes_that_are_not_committed_are_refused(release: ModuleType, tree: Path) -> None:
    (tree / "exai/new.py").write_text("")
    with pytest.raises(release.Refused, match=r"exai/new\.py"):
        release.check_repository(tree, "v3.1.4")


def test_version_that_has_a_tag_is_refused(release: ModuleType, tree: Path) -> None:
    subprocess.run(["git", *AUTHOR, "tag", "-a", "v3.1.4", "-m", "x"], cwd=tree, check=True)
    with pytest.raises(release.Refused, match="raise the version"):
        release.check_repository(tree, "v3.1.4")


def test_this_tree_states_one_version(release: ModuleType) -> None:
    assert release.version_of(ROOT)
