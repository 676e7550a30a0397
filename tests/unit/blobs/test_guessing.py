"""Single-byte encodings are recognized by the language of the text."""

from __future__ import annotations

import pytest

from exai.blobs.decoding import ONE_BYTE, decode
from tests.support.natural_texts import ENCODINGS, PARAGRAPHS


@pytest.mark.parametrize(
    ("language", "codec"), [(language, codec) for language, codecs in ENCODINGS.items() for codec in codecs]
)
def test_paragraph_of_a_language_is_read_exactly(language: str, codec: str) -> None:
    """Each alone, and all together with lines of a log around them."""
    for text in (*PARAGRAPHS[language], "\r\n2026-01-01 INFO ok\r\n".join(PARAGRAPHS[language])):
        decoded = decode(text.encode(codec))
        assert decoded is not None
        assert decoded.text == text
        assert decoded.encoding in ONE_BYTE
        assert decoded.note is not None


OTHERS = [
    ("cp850", "El año pasado viajamos a España y comimos muchísimo jamón. ¿Dónde está la estación?"),
    ("cp1252", "La contraseña no es válida; inténtelo más tarde."),
    ("cp850", "Não foi possível conectar à base de dados: verifique a configuração."),
    ("cp1252", "A reunião será amanhã às três horas, na sala do João."),
    ("cp850", "La città è bella, però è già tardi e così andrò a casa."),
    ("cp850", "Kan inte ansluta till databasen, försök igen om en stund."),
    ("cp850", "Rødgrød med fløde er æblegodt på en ø."),
    ("cp1252", "Tiedostoa ei löytynyt. Yritä myöhemmin uudelleen, ystäväni."),
    ("cp1252", "Það er gott veður í dag og ég ætla að fara út. Þetta er síðasta skráin."),
    ("iso8859_2", "Soubor nebyl nalezen. Zkuste to prosím později znovu, děkuji."),
    ("cp852", "Dnes ráno jsme se sešli před starou knihovnou a dlouho mluvili o létě."),
    ("cp1250", "Súbor sa nenašiel. Skúste to neskôr, prosím, ďakujem."),
    ("cp1250", "Datoteka nije pronađena. Pokušajte ponovno kasnije. Život je čudesan, a kuća šarena."),
    ("cp1250", "Fişierul nu a fost găsit. Încercaţi mai târziu, vă rog, şi mulţumesc."),
    ("cp1257", "Failas nerastas. Bandykite dar kartą vėliau, ačiū už kantrybę, gražios dienos žmonėms."),
    ("cp1257", "Fails nav atrasts. Mēģiniet vēlreiz vēlāk, lūdzu, paldies par pacietību."),
    ("iso8859_7", "Το αρχείο δεν βρέθηκε. Παρακαλώ δοκιμάστε ξανά αργότερα."),
    ("cp866", "Файлът не е намерен. Моля, опитайте отново по-късно."),
    ("cp1251", "Датотека није пронађена. Покушајте поново касније. Њихова кућа је велика."),
    ("cp1251", "Файл не знойдзены. Калі ласка, паспрабуйце яшчэ раз пазней. Ён жыве ў горадзе."),
    ("cp866", "ВНИМАНИЕ! ОШИБКА ЧТЕНИЯ ДИСКА"),
    ("cp1251", "ВНИМАНИЕ! ОШИБКА ЧТЕНИЯ ДИСКА"),
    ("iso8859_5", "Имя;Фамилия;Город\nИван;Петров;Москва\nАнна;Сидорова;Казань\n"),
    ("cp1255", "הקובץ לא נמצא. אנא נסה שוב מאוחר יותר."),
    ("cp1256", "خطأ في الاتصال بقاعدة البيانات، تحقق من كلمة المرور."),
    ("cp850", "Müller;Köln\nSchäfer;Düsseldorf\n"),
    ("cp437", "// Änderung für Prüfung\nint x;\n"),
    ("cp437", "C:\\DATA\n├───src\n│   ├───main\n│   └───test\n└───doc\n"),
    ("cp850", "╔════╗\n║ ok ║\n╚════╝\n"),
    ("cp866", "┌────┐\n│ Имя│\n└────┘ Файлы и папки"),
    ("cp1252", "10 µm × 5 µm, ±1 %"),
    ("cp1252", "wait… what"),
    ("cp1252", "© 2020 Acme™"),
    ("gb18030", "使用Python编写的API文档，请参考README文件。"),
    ("gb18030", "删除a列和b列"),
    ("gb18030", "int 计数 = 0;"),
    ("cp932", "// コメント\nint a = 0; // 終了\n"),
    ("cp932", "ｶﾀｶﾅ ﾃｽﾄ"),
    ("cp949", "Python으로 작성된 API입니다"),
]


@pytest.mark.parametrize(("codec", "text"), OTHERS)
def test_other_languages_and_drawings_are_not_taken_for_each_other(codec: str, text: str) -> None:
    """Not for another language nor for multibyte text, in either direction."""
    decoded = decode(text.encode(codec))
    assert decoded is not None
    assert decoded.text == text


@pytest.mark.parametrize(
    ("codec", "text"),
    [("cp1250", "historię"), ("cp1250", "Być"), ("cp850", "straße"), ("cp1254", "konuştuk"), ("gb18030", "是")],
)
def test_guess_that_may_be_wrong_says_so(codec: str, text: str) -> None:
    """A word may be valid in several languages and encodings; the guess is stored with the file."""
    decoded = decode(text.encode(codec))
    assert decoded is not None
    assert decoded.encoding.endswith(" (uncertain)")
    assert decoded.note is not None
    assert "which is a guess" in decoded.note
    again = decode(text.encode(codec), decoded.encoding)
    assert again == decoded
