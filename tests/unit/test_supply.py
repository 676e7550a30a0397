"""What `make check-supply` makes of the reports of its tools."""

from __future__ import annotations

import json

import pytest

from requirements.supply import audit_problems, licence_problems


@pytest.mark.parametrize(
    "licence",
    ["MIT", "MIT License", "Apache-2.0 OR GPL-3.0-only", "MPL-2.0 AND (Apache-2.0 OR MIT)", "MIT AND PSF-2.0"],
)
def test_licence_that_allows_passing_on_is_no_problem(licence: str) -> None:
    assert licence_problems([{"Name": "a", "Version": "1", "License": licence}]) == []


@pytest.mark.parametrize("licence", ["UNKNOWN", "GPL-3.0-only", "MIT AND AGPL-3.0-or-later", "Proprietary", ""])
def test_other_licence_is_named(licence: str) -> None:
    assert licence_problems([{"Name": "a", "Version": "1", "License": licence}]) == [f"a 1: {licence}"]


def test_source_that_is_away_is_not_a_clean_audit() -> None:
    """pip-audit's own words for a service that it cannot reach."""
    error = "ERROR:pip_audit._cli:alembic: Dependency not found on PyPI and could not be audited: alembic (1.20.1)"
    found, sentence = audit_problems(1, "", error)
    assert found == []
    assert sentence.startswith("not audited: ")
    skipped = {"dependencies": [{"name": "a", "skip_reason": "could not be audited"}]}
    assert audit_problems(0, json.dumps(skipped), "") == ([], "not audited: a")


def test_vulnerability_is_named_with_its_cure() -> None:
    report = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]},
            {"name": "b", "version": "1", "vulns": []},
        ]
    }
    found, sentence = audit_problems(1, json.dumps(report), "")
    assert found == ["a 1: CVE-1, mended in 2"]
    assert sentence == "2 packages audited, 1 known vulnerabilities"


def test_tool_that_fails_otherwise_is_a_problem() -> None:
    found, _ = audit_problems(2, "", "Traceback: something else")
    assert found == ["pip-audit failed: Traceback: something else"]
