"""What `exai doctor --supabase` says about addresses and keys, before it asks the database."""

from __future__ import annotations

import socket

import pytest

from exai.cli.supabase_checks import check_address, check_keys, check_route
from exai.db.driver.address import parse_address
from exai.settings.load import load_settings

POOLER = "aws-0-eu-central-1.pooler.supabase.com"
DIRECT = "db.abcdefghijklmnopqrst.supabase.co"


def states(url: str) -> dict[str, str]:
    return {each.part: each.state for each in check_address(parse_address(url))}


def test_a_pooler_finds_the_project_by_the_user() -> None:
    """Without it every connection is refused."""
    assert states(f"postgresql://postgres.ref:p@{POOLER}:6543/postgres?sslmode=require") == {
        "pooler": "ok",
        "certificate": "warn",
    }
    assert states(f"postgresql://postgres:p@{POOLER}:5432/postgres?sslmode=require")["pooler"] == "fail"


def test_other_addresses_are_left_alone() -> None:
    """A self-hosted Supabase has any address."""
    assert states("postgresql://exai@db.example.com/x") == {"supabase address": "off"}


@pytest.mark.parametrize(("family", "state"), [(socket.AF_INET, "ok"), (socket.AF_INET6, "fail")])
def test_a_host_with_an_ipv6_address_only(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, state: str
) -> None:
    """Documentation addresses (2001:db8::/32) have no route anywhere."""
    known = [(family, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 5432, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known)
    finding = check_route(DIRECT, 5432)
    assert finding.state in (state, "ok" if has_ipv6_route() else state)
    if finding.state == "fail":
        assert "pooler.supabase.com:5432" in finding.cure


def has_ipv6_route() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:db8::1", 5432, 0, 0))
    except OSError:
        return False
    return True


def test_legacy_keys_are_named() -> None:
    """They are signed tokens, and Supabase switches them off."""
    legacy = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"
    settings = load_settings(
        {
            "HOME": "/h",
            "EXAI_SERVER__JWT__SECRET": "s" * 40,
            "EXAI_SERVER__JWT__ISSUER": "https://ref.supabase.co/auth/v1",
            "EXAI_FILES__SUPABASE__URL": "https://ref.supabase.co",
            "EXAI_FILES__SUPABASE__KEY": legacy,
        },
        None,
    )
    found = check_keys(settings)
    assert {each.part: each.state for each in found} == {"storage key": "warn", "signing key": "warn"}
    assert legacy not in str(found)
