"""Histories of the operations of clients, and a checker that compares them with the promises of the store.

A history holds each operation with its start, end and result, recorded while faults are injected, and the rows that are
stored at the end. Invariant: the checker depends on the promises only, not on the implementation, and reports every
violation independently of the others. All times are of one monotonic clock; contents are unique in a history.

content    a page holds exactly the newest messages before its cursor, at its revision of the conversation
lost       an acknowledged write is stored once, as one block, under the acknowledged numbers
twice      no write is stored twice, acknowledged or not, and a question has at most one answer
refused    a write whose error promises that nothing was written is not stored
order      a write that began after the acknowledgement of another is stored after it
applied    a read that begins after Redis has applied a change contains it
own        a read of a daemon contains all changes that this daemon has acknowledged before
bound      a read contains every change that was known to be committed one staleness bound earlier
direct     older pages and lists come from the database and contain every known change
stale      a page that is marked as stale is as old as the mark states, and within the limit for stale pages
asked      a model receives all messages before the question, once and in order, and one request for each attempt
foreign    every stored message belongs to a recorded write
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind = Literal[
    "content", "lost", "twice", "refused", "order", "applied", "own", "bound", "direct", "stale", "asked", "foreign"
]

STALE_LIMIT_S = 600.0
"""The greatest age of a page that may be returned while the database cannot be reached."""


@dataclass(frozen=True, slots=True)
class Ack:
    """An acknowledgement: its time, the daemon (`number.life`), and the first and last number of the messages."""

    at: float
    by: str
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Append:
    """An append with all its attempts under one key.

    Without an acknowledgement its outcome is unknown, unless it was `refused`: the error of every attempt promises that
    nothing was written.
    """

    conversation: str
    contents: tuple[str, ...]
    start: float
    acks: tuple[Ack, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A question to a model with all its attempts under one key; an acknowledgement has the number of the answer."""

    conversation: str
    question: str
    start: float
    acks: tuple[Ack, ...] = ()
    answers: tuple[str, ...] = ()
    refused: bool = False
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Read:
    """A page as it was returned. `stale_s` is None unless it was marked as stale."""

    conversation: str
    by: str
    start: float
    end: float
    revision: int
    seqs: tuple[int, ...]
    contents: tuple[str, ...]
    next_before_seq: int | None
    limit: int
    before_seq: int | None = None
    stale_s: float | None = None
    source: str = "database"


@dataclass(frozen=True, slots=True)
class Listed:
    """A conversation in a list, with its number of messages."""

    conversation: str
    start: float
    end: float
    messages: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Redis has applied this revision."""

    conversation: str
    at: float
    revision: int


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompt of a request to the model: the contents, oldest first, the question last."""

    contents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One message as it is stored at the end; `partial` marks the received part of an answer that broke off."""

    content: str
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """A conversation as it is stored at the end; `heights` is its number of messages at each revision from 0."""

    messages: tuple[Stored, ...]
    heights: tuple[int, ...]


Event: TypeAlias = Append | Turn | Read | Listed | Applied | Asked


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise, with the events that show it."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class History:
    """All events. `forgotten` are the times at which Redis may have lost its newest writes."""

    events: Sequence[Event]
    logs: Mapping[str, Log]
    max_staleness_s: float
    slack_s: float = 0.0
    forgotten: Sequence[float] = ()
    answer_to: str = " to "
    """Separates an answer from the question that it repeats."""

    def check(self) -> list[Violation]:
        """Return all violations."""
        return list(_Check(self).violations())


@dataclass
class _KnownHeights:
    """The number of messages known to be stored, by time; it never decreases."""

    marks: list[tuple[float, int]] = field(default_factory=list)
    _times: list[float] | None = None
    _heights: list[int] = field(default_factory=list)

    def before(self, time: float) -> int:
        """Return the greatest number that was known before `time`."""
        if self._times is None:
            self.marks.sort()
            self._times = [at for at, _ in self.marks]
            highest = 0
            for _, height in self.marks:
                highest = max(highest, height)
                self._heights.append(highest)
        index = bisect_left(self._times, time)
        return self._heights[index - 1] if index else 0


@dataclass(frozen=True)
class _Placed:
    """A stored write: its numbers, the start of its first attempt, and its first acknowledgement."""

    what: str
    first_seq: int
    last_seq: int
    start: float
    acked_at: float | None


class _Check:
    def __init__(self, history: History) -> None:
        self._history = history
        self._places: dict[str, dict[str, list[int]]] = {}
        for name, log in history.logs.items():
            places = self._places[name] = defaultdict(list)
            for seq, message in enumerate(log.messages, 1):
                places[message.content].append(seq)
        self._explained: dict[str, set[int]] = defaultdict(set)
        self._placed: dict[str, list[_Placed]] = defaultdict(list)
        self._answers: dict[str, dict[str, list[int]]] = {
            name: self._answers_of(log) for name, log in history.logs.items()
        }
        self._known: dict[str, _KnownHeights] = defaultdict(_KnownHeights)
        self._applied: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._own: dict[tuple[str, str], _KnownHeights] = defaultdict(_KnownHeights)
        self._asks: Counter[str] = Counter()

    def violations(self) -> Iterator[Violation]:
        for event in self._history.events:
            yield from self._writes(event)
        yield from self._leftovers()
        for placed in self._placed.values():
            yield from _order(placed)
        self._collect_known()
        for event in self._history.events:
            match event:
                case Read():
                    yield from self._content(event)
                    yield from self._freshness(event)
                case Listed():
                    yield from self._listed(event)
                case Asked():
                    yield from self._asked(event)
        yield from self._asked_too_often()

    def _answers_of(self, log: Log) -> dict[str, list[int]]:
        answers: dict[str, list[int]] = defaultdict(list)
        for seq, message in enumerate(log.messages, 1):
            _, joint, question = message.content.partition(self._history.answer_to)
            if joint and not message.partial:
                answers[question].append(seq)
        return answers

    def _writes(self, event: Event) -> Iterator[Violation]:
        match event:
            case Append():
                yield from self._block(event, event.contents, event.acks)
            case Turn():
                yield from self._block(event, (event.question,), ())
                yield from self._answer(event)

    def _block(self, event: Append | Turn, contents: tuple[str, ...], acks: tuple[Ack, ...]) -> Iterator[Violation]:
        """Check that the messages of a write are stored together, once or not at all."""
        what = f"{contents[0]!r} of {event.conversation}"
        places = self._places.get(event.conversation, {})
        found = [places.get(content, []) for content in contents]
        self._explained[event.conversation].update(seq for seqs in found for seq in seqs)
        if any(len(seqs) > 1 for seqs in found):
            yield Violation("twice", f"{what} is stored as {found}")
            return
        present = [seqs[0] for seqs in found if seqs]
        if not present:
            if event.acks:
                yield Violation("lost", f"{what} was acknowledged at {event.acks[0].at:.3f} and is not stored")
            return
        if event.refused:
            yield Violation("refused", f"{what} was refused and is stored as {present}")
        if present != list(range(present[0], present[0] + len(contents))):
            yield Violation("lost", f"{what} is stored in pieces: {present} of {len(contents)} messages")
            return
        for ack in acks:
            if (ack.first_seq, ack.last_seq) != (present[0], present[-1]):
                promised = f"{ack.first_seq} to {ack.last_seq}"
                yield Violation("lost", f"{what} was acknowledged as {promised}, stored {present[0]} to {present[-1]}")
        acked_at = min((ack.at for ack in event.acks), default=None)
        self._placed[event.conversation].append(_Placed(what, present[0], present[-1], event.start, acked_at))

    def _answer(self, turn: Turn) -> Iterator[Violation]:
        """Check that a question has at most one answer, which equals the acknowledged one."""
        what = f"the answer to {turn.question!r}"
        log = self._history.logs.get(turn.conversation)
        seqs = self._answers.get(turn.conversation, {}).get(turn.question, [])
        self._explained[turn.conversation].update(seqs)
        if len(seqs) > 1:
            yield Violation("twice", f"{what} is stored as {seqs}")
        elif seqs and turn.refused:
            yield Violation("refused", f"{what} is stored as {seqs} of a turn that was refused")
        elif turn.acks and not seqs:
            yield Violation("lost", f"{what} was acknowledged and is not stored")
        elif turn.acks and log is not None:
            text = log.messages[seqs[0] - 1].content
            for ack, answer in zip(turn.acks, turn.answers, strict=True):
                if (ack.last_seq, answer) != (seqs[0], text):
                    promised = f"{ack.last_seq} {answer!r}"
                    yield Violation("lost", f"{what} was acknowledged as {promised}, stored {seqs[0]} {text!r}")
            questions = self._places[turn.conversation].get(turn.question, [])
            if questions and questions[0] > seqs[0]:
                yield Violation("order", f"{what} is stored before its question")

    def _leftovers(self) -> Iterator[Violation]:
        for name, log in self._history.logs.items():
            for seq, message in enumerate(log.messages, 1):
                if seq not in self._explained[name] and not message.partial:
                    yield Violation("foreign", f"{message.content!r}, number {seq} of {name}, belongs to no write")

    def _collect_known(self) -> None:
        """Collect the times from which each stored change is known: it was acknowledged, applied to Redis, or read."""
        for name, placed in self._placed.items():
            self._known[name].marks += [(each.acked_at, each.last_seq) for each in placed if each.acked_at is not None]
        for event in self._history.events:
            match event:
                case Append() | Turn():
                    for ack in event.acks:
                        self._known[event.conversation].marks.append((ack.at, ack.last_seq))
                        self._own[event.conversation, ack.by].marks.append((ack.at, ack.last_seq))
                case Applied():
                    height = self._height(event.conversation, event.revision)
                    self._applied[event.conversation].append((event.at, height))
                    self._known[event.conversation].marks.append((event.at, height))
                case Read() if event.seqs:
                    self._known[event.conversation].marks.append((event.end, event.seqs[-1]))
                case Listed():
                    self._known[event.conversation].marks.append((event.end, event.messages))

    def _height(self, conversation: str, revision: int) -> int:
        log = self._history.logs.get(conversation)
        return log.heights[revision] if log is not None and revision < len(log.heights) else 0

    def _content(self, read: Read) -> Iterator[Violation]:
        what = _described(read)
        log = self._history.logs.get(read.conversation)
        if log is None or not 0 < read.revision < len(log.heights):
            yield Violation("content", f"{what} is of a revision that is not stored")
            return
        last = log.heights[read.revision]
        if read.before_seq is not None:
            last = min(last, read.before_seq - 1)
        seqs = tuple(range(max(1, last - read.limit + 1), last + 1))
        contents = tuple(log.messages[seq - 1].content for seq in seqs)
        if (read.seqs, read.contents) != (seqs, contents):
            yield Violation("content", f"{what} is {_pairs(read.seqs, read.contents)}, stored {_pairs(seqs, contents)}")
        cursor = seqs[0] if seqs and seqs[0] > 1 else None
        if read.next_before_seq != cursor:
            yield Violation("content", f"{what} has the cursor {read.next_before_seq}, correct is {cursor}")

    def _freshness(self, read: Read) -> Iterator[Violation]:
        what, history = _described(read), self._history
        height = self._height(read.conversation, read.revision)
        known = self._known[read.conversation]

        def lacks(kind: Kind, least: int) -> Iterator[Violation]:
            if height < least:
                yield Violation(kind, f"{what} has {height} messages, {least} were known")

        if read.stale_s is not None:
            if read.stale_s > STALE_LIMIT_S + history.slack_s:
                yield Violation("stale", f"{what} is {read.stale_s:.1f} s old")
            yield from lacks("stale", known.before(read.start - read.stale_s - history.slack_s))
            return
        if read.before_seq is not None:
            yield from lacks("direct", known.before(read.start))
            return
        yield from lacks("bound", known.before(read.start - history.max_staleness_s - history.slack_s))
        yield from lacks("own", self._own[read.conversation, read.by].before(read.start))
        forgotten = max((at for at in history.forgotten if at < read.end), default=float("-inf"))
        applied = (height for at, height in self._applied[read.conversation] if forgotten < at < read.start)
        yield from lacks("applied", max(applied, default=0))

    def _listed(self, listed: Listed) -> Iterator[Violation]:
        least = self._known[listed.conversation].before(listed.start)
        if listed.messages < least:
            found = f"{listed.conversation} was listed at {listed.start:.3f} with {listed.messages} messages"
            yield Violation("direct", f"{found}, {least} were known")

    def _asked(self, asked: Asked) -> Iterator[Violation]:
        question = asked.contents[-1]
        self._asks[question] += 1
        for name, places in self._places.items():
            if seqs := places.get(question):
                before = self._history.logs[name].messages[: seqs[0]]
                stored = tuple(message.content for message in before if not message.partial)
                if asked.contents != stored:
                    yield Violation(
                        "asked", f"a model was asked {question!r} with {asked.contents}, stored is {stored}"
                    )
                return
        yield Violation("asked", f"a model was asked {question!r}, which is not stored")

    def _asked_too_often(self) -> Iterator[Violation]:
        for event in self._history.events:
            if isinstance(event, Turn) and self._asks[event.question] > event.attempts:
                times = f"{self._asks[event.question]} times for {event.attempts} attempts"
                yield Violation("asked", f"a model was asked {event.question!r} {times}")


def _order(placed: list[_Placed]) -> Iterator[Violation]:
    """Check that writes acknowledged before a write began have lower numbers."""
    ended = sorted((each for each in placed if each.acked_at is not None), key=lambda each: each.acked_at or 0.0)
    begun = sorted(placed, key=lambda each: each.start)
    highest: _Placed | None = None
    next_ended = 0
    for each in begun:
        while next_ended < len(ended) and (ended[next_ended].acked_at or 0.0) < each.start:
            if highest is None or ended[next_ended].last_seq > highest.last_seq:
                highest = ended[next_ended]
            next_ended += 1
        if highest is not None and highest.last_seq > each.first_seq:
            yield Violation(
                "order", f"{each.what} began after {highest.what} was acknowledged, and is stored before it"
            )


def _described(read: Read) -> str:
    page = "the newest page" if read.before_seq is None else f"the page before {read.before_seq}"
    where = f"of {read.conversation} at revision {read.revision} by {read.by} from the {read.source}"
    return f"{page} {where}, read {read.start:.3f} to {read.end:.3f},"


def _pairs(seqs: Iterable[int], contents: Iterable[str]) -> str:
    return ", ".join(f"{seq} {content!r}" for seq, content in zip(seqs, contents, strict=False)) or "empty"
