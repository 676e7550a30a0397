"""Run the acceptance tests of the last release on databases that this tree has migrated: `make test-previous`.

While a new release is deployed, daemons of the last one work on the new schema, so they must not notice it. The release
is unpacked below .venv from its tag, and installed there with its own lock. Arguments go to its pytest.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.released import NoHistory, last_release

ROOT = Path(__file__).resolve().parents[2]
NEEDED = (".venv/dev.done", ".venv/referees/done", ".venv/s3/done")
"""What the release's own `make test` installs before its tests."""


def unpack(root: Path, tag: str, directory: Path) -> None:
    """Write the files of a tag into a directory, which is there only when all of them are."""
    packed = subprocess.run(
        ["git", "-c", f"safe.directory={root}", "archive", "--format=tar", tag],
        cwd=root, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    unfinished = directory.with_name(f"unfinished-{directory.name}")
    unfinished.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        # The first releases of Python 3.11 have no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(unfinished)
    unfinished.rename(directory)


def environment(root: Path) -> dict[str, str]:
    """Return this process's variables, without the other checkout's modules, and with this one for migrations."""
    foreign = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "VIRTUAL_ENV")
    kept = {name: text for name, text in os.environ.items() if name not in foreign}
    return {**kept, "EXAI_TEST_MIGRATED_BY": str(root)}


def main(root: Path = ROOT) -> int:
    """Return the exit status of the release's tests, or 0 where there is no release."""
    try:
        tag = last_release(root)
    except NoHistory as reason:
        print(f"not tested with the last release: {reason}")
        return 0
    if tag is None:
        print("not tested with the last release: no tag vX.Y.Z is in the history of this commit")
        return 0
    directory = root / ".venv" / "previous" / tag
    if not directory.exists():
        unpack(root, tag, directory)
    print(f"the acceptance tests of {tag}, on databases that this tree has migrated", flush=True)
    given = environment(root)
    subprocess.run(["make", "-s", f"PYTHON={sys.executable}", *NEEDED], cwd=directory, env=given, check=True)
    python = directory / ".venv" / "bin" / "python"
    tests = subprocess.run(
        [python, "-m", "pytest", "-q", "tests/acceptance", *sys.argv[1:]], cwd=directory, env=given, check=False
    )
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
