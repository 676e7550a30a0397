"""Bundle the packages that the page uses, as pinned by package-lock.json, into exai/web/static/vendor.js.

The first line of the bundle names its inputs and its content by digests, so that a test finds a bundle that was edited,
or that does not belong to the lock, without npm and without a network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATIC = HERE.parent.parent / "exai" / "web" / "static"
INPUTS = ("package.json", "package-lock.json", "vendor.js")
BUNDLE, LICENSES = "vendor.js", "vendor-licenses.txt"
BUILD = (
    "--bundle",
    "--minify",
    "--format=esm",
    "--target=es2022",
    "--legal-comments=none",
    "--drop:console",
    "--log-level=warning",
)


def inputs_digest() -> str:
    """Digest of everything that decides what the bundle contains."""
    return hashlib.sha256(b"\0".join((HERE / name).read_bytes() for name in INPUTS)).hexdigest()


def bundle(directory: Path) -> bytes:
    """Install the packages into a directory and bundle them."""
    for name in INPUTS:
        shutil.copy(HERE / name, directory / name)
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--silent")
    subprocess.run(["npm", "ci", *options], cwd=directory, check=True)
    command = ["node_modules/.bin/esbuild", "vendor.js", *BUILD]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True).stdout


def banner(content: bytes) -> bytes:
    """Return the first line of the bundle: its packages, and the digests of its inputs and its content."""
    packages = ", ".join(f"{name} {version}" for name, version in packages_of().items())
    content_digest = hashlib.sha256(content).hexdigest()
    return f"/* {packages}; see {LICENSES}; inputs {inputs_digest()}; content {content_digest} */\n".encode()


def packages_of() -> dict[str, str]:
    """Return the packages in the bundle, with their versions."""
    found: dict[str, str] = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    return found


def licenses(directory: Path) -> str:
    """Return the licences of the packages in the bundle, as they were published."""
    rule = "=" * 80
    texts = {
        f"{name} {version}": (directory / "node_modules" / name / "LICENSE").read_text(encoding="utf-8").strip()
        for name, version in packages_of().items()
    }
    return "\n".join(f"{rule}\n{title}\n{rule}\n\n{text}\n" for title, text in texts.items())


def main() -> int:
    """Write the bundle and the licences; the argument is the directory for the packages."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    content = bundle(directory)
    (STATIC / BUNDLE).write_bytes(banner(content) + content)
    (STATIC / LICENSES).write_text(licenses(directory), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
