"""`make check-supply`: known vulnerabilities, licences and a bill of materials of what the container holds.

It reads requirements/image.lock and an environment that was made from it. A source of vulnerabilities that cannot be
reached is reported as "not audited"; a vulnerability or a licence that is not among the allowed ones fails.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "image.lock"
AUDIT_LIMIT_S = 300
UNREACHABLE = re.compile(
    r"could not be audited|Connection|timed out|ServiceError|HTTPSConnectionPool|not found on PyPI"
)

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CNRI-Python",
        "ISC",
        "MIT",
        "MIT-0",
        "MPL-2.0",
        "PSF-2.0",
        "Python-2.0",
        "Unlicense",
    }
)
"""Licences under which the packages may be passed on with EXAI, by their SPDX names."""

NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Names of older packages, which have a classifier instead of an expression."""


def licence_problems(listed: list[dict[str, str]]) -> list[str]:
    """Return the packages that no allowed licence covers; `AND` needs all of an expression, `OR` and `;` one."""
    found = []
    for each in listed:
        choices = re.split(r" OR |; ?", each["License"].replace("(", "").replace(")", ""))
        raw = [each["License"]] if each["License"] in NAMES else choices
        if not any(all(NAMES.get(part, part) in ALLOWED for part in choice.split(" AND ")) for choice in raw):
            found.append(f"{each['Name']} {each['Version']}: {each['License']}")
    return found


def audit_problems(status: int, output: str, errors: str) -> tuple[list[str], str]:
    """Return the vulnerabilities that pip-audit found, and a sentence about the audit."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        if status != 0 and UNREACHABLE.search(errors):
            return [], f"not audited: {errors.strip().splitlines()[-1]}"
        return [f"pip-audit failed: {errors.strip()[-500:]}"], "not audited"
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    found = [
        f"{each['name']} {each['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no release'}"
        for each in packages
        for known in each.get("vulns", ())
    ]
    if skipped:
        return found, f"not audited: {', '.join(skipped)}"
    return found, f"{len(packages)} packages audited, {len(found)} known vulnerabilities"


def main() -> int:
    """Run the three tools; returns 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", type=Path, help="directory of the tools' programs")
    parser.add_argument("python", type=Path, help="interpreter of the environment that is examined")
    parser.add_argument("sbom", type=Path, help="where the bill of materials is written")
    options = parser.parse_args()
    command = [options.tools / "python", "-m", "pip_audit", "--strict", "--format=json", "--progress-spinner=off"]
    audit = subprocess.run(
        [*command, "--disable-pip", "--require-hashes", "-r", LOCK],
        check=False,
        capture_output=True,
        text=True,
        timeout=AUDIT_LIMIT_S,
    )
    vulnerable, sentence = audit_problems(audit.returncode, audit.stdout, audit.stderr)
    print(f"vulnerabilities: {sentence}")
    listing = [options.tools / "python", "-m", "piplicenses", "--python", options.python, "--format=json"]
    listed = json.loads(subprocess.run(listing, check=True, capture_output=True, text=True).stdout)
    forbidden = licence_problems(listed)
    print(f"licences: {len(listed)} packages, {len(forbidden)} with one that is not allowed")
    bill = [options.tools / "python", "-m", "cyclonedx_py", "environment", options.python, "--of", "JSON"]
    subprocess.run([*bill, "--output-file", options.sbom], check=True, capture_output=True)
    components = json.loads(options.sbom.read_text(encoding="utf-8"))["components"]
    print(f"bill of materials: {len(components)} components in {options.sbom}")
    for problem in (*vulnerable, *forbidden):
        print(f"  {problem}", file=sys.stderr)
    return 1 if vulnerable or forbidden else 0


if __name__ == "__main__":
    sys.exit(main())
