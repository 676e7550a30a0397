"""The plan of a run of `exai bench`: sizes of data, numbers of callers and rounds.

Invariant: one plan fixes every number that the figures depend on, and is printed with them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from exai.models import PAGE_MESSAGES, NewMessage

FILES_PER_APPEND: Final = 8
FAR_MS: Final = 2.0
"""Latency each way for the target on a full request."""

TARGET_CALLERS: Final = 16
SEED: Final = 8_079
VOCABULARY: Final = 3_000


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run. `operations` is how many of an operation one round of one contestant does, by callers."""

    conversations: int = 200
    messages: int = 60
    message_bytes: int = 800
    rounds: int = 5
    operations: tuple[tuple[int, int], ...] = ((1, 100), (16, 320), (64, 640))
    far_operations: int = 40
    counted: int = 10
    files: int = 1_600

    @property
    def callers(self) -> tuple[int, ...]:
        """Numbers of callers at once."""
        return tuple(callers for callers, _ in self.operations)


FULL: Final = Plan()
QUICK: Final = replace(
    FULL,
    conversations=20,
    messages=PAGE_MESSAGES + 2,
    rounds=1,
    operations=((1, 8), (16, 16), (64, 64)),
    far_operations=4,
    counted=3,
    files=80,
)


class Texts:
    """Random messages with the word frequencies of natural text; the same in every run."""

    def __init__(self, size_bytes: int) -> None:
        # A fixed seed, so that every run uses the same texts.
        self._random = random.Random(SEED)  # noqa: S311
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        self.words = [
            "".join(self._random.choices(letters, range(26, 0, -1), k=self._random.randint(2, 10)))
            for _ in range(VOCABULARY)
        ]
        self._size_bytes = size_bytes

    def text(self) -> str:
        """Return a text of exactly that many bytes, all of them ASCII."""
        words, length = [], 0
        while length < self._size_bytes:
            words.append(self.words[int(len(self.words) * self._random.random() ** 3)])
            length += len(words[-1]) + 1
        return " ".join(words)[: self._size_bytes].ljust(self._size_bytes, ".")

    def query(self, number: int) -> str:
        """Return two words that stand together in a few messages of a thousand."""
        return f"{self.words[200 + number % 400]} {self.words[700 + number % 300]}"

    def exchange(self) -> tuple[NewMessage, NewMessage]:
        """Return a question and its answer."""
        return NewMessage("user", self.text()), NewMessage("assistant", self.text())
