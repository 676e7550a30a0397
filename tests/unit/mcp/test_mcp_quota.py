"""Limits of one owner, with a clock that stands still."""

from __future__ import annotations

import pytest

from exai.errors import Overloaded
from exai.mcp.session.quota import (
    ALONE_AFTER_S,
    BARRED_S,
    BURST_S,
    LIMITS,
    MAX_ADDRESSES,
    MAX_PAUSE_S,
    TIME_BURST_S,
    TIME_SHARE,
    Quotas,
)
from exai.models import Owner
from exai.monitoring.metrics import MetricsRecorder
from tests.support.mcp_server import fast_settings

ALICE, BOB = Owner("alice"), Owner("bob")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_rate_is_refused_with_the_time_it_takes_and_passes_then(clock: Clock) -> None:
    """A burst of ten seconds' worth, then as fast as the rate; a refused message counts for nothing."""
    quota = Quotas(fast_settings(owner_requests_per_s=2), MetricsRecorder(), clock).of(ALICE)
    for _ in range(20):
        quota.take(10)
    for _ in range(3):
        with pytest.raises(
            Overloaded, match=r"OWNER_REQUESTS_PER_S .* \(2.0\) is reached. Try again in 0.5 s"
        ) as caught:
            quota.take(10)
    assert caught.value.details()["retry_after_s"] == 0.5
    clock.now += 0.5
    quota.take(10)
    with pytest.raises(Overloaded):
        quota.take(10)


def test_bytes_are_a_rate_of_their_own(clock: Clock) -> None:
    """The largest message there may be always passes a fresh bucket, however low the rate."""
    quota = Quotas(fast_settings(owner_bytes_per_s=1024, message_max_bytes=1_048_576), MetricsRecorder(), clock).of(
        ALICE
    )
    quota.take(1_048_576)
    with pytest.raises(Overloaded, match="OWNER_BYTES_PER_S") as caught:
        quota.take(2_048)
    assert caught.value.retry_after_s == 2
    clock.now += 2
    quota.take(2_048)


def test_notifications_count_towards_the_rate_of_requests(clock: Clock) -> None:
    """A continuous stream of notifications leaves no room for requests."""
    quota = Quotas(fast_settings(owner_requests_per_s=2), MetricsRecorder(), clock).of(ALICE)
    assert all(quota.spend(10) for _ in range(20))
    for _ in range(20):
        clock.now += 0.1
        assert not quota.spend(10)
    with pytest.raises(Overloaded):
        quota.take(10)
    clock.now += 0.5
    quota.take(10)


def test_running_requests_are_limited_in_number_and_size(clock: Clock) -> None:
    """One request of any size runs; an ended one makes room."""
    quota = Quotas(fast_settings(owner_max_in_flight=2, owner_max_in_flight_bytes=1024), MetricsRecorder(), clock).of(
        ALICE
    )
    quota.begin(5_000)
    with pytest.raises(Overloaded, match="OWNER_MAX_IN_FLIGHT_BYTES"):
        quota.begin(1)
    quota.end(5_000)
    quota.begin(1_000)
    quota.begin(24)
    with pytest.raises(Overloaded, match=r"OWNER_MAX_IN_FLIGHT of .* \(2\) is reached. Try again shortly") as caught:
        quota.begin(0)
    assert "retry_after_s" not in caught.value.details()
    quota.end(24)
    quota.begin(24)


def test_owners_take_nothing_from_each_other_and_are_forgotten_when_quiet(clock: Clock) -> None:
    """A new session of an owner has the state of the last one; active owners are kept."""
    quotas = Quotas(fast_settings(owner_requests_per_s=1, owner_max_connections=1), MetricsRecorder(), clock)
    for _ in range(10):
        quotas.of(ALICE).take(0)
    with pytest.raises(Overloaded):
        quotas.of(ALICE).take(0)
    quotas.of(BOB).take(0)
    with quotas.of(BOB).hold_connection():
        with pytest.raises(Overloaded, match="OWNER_MAX_CONNECTIONS"), quotas.of(BOB).hold_connection():
            pass
        clock.now += BURST_S
        for number in range(100):
            quotas.of(Owner(f"owner {number}")).take(0)
        assert len(quotas) == 101, "Bob, who is connected, and those who have just spoken"
    clock.now += BURST_S
    for _ in range(60):
        quotas.of(ALICE)
    assert len(quotas) == 1


def test_an_owner_that_is_alone_is_never_slowed(clock: Clock) -> None:
    """No other owner needs the processor."""
    quota = Quotas(fast_settings(), MetricsRecorder(), clock).of(ALICE)
    quota.take(1)
    for _ in range(100):
        assert quota.charge_time(0.5) == 0


def test_an_owner_whose_input_costs_too_much_waits_while_others_are_there(clock: Clock) -> None:
    """Half of the processor is left to them, and a debt is paid by time."""
    quotas = Quotas(fast_settings(), MetricsRecorder(), clock)
    alice, bob = quotas.of(ALICE), quotas.of(BOB)
    bob.take(1)
    alice.take(1)
    assert alice.charge_time(TIME_BURST_S) == 0
    assert alice.charge_time(0.1) == pytest.approx(0.1 / TIME_SHARE)
    assert bob.charge_time(0.05) == 0
    assert alice.charge_time(100) == MAX_PAUSE_S
    clock.now += ALONE_AFTER_S
    assert alice.charge_time(0.1) == 0


def test_frames_count_as_requests_and_an_abusive_owner_does_not_connect_at_once(clock: Clock) -> None:
    quota = Quotas(fast_settings(owner_requests_per_s=2), MetricsRecorder(), clock).of(ALICE)
    assert quota.spend(0, 20)
    assert not quota.spend(0, 1)
    quota.check_barred()
    quota.bar()
    with pytest.raises(Overloaded, match="Try again in 5 s"):
        quota.check_barred()
    clock.now += BARRED_S
    quota.check_barred()


def test_subscribed_addresses_are_counted_for_the_owner(clock: Clock) -> None:
    quota = Quotas(fast_settings(), MetricsRecorder(), clock).of(ALICE)
    quota.subscribe(MAX_ADDRESSES, 1_000)
    assert quota.account.held_bytes == 1_000
    assert not quota.is_idle
    with pytest.raises(Overloaded, match="Unsubscribe"):
        quota.subscribe(1, 10)
    quota.unsubscribe(MAX_ADDRESSES, 1_000)
    assert quota.is_idle


def test_what_a_limit_refuses_or_delays_is_counted_by_limit(clock: Clock) -> None:
    """The labels are fixed from the beginning, so that a rate of each can be asked for; no owner is a label."""
    recorder = MetricsRecorder()
    small = fast_settings(
        owner_requests_per_s=1,
        owner_bytes_per_s=1024,
        message_max_bytes=1024,
        owner_max_connections=1,
        owner_max_in_flight=1,
        owner_max_in_flight_bytes=1024,
    )
    quotas = Quotas(small, recorder, clock)
    alice, bob, carol = quotas.of(ALICE), quotas.of(BOB), quotas.of(Owner("carol"))
    assert recorder.labelled("owner_limited_total") == {(("limit", limit),): 0 for limit in LIMITS}
    with alice.hold_connection(), pytest.raises(Overloaded), alice.hold_connection():
        pass
    alice.take(100_000)
    with pytest.raises(Overloaded):
        alice.take(1)
    assert not alice.spend(1)
    assert not alice.spend(0, 100)
    carol.take(0)
    alice.charge_time(100)
    alice.bar()
    with pytest.raises(Overloaded):
        alice.check_barred()
    bob.begin(1_000)
    for refused in (lambda: bob.begin(0), lambda: bob.account.take(100), lambda: bob.subscribe(MAX_ADDRESSES + 1, 0)):
        with pytest.raises(Overloaded):
            refused()
    bob.note_limited("connection_requests")
    counts = {labels[0][1]: count for labels, count in recorder.labelled("owner_limited_total").items()}
    assert counts == {
        "barred": 1,
        "bytes_per_s": 2,
        "connection_requests": 1,
        "connection_subscriptions": 0,
        "connections": 1,
        "in_flight": 1,
        "in_flight_bytes": 1,
        "processor_time": 1,
        "requests_per_s": 1,
        "subscribed_addresses": 1,
        "tasks": 0,
    }
