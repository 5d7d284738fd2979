"""What a token may say in ``jf`` and ``cnf``, and every form of it that is refused."""

from __future__ import annotations

from typing import Any

import pytest

from jobforge_mcp.policy.claims import BadClaimError, Confinement, parse_confinement
from jobforge_mcp.policy.keys import SigningKey
from jobforge_mcp.policy.tokens import Refusal, TokenVerifier
from jobforge_mcp.types import Limits, TenantId
from tests.policy.test_tokens import Json, good_claims, header, key, sign, verifier

__all__ = ["header", "key", "verifier"]

BAD_PATTERNS: list[Any] = [
    *([], None, "demo.*", ["demo.*"] * 65, [1], [None], ["a" * 101], [["a"]]),
    *([""], ["."], ["a."], [".a"], ["a..b"], ["**.a"], ["a*"], ["a.b*.c"], ["***"], ["a.**.b"]),
    *(["a b"], ["a/b"], ["a\n"], ["\xe4"], ["[a-z]+"], ["a\x00"], ["(a+)+"]),
]
BAD_MEMBERS: dict[str, list[Any]] = {
    "job_types": BAD_PATTERNS,
    "deny_types": BAD_PATTERNS,
    "events": BAD_PATTERNS,
    "roles": [[], None, "ops", ["*"], ["o p"], [1], ["r"] * 33],
    "limits": [
        *({}, None, [], 5, {"unknown": 1}, {"rps": 0}, {"rps": -1}, {"rps": True}),
        *({"rps": "5"}, {"rps": 1e9}, {"rps": None}, {"burst": 0}, {"burst": 1.5}),
        *(
            {"max_running": True},
            {"max_queued": 2**53},
            {"max_running": 2**31},
            {"max_payload": -1},
        ),
        *({"max_priority": 4}, {"max_priority": -1}, {"budget_units": "many"}),
        {"max_payload_bytes": 1},
    ],
    "once": [None, 1, 0, "true", []],
    "epoch": [None, -1, 1.0, True, "7", 2**53],
    "act": [
        *(None, {}, "user", [], {"sub": ""}, {"sub": 7}, {"sub": "a\x00"}, {"sub": "a\n"}),
        *({"sub": "a", "iss": "b"}, {"sub": "a", "act": None}, {"sub": "a", "act": {}}),
        {
            "sub": "1",
            "act": {"sub": "2", "act": {"sub": "3", "act": {"sub": "4", "act": {"sub": "5"}}}},
        },
    ],
}
BAD_HOLDERS: list[Any] = [
    *(None, {}, [], "key", {"jkt": "x"}, {"jwk": None}, {"jwk": {}}, {"jwk": {"kty": "OKP"}}),
    {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}, "jkt": "x"},
    {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "d": "A" * 43}},
    {"jwk": {"kty": "OKP", "crv": "X25519", "x": "A" * 43}},
    {"jwk": {"kty": "oct", "k": "AAAA"}},
]


@pytest.mark.requirement("policy.hostile-tokens")
@pytest.mark.parametrize("member", BAD_MEMBERS)
def test_a_member_of_our_claim_of_another_form_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json, member: str
) -> None:
    for value in BAD_MEMBERS[member]:
        change = {"jf": {"v": 1, "tenant": "acme", member: value}}

        answer = verifier.verify(sign(key, header, good_claims() | change))

        assert answer is Refusal.CLAIM, value


@pytest.mark.requirement("policy.hostile-tokens")
def test_a_holder_or_client_that_is_none_is_refused(
    key: SigningKey, verifier: TokenVerifier, header: Json
) -> None:
    changes: list[Json] = [{"cnf": value} for value in BAD_HOLDERS]
    changes += [{"client_id": value} for value in (7, "", "a\x00", None)]
    for change in changes:
        answer = verifier.verify(sign(key, header, good_claims() | change))

        assert answer is Refusal.CLAIM, change


def test_what_is_written_is_read_again_the_same() -> None:
    whole = Confinement(
        TenantId("acme"),
        projects=frozenset({"p1", "p2"}),
        job_types=("a.*", "**"),
        deny_types=("*.delete",),
        events=("order.**",),
        roles=frozenset({"ops"}),
        limits=Limits(rps=0.5, max_payload_bytes=9, max_priority=0, max_children=0),
        is_single_use=True,
        epoch=0,
        actors=("near", "far"),
    )

    assert parse_confinement(whole.to_claim()) == whole
    assert parse_confinement({"v": 1, "tenant": "acme"}) == Confinement(TenantId("acme"))


def test_a_complaint_names_the_member_and_not_its_value() -> None:
    with pytest.raises(BadClaimError) as caught:
        parse_confinement({"v": 1, "tenant": "acme", "roles": ["sec ret"]})

    assert str(caught.value) == "roles"
