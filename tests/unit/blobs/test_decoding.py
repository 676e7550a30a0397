"""Decoding of files: by byte order mark, as UTF-8, or by detection; losses are noted."""

from __future__ import annotations

import random

import pytest

from exai.blobs.decoding import BINARY, decode, encoding_of

CHINESE = "请解释一下数据库连接池的工作原理。\n错误：连接超时，请检查网络设置。\n"
JAPANESE = "日本語のテスト文章です。\nエラー: ファイルが見つかりません。カタカナ\n"
RUSSIAN = "Привет, мир! Ошибка подключения к базе данных.\n"
FRENCH = "Le café est fermé à Noël, l'été prochain déjà.\n"
GERMAN = "Die Größe überschreitet das Maximum: für ÄÖÜ\n"
QUOTES = "He said “hello” — it’s the user’s fault…\n"
ENGLISH = "Get-Process | Out-File list.txt\r\nEverything is fine\r\n"
LOG = "2026-01-01T00:00:00Z INFO something happened in module x\n"

CASES = [
    (CHINESE, "gb18030", "gb18030"),
    (CHINESE, "gbk", "gb18030"),
    (CHINESE, "utf-8", "utf-8"),
    (CHINESE, "utf-8-sig", "utf-8-sig"),
    (CHINESE, "utf-16", "utf-16-le"),
    (CHINESE, "utf-16-le", "utf-16-le"),
    (CHINESE, "utf-16-be", "utf-16-be"),
    (CHINESE, "utf-32", "utf-32-le"),
    (CHINESE, "utf-32-be", "utf-32-be"),
    ("請解釋一下資料庫連線池的工作原理。", "big5", "big5"),
    (JAPANESE, "cp932", "shift_jis"),
    (JAPANESE, "euc_jp", "euc-jp"),
    (JAPANESE, "iso2022_jp", "iso-2022-jp"),
    (JAPANESE, "utf-16-be", "utf-16-be"),
    ("שלום עולם, שגיאה בחיבור לבסיס הנתונים", "cp1255", "windows-1255"),
    ("안녕하세요. 데이터베이스 연결 오류입니다.", "cp949", "euc-kr"),
    (RUSSIAN, "cp1251", "windows-1251"),
    (RUSSIAN, "koi8_r", "koi8-r"),
    (RUSSIAN, "utf-16-le", "utf-16-le"),
    ("สวัสดีชาวโลก นี่คือการทดสอบ", "cp874", "windows-874"),
    ("Příliš žluťoučký kůň úpěl ďábelské ódy", "cp1250", "windows-1250"),
    (RUSSIAN, "cp866", "ibm866"),
    ((CHINESE * 100).replace("\n", ""), "gb18030", "gb18030"),
    ((JAPANESE * 100).replace("\n", ""), "cp932", "shift_jis"),
    ("Καλημέρα κόσμε, σφάλμα σύνδεσης", "cp1253", "windows-1253"),
    ("Zażółć gęślą jaźń, błąd połączenia", "cp1250", "windows-1250"),
    (FRENCH, "cp1252", "windows-1252"),
    (FRENCH, "latin-1", "windows-1252"),
    (GERMAN, "latin-1", "windows-1252"),
    (QUOTES, "cp1252", "windows-1252"),
    (ENGLISH, "utf-16-le", "utf-16-le"),
    (ENGLISH, "utf-16-be", "utf-16-be"),
    (ENGLISH, "ascii", "utf-8"),
]


@pytest.mark.parametrize("around", ["", LOG * 50], ids=["alone", "in a log"])
@pytest.mark.parametrize(("text", "codec", "name"), CASES)
def test_text_in_any_usual_encoding_is_read_exactly(text: str, codec: str, name: str, around: str) -> None:
    """Windows, PowerShell and editors in China and Japan still write these."""
    whole = around + text + around
    decoded = decode(whole.encode(codec))
    assert decoded is not None
    assert decoded.text == whole
    assert decoded.encoding == name
    assert (decoded.note is None) == name.startswith("utf-8")


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        ("gb18030", ["错误 数据库 连接", "北京", "测试", "你好", "文件", "用户名", "张三，李四", "是的", "配置"]),
        (
            "cp932",
            ["東京", "田中太郎", "株式会社", "エラー", "ファイル", "ありがとう", "テスト", "ソース", "東京都千代田区"],
        ),
        ("cp1251", ["Привет", "ошибка", "да", "Москва"]),
        ("cp1255", ["שלום עולם, שגיאה בחיבור"]),
        (
            "cp1252",
            ["café", "naïve", "Größe", "señor", "“quoted”", "it’s", "€ 5", "30 °C", "½", "Ça va", "øre", "São Paulo"],
        ),
    ],
)
def test_a_few_words_in_a_table_of_ascii_are_enough(codec: str, words: list[str]) -> None:
    """As in a spreadsheet's export, whose first kilobytes say nothing."""
    for word in words:
        text = "id,name,value\n" * 300 + f"1,{word},x\n" + "2,plain,y\n" * 300
        decoded = decode(text.encode(codec))
        assert decoded is not None
        assert decoded.text == text, word


@pytest.mark.parametrize(
    ("bad", "shown"), [(b"\xe9", "é"), (b"caf\xe9s", "cafés"), (b"\x93x\x94", "“x”"), (b"\x81", "\x81")]
)
def test_one_odd_byte_does_not_hide_a_log(bad: bytes, shown: str) -> None:
    """200 kB of ASCII with one byte of Latin-1."""
    log = LOG.encode() * 2_000
    decoded = decode(log + bad + b"\n" + log)
    assert decoded is not None
    assert decoded.text == LOG * 2_000 + shown + "\n" + LOG * 2_000
    assert decoded.note == "decoded from windows-1252"


@pytest.mark.parametrize(
    "data",
    [
        CHINESE.encode("utf-16-le") + b"\n",
        ENGLISH.encode("utf-16-be")[:-1],
        b"\xff\xfe" + ENGLISH.encode("utf-16-le") + b"x",
        CHINESE.replace("\n", "").replace("一", "").encode("utf-16-le"),
    ],
)
def test_utf_16_that_was_cut_or_has_no_zero_is_still_text(data: bytes) -> None:
    """A log that a program still writes, or one line of Chinese."""
    assert encoding_of(data).startswith("utf-16")


@pytest.mark.parametrize("data", [b"./a.txt\0./b.txt\0./c.txt\0", b"HOME=/root\0LANG=C\0" * 9])
def test_text_that_is_separated_by_nul_is_text(data: bytes) -> None:
    """As `find -print0` and `git ls-files -z` write it."""
    decoded = decode(data)
    assert decoded is not None
    assert decoded.text == data.decode().replace("\0", "\u2400")


@pytest.mark.parametrize(
    "data",
    [
        "größe ok\n".encode() * 5 + "größe\n".encode("latin-1"),
        b"\xef\xbb\xbf" + CHINESE.encode() + b"caf\xe9",
    ],
)
def test_log_of_two_programs_is_what_most_of_it_is(data: bytes) -> None:
    """The few bytes of the other one are shown as such; a mark is no character."""
    decoded = decode(data)
    assert decoded is not None
    assert decoded.encoding == "utf-8 (damaged)"
    assert "\ufeff" not in decoded.text
    assert decoded.text.count("\ufffd") <= 2


def test_damaged_utf_8_is_still_utf_8() -> None:
    """The rest of the characters is worth more than a guess that fits every byte."""
    decoded = decode(CHINESE.encode() + b"\xff" + GERMAN.encode())
    assert decoded is not None
    assert decoded.text == f"{CHINESE}\ufffd{GERMAN}"
    assert decoded.note is not None
    assert "1 bytes or sequences could not be decoded" in decoded.note


@pytest.mark.parametrize("place", [0, 5, 11])
def test_one_nul_is_shown_and_said(place: int) -> None:
    """It describes a program's problem better than `binary output`."""
    data = b"hello world"[:place] + b"\0" + b"hello world"[place:]
    decoded = decode(data)
    assert decoded is not None
    assert decoded.text == "hello world"[:place] + "\u2400" + "hello world"[place:]
    assert decoded.note == "NUL characters (1) are shown as \u2400"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\x01\0\x08\x06\0\0\0",
        b"PK\x03\x04\x14\0\0\0\x08\0",
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0>\0\x01\0\0\0",
        random.Random(1).randbytes(100_000),
        random.Random(2).randbytes(300).replace(b"\0", b"x"),
    ],
)
def test_what_is_no_text_is_not_shown_as_text(data: bytes) -> None:
    """Every byte is a character of some encoding, so that something has to decide."""
    assert encoding_of(data) == BINARY
    assert decode(data) is None


def test_empty_file_is_an_empty_text() -> None:
    """It is not damaged either."""
    decoded = decode(b"")
    assert decoded is not None
    assert (decoded.text, decoded.note) == ("", None)


@pytest.mark.parametrize("name", ["utf-16-le", "gb18030"])
def test_encoding_that_was_decided_before_is_not_looked_for_again(name: str) -> None:
    """A file's row has it."""
    decoded = decode(CHINESE.encode(name), name)
    assert decoded is not None
    assert decoded.text == CHINESE
