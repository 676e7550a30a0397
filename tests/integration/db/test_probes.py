"""The definition of a word: the same in every database, before and after indexing, in languages and in code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exai.db.conversations import ConversationRepository
from exai.db.migrations.migrate import upgrade
from exai.db.search import SearchQuery, SearchRepository
from exai.models import LOCAL_OWNER, Owner
from tests.support.database import appending, conversation_of, new_id, opened
from tests.support.migrations import run, session

LOCALES = {
    "C": "locale 'C'",
    "C.UTF-8": "locale 'C.UTF-8'",
    "en_US.UTF-8": "locale 'en_US.UTF-8'",
    "builtin C.UTF-8": "locale_provider builtin builtin_locale 'C.UTF-8' locale 'C'",
    "ICU en-US": "locale_provider icu icu_locale 'en-US' locale 'C'",
    "ICU tr": "locale_provider icu icu_locale 'tr' locale 'C'",
}

FOUND = {
    # German, French, Spanish, Portuguese, Danish, Polish, Czech, Turkish, Vietnamese
    "Über die Brücke; Straße und STRASSE": ["über", "ÜBER", "uber", "brücke", "straße", "strasse", "Strasse"],
    "Le café est fermé, l’été où j’ai goûté l'œuf": [
        "café", "CAFÉ", "cafe", "fermé", "été", "ete", "où", "oeuf",
        "œuf",
    ],
    "¿Dónde está el niño? ¡Mañana!": ["dónde", "donde", "está", "niño", "nino", "mañana", "MAÑANA"],
    "A ação começou em São Paulo": ["ação", "acao", "são", "sao", "começou"],
    "Smørrebrød på Ærø": ["smørrebrød", "smorrebrod", "SMØRREBRØD", "på", "ærø", "aero"],
    "Zażółć gęślą jaźń w Łodzi": ["zażółć", "zazolc", "gesla", "łodzi", "lodzi"],
    "İstanbul'da ılık bir gün": ["istanbul", "İstanbul", "ılık", "ilik", "gün", "gun"],
    "Tiếng Việt có dấu, Đà Nẵng": ["tiếng", "tieng", "việt", "viet", "đà", "da", "nẵng"],
    "cafe\u0301 in the other normal form": ["café", "cafe\u0301", "cafe", "CAFÉ"],
    # Greek, Russian, Ukrainian, Hebrew, Arabic, Persian
    "Καλημέρα κόσμε, ΟΔΥΣΣΕΥΣ": ["καλημέρα", "καλημερα", "ΚΑΛΗΜΈΡΑ", "κοσμε", "οδυσσευς", "ΟΔΥΣΣΕΥΣ"],
    "Привет, Мир! Ещё ёлка": ["привет", "МИР", "мир", "ещё", "еще", "елка"],
    "Київ — столиця України": ["київ", "КИЇВ", "столиця", "україни"],
    "שָׁלוֹם עולם": ["שלום", "שָׁלוֹם", "עולם"],
    "مرحباً بالعالم، كتاب": ["مرحبا", "مرحباً", "بالعالم", "كتاب", "کتاب"],
    "من می\u200cخواهم کتاب را بخوانم": ["می\u200cخواهم", "میخواهم", "خواهم", "می", "كتاب"],
    # Hindi, Sinhala, Tamil
    "हिन्दी में लिखा हुआ पाठ": ["हिन्दी", "लिखा", "पाठ", "में"],
    "ක්\u200dරමලේඛනය ගැන": ["ක්\u200dරමලේඛනය", "ක්රමලේඛනය", "ගැන"],
    "தமிழ் மொழி": ["தமிழ்", "மொழி"],
    # Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese
    "请解释一下数据库连接池的工作原理。": [
        "数据库", "连接池", "原理", "库", "请", "理", "数据库连接池的工作原理",
        "解释 原理",
    ],
    "日本語のテスト文章です。ｶﾀｶﾅ": ["テスト", "日本語", "文章", "語", "です", "カタカナ", "ｶﾀｶﾅ"],
    "이 문장을 번역을 해 주세요": ["번역", "번역을", "문장", "주세요", "해"],
    "ภาษาไทยเขียนติดกัน": ["ภาษา", "ไทย", "เขียน", "ติดกัน"],
    "ພາສາລາວຂຽນຕິດກັນ": ["ລາວ", "ພາສາ", "ຂຽນ"],
    "ភាសាខ្មែរសរសេរជាប់": ["ខ្មែរ", "ភាសា", "សរសេរ"],
    "မြန်မာဘာသာစကား": ["မြန်မာ", "ဘာသာ", "စကား"],
    "用Python写的GIL说明": ["python", "gil", "说明", "用Python写", "的GIL"],
    # Quotes, dashes, emoji, markup
    "She said “hello” — ‘twice’": ["hello", "twice", "she"],
    "The cache—which was stale…really": ["cache", "which", "stale", "really"],
    "deploy✅done🚀🚀now": ["deploy", "done", "now"],
    "It’s the user’s fault": ["user", "fault", "it’s", "user's"],
    "The ﬁrst oﬃce, ½ of it, Foo™ and ﾌﾙ": ["first", "office", "foo"],
    "Vec<Token> and <div class=\"hero\">": ["token", "vec", "hero", "div", "Vec<Token>"],
    "count <limit and total> zero": ["total", "limit", "zero"],
    "<!-- hidden remark -->visible": ["hidden", "remark", "visible"],
    # Code, paths, addresses, versions
    "the words/phrases and/or either": ["words", "phrases", "either", "words/phrases"],
    "call asyncio.gather(a, b)": ["gather", "asyncio", "asyncio.gather"],
    "see exai/db/search.py:42": ["search.py", "search", "exai/db/search.py", "db", "db/search.py", "42"],
    "C:\\Users\\Ann\\notes.txt": ["notes.txt", "Ann", "C:\\Users\\Ann\\notes.txt"],
    "closes GH-1234 and #5678": ["1234", "GH-1234", "gh", "5678", "#5678"],
    "at the end.Next begins": ["next", "end", "begins"],
    "open foo.png": ["foo", "png", "foo.png"],
    "mail alice@example.com now": ["alice", "example", "alice@example.com", "example.com"],
    "https://api.example.org/v1/users?id=77&sort=name#top": [
        "api", "users", "77", "sort", "example.org/v1/users",
        "top",
    ],
    "getUserName HTTPServer parseXMLFile": [
        "user", "getUserName", "getusername", "userName", "server", "http",
        "xml",
    ],
    "snake_case_name and kebab-case-name": [
        "snake", "case", "snake_case_name", "case_name", "kebab-case-name",
        "kebab",
    ],
    "MAX_VALUE __init__ $HOME --dry-run": [
        "max", "value", "MAX_VALUE", "init", "__init__", "home", "$HOME",
        "--dry-run",
    ],
    "version v1.22.333-beta.4 and 3.14": ["v1.22.333-beta.4", "beta", "22.333", "3.14", "333"],
    "release v2.10.3-rc1 and V3": ["2.10.3", "v2.10.3", "2.10", "v2", "10.3", "rc1", "v3", "3"],
    "utf8 sha256sum ipv6Address": ["utf", "utf8", "sha256sum", "sum", "ipv6address", "address"],
    "10.0.0.17 and fe80::1ff:fe23": ["10.0.0.17", "17", "fe80::1ff:fe23", "fe23"],
    "550e8400-e29b-41d4-a716-446655440000": ["550e8400", "550e8400-e29b-41d4-a716-446655440000", "446655440000"],
    "std::vector<int>::push_back(x)": ["push_back", "vector", "std::vector", "push"],
    "SELECT count(*) FROM t WHERE a>=10": ["count", "where", "10", "select count"],
    "a=b;c=d|e f\tg\x7fh\u00a0i\u3000j\u200bk": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"],
    "Ｆｕｌｌ Ｗｉｄｔｈ １２３": ["full", "width", "123", "Ｆｕｌｌ"],
    "soft\u00adhyphen and word\u2060joiner": ["softhyphen", "wordjoiner"],
    "deployment of deployables": ["deploy*", "deployment", "deploya*"],
}  # fmt: skip
"""Messages, and what each of them is found by."""

NOT_FOUND = ["catx", "ployment", "数库", "テト", "cafés", "\u0301", "?!", "Übe", "gat", "userNameX", "hello-twicex"]


@asynccontextmanager
async def database_of(url: str, options: str) -> AsyncIterator[str]:
    """A migrated database with these options; skips where the server does not offer them."""
    name = f"exai_probes_{new_id()[:8]}"
    try:
        await run(url, f"create database {name} template template0 encoding 'UTF8' {options}")
    except asyncpg.PostgresError as error:
        pytest.skip(f"this server does not offer it: {error}")
    made = urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    try:
        await upgrade(made)
        yield made
    finally:
        await run(url, f"drop database {name} with (force)")


@pytest.mark.direct
@pytest.mark.parametrize("locale", LOCALES)
async def test_every_probe_is_found_in_every_database(postgres_url: str, locale: str) -> None:
    """Queued and indexed; absent words are not found."""
    async with database_of(postgres_url, LOCALES[locale]) as url, opened(url) as database:
        search = SearchRepository(database)
        await conversation_of(ConversationRepository(database), *FOUND)
        seqs = dict(enumerate(FOUND.values(), 1))
        for _ in ("waiting", "indexed"):
            missed = [
                (seq, text) for seq, texts in seqs.items() for text in texts if seq not in await found(search, text)
            ]
            assert missed == []
            assert [text for text in NOT_FOUND if await found(search, text)] == []
            while (await search.index()).left:
                pass


async def found(search: SearchRepository, text: str) -> list[int]:
    page = await search.search(SearchQuery(LOCAL_OWNER, text), limit=99)
    return [hit.seq for hit in page.hits] if page.matched == "all" else []


TEXTS = st.text(
    st.one_of(
        st.sampled_from(" \t\n.,;:-_/\\\\\"'()<>@#&|!*+=~`$%^?[]{}"),
        st.sampled_from("abcXYZ019éÜßıİøæ"),
        st.sampled_from("数据库テスト한국ไทยខ្មែρσςЁйہیكי\u200c\u200d\u0301"),
        st.characters(exclude_categories=("Cs",), exclude_characters="\x00"),
    ),
    max_size=60,
)


def test_any_text_is_found_by_its_own_words(postgres_url: str) -> None:
    """The whole text, and each part between spaces, before and after it is indexed."""
    with asyncio.Runner() as runner:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(TEXTS)
        def probe(text: str) -> None:
            runner.run(found_by_itself(postgres_url, text))

        probe()


async def found_by_itself(url: str, text: str) -> None:
    owner = Owner(new_id())
    async with opened(url) as database:
        search = SearchRepository(database)
        await ConversationRepository(database).append(appending(None, text or "-", owner=owner))
        async with session(url) as connection:
            words = [row["word"] for row in await connection.fetch("select word from exai.units_v1($1::text)", text)]
        asked = [f'"{text.replace(chr(34), " ")}"'] if words else []
        asked += [each for each in words if each.lower() != "or"]
        asked += [each for each in text.split() if each.lstrip("-").lower() != "or" and any(map(str.isalnum, each))]
        for _ in ("waiting", "indexed"):
            for query in asked:
                page = await search.search(SearchQuery(owner, query), limit=9)
                assert ([hit.seq for hit in page.hits], page.matched) == ([1], "all"), (text, query)
            await search.index()
