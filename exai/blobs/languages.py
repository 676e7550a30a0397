"""Letters beyond ASCII of languages that are written with single-byte encodings, and how often they occur.

The numbers are occurrences in 10,000 letters of ordinary prose, rounded. Only their proportions matter: they tell apart
encodings in which the same bytes are letters of different languages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

FREQUENCIES: Final[Mapping[str, str]] = {
    "German": "ä 54 ö 30 ü 65 ß 31 é 1",
    "French": "é 190 à 49 è 27 ê 22 ù 6 û 6 â 5 î 5 ç 9 ô 3 ë 1 ï 1 œ 2",
    "Spanish": "á 50 é 43 í 73 ó 83 ú 17 ñ 31 ü 1 ª 1 º 1",
    "Portuguese": "á 30 â 10 ã 73 à 7 ç 53 é 34 ê 20 í 13 ó 30 ô 6 õ 10 ú 12 ª 1 º 1",
    "Italian": "à 63 è 26 é 8 ì 8 ò 10 ù 17",
    "Catalan": "à 60 é 40 è 30 ó 30 ò 20 í 20 ú 5 ü 2 ï 5 ç 10 · 5",
    "Dutch": "é 10 ë 10 ï 3 ö 2 ó 2 è 2 ü 1",
    "Swedish": "å 134 ä 180 ö 131 é 5",
    "Danish and Norwegian": "æ 60 å 119 ø 94 é 5 ö 1 ä 1",
    "Finnish": "ä 358 ö 44 å 1 é 1",
    "Icelandic": "á 180 ð 440 é 65 í 157 ó 99 ú 61 ý 23 þ 145 æ 87 ö 78",
    "Estonian": "ä 100 õ 110 ö 20 ü 60 š 2 ž 1",
    "Albanian": "ë 700 ç 70",
    "Turkish": "ç 116 ğ 113 ı 510 ö 78 ş 178 ü 185 â 5 î 2 û 1 i\u0307 1",
    "Hungarian": "á 370 é 350 í 70 ó 100 ö 100 ő 90 ú 40 ü 70 ű 20",
    "Polish": "ą 70 ć 74 ę 113 ł 210 ń 36 ó 114 ś 81 ź 8 ż 71",
    "Czech": "á 87 č 46 ď 2 é 63 ě 120 í 164 ň 1 ó 3 ř 38 š 69 ť 1 ú 5 ů 20 ý 100 ž 72",
    "Slovak": "á 170 ä 10 č 90 ď 10 é 70 í 90 ĺ 1 ľ 30 ň 10 ó 20 ô 20 ŕ 1 š 80 ť 50 ú 100 ý 100 ž 80",
    "Croatian and Slovene": "č 100 ć 60 đ 20 š 100 ž 60",
    "Romanian": "ă 230 â 90 î 140 ş 110 ţ 120",
    "Lithuanian": "ą 40 č 40 ę 20 ė 160 į 40 š 110 ų 130 ū 50 ž 90",
    "Latvian": "ā 400 č 10 ē 180 ģ 10 ī 190 ķ 10 ļ 30 ņ 60 š 100 ū 50 ž 20",
    "Russian": (
        "о 1098 е 848 а 799 и 736 н 670 т 632 с 547 р 475 в 453 л 434 к 349 м 320 д 298 п 280 у 262 я 200 ы 190 ь 174"
        " г 169 з 164 б 159 ч 145 й 121 х 97 ж 94 ш 72 ю 64 ц 49 щ 36 э 33 ф 26 ъ 4 ё 10"
    ),
    "Ukrainian": (
        "о 940 а 830 и 610 н 680 і 570 в 520 т 550 е 460 р 440 с 400 к 350 л 360 д 310 у 300 м 300 п 250 я 240 з 230"
        " ь 180 б 170 г 160 ч 120 й 120 х 120 ж 90 ц 80 ш 70 ї 60 ю 70 є 60 щ 50 ф 30 ґ 2"
    ),
    "Belarusian": (
        "а 1500 н 600 і 630 р 500 к 400 л 400 я 420 с 460 ы 380 д 350 у 350 о 350 т 300 е 400 ц 300 м 300 з 300 п 270"
        " ь 200 б 180 в 250 г 160 э 150 ў 130 ч 130 х 120 й 120 ш 90 ж 80 ю 70 ё 60 ф 20"
    ),
    "Bulgarian": (
        "а 1160 о 900 и 890 е 880 т 750 н 700 р 510 с 500 в 440 д 350 к 330 л 320 п 300 м 240 з 210 ъ 180 я 170 у 140"
        " б 140 г 140 ч 150 ж 70 й 70 щ 70 х 70 ш 50 ц 90 ю 20 ь 5 ф 30"
    ),
    "Serbian and Macedonian": (
        "а 1100 и 950 о 900 е 900 н 550 р 500 т 470 с 500 в 400 к 390 у 430 д 360 п 300 ј 430 л 300 м 350 з 190 г 180"
        " б 160 ш 100 ч 100 ц 90 њ 60 ћ 60 љ 50 ж 60 х 60 ф 30 ђ 20 џ 3 ѓ 5 ќ 5 ѕ 3"
    ),
    "Greek": (
        "α 1000 ο 880 ι 700 ε 700 τ 820 ν 680 ς 490 σ 390 η 400 ρ 430 π 400 υ 350 κ 410 μ 340 λ 270 γ 180 δ 170 ω 150"
        " θ 120 χ 110 φ 80 β 70 ξ 40 ζ 30 ψ 10 ά 120 έ 150 ή 150 ί 220 ό 200 ύ 90 ώ 70 ϊ 3 ϋ 1"
    ),
    "Hebrew": (
        "י 1106 ה 1087 ו 1038 ל 741 א 634 ר 561 ת 501 ב 474 מ 458 ש 441 ם 323 ע 323 נ 286 כ 270 ד 259 ח 248 ק 214"
        " פ 169 ס 148 ז 133 ט 124 ג 124 צ 124 ן 110 ך 81 ף 20 ץ 12"
    ),
    "Arabic": (
        "ا 1250 ل 1160 ي 640 و 590 م 570 ن 530 ر 470 ت 450 ب 350 ع 350 ة 340 د 330 ه 330 س 290 ف 280 ك 230 ق 230 أ 230"
        " ح 200 ج 150 ش 110 ط 110 ص 110 ى 90 خ 90 إ 90 ذ 80 ث 60 ز 60 ض 60 غ 40 ء 30 ئ 30 ظ 20 ؤ 10 آ 10"
    ),
}
"""Lower-case letters; a capital counts as its small letter."""

DRAWINGS: Final = "─│┌┐└┘├┤┬┴┼═║╔╗╚╝╠╣╦╩╬░▒▓█▄▀■"
"""Characters of which boxes, trees and bars consist in texts of DOS."""

USUAL_MARKS: Final = "“”‘’„…–—«»€°µ×©\xa0"
MARKS: Final[Mapping[str, str]] = {
    "opening": "“‘„«‹¿¡",
    "closing": "”’“»›…",
    "apart": "،؛؟–—•·©®™°€£§±×÷½¼¾²³µ№¶†‰¥¢ªº\xa0",
}
"""Marks of prose by their place: before a word, behind one, or beside no letter."""


def likelihoods(frequencies: str) -> Mapping[str, float]:
    """Return the natural logarithm of each letter's probability among a language's letters beyond ASCII."""
    parts = frequencies.split()
    counts = dict(zip(parts[::2], map(int, parts[1::2]), strict=True))
    whole = sum(counts.values())
    return {letter: math.log(count / whole) for letter, count in counts.items()}


RARE: Final = ("Icelandic", "Estonian", "Albanian", "Catalan", "Belarusian", "Serbian and Macedonian", "Latvian")
"""Languages of few texts: one word is hardly theirs if it may be of another language."""

LATIN: Final = frozenset(name for name, letters in FREQUENCIES.items() if letters[0] < "\u0370")
LANGUAGES: Final[Mapping[str, Mapping[str, float]]] = {
    name: likelihoods(frequencies) for name, frequencies in FREQUENCIES.items()
}
