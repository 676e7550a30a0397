"""Addresses are read as libpq reads them; nothing a user may see repeats a password."""

from __future__ import annotations

import pytest

from exai.db.driver.address import parse_address
from exai.errors import ConfigError

SUPABASE = "postgresql://postgres.abcdefgh:p%40ss%2Fw%23rd%3A@aws-0-eu-central-1.pooler.supabase.com:6543/postgres"


def test_dotted_user_and_escaped_password_come_through_unchanged() -> None:
    """Supabase's pooler finds the project by the part of the user name after the dot."""
    address = parse_address(SUPABASE + "?sslmode=require")
    assert address.user == "postgres.abcdefgh"
    assert address.password == "p@ss/w#rd:"
    assert address.hosts == (("aws-0-eu-central-1.pooler.supabase.com", 6543),)
    assert address.database == "postgres"
    assert address.tls == {"sslmode": "require"}


def test_password_is_in_no_representation() -> None:
    """Addresses end up in logs and tracebacks."""
    address = parse_address(SUPABASE)
    assert "p@ss" not in repr(address)
    assert "p@ss" not in address.shown


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
def test_every_usual_scheme_is_taken(scheme: str) -> None:
    """libpq knows two; addresses copied from a program that uses SQLAlchemy carry a driver's name."""
    assert parse_address(f"{scheme}://u@h/d").hosts == (("h", 5432),)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://", ()),
        ("postgresql:///d", ()),
        ("postgresql://h", (("h", 5432),)),
        ("postgresql://u@h:7/d", (("h", 7),)),
        ("postgresql://[2001:db8::1]:6000/d", (("2001:db8::1", 6000),)),
        ("postgresql://a:1,b:2,c/d", (("a", 1), ("b", 2), ("c", 5432))),
        ("postgresql://u@%2Frun%2Fpg/d", (("/run/pg", 5432),)),
        ("postgresql:///d?host=/run/pg&port=6000", (("/run/pg", 6000),)),
        ("postgresql://ignored/d?host=a,b&port=1", (("a", 1), ("b", 1))),
        ("postgresql://h/d?port=9", (("h", 9),)),
        ("postgresql://h?dbname=d", (("h", 5432),)),
    ],
)
def test_hosts_are_found_where_libpq_finds_them(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    """Parameters win over the part before them, and a host that begins with a slash is a directory."""
    assert parse_address(url).hosts == hosts


def test_hash_in_a_password_is_no_fragment() -> None:
    """libpq knows no fragments, although every general reader of URLs does."""
    assert parse_address("postgresql://u:a#b@h/d").password == "a#b"


def test_options_travel_to_the_server() -> None:
    """The way to name a Supabase tenant where the user name cannot carry it."""
    address = parse_address("postgresql://u@h/d?options=reference%3Dabc&application_name=x&connect_timeout=3")
    assert address.connect_arguments()["server_settings"] == {"application_name": "x", "options": "reference=abc"}
    assert address.connect_timeout_s == 3


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_every_tls_mode_reaches_the_driver(mode: str) -> None:
    """The six modes of libpq, spelled as there."""
    arguments = parse_address(f"postgresql://u@h/d?sslmode={mode}").connect_arguments()
    assert arguments["dsn"] == f"postgresql://?sslmode={mode}"


def test_certificate_path_survives_odd_characters() -> None:
    """Paths with spaces and ampersands exist."""
    arguments = parse_address("postgresql://u@h/d?sslmode=verify-full&sslrootcert=/a%20b%26c.crt").connect_arguments()
    assert arguments["dsn"] == "postgresql://?sslmode=verify-full&sslrootcert=%2Fa%20b%26c.crt"


def test_system_authorities_check_the_host_name() -> None:
    """sslrootcert=system means verify-full in libpq."""
    context = parse_address("postgresql://u@h/d?sslmode=verify-full&sslrootcert=system").connect_arguments()["ssl"]
    assert context.check_hostname


def test_ssl_true_means_require() -> None:
    """The spelling of JDBC, which libpq takes too."""
    assert parse_address("postgresql://u@h/d?ssl=true").tls == {"sslmode": "require"}


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("mysql://u:secret@h/d", "not a Postgres address"),
        ("h=secret", "not a Postgres address"),
        ("postgresql://u:sec@ret@h/d", "more than one @"),
        ("postgresql://u:sec/ret@h/d", "port"),
        ("postgresql://u:secret@h:port/d", "port"),
        ("postgresql://u:secret@h:70000/d", "port"),
        ("postgresql://u:%zzsecret@h/d", "%-escape"),
        ("postgresql://u:%ff%fesecret@h/d", "UTF-8"),
        ("postgresql://u:secret%00@h/d", "%00"),
        ("postgresql://u:[YOUR-PASSWORD]@h/d", "placeholder"),
        ("postgresql://u:secret@[::1/d", "IPv6"),
        ("postgresql://u:secret@h/d?sslmode", "name=value"),
        ("postgresql://u:secret@h/d?sslmode=yes", "sslmode"),
        ("postgresql://u:secret@h/d?pgbouncer=true", "pgbouncer"),
        ("postgresql://u:secret@h/d?channel_binding=require", "channel_binding"),
        ("postgresql://u:secret@h/d?hostaddr=1.2.3.4", "hostaddr"),
        ("postgresql://u:secret@h/d?connect_timeout=soon", "connect_timeout"),
        ("postgresql://u:secret@a,b/d?host=x,y&port=1,2,3", "ports"),
    ],
)
def test_what_libpq_refuses_is_refused_with_a_cure(url: str, part: str) -> None:
    """Nothing is guessed, the setting is named, and the text repeats no password."""
    with pytest.raises(ConfigError) as caught:
        parse_address(url, "DATABASE_URL")
    text = str(caught.value)
    assert text.startswith("DATABASE_URL: ")
    assert part in text
    assert "sec" not in text.replace("second", "")


def test_parameters_that_ask_for_nothing_are_taken() -> None:
    """Addresses that hosting sites print carry them."""
    address = parse_address("postgresql://u@h/d?channel_binding=prefer&gssencmode=disable&keepalives_idle=30")
    assert "keepalives_idle" not in str(address.connect_arguments())
