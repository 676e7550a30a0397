"""Guess an encoding by the plausibility of its characters: common ones, in words of one script.

Each encoding has a byte range for its common characters, so that a few Chinese words are not taken for rare Korean
ones. Single-byte encodings are ranked by the language of the text that they yield. Text that fits nothing is passed to
`charset-normalizer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from charset_normalizer import from_bytes

from exai.blobs.single_byte import Ranked, is_certain, rank

ENOUGH: Final = 0.8
"""Share of the non-ASCII bytes that must be plausible in an encoding for it to be chosen."""

FEW: Final = 6
"""Number of characters; the distribution of fewer is not significant."""

LEAST_BYTES: Final = 3
"""Number of non-ASCII bytes below which a text is short."""

FEW_BYTES: Final = 4
"""Up to this size characters of several bytes may as well be single-byte ones."""

DOUBT: Final = 0.7
"""Factor applied to a score if the distribution of characters contradicts the encoding."""

WIDE: Final = frozenset(["gb18030", "cp932", "big5", "cp949", "euc_jp"])
THAI_CODEC: Final = "cp874"
MOST_SCATTERED: Final = 0.5
SCATTERED: Final = re.compile(r"([A-Za-z]?)([^\0-\x7f]+)(?=([A-Za-z]?))")
"""Characters beyond ASCII, with the Latin letters on both sides."""

OTHERS: Final = (
    "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256",
    "koi8_r", "cp874",
)  # fmt: skip

GB: Final = re.compile(rb"[\x81-\xfe][0-9][\x81-\xfe][0-9]|[\x81-\xfe][\x40-\x7e\x80-\xfe]|[\x80-\xff]")
PAIR: Final = re.compile(rb"[\x81-\xfe][\x40-\x7e\xa1-\xfe]|[\x80-\xff]")
EUC: Final = re.compile(rb"\x8e[\xa1-\xdf]|\x8f[\xa1-\xfe]{2}|[\xa1-\xfe][\xa1-\xfe]|[\x80-\xff]")
SHIFTED: Final = re.compile(rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]|[\x80-\xff]")
RUN: Final = re.compile(rb"(?<![\x80-\xff])[\x80-\xff]+")
UNDEFINED: Final = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
"""Bytes that windows-1252 leaves out."""

THAI: Final = re.compile(rb"[\xa1-\xda\xdf-\xfb]")
THAI_MARK: Final = re.compile(rb"[\xd1\xd4-\xda\xe7-\xee]")
THAI_MARK_PLACED: Final = re.compile(rb"(?<=[\xa1-\xce\xd1\xd4-\xda\xe7-\xee])[\xd1\xd4-\xda\xe7-\xee]")
LEAST_MARKS: Final = 0.08
MOSTLY: Final = 0.95

LETTER: Final = re.compile(rb"[A-Za-z]")

WESTERN_LETTERS: Final = frozenset(
    b"\x8a\x8c\x8e\x9a\x9c\x9e\xc0\xc1\xc2\xc3\xc4\xc5\xc6\xc7\xc8\xc9\xca\xcb\xcd\xce\xd1\xd3\xd4\xd5\xd6\xd8\xda\xdb"
    b"\xdc\xdf\xe0\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xeb\xec\xed\xee\xef\xf1\xf2\xf3\xf4\xf5\xf6\xf8\xf9\xfa\xfb\xfc"
)
WESTERN_MARKS: Final = frozenset(
    b"\x80\x82\x84\x85\x8b\x91\x92\x93\x94\x95\x96\x97\x99\x9b\xa0\xa1\xa3\xa5\xa7\xa9\xaa\xab\xae\xb0\xb1\xb2\xb4\xb5"
    b"\xb7\xba\xbb\xbc\xbd\xbe\xbf\xd7"
)
LONGEST_WESTERN: Final = 3
VOWELS: Final = frozenset(b"\xe0\xe5\xe8\xee\xf3\xfb\xfd\xfe\xff\xb8")
"""Of Russian in windows-1251."""

LEAST_VOWELS: Final = 0.3


class Guess(NamedTuple):
    """Python's name of an encoding; `is_certain` is false if another one yields another plausible text."""

    encoding: str
    is_certain: bool = True


def guess(sample: bytes) -> Iterator[Guess]:
    """Yield the encodings that a text may have, the likeliest first; none if nothing fits."""
    scores = {name: score(sample) for name, score in SCORES.items()}
    natural = [name for name, score in scores.items() if score >= ENOUGH and not _is_scattered(sample, name)]
    natural.sort(key=lambda name: -scores[name])
    runs = list(RUN.finditer(sample))
    size = sum(len(match.group()) for match in runs)
    is_short = size < LEAST_BYTES
    if not is_short or all(_touches_letter(sample, match) for match in runs):
        ranked = rank(sample)
        if ranked[0].is_plain and not (natural and _is_likelier(natural[0], ranked[0])):
            yield Guess(ranked[0].encoding, is_certain(ranked, sample))
    yield from (Guess(name, is_certain=name not in WIDE or size > FEW_BYTES) for name in natural)
    if is_short:
        return
    others = from_bytes(sample, cp_isolation=list(OTHERS), threshold=0.5, preemptive_behaviour=False)
    yield from (Guess(each.encoding, is_certain=False) for each in others)


def _is_likelier(natural: str, ranked: Ranked) -> bool:
    """Return whether an encoding by its ranges is likelier than the first of the single-byte ones by their language.

    Characters of an encoding with several bytes that are read as Latin letters look like a language by chance.
    """
    if ranked.is_drawn:
        return False
    return natural == THAI_CODEC or (natural in WIDE and (ranked.is_latin or not ranked.is_sure))


def _is_scattered(sample: bytes, encoding: str) -> bool:
    """Return whether the characters of an encoding with several bytes are single ones within Latin words."""
    if encoding not in WIDE:
        return False
    runs = SCATTERED.findall(sample.decode(encoding, errors="replace"))
    inside = sum(len(run) <= bool(before) + bool(after) for before, run, after in runs)
    return inside > len(runs) * MOST_SCATTERED


def _chinese(sample: bytes) -> float:
    """Simplified: the first level of GB 2312, which reaches from B0 to D7, about half of it beyond C8."""
    found: list[bytes] = GB.findall(sample)
    pairs = [each for each in found if len(each) > 1]
    common = sum(
        len(each) == 4 or (0xB0 <= each[0] <= 0xD7 and each[1] >= 0xA1) or each[0] in b"\xa1\xa2\xa3" for each in pairs
    )
    beyond = sum(0xC9 <= each[0] <= 0xD7 for each in pairs)
    doubt = DOUBT if len(pairs) >= FEW and beyond < len(pairs) / 10 else 1.0
    return doubt * common / max(1, len(found))


def _traditional(sample: bytes) -> float:
    """The first level of Big5; nearly half of its second bytes are ASCII."""
    found: list[bytes] = PAIR.findall(sample)
    pairs = [each for each in found if len(each) > 1]
    common = sum(0xA1 <= each[0] <= 0xC6 for each in pairs)
    low = sum(each[1] < 0x7F for each in pairs)
    return (1.0 if low > len(pairs) / 10 else DOUBT) * common / max(1, len(found))


def _korean(sample: bytes) -> float:
    """Syllables, from B0 to C8."""
    found: list[bytes] = EUC.findall(sample)
    common = sum(len(each) == 2 and (0xB0 <= each[0] <= 0xC8 or each[0] in b"\xa1\xa2\xa3") for each in found)
    return (1.0 if len(found) >= FEW else DOUBT) * common / max(1, len(found))


def _japanese(sample: bytes) -> float:
    """EUC: kana, without which no Japanese text of some length is, and the first level of kanji."""
    found: list[bytes] = EUC.findall(sample)
    kana = sum(each[0] in b"\xa4\xa5\x8e" for each in found)
    common = kana + sum(len(each) == 2 and (0xB0 <= each[0] <= 0xCF or each[0] == 0xA1) for each in found)
    return (1.0 if kana > len(found) / 8 else DOUBT) * common / max(1, len(found))


def _shifted(sample: bytes) -> float:
    """Shift JIS: kana and the first level of kanji, in zones that nothing else has."""
    found: list[bytes] = SHIFTED.findall(sample)
    common = sum(len(each) == 2 and (0x81 <= each[0] <= 0x83 or 0x88 <= each[0] <= 0x98) for each in found)
    return common / max(1, len(found))


def _western(sample: bytes) -> float:
    """windows-1252: few letters in a row, most of them inside words of ASCII, and marks."""
    if len(UNDEFINED.findall(sample)) > 0 or (
        b"\xf8" in sample and any(each in sample for each in b"\xe8\xec\xf2\xf9")
    ):
        # No language has all of these letters; Czech has them in windows-1250.
        return 0.0
    total = inside = alone = 0
    for match in RUN.finditer(sample):
        run = match.group()
        letters = bytes(each for each in run if each not in WESTERN_MARKS)
        total += len(run)
        if len(run) > LONGEST_WESTERN or not all(each in WESTERN_LETTERS for each in letters):
            continue
        if len(letters) <= 1 or _touches_letter(sample, match):
            inside += len(run)
        else:
            alone += len(run)
    # A word of such letters alone proves nothing by itself.
    return (inside + (alone if alone <= inside else 0)) / max(1, total)


def _cyrillic(sample: bytes) -> float:
    pattern = rb"[\xa8\xc0-\xdf]?[\xb8\xe0-\xff]*|[\xa8\xc0-\xdf]+"
    return _words(sample, pattern, has_vowels=True, is_small=rb"[\xb8\xe0-\xff]")


def _koi8(sample: bytes) -> float:
    pattern = rb"[\xb3\xe0-\xff]?[\xa3\xc0-\xdf]*|[\xb3\xe0-\xff]+"
    return _words(sample, pattern, is_small=rb"[\xa3\xc0-\xdf]")


def _hebrew(sample: bytes) -> float:
    return _words(sample, rb"[\xe0-\xfa]+", has_vowels=False, is_small=rb"[\xe0-\xfa]")


def _dos(sample: bytes) -> float:
    pattern = rb"[\x80-\x9f\xf0]?[\xa0-\xaf\xe0-\xef\xf1]*|[\x80-\x9f\xf0]+"
    return _words(sample, pattern, is_small=rb"[\xa0-\xaf\xe0-\xef\xf1]")


def _thai(sample: bytes) -> float:
    """Words of letters and marks, and each mark stands on a letter."""
    total = sum(map(len, RUN.findall(sample)))
    marks = len(THAI_MARK.findall(sample))
    if marks < total * LEAST_MARKS or len(THAI_MARK_PLACED.findall(sample)) < marks * MOSTLY:
        return 0.0
    return sum(map(len, THAI.findall(sample))) / max(1, total)


def _words(sample: bytes, pattern: bytes, *, is_small: bytes, has_vowels: bool | None = None) -> float:
    """Return the share of words that are letters of one alphabet, in one case but for the first; most of them small."""
    total = natural = vowels = 0
    for match in RUN.finditer(sample):
        run = match.group()
        total += len(run)
        vowels += sum(each in VOWELS for each in run)
        if re.fullmatch(pattern, run.strip(b"\x93\x94\xab\xbb\x96\x97\xa0\x85")) and not _touches_letter(sample, match):
            natural += len(run)
    if has_vowels is not None and total >= FEW and (vowels >= total * LEAST_VOWELS) != has_vowels:
        return 0.0
    doubt = 1.0 if len(re.findall(is_small, sample)) * 2 >= total else DOUBT
    return doubt * natural / max(1, total)


def _touches_letter(sample: bytes, match: re.Match[bytes]) -> bool:
    beside = sample[max(0, match.start() - 1) : match.start()] + sample[match.end() : match.end() + 1]
    return LETTER.search(beside) is not None


SCORES: Final[Mapping[str, Callable[[bytes], float]]] = {
    "cp1252": _western,
    "gb18030": _chinese,
    "cp932": _shifted,
    "big5": _traditional,
    "cp949": _korean,
    "euc_jp": _japanese,
    "cp1251": _cyrillic,
    "koi8_r": _koi8,
    "cp1255": _hebrew,
    "cp866": _dos,
    "cp874": _thai,
}
"""By name; of equal scores the first wins."""
