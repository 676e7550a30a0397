"""A recorder that stores all counts, for asserting costs as well as results."""

from __future__ import annotations

from collections import Counter


class Counters:
    """`recorder["name", "label value", ...]` is a counter's value; gauges are their last."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.gauges: dict[tuple[str, ...], float] = {}

    def __getitem__(self, key: tuple[str, ...] | str) -> float:
        return self.counts[key if isinstance(key, tuple) else (key,)]

    def count(self, name: str, value: float = 1, /, **labels: str) -> None:
        self.counts[name, *labels.values()] += value

    def observe(self, name: str, /, *values: float, **labels: str) -> None:
        pass

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        self.gauges[name, *labels.values()] = value
