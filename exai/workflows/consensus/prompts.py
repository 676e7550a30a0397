"""The prompts of panellists, judges and the arbiter, and the parsers of their answers. No I/O.

Invariant: no prompt of a judge or arbiter names the author of an answer. The parsers invent nothing: a line that is not
in the requested form counts as missing. Parsing takes time in proportion to the text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import ascii_uppercase, punctuation, whitespace
from typing import Final

from exai.conversations.turns.prompt import estimate_tokens
from exai.workflows.consensus.requests import Stance

VENDORS: Final[Mapping[str, tuple[str, ...]]] = {
    "kimi": ("Kimi", "Moonshot AI", "Moonshot"),
    "glm": ("GLM", "ChatGLM", "Zhipu AI", "Zhipu", "Z.ai"),
    "deepseek": ("DeepSeek",),
    "qwen": ("Qwen", "Tongyi", "DashScope"),
}
"""Words by which the models of a provider name themselves."""

OTHERS: Final = "ChatGPT|GPT-\\S+|OpenAI|Claude|Anthropic|Gemini|Google DeepMind|Llama|Mistral|Grok"
HIDDEN: Final = "[a model]"
MODEL_WORDS: Final = "|".join(re.escape(word) for words in VENDORS.values() for word in words)
SELF: Final = re.compile(
    rf"\b((?:as|i am|i'm|i’m|my name is|this is|(?:made|built|trained|developed|created) by)\s+(?:an?\s+)?)"
    rf"(?:{MODEL_WORDS}|{OTHERS})(?:-[\w.]*\w)*(?!\w)",
    re.IGNORECASE,
)
_NO_WORD: Final = r"[^\w\n]{0,40}"
RANKING: Final = re.compile(
    rf"^{_NO_WORD}RANKING(?=\W){_NO_WORD}\n{{0,2}}{_NO_WORD}([A-Z](?:[^\S\n]*[>=][^\S\n]*[A-Z])*)[^\w\n]*$",
    re.MULTILINE,
)
DIFFER: Final = re.compile(
    rf"^{_NO_WORD}DIFFER(?=\W){_NO_WORD}([A-Z](?:[^\S\n]*(?:,|and)[^\S\n]*[A-Z])+)[^\S\n]*:[^\S\n]*(\S[^\n]*)$",
    re.MULTILINE,
)
DISMISSED: Final = re.compile(r"^#+\s*Dismissed\b", re.MULTILINE | re.IGNORECASE)
STANCES: Final[Mapping[Stance, str]] = {
    "for": "argued for the proposal on request",
    "against": "argued against the proposal on request",
    "weigh": "was asked to weigh both sides",
}
CUT_ANSWER: Final = "\n[the rest was left out, because the window is full]"
MAX_TOPIC_CHARS: Final = 200
MAX_DISAGREEMENTS: Final = 10


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer in the prompt of a judge."""

    label: str
    index: int
    content: str
    stance: Stance | None = None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A real disagreement that the arbiter names."""

    labels: tuple[str, ...]
    topic: str


@cache
def text_of(name: str) -> str:
    """Return one of the instructions."""
    return (files(__package__) / "texts" / f"{name}.md").read_text("utf-8").strip()


def panel_instructions(stance: Stance | None) -> str:
    """Return the system prompt of a panellist."""
    return text_of("panel") if stance is None else f"{text_of('panel')}\n\n{text_of(f'stance_{stance}')}"


def question_text(prompt: str, focus: str | None) -> str:
    """Return the question as it is stored and sent, without files."""
    return f"{prompt}\n\nFocus: {focus}" if focus else prompt


def label_answers(
    answers: Sequence[tuple[int, str, Stance | None]], seed: str, own_names: Iterable[str], question: str
) -> list[LabelledAnswer]:
    """Return answers in an order that depends on `seed` alone, lettered, and without the names of their authors.

    Names that the question itself uses are kept.
    """
    shuffled = list(answers)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - the order must be the same for the same seed
    hide = _hidden_words(own_names, question)
    return [
        LabelledAnswer(label, index, _anonymous(content, hide), stance)
        for label, (index, content, stance) in zip(ascii_uppercase, shuffled, strict=False)
    ]


def _hidden_words(own_names: Iterable[str], question: str) -> re.Pattern[str] | None:
    words: dict[str, None] = {}
    for name in own_names:
        words[name] = None
        words |= dict.fromkeys(VENDORS.get(name.split("/")[0].split("-")[0].lower(), ()))
    asked = question.casefold()
    kept = sorted((word for word in words if word.casefold() not in asked), key=len, reverse=True)
    if not kept:
        return None
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, kept))})(?:-[\w.]+)*(?!\w)", re.IGNORECASE)


def _anonymous(text: str, hide: re.Pattern[str] | None) -> str:
    text = SELF.sub(lambda match: match.group(1) + HIDDEN, text)
    return hide.sub(HIDDEN, text) if hide is not None else text


def judged_text(
    question: str, answers: Sequence[LabelledAnswer], mark: str, room_tokens: int, ranks: Mapping[int, float] = {}
) -> str:
    """Return the question and the answers for a judge or arbiter; each answer is shortened alike if they do not fit.

    `mark` is unknown to the authors of the answers, who can therefore not imitate the end of one.
    """
    shortened = _shortened(answers, room_tokens - estimate_tokens(question) - 60 * (len(answers) + 1))
    parts = [f"<question {mark}>\n{question}\n</question {mark}>"]
    for answer in shortened:
        stance = f" ({STANCES[answer.stance]})" if answer.stance else ""
        parts.append(f"<answer {answer.label} {mark}>{stance}\n{answer.content}\n</answer {answer.label} {mark}>")
    if ranks:
        lines = [f"{answer.label}: {ranks[answer.index]:.1f}" for answer in shortened if answer.index in ranks]
        parts.append("Mean ranks by the other experts, 1 is best:\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _shortened(answers: Sequence[LabelledAnswer], room_tokens: int) -> list[LabelledAnswer]:
    needed = sum(estimate_tokens(answer.content) for answer in answers)
    if needed <= room_tokens:
        return list(answers)
    share = max(room_tokens, 0) / needed
    kept = []
    for answer in answers:
        most = int(len(answer.content) * share * 0.95)
        content = answer.content[:most] + CUT_ANSWER
        kept.append(LabelledAnswer(answer.label, answer.index, content, answer.stance))
    return kept


def ranks_in(text: str, labels: Sequence[str]) -> dict[str, float] | None:
    """Return the rank of each letter, 1 is best and ties share theirs; None without a whole order of all letters."""
    found = RANKING.findall(text)
    if not found:
        return None
    groups = [re.findall(r"[A-Z]", group) for group in found[-1].split(">")]
    if sorted(label for group in groups for label in group) != sorted(labels):
        return None
    ranks: dict[str, float] = {}
    place = 1
    for group in groups:
        ranks |= dict.fromkeys(group, place + (len(group) - 1) / 2)
        place += len(group)
    return ranks


def mean_ranks(of_judges: Sequence[Mapping[int, float]]) -> dict[int, tuple[float, int]]:
    """Return for each answer its mean rank and the number of its judges."""
    given: dict[int, list[float]] = {}
    for ranks in of_judges:
        for index, rank in ranks.items():
            given.setdefault(index, []).append(rank)
    return {index: (sum(ranks) / len(ranks), len(ranks)) for index, ranks in given.items()}


def disagreements_in(text: str, labels: Iterable[str]) -> list[Disagreement]:
    """Return the disagreements that the arbiter lists at the end, without those of unknown letters."""
    known = set(labels)
    found: list[Disagreement] = []
    for match in DIFFER.finditer(text):
        named = tuple(dict.fromkeys(re.findall(r"[A-Z]", match[1])))
        topic = match[2][:MAX_TOPIC_CHARS].strip(punctuation + whitespace)
        if topic and len(named) > 1 and known.issuperset(named):
            found.append(Disagreement(named, topic))
    return list(dict.fromkeys(found))[-MAX_DISAGREEMENTS:]


def has_dismissals(text: str) -> bool:
    """Return whether a synthesis has the section of dismissed claims."""
    return DISMISSED.search(text) is not None
