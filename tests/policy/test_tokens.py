"""The strict verifier: what is issued is accepted, and every hostile probe is refused for the reason it should be."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, strategies

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.keys import KeyFolder, KeySource, SigningKey
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.policy.tokens import (
    LARGEST_TOKEN,
    Grant,
    PolicyToken,
    Refusal,
    TokenVerifier,
    inspect_token,
    issue_token,
)
from jobforge_mcp.types import Limits

NOW = 1_800_000_000
ISSUER = "jobforge"
AUDIENCE = "https://jobs.example.com/mcp"

Json = dict[str, Any]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return KeyFolder(tmp_path_factory.mktemp("keys")).ensure()


@pytest.fixture(scope="module")
def verifier(key: SigningKey) -> TokenVerifier:
    jwks = json.dumps({"keys": [key.public.to_jwk()]})
    return TokenVerifier(KeySource(jwks), issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)


@pytest.fixture
def header(key: SigningKey) -> Json:
    return {"alg": "EdDSA", "typ": "jobforge-policy+jwt", "kid": key.public.key_id}


def good_claims() -> Json:
    return {
        "iss": ISSUER,
        "sub": "agent-7",
        "aud": AUDIENCE,
        "iat": NOW - 10,
        "nbf": NOW - 10,
        "exp": NOW + 3_600,
        "jti": "0b0e4a1c",
        "scope": "jobs:list jobs:execute",
        "jf": {"v": 1, "tenant": "acme", "projects": ["p1"]},
    }


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def sign(key: SigningKey, header: Json | bytes, claims: Json | bytes) -> str:
    """Sign anything, as an issuer gone wrong would."""
    parts = [
        encode(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    ]
    return ".".join([*parts, encode(key.key.sign(".".join(parts).encode()))])


@pytest.mark.requirement("policy.tokens")
def test_an_issued_token_is_accepted_with_what_was_granted(
    key: SigningKey, verifier: TokenVerifier
) -> None:
    grant = Grant("acme", [Scope.JOBS_EXECUTE], projects=["p2", "p1"], subject="agent-7")

    token = issue_token(key, grant, issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)
    verified = verifier.verify(token)

    assert isinstance(verified, PolicyToken)
    assert verified.tenant_id == "acme"
    assert verified.subject == "agent-7"
    assert verified.scopes == {Scope.JOBS_EXECUTE}
    assert verified.projects == {"p1", "p2"}
    assert verified.expires_at - verified.issued_at == timedelta(hours=12)
    assert verified.key_id == key.public.key_id


def test_a_caller_gets_what_its_scopes_carry(key: SigningKey, verifier: TokenVerifier) -> None:
    grant = Grant("acme", [Scope.JOBS_EXECUTE])
    token = issue_token(key, grant, issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)

    verified = verifier.verify(token)

    assert isinstance(verified, PolicyToken)
    caller = verified.to_caller()
    assert caller.scopes == {"jobs:execute", "jobs:read", "jobs:list"}
    assert caller.projects is None
    assert caller.token_id == verified.token_id


@pytest.mark.requirement("policy.tokens")
def test_a_token_says_what_confines_it(key: SigningKey, verifier: TokenVerifier) -> None:
    grant = Grant(
        "acme",
        [Scope.JOBS_EXECUTE],
        projects=["p1"],
        job_types=["connector.http.*", "report.generate"],
        deny_types=["*.delete"],
        events=["order.**"],
        roles=["ops"],
        limits=Limits(
            rps=0.5,
            burst=20,
            max_running=5,
            max_payload_bytes=65_536,
            max_priority=1,
            budget_units=9,
        ),
        is_single_use=True,
        epoch=7,
        actors=["user-9", "team-2"],
    )

    verified = verifier.verify(
        issue_token(key, grant, issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)
    )

    assert isinstance(verified, PolicyToken)
    caller = verified.to_caller()
    assert caller.job_types == ("connector.http.*", "report.generate")
    assert caller.deny_types == ("*.delete",)
    assert caller.events == ("order.**",)
    assert caller.roles == {"ops"}
    assert caller.limits == grant.limits
    assert caller.is_single_use
    assert caller.single_use_ids == (verified.token_id,)
    assert caller.epoch == 7
    assert caller.actors == ("user-9", "team-2")


def test_the_moment_of_issue_is_the_epoch_of_a_token_that_names_none(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    ours = issue_token(
        key, Grant("acme", []), issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW + 0.25
    )
    theirs = sign(key, header, good_claims())

    epochs = [
        answer.to_caller().epoch
        for text in (ours, theirs)
        if isinstance(answer := verifier.verify(text), PolicyToken)
    ]

    assert epochs == [NOW * 1_000 + 250, (NOW - 10) * 1_000]


@pytest.mark.parametrize("typ", ["jobforge-policy+jwt", "at+jwt"])
def test_an_access_token_of_an_oauth_server_is_a_policy_token_too(
    key: SigningKey, verifier: TokenVerifier, header: Json, typ: str
) -> None:
    claims = good_claims() | {"client_id": "c", "aud": ["https://other.example", AUDIENCE]}
    claims["scope"] = "openid jobs:read"

    verified = verifier.verify(sign(key, header | {"typ": typ}, claims))

    assert isinstance(verified, PolicyToken)
    assert verified.scopes == {Scope.JOBS_READ}


@pytest.mark.requirement("policy.hostile-tokens")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alg": "none"}, Refusal.HEADER),
        ({"alg": "HS256"}, Refusal.HEADER),
        ({"alg": "Ed25519"}, Refusal.HEADER),
        ({"alg": "eddsa"}, Refusal.HEADER),
        ({"alg": ["EdDSA"]}, Refusal.HEADER),
        ({"alg": None}, Refusal.HEADER),
        ({"typ": "JWT"}, Refusal.HEADER),
        ({"typ": "application/at+jwt"}, Refusal.HEADER),
        ({"typ": "AT+JWT"}, Refusal.HEADER),
        ({"typ": ["at+jwt"]}, Refusal.HEADER),
        ({"typ": {}}, Refusal.HEADER),
        ({"typ": None}, Refusal.HEADER),
        ({"crit": ["b64"], "b64": False}, Refusal.HEADER),
        ({"b64": True}, Refusal.HEADER),
        ({"crit": []}, Refusal.HEADER),
        ({"jwk": {"kty": "OKP"}}, Refusal.HEADER),
        ({"jku": "https://evil.example/jwks"}, Refusal.HEADER),
        ({"x5u": "https://evil.example/cert"}, Refusal.HEADER),
        ({"x5c": ["MII"]}, Refusal.HEADER),
        ({"cty": "JWT"}, Refusal.HEADER),
        ({"zip": "DEF"}, Refusal.HEADER),
        ({"kid": "another"}, Refusal.UNKNOWN_KEY),
        ({"kid": "../../etc/passwd"}, Refusal.UNKNOWN_KEY),
        ({"kid": ""}, Refusal.UNKNOWN_KEY),
        ({"kid": 1}, Refusal.UNKNOWN_KEY),
        ({"kid": ["a"]}, Refusal.UNKNOWN_KEY),
        ({"kid": None}, Refusal.UNKNOWN_KEY),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_is_not_exactly_ours_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, change: Json, reason: Refusal
) -> None:
    assert verifier.verify(sign(key, header | change, good_claims())) is reason


@pytest.mark.parametrize("missing", ["alg", "typ", "kid"])
def test_a_header_without_one_of_the_three_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, missing: str
) -> None:
    del header[missing]

    assert verifier.verify(sign(key, header, good_claims())) is Refusal.HEADER


@pytest.mark.requirement("policy.hostile-tokens")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # times: whole seconds, and only as numbers
        ({"exp": str(NOW + 3_600)}, Refusal.CLAIM),
        ({"exp": 1e30}, Refusal.CLAIM),
        ({"exp": NOW + 3_600.0}, Refusal.CLAIM),
        ({"exp": True}, Refusal.CLAIM),
        ({"exp": 2**63}, Refusal.CLAIM),
        ({"exp": None}, Refusal.CLAIM),
        ({"exp": -1}, Refusal.CLAIM),
        ({"iat": str(NOW)}, Refusal.CLAIM),
        ({"iat": False}, Refusal.CLAIM),
        ({"nbf": "0"}, Refusal.CLAIM),
        ({"nbf": [NOW]}, Refusal.CLAIM),
        ({"exp": NOW + 86_400}, Refusal.LIFETIME),
        ({"iat": 0, "nbf": 0}, Refusal.LIFETIME),
        ({"exp": NOW - 10}, Refusal.LIFETIME),
        ({"iat": NOW - 100, "exp": NOW - 30}, Refusal.EXPIRED),
        ({"iat": NOW + 31}, Refusal.NOT_YET),
        ({"nbf": NOW + 31}, Refusal.NOT_YET),
        # who and for whom
        ({"iss": "somebody"}, Refusal.ISSUER),
        ({"iss": ISSUER + "/"}, Refusal.ISSUER),
        ({"iss": [ISSUER]}, Refusal.CLAIM),
        ({"iss": None}, Refusal.CLAIM),
        ({"aud": "https://jobs.example.com"}, Refusal.AUDIENCE),
        ({"aud": AUDIENCE + "/"}, Refusal.AUDIENCE),
        ({"aud": AUDIENCE.upper()}, Refusal.AUDIENCE),
        ({"aud": []}, Refusal.CLAIM),
        ({"aud": [AUDIENCE, 1]}, Refusal.CLAIM),
        ({"aud": [AUDIENCE] * 17}, Refusal.CLAIM),
        ({"aud": {AUDIENCE: 1}}, Refusal.CLAIM),
        ({"aud": None}, Refusal.CLAIM),
        ({"sub": "a\x00b"}, Refusal.CLAIM),
        ({"sub": "a\nb"}, Refusal.CLAIM),
        ({"sub": "a\x1b[31mb"}, Refusal.CLAIM),
        ({"sub": "a\u202eb"}, Refusal.CLAIM),
        ({"sub": "a\ud800b"}, Refusal.CLAIM),
        ({"sub": ""}, Refusal.CLAIM),
        ({"sub": "a" * 256}, Refusal.CLAIM),
        ({"sub": 7}, Refusal.CLAIM),
        ({"jti": ""}, Refusal.CLAIM),
        ({"jti": "\x00"}, Refusal.CLAIM),
        ({"jti": 1}, Refusal.CLAIM),
        # what it allows
        ({"scope": ["jobs:list"]}, Refusal.CLAIM),
        ({"scope": "jobs:list  jobs:read"}, Refusal.CLAIM),
        ({"scope": " jobs:list"}, Refusal.CLAIM),
        ({"scope": "jobs:list\tjobs:read"}, Refusal.CLAIM),
        ({"scope": "jobs:list\x00"}, Refusal.CLAIM),
        ({"scope": None}, Refusal.CLAIM),
        ({"scope": "a" * 2_049}, Refusal.CLAIM),
        # our namespace
        ({"jf": None}, Refusal.CLAIM),
        ({"jf": []}, Refusal.CLAIM),
        ({"jf": "acme"}, Refusal.CLAIM),
        ({"jf": {"v": 1}}, Refusal.CLAIM),
        ({"jf": {"tenant": "acme"}}, Refusal.CLAIM),
        ({"jf": {"v": 2, "tenant": "acme"}}, Refusal.CLAIM),
        ({"jf": {"v": "1", "tenant": "acme"}}, Refusal.CLAIM),
        ({"jf": {"v": True, "tenant": "acme"}}, Refusal.CLAIM),
        ({"jf": {"v": 1.0, "tenant": "acme"}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme", "admin": True}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": ""}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "ac me"}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme\n"}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme\x00"}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "a" * 64}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "äcme"}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": ["acme"]}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme", "projects": []}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme", "projects": "p1"}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme", "projects": [None]}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme", "projects": None}}, Refusal.CLAIM),
        ({"jf": {"v": 1, "tenant": "acme", "projects": ["p"] * 101}}, Refusal.CLAIM),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_claim_of_the_wrong_type_form_or_time_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, change: Json, reason: Refusal
) -> None:
    assert verifier.verify(sign(key, header, good_claims() | change)) is reason


@pytest.mark.parametrize(
    "missing", ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "scope", "jf"]
)
def test_a_token_without_one_of_its_claims_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, missing: str
) -> None:
    claims = good_claims()
    del claims[missing]

    assert verifier.verify(sign(key, header, claims)) is Refusal.CLAIM


def test_clocks_may_differ_by_the_leeway_and_no_more(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    just_expired = good_claims() | {"iat": NOW - 100, "exp": NOW - 29}
    just_issued = good_claims() | {"iat": NOW + 30, "nbf": NOW + 30}

    assert isinstance(verifier.verify(sign(key, header, just_expired)), PolicyToken)
    assert isinstance(verifier.verify(sign(key, header, just_issued)), PolicyToken)


@pytest.mark.requirement("policy.hostile-tokens")
@pytest.mark.parametrize(
    "claims",
    [
        b'{"sub": "a", "sub": "b"}',
        b'{"jf": {"v": 1, "tenant": "a", "tenant": "b"}}',
        b"{" + b'"a":' * 1 + b"NaN}",
        b'{"exp": Infinity}',
        b'{"exp": ' + b"9" * 5_000 + b"}",
        b"[" * 2_500 + b"]" * 2_500,
        b'{"a":' * 600 + b"1" + b"}" * 600,
        b"[]",
        b'"text"',
        b"null",
        b"",
        b"{}{}",
        b'{"sub": "\xff"}',
        b"\xef\xbb\xbf{}",
        '{"sub": "x"}'.encode("utf-16"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_claims_that_are_not_one_strict_object_are_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, claims: bytes
) -> None:
    assert verifier.verify(sign(key, header, claims)) in {Refusal.MALFORMED, Refusal.CLAIM}


def test_a_duplicate_member_is_refused_in_the_header_too(
    key: SigningKey, verifier: TokenVerifier
) -> None:
    kid = key.public.key_id
    header = f'{{"alg":"none","alg":"EdDSA","typ":"at+jwt","kid":"{kid}"}}'.encode()

    assert verifier.verify(sign(key, header, good_claims())) is Refusal.MALFORMED


def test_a_token_that_is_too_long_is_refused_before_it_is_parsed(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    token = sign(key, header, good_claims() | {"padding": "x" * 8_192})

    assert verifier.verify(token) is Refusal.TOO_LONG
    assert verifier.verify("a" * 5_000_000) is Refusal.TOO_LONG
    assert verifier.verify("a" * (LARGEST_TOKEN + 1)) is Refusal.TOO_LONG


GARBLES: list[Callable[[str], str]] = [
    lambda token: "",
    lambda token: ".",
    lambda token: "..",
    lambda token: token + ".",
    lambda token: token + "=",
    lambda token: token + "\n",
    lambda token: " " + token,
    lambda token: "Bearer " + token,
    lambda token: token + "\x00",
    lambda token: token.rsplit(".", 1)[0] + ".",
    lambda token: token.rsplit(".", 1)[0],
    lambda token: token.replace(".", "=.", 1),
    lambda token: token.replace(".", "\u2024"),
    lambda token: token.replace(".", "+.", 1),
    lambda token: token[:-1],
    lambda token: token + "A",
    lambda token: token[:-1] + "é",
    lambda token: "\ud800" + token[1:],
    lambda token: json.dumps({"payload": token, "signatures": []}),
]


@pytest.mark.requirement("policy.hostile-tokens")
@pytest.mark.parametrize("garble", GARBLES, ids=map(str, range(len(GARBLES))))
def test_what_is_not_three_canonical_parts_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, garble: Callable[[str], str]
) -> None:
    token = sign(key, header, good_claims())

    assert verifier.verify(garble(token)) in {Refusal.MALFORMED, Refusal.SIGNATURE}


def test_stray_bits_at_the_end_of_a_part_are_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    head, payload, signature = sign(key, header, good_claims()).split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 64 bytes leave four unused bits in the last character: the same bytes can be spelled 16 ways.
    twin = signature[:-1] + alphabet[alphabet.index(signature[-1]) ^ 1]

    assert verifier.verify(f"{head}.{payload}.{twin}") is Refusal.SIGNATURE


def test_a_signature_by_another_key_under_a_known_id_is_refused(
    verifier: TokenVerifier, header: Json
) -> None:
    stranger = SigningKey(Ed25519PrivateKey.generate())

    assert verifier.verify(sign(stranger, header, good_claims())) is Refusal.SIGNATURE


def test_a_mac_made_with_the_public_key_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    public = key.key.public_key().public_bytes_raw()
    parts = [
        encode(json.dumps(part).encode()) for part in (header | {"alg": "HS512"}, good_claims())
    ]
    mac = hmac.new(public, ".".join(parts).encode(), hashlib.sha512).digest()

    assert verifier.verify(".".join([*parts, encode(mac)])) is Refusal.HEADER


def test_an_empty_signature_space_is_refused(verifier: TokenVerifier, header: Json) -> None:
    parts = [encode(json.dumps(part).encode()) for part in (header, good_claims())]

    assert verifier.verify(".".join([*parts, encode(bytes(64))])) is Refusal.SIGNATURE


def test_parts_of_two_tokens_do_not_make_a_third(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    mine = sign(key, header, good_claims()).split(".")
    other = sign(key, header, good_claims() | {"jf": {"v": 1, "tenant": "other"}}).split(".")

    assert verifier.verify(".".join([mine[0], other[1], mine[2]])) is Refusal.SIGNATURE


@given(data=strategies.data())
def test_no_single_change_of_a_character_survives(data: strategies.DataObject) -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
    jwks = json.dumps({"keys": [key.public.to_jwk()]})
    verifier = TokenVerifier(KeySource(jwks), issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)
    header = {"alg": "EdDSA", "typ": "at+jwt", "kid": key.public.key_id}
    token = sign(key, header, good_claims())
    place = data.draw(strategies.integers(0, len(token) - 1))
    char = data.draw(strategies.characters().filter(lambda char: char != token[place]))

    answer = verifier.verify(token[:place] + char + token[place + 1 :])

    assert isinstance(answer, Refusal)


@given(text=strategies.text(max_size=400))
def test_no_text_makes_the_verifier_raise(text: str) -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(b"k" * 32))
    jwks = json.dumps({"keys": [key.public.to_jwk()]})
    verifier = TokenVerifier(KeySource(jwks), issuer=ISSUER, audience=AUDIENCE)

    assert isinstance(verifier.verify(text), Refusal)


@pytest.mark.parametrize(
    "grant",
    [
        Grant("", []),
        Grant("a b", []),
        Grant("acme", [], projects=["p/1"]),
        Grant("acme", [], projects=[f"p{number}" for number in range(101)]),
        Grant("acme", [], lifetime=timedelta(hours=24, seconds=1)),
        Grant("acme", [], lifetime=timedelta(0)),
        Grant("acme", [], subject=""),
        Grant("acme", [], subject="a\nb"),
        Grant("acme", [], job_types=["demo*"]),
        Grant("acme", [], job_types=[f"a.{number}" for number in range(65)]),
        Grant("acme", [], deny_types=["**.delete"]),
        Grant("acme", [], events=[""]),
        Grant("acme", [], roles=["*"]),
        Grant("acme", [], limits=Limits(rps=-1)),
        Grant("acme", [], limits=Limits()),
        Grant("acme", [], epoch=-1),
        Grant("acme", [], actors=["a", "b", "c", "d", "e"]),
        Grant("acme", [], actors=[""]),
    ],
)
def test_a_token_that_no_verifier_would_accept_is_not_issued(key: SigningKey, grant: Grant) -> None:
    with pytest.raises(InvalidInputError):
        issue_token(key, grant, issuer=ISSUER, audience=AUDIENCE)


def test_inspecting_shows_the_claims_and_the_reason_a_token_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    claims = good_claims() | {"iat": NOW - 100, "exp": NOW - 50}

    seen = inspect_token(sign(key, header, claims), verifier)

    assert seen.claims == claims
    assert seen.header == header
    assert seen.refusal is Refusal.EXPIRED


def test_inspecting_what_is_no_token_says_so_without_quoting_it() -> None:
    with pytest.raises(InvalidInputError) as caught:
        inspect_token("canary", None)

    assert "canary" not in f"{caught.value.message} {caught.value.hint}"
