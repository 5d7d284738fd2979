"""Issue and verify policy tokens: JWTs signed with Ed25519, read more strictly than any library reads them.

A token is a credential an agent holds, so a hostile one is the normal case. Before PyJWT sees it, its length, shape and
header are checked here; after PyJWT has checked the signature, every claim is checked for type, form and time. What is
checked by whom follows RFC 8725: one algorithm, bound to the key; the kind of token is explicit; issuer and audience are
compared, never pattern-matched.

``verify`` answers with a token or with a named ``Refusal``; the name is for our log alone. Turning it into the one error
that callers see is the gate's work, and so is the cache.

Budgets, single use, revocation, patterns of job types and narrowing are to come as further members of the claim ``jf``
with a higher ``v``; this version refuses what it does not know rather than allow what it should have limited.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.policy.keys import ALGORITHM, KeyFolder, KeySource, PublicKey, SigningKey
from jobforge_mcp.policy.scopes import Scope, expand_scopes, parse_scopes
from jobforge_mcp.policy.strict_json import NotStrictJsonError, decode_base64url, parse_object
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import Caller, JsonObject, JsonValue, TenantId

POLICY_TYPE = "jobforge-policy+jwt"
"""``typ`` of the tokens issued here."""

ACCEPTED_TYPES = frozenset({POLICY_TYPE, "at+jwt"})
"""``at+jwt`` is an OAuth server's access token (RFC 9068) that carries the claim ``jf``."""

LARGEST_TOKEN = 8 * 1024
"""Characters; looked at before anything is parsed, because parsing 5 MB takes a third of a second."""

LONGEST_LIFE = timedelta(hours=24)
LEEWAY_SECONDS = 30
"""Clocks of issuer and verifier may differ by this much."""

CLAIM_VERSION = 1
_MOST_PROJECTS = 100
_LAST_SECOND = 253_402_300_799  # the end of the year 9999, the last that datetime can hold

# Three parts; the third is exactly the 64 bytes of an Ed25519 signature.
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")

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


@dataclass(frozen=True, slots=True)
class PolicyToken:
    """The verified content of a token."""

    issuer: str
    subject: str
    token_id: str
    tenant_id: TenantId
    scopes: frozenset[Scope]
    """As granted; a caller also gets what these carry."""
    projects: frozenset[str] | None
    issued_at: datetime
    expires_at: datetime
    key_id: str

    def to_caller(self) -> Caller:
        """Return who acts with this token."""
        return Caller(
            tenant_id=self.tenant_id,
            subject=self.subject,
            scopes=frozenset(scope.value for scope in expand_scopes(self.scopes)),
            projects=self.projects,
            token_id=self.token_id,
            expires_at=self.expires_at,
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
    now = int(clock())
    jf: JsonObject = {"v": CLAIM_VERSION, "tenant": grant.tenant_id}
    if grant.projects:
        jf["projects"] = [*sorted(set(grant.projects))]
    claims: JsonObject = {
        "iss": issuer,
        "sub": grant.subject,
        "aud": audience,
        "iat": now,
        "nbf": now,
        "exp": now + int(grant.lifetime.total_seconds()),
        "jti": str(uuid4()),
        "scope": " ".join(sorted(grant.scopes)),
        "jf": jf,
    }
    payload = json.dumps(claims, separators=(",", ":")).encode()
    token = _SIGNER.encode(
        payload, key.key, ALGORITHM, {"typ": POLICY_TYPE, "kid": key.public.key_id}
    )
    if len(token) > LARGEST_TOKEN:
        raise InvalidInputError(
            f"the token would be {len(token)} characters long; the limit is {LARGEST_TOKEN}",
            hint="name fewer projects",
        )
    return token


class TokenVerifier:
    """Checks tokens against the keys, issuer and audience of this installation."""

    def __init__(
        self,
        keys: KeySource,
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
            key = self._find_key(_parse_header(token))
            payload = _check_signature(token, key)
            return self._check_claims(payload, key)
        except _RefusedError as refused:
            return refused.reason

    def _find_key(self, header: JsonObject) -> PublicKey:
        key_id = header["kid"]
        key = self._keys.find(key_id) if isinstance(key_id, str) else None
        if key is None:
            _refuse(Refusal.UNKNOWN_KEY)
        if header["alg"] != key.algorithm:
            _refuse(Refusal.HEADER)
        return key

    def _check_claims(self, payload: bytes, key: PublicKey) -> PolicyToken:
        claims = _parse(payload)
        if _text(claims, "iss", 512) != self._issuer:
            _refuse(Refusal.ISSUER)
        if self._audience not in _audiences(claims):
            _refuse(Refusal.AUDIENCE)
        issued, expires = self._check_times(claims)
        scopes = parse_scopes(_text(claims, "scope", 2_048, shortest=0))
        if scopes is None:
            _refuse(Refusal.CLAIM)
        tenant_id, projects = _parse_jf(claims.get("jf"))
        return PolicyToken(
            issuer=self._issuer,
            subject=_text(claims, "sub", 255),
            token_id=_text(claims, "jti", 128),
            tenant_id=tenant_id,
            scopes=scopes,
            projects=projects,
            issued_at=datetime.fromtimestamp(issued, UTC),
            expires_at=datetime.fromtimestamp(expires, UTC),
            key_id=key.key_id,
        )

    def _check_times(self, claims: JsonObject) -> tuple[int, int]:
        issued, expires = _seconds(claims, "iat"), _seconds(claims, "exp")
        starts = _seconds(claims, "nbf")
        if not 0 < expires - issued <= LONGEST_LIFE.total_seconds():
            _refuse(Refusal.LIFETIME)
        now = self._clock()
        if now >= expires + LEEWAY_SECONDS:
            _refuse(Refusal.EXPIRED)
        if now < max(issued, starts) - LEEWAY_SECONDS:
            _refuse(Refusal.NOT_YET)
        return issued, expires


def verifier_from_settings(settings: Settings) -> TokenVerifier:
    """Make the verifier of an installation; the embedded default makes its keys on first use.

    Raises:
        SettingsError: the keys cannot be read or made.
    """
    keys: str | Path
    if settings.token_keys is not None:
        keys = settings.token_keys
    else:
        KeyFolder(settings.keys_dir).ensure()
        keys = settings.keys_dir
    return TokenVerifier(
        KeySource(keys), issuer=settings.token_issuer, audience=settings.token_audience
    )


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a token says of itself, and whether this installation believes it; for its holder's eyes."""

    header: JsonObject
    claims: JsonObject
    refusal: Refusal | None
    """``None``: it is valid here and now."""


def inspect_token(token: str, verifier: TokenVerifier | None) -> Inspection:
    """Read a token without trusting it; ``verifier`` is ``None`` where no keys are at hand.

    Raises:
        InvalidInputError: it is not even shaped like a token.
    """
    try:
        header_part, payload_part, _ = _split(token)
        header, claims = _parse_part(header_part), _parse_part(payload_part)
    except _RefusedError:
        raise InvalidInputError(
            "the text is not shaped like a policy token",
            hint="a token is three parts with dots between them, on one line",
        ) from None
    answer = verifier.verify(token) if verifier is not None else Refusal.NO_KEYS
    return Inspection(header, claims, answer if isinstance(answer, Refusal) else None)


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


def _parse_header(token: str) -> JsonObject:
    header = _parse_part(_split(token)[0])
    # Exactly these: so crit, b64, jwk, jku, x5c and whatever comes next are refused without being named.
    if header.keys() != {"alg", "typ", "kid"}:
        _refuse(Refusal.HEADER)
    typ = header["typ"]
    if not isinstance(typ, str) or typ not in ACCEPTED_TYPES:
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
    try:
        content = _SIGNER.decode_complete(token, key.key, [ALGORITHM])
    except PyJWTError:
        _refuse(Refusal.SIGNATURE)
    payload = content["payload"]
    if not isinstance(payload, bytes):
        _refuse(Refusal.SIGNATURE)
    return payload


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


def _parse_jf(value: JsonValue) -> tuple[TenantId, frozenset[str] | None]:
    if not isinstance(value, dict) or not value.keys() <= {"v", "tenant", "projects"}:
        _refuse(Refusal.CLAIM)
    version = value.get("v")
    if type(version) is not int or version != CLAIM_VERSION:
        _refuse(Refusal.CLAIM)
    tenant_id = _name(value.get("tenant"))
    if "projects" not in value:
        return TenantId(tenant_id), None
    projects = value["projects"]
    # An empty list could mean none or all: refused, so that nobody has to know.
    if not isinstance(projects, list) or not 1 <= len(projects) <= _MOST_PROJECTS:
        _refuse(Refusal.CLAIM)
    return TenantId(tenant_id), frozenset(_name(project) for project in projects)


def _name(value: JsonValue) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _refuse(Refusal.CLAIM)
    return value


def _check_grant(grant: Grant) -> None:
    for kind, name in [
        ("tenant", grant.tenant_id),
        *(("project", name) for name in grant.projects),
    ]:
        if not _NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name!r} cannot be the name of a {kind}",
                hint="1 to 63 letters, digits and . _ : - of which the first is a letter or digit",
            )
    if len(set(grant.projects)) > _MOST_PROJECTS:
        raise InvalidInputError(
            f"a token names at most {_MOST_PROJECTS} projects",
            hint="without any, it is good for every project of the tenant",
        )
    if not timedelta(seconds=1) <= grant.lifetime <= LONGEST_LIFE:
        raise InvalidInputError(
            "a token lives from one second to 24 hours", hint="issue a new one when it ends"
        )
    if not 1 <= len(grant.subject) <= 255 or not grant.subject.isprintable():
        raise InvalidInputError(
            "the subject of a token is 1 to 255 printable characters", hint="name who will hold it"
        )
