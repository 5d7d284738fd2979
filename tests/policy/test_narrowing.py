"""Narrowing without the issuer: a child allows no more than its token, whoever made it."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.claims import Confinement, find_widening, parse_confinement
from jobforge_mcp.policy.keys import KeyFolder, KeySource, SigningKey
from jobforge_mcp.policy.narrowing import Narrowing, narrow_token
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.policy.tokens import (
    NARROWED_TYPE,
    Grant,
    PolicyToken,
    Refusal,
    TokenVerifier,
    hash_above,
    holder_claim,
    issue_token,
    read_unverified,
    sign_claims,
)
from jobforge_mcp.router.patterns import allows_event, allows_type
from jobforge_mcp.types import Caller, JsonObject, Limits, TenantId

NOW = 1_800_000_000.0
ISSUER = AUDIENCE = "jobforge"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    """Keys of the issuer, of three holders, and of a stranger."""
    return [KeyFolder(tmp_path_factory.mktemp("keys")).ensure() for _ in range(5)]


@pytest.fixture(scope="module")
def verifier(folders: list[SigningKey]) -> TokenVerifier:
    keys = KeySource(json.dumps({"keys": [folders[0].public.to_jwk()]}))
    return TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)


def issue(folders: list[SigningKey], **grant: Any) -> str:
    scopes = grant.pop("scopes", ALL_SCOPES)
    asked = Grant("acme", scopes, holder=folders[1].public, **grant)
    return issue_token(folders[0], asked, issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW)


def narrow(token: str, holder: SigningKey, **narrowing: Any) -> str:
    return narrow_token(token, holder, Narrowing(**narrowing), clock=lambda: NOW)


def forge(token: str, holder: SigningKey, **changes: Any) -> str:
    """Make a child as somebody would who checks nothing."""
    _, above = read_unverified(token)
    claims: JsonObject = {**above, "par": hash_above(token), "jti": "child", **changes}
    return f"{token}~{sign_claims(holder, claims, NARROWED_TYPE)}"


def jf(**members: Any) -> dict[str, Any]:
    return {"jf": {"v": 1, "tenant": "acme", **members}}


@pytest.mark.requirement("policy.narrowing")
def test_a_child_allows_what_is_left_and_counts_as_its_token(
    folders: list[SigningKey], verifier: TokenVerifier
) -> None:
    token = issue(folders, job_types=["demo.**"], actors=["user-9"])

    child = narrow(
        token,
        folders[1],
        scopes=[Scope.JOBS_READ],
        projects=["p1"],
        job_types=["demo.echo"],
        deny_types=["demo.sleep"],
        limits=Limits(rps=1),
        is_single_use=True,
        lifetime=timedelta(minutes=5),
        actor="sub-agent",
    )

    whole, part = verifier.verify(token), verifier.verify(child)
    assert isinstance(whole, PolicyToken)
    assert isinstance(part, PolicyToken)
    caller = part.to_caller()
    assert caller.token_id == whole.token_id
    assert len(caller.links) == 1
    assert caller.single_use_ids == caller.links
    assert caller.scopes == {"jobs:read", "jobs:list"}
    assert caller.projects == {"p1"}
    assert caller.job_types == ("demo.echo",)
    assert caller.deny_types == ("demo.sleep",)
    assert caller.limits == Limits(rps=1)
    assert caller.epoch == whole.to_caller().epoch
    assert caller.actors == ("sub-agent", "user-9")
    assert part.expires_at - part.issued_at == timedelta(minutes=5)


@pytest.mark.requirement("policy.narrowing")
def test_at_most_three_links_are_walked(folders: list[SigningKey], verifier: TokenVerifier) -> None:
    chain = issue(folders)
    for holder, following in pairwise(folders[1:5]):
        chain = narrow_token(chain, holder, Narrowing(holder=following.public), clock=lambda: NOW)
    assert isinstance(verifier.verify(chain), PolicyToken)

    with pytest.raises(InvalidInputError, match="3 times"):
        narrow(chain, folders[4])
    assert verifier.verify(forge(chain, folders[4])) is Refusal.LINK


@pytest.mark.requirement("policy.narrowing")
@pytest.mark.parametrize(
    "changes",
    [
        {"scope": "jobs:execute admin:tenant"},
        {"scope": "jobs:cancel"},
        {"sub": "somebody"},
        {"client_id": "other"},
        {"aud": [AUDIENCE, "elsewhere"]},
        {"exp": int(NOW) + 13 * 3_600},
        {"iat": int(NOW) - 10},
        {"nbf": int(NOW) - 10},
        jf(tenant="globex", projects=["p1"], job_types=["demo.*"], deny_types=["demo.x"]),
        jf(job_types=["demo.*"], deny_types=["demo.x"], limits={"rps": 5}),
        jf(projects=["p1", "p2"], job_types=["demo.*"], deny_types=["demo.x"], limits={"rps": 5}),
        jf(projects=["p1"], job_types=["**"], deny_types=["demo.x"], limits={"rps": 5}),
        jf(projects=["p1"], deny_types=["demo.x"], limits={"rps": 5}),
        jf(projects=["p1"], job_types=["demo.*"], limits={"rps": 5}),
        jf(projects=["p1"], job_types=["demo.*"], deny_types=["demo.x"]),
        jf(projects=["p1"], job_types=["demo.*"], deny_types=["demo.x"], limits={"rps": 6}),
        jf(projects=["p1"], job_types=["demo.*"], deny_types=["demo.x"], limits={"burst": 1}),
        jf(
            projects=["p1"],
            job_types=["demo.*"],
            deny_types=["demo.x"],
            limits={"rps": 5},
            roles=["ops"],
        ),
        jf(
            projects=["p1"],
            job_types=["demo.*"],
            deny_types=["demo.x"],
            limits={"rps": 5},
            epoch=2**50,
        ),
    ],
    ids=[str(number) for number in range(19)],
)
def test_a_child_that_allows_more_is_refused(
    folders: list[SigningKey], verifier: TokenVerifier, changes: dict[str, Any]
) -> None:
    token = issue(
        folders,
        scopes=[Scope.JOBS_EXECUTE],
        projects=["p1"],
        job_types=["demo.*"],
        deny_types=["demo.x"],
        limits=Limits(rps=5),
    )
    assert isinstance(verifier.verify(forge(token, folders[1])), PolicyToken)

    assert verifier.verify(forge(token, folders[1], **changes)) is Refusal.WIDER


@pytest.mark.requirement("policy.narrowing")
def test_a_child_is_bound_to_its_holder_and_its_token(
    folders: list[SigningKey], verifier: TokenVerifier
) -> None:
    token, other = issue(folders), issue(folders)
    child = forge(token, folders[1])
    link = child.split("~")[1]
    unbound = issue_token(
        folders[0], Grant("acme", ALL_SCOPES), issuer=ISSUER, audience=AUDIENCE, clock=lambda: NOW
    )

    hostile = {
        "by a stranger": (forge(token, folders[4]), Refusal.LINK),
        "by the issuer": (forge(token, folders[0]), Refusal.LINK),
        "under another token": (f"{other}~{link}", Refusal.LINK),
        "of a token without holder": (forge(unbound, folders[1]), Refusal.LINK),
        "twice": (f"{child}~{link}", Refusal.WIDER),
        "alone": (link, Refusal.HEADER),
        "first": (f"{link}~{token}", Refusal.HEADER),
        "a token as link": (f"{token}~{other}", Refusal.HEADER),
        "nothing": (f"{token}~", Refusal.MALFORMED),
        "an end": (f"{child}~", Refusal.MALFORMED),
        "another hash": (forge(token, folders[1], par=hash_above("x")), Refusal.LINK),
        "no hash": (forge(token, folders[1], par=None), Refusal.CLAIM),
    }

    answers = {name: verifier.verify(text) for name, (text, _) in hostile.items()}
    # without a holder of its own a child cannot be narrowed further
    assert answers.pop("twice") in (Refusal.LINK, Refusal.WIDER)
    hostile.pop("twice")
    assert answers == {name: reason for name, (_, reason) in hostile.items()}


def test_a_link_that_was_changed_is_refused(
    folders: list[SigningKey], verifier: TokenVerifier
) -> None:
    child = narrow(issue(folders), folders[1], scopes=[Scope.JOBS_READ])
    head, _, tail = child.rpartition("~")
    header, payload, signature = tail.split(".")
    padded = payload + "=" * (-len(payload) % 4)
    claims = json.loads(base64.urlsafe_b64decode(padded)) | {"scope": "jobs:execute"}
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()

    assert verifier.verify(f"{head}~{header}.{changed}.{signature}") is Refusal.SIGNATURE


@pytest.mark.parametrize(
    "narrowing",
    [
        {"scopes": [Scope.OPS_READ]},
        {"projects": ["p2"]},
        {"job_types": ["report.*"]},
        {"limits": Limits(rps=6)},
        {"roles": ["ops"]},
        {"job_types": ["demo*"]},
        {"projects": []},
    ],
    ids=str,
)
def test_what_would_be_wider_or_nothing_is_not_made(
    folders: list[SigningKey], narrowing: dict[str, Any]
) -> None:
    token = issue(
        folders,
        scopes=[Scope.JOBS_EXECUTE],
        projects=["p1"],
        job_types=["demo.*"],
        limits=Limits(rps=5),
    )

    with pytest.raises(InvalidInputError):
        narrow(token, folders[1], **narrowing)


def test_only_the_holder_narrows(folders: list[SigningKey]) -> None:
    with pytest.raises(InvalidInputError, match="may not narrow"):
        narrow(issue(folders), folders[4])
    with pytest.raises(InvalidInputError, match="not a policy token"):
        narrow("a.b", folders[1])


def test_the_holder_of_a_token_is_public_in_it(folders: list[SigningKey]) -> None:
    assert holder_claim(folders[1].public)["jwk"] == {
        name: folders[1].public.to_jwk()[name] for name in ("kty", "crv", "x")
    }


# --- no widening, over random pairs

WORDS = ("a", "b", "c")
NAMES = tuple(".".join(path) for path in (("a",), ("a", "b"), ("b", "c"), ("a", "b", "c"), ("c",)))


def random_patterns(rng: random.Random) -> tuple[str, ...]:
    def one() -> str:
        middle = [rng.choice((*WORDS, "*")) for _ in range(rng.randint(0, 2))]
        return ".".join([*middle, rng.choice((*WORDS, "*", "**"))])

    return tuple(one() for _ in range(rng.randint(1, 3)))


def random_limits(rng: random.Random) -> Limits | None:
    if rng.random() < 0.5:
        return None
    return Limits(
        rps=rng.choice((None, 1, 2)),
        max_payload_bytes=rng.choice((None, 1, 2)),
        max_priority=rng.choice((0, 1, 2)),
    )


def random_confinement(rng: random.Random) -> Confinement:
    def some(of: tuple[str, ...]) -> frozenset[str]:
        return frozenset(rng.sample(of, rng.randint(1, len(of))))

    maybe = rng.random
    return Confinement(
        TenantId(rng.choice(("acme", "acme", "acme", "globex"))),
        projects=some(WORDS) if maybe() < 0.5 else None,
        job_types=random_patterns(rng) if maybe() < 0.5 else None,
        deny_types=random_patterns(rng) if maybe() < 0.3 else (),
        events=random_patterns(rng) if maybe() < 0.3 else None,
        roles=some(WORDS) if maybe() < 0.3 else frozenset(),
        limits=random_limits(rng),
        is_single_use=maybe() < 0.3,
        epoch=rng.choice((1, 2)),
        actors=("x",) if maybe() < 0.2 else (),
    )


def random_child(rng: random.Random, parent: Confinement) -> Confinement:
    """Something near the parent, so that many pairs are within."""
    other = random_confinement(rng)
    members = rng.sample(
        ("projects", "job_types", "deny_types", "events", "roles", "limits", "is_single_use"),
        rng.randint(0, 3),
    )
    return replace(parent, **{name: getattr(other, name) for name in members})


def allowed(confinement: Confinement) -> set[tuple[object, ...]]:
    """Everything that the confinement lets its caller do, as far as the small world here goes."""
    caller = Caller(
        confinement.tenant_id,
        "agent",
        frozenset(),
        projects=confinement.projects,
        job_types=confinement.job_types,
        deny_types=confinement.deny_types,
        events=confinement.events,
    )
    limits = confinement.limits or Limits()
    tenant = confinement.tenant_id
    can: set[tuple[object, ...]] = {
        (tenant, "run", project, name)
        for project in (None, *WORDS, "z")
        for name in NAMES
        if (caller.projects is None or project in caller.projects) and allows_type(caller, name)
    }
    can |= {(tenant, "submit", name) for name in NAMES if allows_event(caller, name)}
    can |= {(tenant, "role", role) for role in confinement.roles}
    can |= {(tenant, "rps", rate) for rate in (1, 2, 3) if limits.rps is None or rate <= limits.rps}
    size = limits.max_payload_bytes
    can |= {(tenant, "bytes", count) for count in (1, 2, 3) if size is None or count <= size}
    urgent = limits.max_priority or 0
    can |= {(tenant, "priority", number) for number in (0, 1, 2, 3) if number >= urgent}
    return can if confinement.is_single_use else can | {(tenant, "twice")}


@pytest.mark.requirement("policy.narrowing")
def test_no_child_that_passes_allows_more_over_10_000_random_pairs() -> None:
    rng = random.Random(20_261_122)
    within = 0
    for _ in range(10_000):
        parent = random_confinement(rng)
        child = random_confinement(rng) if rng.random() < 0.2 else random_child(rng, parent)
        child = parse_confinement(child.to_claim())
        if find_widening(parent, child) is None:
            within += 1
            assert allowed(child) <= allowed(parent), (parent, child)
    assert within > 2_000
