"""Issue and verify policy tokens: JWTs signed with Ed25519, read more strictly than any library reads them.

A token is a credential an agent holds, so a hostile one is the normal case. Before its signature is checked, its length,
shape and header are; after that, every claim is checked for type, form and time. PyJWT signs and does not verify: what it
would do beyond the one call of ``cryptography`` was done before, and took as long as the signature itself. What is
checked by whom follows RFC 8725: one algorithm, bound to the key; the kind of token is explicit; issuer and audience are
compared, never pattern-matched.

``verify`` answers with a token or with a named ``Refusal``; the name is for our log alone. Turning it into the one error
that callers see is the gate's work, and so is the cache.

A holder may narrow a token without its issuer: the token names the holder's public key (``cnf.jwk``), and what is presented
is the token, ``~`` and a child that this key signed, with the hash of all before it (``par``). Every claim of the child must
lie within the one above; at most three links are walked. Whether a token is revoked or used up is for the database to say,
in the transaction of the write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NoReturn
from uuid import uuid4

from cryptography.exceptions import InvalidSignature
from jwt.api_jws import PyJWS

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.claims import (
    MOST_PATTERNS,
    MOST_PROJECTS,
    BadClaimError,
    Confinement,
    find_widening,
    is_name,
    is_subject,
    parse_confinement,
)
from jobforge_mcp.policy.keys import (
    ALGORITHM,
    KeyFinder,
    KeyFolder,
    KeySource,
    PublicKey,
    SigningKey,
    parse_public_jwk,
    thumbprint,
)
from jobforge_mcp.policy.remote_keys import RemoteKeys
from jobforge_mcp.policy.scopes import Scope, expand_scopes, parse_scopes
from jobforge_mcp.policy.strict_json import NotStrictJsonError, decode_base64url, parse_object
from jobforge_mcp.router.patterns import is_pattern
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import Caller, JsonObject, Limits, TenantId

POLICY_TYPE = "jobforge-policy+jwt"
"""``typ`` of the tokens issued here."""

ACCEPTED_TYPES = frozenset({POLICY_TYPE, "at+jwt"})
"""``at+jwt`` is an OAuth server's access token (RFC 9068) that carries the claim ``jf``."""

NARROWED_TYPE = "jobforge-narrowed+jwt"
"""``typ`` of what a holder signs to narrow a token."""

LINK = "~"
"""Stands between a token and the child that narrows it."""

MOST_LINKS = 3
"""How often a token may be narrowed."""

LARGEST_TOKEN = 8 * 1024
"""Characters, links included; looked at before anything is parsed, because parsing 5 MB takes a third of a second."""

LONGEST_LIFE = timedelta(hours=24)
LEEWAY_SECONDS = 30
"""Clocks of issuer and verifier may differ by this much."""

_LAST_SECOND = 253_402_300_799  # the end of the year 9999, the last that datetime can hold

# Three parts; the third is exactly the 64 bytes of an Ed25519 signature.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}")

_SIGNER = PyJWS(algorithms=[ALGORITHM])


class Refusal(StrEnum):
    """Why a token was refused: for our log, and for ``token inspect``; never for a caller."""

    TOO_LONG = "too_long"
    MALFORMED = "malformed"
    """Not three parts of canonical base64url, or not strict JSON inside."""
    HEADER = "header"
    """The header is not exactly ``alg``, ``typ`` and ``kid``, or one of them is not ours."""
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    CLAIM = "claim"
    """A claim is absent, of the wrong type or form, or unknown inside ``jf``."""
    ISSUER = "issuer"
    AUDIENCE = "audience"
    NOT_YET = "not_yet"
    EXPIRED = "expired"
    LIFETIME = "lifetime"
    """It was issued for more than 24 hours, or for less than none."""
    LINK = "link"
    """A link does not belong to the token before it, or there are too many."""
    WIDER = "wider"
    """A link allows something that the token before it does not."""
    NO_KEYS = "no_keys"
    """This installation accepts no tokens, because it has no keys."""
    ABSENT = "absent"
    """No token was presented where one is needed."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is to allow; the argument of ``issue_token``."""

    tenant_id: str
    scopes: Collection[Scope]
    projects: Collection[str] = ()
    """Confine the token to these; none means every project of the tenant."""
    subject: str = "cli"
    """Who will hold it, for the audit log."""
    lifetime: timedelta = timedelta(hours=12)
    job_types: Collection[str] = ()
    """Patterns of the job types it may name; none means every type."""
    deny_types: Collection[str] = ()
    """Patterns of job types it may not name, whatever else is allowed."""
    events: Collection[str] = ()
    """Patterns of the event types it may submit; none means every type."""
    roles: Collection[str] = ()
    """Roles that permissions on job definitions may ask for."""
    limits: Limits | None = None
    is_single_use: bool = False
    """Good for one write."""
    epoch: int | None = None
    """Below the tenant's token epoch it is revoked; the moment of issue in milliseconds unless an issuer counts otherwise."""
    actors: Collection[str] = ()
    """For whom the subject acts, nearest first."""
    holder: PublicKey | None = None
    """Whose signature may narrow it; nobody's without one."""

    def confinement(self) -> Confinement:
        """Return the same as the claim ``jf`` says it."""
        return Confinement(
            tenant_id=TenantId(self.tenant_id),
            projects=frozenset(self.projects) or None,
            job_types=tuple(self.job_types) or None,
            deny_types=tuple(self.deny_types),
            events=tuple(self.events) or None,
            roles=frozenset(self.roles),
            limits=self.limits,
            is_single_use=self.is_single_use,
            epoch=self.epoch,
            actors=tuple(self.actors),
        )


@dataclass(frozen=True, slots=True)
class PolicyToken:
    """The verified content of a token, narrowed as its links say."""

    issuer: str
    subject: str
    token_id: str
    """Of the token as it was issued: what budgets and revocation count by, however it was narrowed."""
    scopes: frozenset[Scope]
    """As granted; a caller also gets what these carry."""
    confinement: Confinement
    audiences: frozenset[str]
    issued_at: datetime
    starts_at: datetime
    expires_at: datetime
    key_id: str
    client_id: str | None = None
    holder: PublicKey | None = None
    """Whose signature may narrow it further."""
    links: tuple[str, ...] = ()
    """Ids of the children that narrowed it, outermost first."""
    single_use_ids: tuple[str, ...] = ()

    @property
    def tenant_id(self) -> TenantId:
        """Whose rows it is about."""
        return self.confinement.tenant_id

    @property
    def projects(self) -> frozenset[str] | None:
        """Which projects it is confined to."""
        return self.confinement.projects

    def to_caller(self) -> Caller:
        """Return who acts with this token."""
        within = self.confinement
        return Caller(
            tenant_id=within.tenant_id,
            subject=self.subject,
            scopes=frozenset(scope.value for scope in expand_scopes(self.scopes)),
            projects=within.projects,
            token_id=self.token_id,
            expires_at=self.expires_at,
            job_types=within.job_types,
            deny_types=within.deny_types,
            events=within.events,
            limits=within.limits,
            epoch=within.epoch,
            is_single_use=within.is_single_use,
            single_use_ids=self.single_use_ids,
            links=self.links,
            roles=within.roles,
            actors=within.actors,
        )


def issue_token(
    key: SigningKey,
    grant: Grant,
    *,
    issuer: str,
    audience: str,
    clock: Callable[[], float] = time.time,
) -> str:
    """Sign a token for the grant.

    Raises:
        InvalidInputError: the grant is one that no verifier would accept.
    """
    _check_grant(grant)
    moment = clock()
    now = int(moment)
    confinement = grant.confinement()
    if confinement.epoch is None:
        confinement = replace(confinement, epoch=int(moment * 1_000))
    claims: JsonObject = {
        "iss": issuer,
        "sub": grant.subject,
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + int(grant.lifetime.total_seconds()),
        "jti": str(uuid4()),
        "scope": " ".join(sorted(grant.scopes)),
        "jf": confinement.to_claim(),
    }
    if grant.holder is not None:
        claims["cnf"] = holder_claim(grant.holder)
    return refuse_long(sign_claims(key, claims, POLICY_TYPE))


def sign_claims(key: SigningKey, claims: JsonObject, typ: str) -> str:
    """Make a JWT of claims that were checked."""
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return _SIGNER.encode(payload, key.key, ALGORITHM, {"typ": typ, "kid": key.public.key_id})


def refuse_long(token: str) -> str:
    """Return the token, unless every verifier would refuse it for its length.

    Raises:
        InvalidInputError: it is too long.
    """
    if len(token) > LARGEST_TOKEN:
        raise InvalidInputError(
            f"the token would be {len(token)} characters long; the limit is {LARGEST_TOKEN}",
            hint="name fewer projects and patterns",
        )
    return token


def holder_claim(holder: PublicKey) -> JsonObject:
    """Write the claim ``cnf`` that lets a key's owner narrow the token."""
    jwk = holder.to_jwk()
    return {"jwk": {name: jwk[name] for name in ("kty", "crv", "x")}}


def hash_above(text: str) -> str:
    """Return the claim ``par`` of a child: the hash of the token that it narrows, links included."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class TokenVerifier:
    """Checks tokens against the keys, issuer and audience of this installation."""

    def __init__(
        self,
        keys: KeyFinder,
        *,
        issuer: str,
        audience: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def verify(self, token: str) -> PolicyToken | Refusal:
        """Return the token's content, or why it is refused. Raises nothing, whatever the text."""
        try:
            if len(token) > LARGEST_TOKEN:
                _refuse(Refusal.TOO_LONG)
            first, *links = token.split(LINK)
            if len(links) > MOST_LINKS:
                _refuse(Refusal.LINK)
            key = self._find_key(_parse_header(first, ACCEPTED_TYPES))
            found = self._read(_check_signature(first, key), key)
            above = first
            for link in links:
                found = self._follow(found, above, link)
                above = f"{above}{LINK}{link}"
        except _RefusedError as refused:
            return refused.reason
        return found

    @property
    def remote_keys(self) -> RemoteKeys | None:
        """The keys, where they are fetched from the issuer."""
        return self._keys if isinstance(self._keys, RemoteKeys) else None

    async def prepare(self, token: str) -> None:
        """Fetch the key that a token names, where keys are fetched and this one is not known yet."""
        if self.remote_keys is None:
            return
        try:
            if len(token) > LARGEST_TOKEN:
                return
            header = _parse_header(token.partition(LINK)[0], ACCEPTED_TYPES)
        except _RefusedError:
            return
        key_id = header["kid"]
        if isinstance(key_id, str):
            await self.remote_keys.learn(key_id)

    def _find_key(self, header: JsonObject) -> PublicKey:
        key_id = header["kid"]
        key = self._keys.find(key_id) if isinstance(key_id, str) else None
        if key is None:
            _refuse(Refusal.UNKNOWN_KEY)
        if header["alg"] != key.algorithm:
            _refuse(Refusal.HEADER)
        return key

    def _follow(self, parent: PolicyToken, above: str, link: str) -> PolicyToken:
        """Read a child that the parent's holder signed, and refuse it unless it lies within the parent in every claim."""
        header = _parse_header(link, frozenset({NARROWED_TYPE}))
        holder = parent.holder
        if holder is None or header["kid"] != thumbprint(holder.key) or header["alg"] != ALGORITHM:
            _refuse(Refusal.LINK)
        payload = _check_signature(link, holder)
        child = self._read(payload, holder)
        if _text(_parse(payload), "par", 43) != hash_above(above):
            _refuse(Refusal.LINK)
        confinement = child.confinement
        if "epoch" not in _jf_of(payload):
            confinement = replace(confinement, epoch=parent.confinement.epoch)
        if not _is_within(parent, child) or find_widening(parent.confinement, confinement):
            _refuse(Refusal.WIDER)
        own = (child.token_id,) if confinement.is_single_use else ()
        return replace(
            child,
            token_id=parent.token_id,
            confinement=confinement,
            links=(*parent.links, child.token_id),
            single_use_ids=(*parent.single_use_ids, *own),
            key_id=parent.key_id,
        )

    def _read(self, payload: bytes, key: PublicKey) -> PolicyToken:
        claims = _parse(payload)
        if _text(claims, "iss", 512) != self._issuer:
            _refuse(Refusal.ISSUER)
        audiences = _audiences(claims)
        if self._audience not in audiences:
            _refuse(Refusal.AUDIENCE)
        issued, starts, expires = self._check_times(claims)
        scopes = parse_scopes(_text(claims, "scope", 2_048, shortest=0))
        if scopes is None:
            _refuse(Refusal.CLAIM)
        confinement = _confinement(claims, issued)
        token_id = _text(claims, "jti", 128)
        return PolicyToken(
            issuer=self._issuer,
            subject=_text(claims, "sub", 255),
            token_id=token_id,
            scopes=scopes,
            confinement=confinement,
            audiences=frozenset(audiences),
            issued_at=datetime.fromtimestamp(issued, UTC),
            starts_at=datetime.fromtimestamp(starts, UTC),
            expires_at=datetime.fromtimestamp(expires, UTC),
            key_id=key.key_id,
            client_id=_text(claims, "client_id", 255) if "client_id" in claims else None,
            holder=_holder(claims),
            single_use_ids=(token_id,) if confinement.is_single_use else (),
        )

    def _check_times(self, claims: JsonObject) -> tuple[int, int, int]:
        issued, expires = _seconds(claims, "iat"), _seconds(claims, "exp")
        starts = _seconds(claims, "nbf")
        if not 0 < expires - issued <= LONGEST_LIFE.total_seconds():
            _refuse(Refusal.LIFETIME)
        now = self._clock()
        if now >= expires + LEEWAY_SECONDS:
            _refuse(Refusal.EXPIRED)
        if now < max(issued, starts) - LEEWAY_SECONDS:
            _refuse(Refusal.NOT_YET)
        return issued, starts, expires


def verifier_from_settings(settings: Settings) -> TokenVerifier:
    """Make the verifier of an installation; the embedded default makes its keys on first use.

    Raises:
        SettingsError: the keys cannot be read or made.
    """
    return TokenVerifier(
        open_keys(settings), issuer=settings.token_issuer, audience=settings.token_audience
    )


def open_keys(settings: Settings) -> KeyFinder:
    """Find the public keys of an installation: at a URL, in a file or folder, or made here.

    Raises:
        SettingsError: the keys cannot be read or made.
    """
    if settings.token_keys is None:
        KeyFolder(settings.keys_dir).ensure()
        return KeySource(settings.keys_dir)
    return RemoteKeys.from_settings(settings) or KeySource(settings.token_keys)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a token says of itself, and whether this installation believes it; for its holder's eyes."""

    header: JsonObject
    claims: JsonObject
    refusal: Refusal | None
    """``None``: it is valid here and now."""
    token: PolicyToken | None = None
    """What it allows, where it is valid."""


def inspect_token(token: str, verifier: TokenVerifier | None) -> Inspection:
    """Read a token, its last link if it was narrowed, without trusting it; ``verifier`` is ``None`` without keys.

    Raises:
        InvalidInputError: it is not even shaped like a token.
    """
    header, claims = read_unverified(token)
    answer = verifier.verify(token) if verifier is not None else Refusal.NO_KEYS
    if isinstance(answer, Refusal):
        return Inspection(header, claims, answer)
    return Inspection(header, claims, None, answer)


def read_unverified(token: str) -> tuple[JsonObject, JsonObject]:
    """Read header and claims of what is presented, the last link if there are any, and believe nothing of it.

    Raises:
        InvalidInputError: it is not even shaped like a token.
    """
    try:
        if len(token) > LARGEST_TOKEN:
            _refuse(Refusal.TOO_LONG)
        header, payload, _ = _split(token.rpartition(LINK)[2])
        return _parse_part(header), _parse_part(payload)
    except _RefusedError:
        raise InvalidInputError(
            "the text is not shaped like a policy token",
            hint="a token is three parts with dots between them, on one line",
        ) from None


class _RefusedError(Exception):
    """Carries a refusal up to ``verify``; never leaves this module."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


def _refuse(reason: Refusal) -> NoReturn:
    raise _RefusedError(reason) from None


def _split(token: str) -> list[str]:
    if len(token) > LARGEST_TOKEN:
        _refuse(Refusal.TOO_LONG)
    if not _SHAPE.fullmatch(token):
        _refuse(Refusal.MALFORMED)
    return token.split(".")


def _parse_header(token: str, types: frozenset[str]) -> JsonObject:
    header = _parse_part(_split(token)[0])
    # Exactly these: so crit, b64, jwk, jku, x5c and whatever comes next are refused without being named.
    if header.keys() != {"alg", "typ", "kid"}:
        _refuse(Refusal.HEADER)
    typ = header["typ"]
    if not isinstance(typ, str) or typ not in types:
        _refuse(Refusal.HEADER)
    return header


def _parse_part(part: str) -> JsonObject:
    try:
        return parse_object(decode_base64url(part))
    except NotStrictJsonError:
        _refuse(Refusal.MALFORMED)


def _parse(payload: bytes) -> JsonObject:
    try:
        return parse_object(payload)
    except NotStrictJsonError:
        _refuse(Refusal.MALFORMED)


def _check_signature(token: str, key: PublicKey) -> bytes:
    """Return the payload of a token whose shape and header were checked."""
    signed, _, signature = token.rpartition(".")
    try:
        key.key.verify(decode_base64url(signature), signed.encode())
    except (InvalidSignature, NotStrictJsonError):
        _refuse(Refusal.SIGNATURE)
    try:
        return decode_base64url(signed.partition(".")[2])
    except NotStrictJsonError:
        _refuse(Refusal.MALFORMED)


def _text(claims: JsonObject, name: str, longest: int, *, shortest: int = 1) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not shortest <= len(value) <= longest:
        _refuse(Refusal.CLAIM)
    # Refuses NUL, control characters, line breaks and lone surrogates, which would reach SQL, logs and terminals.
    if not value.isprintable():
        _refuse(Refusal.CLAIM)
    return value


def _seconds(claims: JsonObject, name: str) -> int:
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= _LAST_SECOND:
        _refuse(Refusal.CLAIM)
    return value


def _audiences(claims: JsonObject) -> list[str]:
    value = claims.get("aud")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not 1 <= len(value) <= 16:
        _refuse(Refusal.CLAIM)
    audiences = [item for item in value if isinstance(item, str)]
    if len(audiences) != len(value):
        _refuse(Refusal.CLAIM)
    return audiences


def _confinement(claims: JsonObject, issued: int) -> Confinement:
    try:
        found = parse_confinement(claims.get("jf"))
    except BadClaimError:
        _refuse(Refusal.CLAIM)
    return found if found.epoch is not None else replace(found, epoch=issued * 1_000)


def _jf_of(payload: bytes) -> JsonObject:
    jf = _parse(payload).get("jf")
    return jf if isinstance(jf, dict) else {}


def _holder(claims: JsonObject) -> PublicKey | None:
    """Read ``cnf``: absent, or the key that may narrow. Anything else would bind the token to a proof we do not ask for."""
    if "cnf" not in claims:
        return None
    cnf = claims["cnf"]
    if not isinstance(cnf, dict) or cnf.keys() != {"jwk"}:
        _refuse(Refusal.CLAIM)
    try:
        return parse_public_jwk(cnf["jwk"])
    except ValueError:
        _refuse(Refusal.CLAIM)


def _is_within(parent: PolicyToken, child: PolicyToken) -> bool:
    """Whether the claims outside of ``jf`` allow no more than the parent's."""
    return (
        child.subject == parent.subject
        and child.client_id == parent.client_id
        and child.audiences <= parent.audiences
        and expand_scopes(child.scopes) <= expand_scopes(parent.scopes)
        and child.issued_at >= parent.issued_at
        and child.starts_at >= parent.starts_at
        and child.expires_at <= parent.expires_at
    )


def _check_grant(grant: Grant) -> None:
    for kind, name in [
        ("tenant", grant.tenant_id),
        *(("project", name) for name in grant.projects),
        *(("role", name) for name in grant.roles),
    ]:
        if not is_name(name):
            raise InvalidInputError(
                f"{name!r} cannot be the name of a {kind}",
                hint="1 to 63 letters, digits and . _ : - of which the first is a letter or digit",
            )
    for patterns in (grant.job_types, grant.deny_types, grant.events):
        refuse_bad_patterns(patterns)
    if len(set(grant.projects)) > MOST_PROJECTS:
        raise InvalidInputError(
            f"a token names at most {MOST_PROJECTS} projects",
            hint="without any, it is good for every project of the tenant",
        )
    if not timedelta(seconds=1) <= grant.lifetime <= LONGEST_LIFE:
        raise InvalidInputError(
            "a token lives from one second to 24 hours", hint="issue a new one when it ends"
        )
    if not all(is_subject(subject) for subject in (grant.subject, *grant.actors)):
        raise InvalidInputError(
            "the subject of a token is 1 to 255 printable characters", hint="name who will hold it"
        )
    try:
        parse_confinement(grant.confinement().to_claim())
    except BadClaimError as error:
        raise InvalidInputError(
            f"no verifier would accept what the token says under {error}",
            hint="docs/security.md lists the claims and their values",
        ) from None


def refuse_bad_patterns(patterns: Collection[str]) -> None:
    """Refuse what is no pattern of dotted names.

    Raises:
        InvalidInputError: one is not, or there are too many.
    """
    if len(patterns) > MOST_PATTERNS:
        raise InvalidInputError(
            f"a token names at most {MOST_PATTERNS} patterns of one kind", hint="use * and **"
        )
    for pattern in patterns:
        if not is_pattern(pattern):
            raise InvalidInputError(
                f"{pattern!r} is no pattern of dotted names",
                hint="segments are literal, * for one segment, or at the end ** for the rest: connector.http.*",
            )
