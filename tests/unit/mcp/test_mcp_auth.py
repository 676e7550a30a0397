"""Identification of a caller: configured tokens, signed tokens, and every refusal."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.client import BadStatusLine, IncompleteRead, LineTooLong
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from exai.mcp.auth.jwks import (
    EMPTY_INTERVAL_S,
    FETCH_INTERVAL_S,
    KEYS_KEPT_S,
    KEYS_MAX_AGE_S,
    KeySet,
    NoKeys,
    public_keys,
)
from exai.mcp.auth.jwt import LEEWAY_S, JwtVerifier
from exai.mcp.auth.tokens import MAX_TOKEN_CHARS, authenticator
from exai.mcp.identity import Admitted, AuthRefusal
from exai.settings.load import JwtSettings, ServerSettings
from tests.support.tokens import ISSUER, SECRET, Key, claims, confused, ec_key, published, rsa_key, signed, signed_by

ALICE, BOB, OWN = "token-of-alice-0123456789", "token-of-bob-0123456789ab", "token-of-the-local-owner"
KEYS_URL = "https://ref.supabase.test/auth/v1/.well-known/jwks.json"


async def ask(settings: ServerSettings, token: str = "", **headers: str) -> Admitted | AuthRefusal:
    given = {"authorization": f"Bearer {token}", **headers} if token else headers
    return await authenticator(settings)(given, {})


def jwt_settings(**changes: Any) -> JwtSettings:
    return JwtSettings(**{"secret": SecretStr(SECRET), "issuer": ISSUER, **changes})


class TestConfiguredTokens:
    SETTINGS = ServerSettings(token=SecretStr(OWN), tokens={"alice": SecretStr(ALICE), "bob": SecretStr(BOB)})

    @pytest.mark.parametrize(("token", "owner"), [(OWN, "local"), (ALICE, "alice"), (BOB, "bob")])
    async def test_each_token_stands_for_its_owner(self, token: str, owner: str) -> None:
        """The owner comes from the token alone."""
        assert await ask(self.SETTINGS, token) == Admitted(owner)

    async def test_a_token_may_stand_in_the_query(self) -> None:
        """For clients that cannot set a header on their WebSocket; a header wins."""
        check = authenticator(self.SETTINGS)
        assert await check({}, {"token": ALICE}) == Admitted("alice")
        assert await check({"authorization": f"bearer {BOB}"}, {"token": ALICE}) == Admitted("bob")

    @pytest.mark.parametrize(
        "token", ["x", ALICE[:-1], ALICE + "x", "\xff\udc80", "a.b.c", "x" * (MAX_TOKEN_CHARS + 1)]
    )
    async def test_any_other_token_is_refused_without_being_repeated(self, token: str) -> None:
        """401 with a challenge; the token is nowhere in the answer."""
        refused = await ask(self.SETTINGS, token)
        assert isinstance(refused, AuthRefusal)
        assert (refused.status, refused.challenge) == (401, 'Bearer error="invalid_token"')
        assert len(token) < 2 or token not in refused.reason

    async def test_a_missing_token_is_answered_with_the_challenge(self) -> None:
        """A challenge without an error, as RFC 6750 has it."""
        refused = await ask(self.SETTINGS)
        assert refused == AuthRefusal("a bearer token is needed: send it as Authorization: Bearer", "Bearer")
        assert isinstance(await ask(self.SETTINGS, authorization=f"Basic {ALICE}"), AuthRefusal)

    async def test_without_any_configured_token_every_client_is_local(self) -> None:
        """The default on loopback."""
        assert await ask(ServerSettings()) == Admitted("local")


class TestSharedSecret:
    async def test_the_subject_of_a_good_token_is_the_owner_until_it_expires(self) -> None:
        """The leeway counts at the end too."""
        expires = int(time.time()) + 100
        verdict = await JwtVerifier(jwt_settings()).verdict(signed("user-1", exp=expires))
        assert verdict == Admitted("user-1", expires + LEEWAY_S)

    async def test_clocks_may_differ_by_the_leeway(self) -> None:
        """60 s on both ends."""
        now = int(time.time())
        verdict = await JwtVerifier(jwt_settings()).verdict(signed(exp=now - LEEWAY_S + 20, nbf=now + LEEWAY_S - 20))
        assert isinstance(verdict, Admitted)

    @pytest.mark.parametrize(
        "changes",
        [
            {"exp": int(time.time()) - LEEWAY_S - 20},
            {"nbf": int(time.time()) + 86_400},
            {"iss": "https://elsewhere.test/auth/v1"},
            {"aud": "anon"},
            {"exp": None},
            {"iss": None},
            {"aud": None},
            {"sub": None},
            {"sub": ""},
            {"sub": "a\x00b"},
            {"sub": "x" * 300},
            {"sub": "local"},
        ],
        ids="-".join,  # the time in them differs from one process to the next
    )
    async def test_a_token_with_a_wrong_or_missing_claim_is_refused(self, changes: dict[str, Any]) -> None:
        """iss, aud, exp and sub are required; "local" is who works without signed tokens."""
        assert isinstance(await JwtVerifier(jwt_settings()).verdict(signed(**changes)), AuthRefusal)

    @pytest.mark.parametrize(
        "token",
        [
            jwt.encode(claims(), "another-secret-that-is-long-enough", "HS256"),
            jwt.encode(claims(), SECRET + SECRET, "HS512"),
            jwt.encode(claims(), None, "none"),
            signed_by(ec_key(), "k"),
            signed()[:-2],
            "a.b",
            "..",
            base64.urlsafe_b64encode(b"[" * 9_000).decode().rstrip("=") + ".e30.e30",
        ],
        ids=["other secret", "HS512", "none", "ES256", "cut", "two parts", "empty parts", "deep nesting"],
    )
    async def test_a_token_that_is_not_hs256_with_the_secret_is_refused(self, token: str) -> None:
        """The algorithm comes from the configuration, never from the header."""
        assert isinstance(await JwtVerifier(jwt_settings()).verdict(token), AuthRefusal)

    async def test_signed_and_configured_tokens_work_side_by_side(self) -> None:
        """People sign in, a script has its own token."""
        settings = ServerSettings(tokens={"robot": SecretStr(ALICE)}, jwt=jwt_settings())
        assert await ask(settings, ALICE) == Admitted("robot")
        verdict = await ask(settings, signed("user-1"))
        assert isinstance(verdict, Admitted)
        assert verdict.owner == "user-1"


class TestOwnersOfSignedTokens:
    async def test_no_subject_becomes_an_owner_with_a_configured_token(self) -> None:
        """A user who may choose subjects would read what alice stored with hers."""
        settings = ServerSettings(
            tokens={"alice": SecretStr("a-token-of-alice-long-enough")}, jwt=jwt_settings(), token=None
        )
        assert isinstance(await ask(settings, signed("alice")), AuthRefusal)
        assert isinstance(await ask(settings, signed("user-1")), Admitted)
        assert isinstance(await ask(settings, signed("local")), AuthRefusal)

    @pytest.mark.parametrize("allowed", [False, True])
    async def test_anonymous_users_are_owners_only_if_that_is_configured(self, allowed: bool) -> None:
        """Supabase issues such tokens without registration, each with a new subject."""
        verifier = JwtVerifier(jwt_settings(allow_anonymous=allowed))
        verdict = await verifier.verdict(signed("user-1", is_anonymous=True))
        assert isinstance(verdict, Admitted) is allowed
        assert isinstance(await verifier.verdict(signed("user-1", is_anonymous=False)), Admitted)


class Issuer:
    """Publishes keys, counts who asks, and can be down; `now` is the clock."""

    def __init__(self, **keys: Key) -> None:
        self.document: bytes | Exception = published(**keys)
        self.asked = 0
        self.now = 1_000.0
        self.hangs_until: threading.Event | None = None
        self.keys = KeySet(KEYS_URL, fetch=self._fetch, clock=lambda: self.now)
        self.verifier = JwtVerifier(JwtSettings(jwks_url=KEYS_URL, issuer=ISSUER), self.keys)

    def _fetch(self, url: str) -> bytes:
        assert url == KEYS_URL
        self.asked += 1
        if self.hangs_until is not None:
            assert self.hangs_until.wait(5)
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    async def admits(self, token: str) -> bool:
        return isinstance(await self.verifier.verdict(token), Admitted)


class TestPublishedKeys:
    EC, RSA = ec_key(), rsa_key()

    async def test_es256_and_rs256_are_accepted_by_the_kind_of_the_key(self) -> None:
        """One fetch serves both."""
        issuer = Issuer(a=self.EC, b=self.RSA)
        assert await issuer.admits(signed_by(self.EC, "a"))
        assert await issuer.admits(signed_by(self.RSA, "b"))
        assert issuer.asked == 1

    async def test_a_public_key_is_no_shared_secret(self) -> None:
        """Algorithm confusion: HS256 with the issuer's public key as the secret."""
        issuer = Issuer(a=self.EC)
        pem = self.EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for secret in (published(a=self.EC), pem, b""):
            assert not await issuer.admits(confused(secret, "a"))

    async def test_a_key_the_token_brings_along_is_not_used(self) -> None:
        """jku, x5u and jwk in the header are not even looked at."""
        own = ec_key()
        headers = {"kid": "a", "jku": "https://evil.test/jwks.json", "x5u": "https://evil.test/x"}
        headers["jwk"] = json.loads(published(a=own))["keys"][0]
        issuer = Issuer(a=self.EC)
        assert not await issuer.admits(jwt.encode(claims(), own, "ES256", headers=headers))
        assert issuer.asked == 1

    async def test_keys_are_kept_ten_minutes(self) -> None:
        """Then fetched again."""
        issuer = Issuer(a=self.EC)
        for step, asked in ((0.0, 1), (KEYS_KEPT_S - 1, 1), (1.0, 2)):
            issuer.now += step
            assert await issuer.admits(signed_by(self.EC, "a"))
            assert issuer.asked == asked

    async def test_an_unknown_key_asks_the_issuer_once_a_minute_at_most(self) -> None:
        """Any caller can invent key ids."""
        issuer, new = Issuer(a=self.EC), ec_key()
        assert await issuer.admits(signed_by(self.EC, "a"))
        issuer.document = published(a=self.EC, b=new)
        for _ in range(5):
            assert not await issuer.admits(signed_by(new, "b"))
        assert issuer.asked == 1
        issuer.now += FETCH_INTERVAL_S
        assert await issuer.admits(signed_by(new, "b"))
        assert issuer.asked == 2

    @pytest.mark.parametrize("fault", [OSError("down"), ValueError("too large"), b"{}", b"not json", b'{"keys":[]}'])
    async def test_keys_survive_a_fetch_that_fails(self, fault: bytes | Exception) -> None:
        """Otherwise one failed request would refuse all tokens."""
        issuer = Issuer(a=self.EC)
        assert await issuer.admits(signed_by(self.EC, "a"))
        issuer.document = fault
        issuer.now += KEYS_KEPT_S
        assert await issuer.admits(signed_by(self.EC, "a"))
        assert await issuer.admits(signed_by(self.EC, "a"))
        assert issuer.asked == 2

    async def test_keys_that_never_came_are_a_503_and_no_fault_of_the_token(self) -> None:
        """With 401 a client would sign in again without need."""
        issuer = Issuer(a=self.EC)
        good, issuer.document = issuer.document, OSError("down")
        verdict = await issuer.verifier.verdict(signed_by(self.EC, "a"))
        assert isinstance(verdict, AuthRefusal)
        assert verdict.status == 503
        with pytest.raises(NoKeys):
            await issuer.keys.find("a")
        assert issuer.asked == 1
        issuer.document, issuer.now = good, issuer.now + EMPTY_INTERVAL_S
        assert await issuer.admits(signed_by(self.EC, "a"))

    @pytest.mark.parametrize("fault", [BadStatusLine("SSH-2.0"), IncompleteRead(b""), LineTooLong("header line")])
    async def test_an_issuer_that_answers_without_http_is_unavailable(self, fault: Exception) -> None:
        """It is no internal error, and known keys stay valid."""
        issuer = Issuer(a=self.EC)
        good, issuer.document = issuer.document, fault
        verdict = await issuer.verifier.verdict(signed_by(self.EC, "a"))
        assert isinstance(verdict, AuthRefusal)
        assert verdict.status == 503
        issuer.document, issuer.now = good, issuer.now + EMPTY_INTERVAL_S
        assert await issuer.admits(signed_by(self.EC, "a"))
        issuer.document, issuer.now = fault, issuer.now + KEYS_KEPT_S
        assert await issuer.admits(signed_by(self.EC, "a"))

    async def test_known_keys_do_not_wait_for_an_issuer_that_hangs(self) -> None:
        """The fetch runs beside them, and its keys are used."""
        issuer, answered = Issuer(a=self.EC), threading.Event()
        assert await issuer.admits(signed_by(self.EC, "a"))
        issuer.now += KEYS_KEPT_S
        issuer.hangs_until = answered
        try:
            assert await issuer.admits(signed_by(self.EC, "a"))
            assert issuer.keys._refreshing is not None
            assert not issuer.keys._refreshing.done()
            issuer.document = published(b=self.RSA)
        finally:
            answered.set()
        await issuer.keys._refreshing
        assert not await issuer.admits(signed_by(self.EC, "a"))

    async def test_keys_that_are_too_old_are_used_no_more(self) -> None:
        """One of them may have been withdrawn while the issuer was away."""
        issuer = Issuer(a=self.EC)
        assert await issuer.admits(signed_by(self.EC, "a"))
        issuer.document, issuer.now = OSError("down"), issuer.now + KEYS_MAX_AGE_S - 1
        assert await issuer.admits(signed_by(self.EC, "a"))
        issuer.now += 1
        verdict = await issuer.verifier.verdict(signed_by(self.EC, "a"))
        assert isinstance(verdict, AuthRefusal)
        assert verdict.status == 503

    def test_keys_of_other_kinds_are_passed_over(self) -> None:
        """A shared secret in a published set, a weak RSA key, a key for encryption."""
        oct_key = {"kty": "oct", "kid": "o", "k": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")}
        weak = json.loads(published(w=rsa_key(1_024)))["keys"][0]
        good = json.loads(published(g=self.EC))["keys"][0]
        listed = [oct_key, weak, {**good, "kid": "e", "use": "enc"}, {**good, "kid": "x", "alg": "HS256"}, 7, good]
        assert list(public_keys(json.dumps({"keys": listed}).encode())) == ["g"]
