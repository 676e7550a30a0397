"""Build, check and tag a release: `make release`.

The version is the one in pyproject.toml. The release is refused unless the tree is committed, `exai.__version__` and
the newest heading of CHANGELOG.md state the same version, the heading has today's date, and the tag does not exist. The
wheel and the source distribution are built twice, with the time of the commit, and must be the same bytes; the source
distribution must hold every committed file and no other, the wheel the package and the migrations. Nothing is
published: the tag is local until it is pushed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Refused(Exception):
    """The release cannot be made; the text has the reason and the cure."""


def version_of(root: Path) -> str:
    """Return the one version that the tree states. Raises Refused if it states two."""
    version = str(tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"])
    stated = re.search(r'^__version__ = "(.+)"$', (root / "exai/__init__.py").read_text("utf-8"), re.MULTILINE)
    if stated is None or stated[1] != version:
        raise Refused(f"pyproject.toml has {version}, exai.__version__ {stated and stated[1]}: write the same in both")
    return version


def check_changelog(root: Path, version: str, today: dt.date) -> None:
    """Raise Refused unless the newest heading of the changelog is this version with today's date."""
    heading = re.search(r"^## (.+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    wanted = f"{version}, {today.isoformat()}"
    if heading is None or heading[1] != wanted:
        raise Refused(f"CHANGELOG.md begins with {heading and heading[1]!r}: write '## {wanted}' and commit it")


def check_repository(root: Path, tag: str) -> None:
    """Raise Refused if something is not committed or the tag exists."""
    if changed := git(root, "status", "--porcelain"):
        raise Refused(f"not committed: {', '.join(line[3:] for line in changed.splitlines()[:5])}; commit or remove it")
    if git(root, "tag", "--list", tag):
        raise Refused(f"the tag {tag} exists: raise the version in pyproject.toml and exai/__init__.py")


def build(root: Path, directory: Path) -> dict[str, str]:
    """Build the wheel and the source distribution into a directory. Returns the SHA-256 of each file by its name."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": git(root, "log", "-1", "--format=%ct").strip()}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(directory)],
        cwd=root,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def build_twice(root: Path, directory: Path) -> dict[str, str]:
    """Build into a directory, and once more elsewhere. Raises Refused if the bytes differ."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("exai-*"):
        old.unlink()
    built = build(root, directory)
    with tempfile.TemporaryDirectory() as other:
        if build(root, Path(other)) != built:
            raise Refused("two builds of this commit have different bytes")
    return built


def check_contents(root: Path, directory: Path, version: str) -> None:
    """Raise Refused unless both distributions hold the committed files that they should, and the version."""
    committed = set(git(root, "ls-files", "-z").split("\0")) - {""}
    [wheel], [source] = directory.glob("exai-*.whl"), directory.glob("exai-*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        about = f"exai-{version}.dist-info/"
        packed = {name for name in archive.namelist() if not name.startswith(about)}
        metadata = HeaderParser().parsestr(archive.read(f"{about}METADATA").decode("utf-8"))
    package = {name for name in committed if name.startswith("exai/")}
    migrations = {f"exai/db/{name}" for name in committed if name.startswith("alembic/")}
    _check_equal(wheel, packed, package | migrations)
    if metadata["Version"] != version:
        raise Refused(f"{wheel.name} states version {metadata['Version']}, not {version}")
    with tarfile.open(source) as archived:
        members = {member.name for member in archived.getmembers() if not member.isdir()}
    unpacked = {name.removeprefix(f"exai-{version}/") for name in members}
    _check_equal(source, unpacked, committed | {"PKG-INFO"})


def _check_equal(file: Path, found: set[str], wanted: set[str]) -> None:
    for names, problem in ((wanted - found, "lacks"), (found - wanted, "has, though it is not committed,")):
        if names:
            raise Refused(f"{file.name} {problem} {', '.join(sorted(names)[:5])}")


def git(root: Path, *arguments: str) -> str:
    """Run git in the tree and return its output."""
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Check, build, and with `--tag` make the tag."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.splitlines()[0])
    parser.add_argument("--tag", action="store_true", help="make the tag; without it the distributions are only built")
    parser.add_argument("--directory", type=Path, default=ROOT / "dist", help="where the distributions are written")
    options = parser.parse_args()
    try:
        version = version_of(ROOT)
        tag = f"v{version}"
        check_repository(ROOT, tag)
        check_changelog(ROOT, version, dt.datetime.now(dt.UTC).date())
        built = build_twice(ROOT, options.directory)
        check_contents(ROOT, options.directory, version)
    except Refused as error:
        sys.exit(f"not released: {error}")
    for name, digest in built.items():
        print(f"{digest}  {options.directory / name}")
    if options.tag:
        git(ROOT, "tag", "-a", tag, "-m", f"EXAI {version}")
        print(f"tagged {tag}; publish it with: git push origin {tag}")


if __name__ == "__main__":
    main()
