"""Narrow a token without its issuer: for an agent that hands a part of what it may to another.

Nothing is asked of a server and no key of the installation is needed, only that of the holder whom the token names. What is
made here is checked again, link by link, by every verifier; so this module only spares its user a token that none accepts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import uuid4

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.claims import (
    LIMITS,
    BadClaimError,
    Confinement,
    find_widening,
    parse_confinement,
)
from jobforge_mcp.policy.keys import PublicKey, SigningKey, parse_public_jwk, thumbprint
from jobforge_mcp.policy.scopes import Scope, expand_scopes, parse_scopes
from jobforge_mcp.policy.tokens import (
    LINK,
    MOST_LINKS,
    NARROWED_TYPE,
    hash_above,
    holder_claim,
    read_unverified,
    refuse_bad_patterns,
    refuse_long,
    sign_claims,
)
from jobforge_mcp.types import JsonObject, Limits


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What a child is to allow; what is left out stays as it is in the token above."""

    scopes: Collection[Scope] | None = None
    projects: Collection[str] | None = None
    job_types: Collection[str] | None = None
    deny_types: Collection[str] = ()
    """Denied besides what is denied already."""
    events: Collection[str] | None = None
    roles: Collection[str] | None = None
    limits: Limits | None = None
    """Set over the limits of the token above; none may be looser than there."""
    is_single_use: bool = False
    lifetime: timedelta | None = None
    """From now; never beyond the token above."""
    actor: str | None = None
    """Who acts for the holder, for the audit log."""
    holder: PublicKey | None = None
    """Whose signature may narrow the child further; nobody's without one."""


def narrow_token(
    token: str, holder: SigningKey, narrowing: Narrowing, *, clock: Callable[[], float] = time.time
) -> str:
    """Make a token that allows less.

    Raises:
        InvalidInputError: the token cannot be narrowed by this key, or what was asked for would be wider.
    """
    above, confinement, scopes = _read(token, holder)
    wanted = _confine(confinement, narrowing)
    wider = find_widening(confinement, wanted)
    child_scopes = scopes if narrowing.scopes is None else frozenset(narrowing.scopes)
    if wider is not None or not expand_scopes(child_scopes) <= expand_scopes(scopes):
        raise InvalidInputError(
            f"a child cannot allow more than its token: {wider or 'scope'}",
            hint="jobforge token inspect shows what the token allows",
        )
    now = int(clock())
    starts, ends = _number(above, "nbf"), _number(above, "exp")
    if narrowing.lifetime is not None:
        ends = min(ends, now + int(narrowing.lifetime.total_seconds()))
    if ends <= now:
        raise InvalidInputError("the token has ended", hint="ask its issuer for a new one")
    claims: JsonObject = {
        **{name: above[name] for name in ("iss", "sub", "aud", "client_id") if name in above},
        "iat": max(now, _number(above, "iat")),
        "nbf": max(now, starts),
        "exp": ends,
        "jti": str(uuid4()),
        "scope": " ".join(sorted(child_scopes)),
        "par": hash_above(token),
        "jf": wanted.to_claim(),
    }
    if narrowing.holder is not None:
        claims["cnf"] = holder_claim(narrowing.holder)
    return refuse_long(f"{token}{LINK}{sign_claims(holder, claims, NARROWED_TYPE)}")


def _read(token: str, holder: SigningKey) -> tuple[JsonObject, Confinement, frozenset[Scope]]:
    """Read the last link as the holder knows it; whether it is good is for those who check the child."""
    try:
        _, claims = read_unverified(token)
        confinement = parse_confinement(claims.get("jf"))
        cnf, scope = claims.get("cnf"), claims.get("scope")
        key = parse_public_jwk(cnf["jwk"]) if isinstance(cnf, dict) and "jwk" in cnf else None
        scopes = parse_scopes(scope) if isinstance(scope, str) else None
    except (ValueError, BadClaimError, InvalidInputError):
        key = scopes = confinement = claims = None
    if claims is None or confinement is None or scopes is None:
        raise InvalidInputError(
            "the text is not a policy token",
            hint="a token is three parts with dots between them, on one line",
        )
    if key is None or thumbprint(key.key) != holder.public.key_id:
        raise InvalidInputError(
            "this key may not narrow this token",
            hint="a token can be narrowed by the holder whom it names: jobforge token issue --holder FOLDER",
        )
    if token.count(LINK) >= MOST_LINKS:
        raise InvalidInputError(
            f"a token can be narrowed {MOST_LINKS} times at most", hint="narrow it in fewer steps"
        )
    return claims, confinement, scopes


def _confine(above: Confinement, narrowing: Narrowing) -> Confinement:
    for patterns in (narrowing.job_types, narrowing.deny_types, narrowing.events):
        refuse_bad_patterns(patterns or ())
    wanted = replace(
        above,
        projects=above.projects if narrowing.projects is None else frozenset(narrowing.projects),
        job_types=above.job_types if narrowing.job_types is None else tuple(narrowing.job_types),
        deny_types=tuple(dict.fromkeys((*above.deny_types, *narrowing.deny_types))),
        events=above.events if narrowing.events is None else tuple(narrowing.events),
        roles=above.roles if narrowing.roles is None else frozenset(narrowing.roles),
        limits=_tighten(above.limits, narrowing.limits),
        is_single_use=above.is_single_use or narrowing.is_single_use,
        actors=above.actors if narrowing.actor is None else (narrowing.actor, *above.actors),
    )
    try:
        return parse_confinement(wanted.to_claim())
    except BadClaimError as error:
        raise InvalidInputError(
            f"no verifier would accept what the child says under {error}",
            hint="docs/security.md lists the claims and their values",
        ) from None


def _tighten(above: Limits | None, wanted: Limits | None) -> Limits | None:
    if above is None or wanted is None:
        return wanted or above
    given = {field.name: getattr(wanted, field.name) for field in LIMITS.values()}
    return replace(above, **{name: value for name, value in given.items() if value is not None})


def _number(claims: JsonObject, name: str) -> int:
    value = claims.get(name)
    if type(value) is not int:
        raise InvalidInputError("the text is not a policy token", hint="its times are no numbers")
    return value
