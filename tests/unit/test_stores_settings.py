"""Settings of the stores of files: what is missing is named, and a key that cannot work is refused early."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from exai.errors import ConfigError
from exai.settings.load import describe, load_settings

SUPABASE = {"EXAI_FILES__SUPABASE__URL": "https://ref.supabase.co", "EXAI_FILES__SUPABASE__KEY": "sb_secret_123456789"}
S3 = {"EXAI_FILES__S3__ACCESS_KEY_ID": "AKIA", "EXAI_FILES__S3__SECRET_ACCESS_KEY": "secret-secret"}


def legacy_key(role: str) -> str:
    parts = [{"alg": "HS256"}, {"role": role, "iss": "supabase"}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "signature"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"EXAI_FILES__STORE": "supabase"}, "EXAI_FILES__SUPABASE__URL"),
        ({"EXAI_FILES__STORE": "supabase", "EXAI_FILES__SUPABASE__URL": "https://x"}, "EXAI_FILES__SUPABASE__KEY"),
        ({"EXAI_FILES__SUPABASE__KEY": "sb_secret_1"}, "EXAI_FILES__SUPABASE__URL"),
        ({**SUPABASE, "EXAI_FILES__SUPABASE__KEY": "sb_publishable_1"}, "publishable key"),
        ({**SUPABASE, "EXAI_FILES__SUPABASE__KEY": legacy_key("anon")}, "anon key"),
        ({**SUPABASE, "EXAI_FILES__SUPABASE__BUCKET": "My files"}, "EXAI_FILES__SUPABASE__BUCKET"),
        ({**SUPABASE, "EXAI_FILES__SUPABASE__URL": "postgres://x"}, "EXAI_FILES__SUPABASE__URL"),
        ({"EXAI_FILES__STORE": "s3"}, "EXAI_FILES__S3__BUCKET"),
        (S3, "EXAI_FILES__S3__BUCKET"),
        ({"EXAI_FILES__S3__BUCKET": "files", "EXAI_FILES__S3__ACCESS_KEY_ID": "AKIA"}, "SECRET_ACCESS_KEY"),
        ({"EXAI_FILES__STORE": "minio"}, "EXAI_FILES__STORE"),
    ],
)
def test_setting_that_is_missing_or_wrong_is_named_with_its_cure(given: dict[str, str], named: str) -> None:
    """At the start, not with the first file."""
    with pytest.raises(ConfigError, match=named) as caught:
        load_settings({"HOME": "/h", **given}, None)
    assert caught.value.cure
    assert "sb_" not in caught.value.problem


@pytest.mark.parametrize("key", ["sb_secret_123456789", legacy_key("service_role")])
def test_keys_of_both_kinds_are_taken_and_never_shown(key: str) -> None:
    """The newer ones are opaque, the older ones signed tokens."""
    settings = load_settings(
        {"HOME": "/h", **SUPABASE, "EXAI_FILES__SUPABASE__KEY": key, **S3, "EXAI_FILES__S3__BUCKET": "abc"}, None
    )
    assert settings.files.supabase.is_on
    shown = " ".join(line.value for line in describe(settings))
    assert key not in shown
    assert "secret-secret" not in shown


@pytest.mark.parametrize(
    "line", ["EXAI_FILES__STORE=directory", "EXAI_FILES__S3__BUCKET=theirs", *map("=".join, SUPABASE.items())]
)
def test_project_does_not_choose_the_store(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files would go where its author wants them."""
    (tmp_path / ".env").write_text(line)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="where the bytes of files are stored"):
        load_settings({"HOME": "/h"})
