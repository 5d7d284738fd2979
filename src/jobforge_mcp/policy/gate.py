"""The one place that says yes or no: a credential and a scope in, a ``Caller`` or a refusal out.

Every door asks here for every call and keeps nothing: neither sessions nor names of clients count. A refusal is one error
with one text, whatever was wrong with the token; the reason goes to the log, the token to nowhere.

The local tenant is the one exception to tokens: with embedded Postgres, whoever may start a process of this user may do
everything in tenant ``local`` through stdio and the command line. HTTP can be reached by others, a web page in the user's
own browser among them, so it always needs a token.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.policy.permissions import EVERY_ROLE, GuardedJob, confine, require_scope
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import Caller, TenantId

if TYPE_CHECKING:
    from jobforge_mcp.policy.tokens import Refusal, TokenVerifier

LOCAL_TENANT = TenantId("local")
"""Tenant of whoever uses the embedded Postgres without a token."""

LOCAL_CALLER = Caller(
    tenant_id=LOCAL_TENANT,
    subject="local",
    scopes=frozenset(scope.value for scope in ALL_SCOPES),
    roles=frozenset({EVERY_ROLE}),
)

_CACHE_SECONDS = 60.0
_MOST_CACHED = 4_096

_logger = structlog.stdlib.get_logger("jobforge.policy")


class Door(StrEnum):
    """Through which door a credential came."""

    LOCAL = "local"
    """stdio, the local node's socket, the command line: the operating system vouches for the user."""
    HTTP = "http"
    """Streamable HTTP, SSE and whatever else listens on a port."""


@dataclass(frozen=True, slots=True)
class Credential:
    """What a call presents. Its ``repr`` does not show the token."""

    token: str | None = field(repr=False)
    door: Door = Door.LOCAL


class Gate:
    """Turns credentials into callers, and remembers for a minute what it verified."""

    def __init__(
        self,
        make_verifier: Callable[[], TokenVerifier] | None,
        *,
        has_local_tenant: bool,
        jobs: Iterable[GuardedJob] = (),
        is_rated: bool = True,
        has_remote_keys: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take how to make the verifier, which loads keys and cryptography, when the first token comes.

        ``make_verifier`` is ``None`` where no keys are set: then no token is accepted. ``jobs`` are those of this process,
        whose permissions say which runs exist for a caller. ``is_rated`` is whether rates hold for them,
        ``has_remote_keys`` whether keys are fetched.
        """
        self._make_verifier = make_verifier
        self._verifier: TokenVerifier | None = None
        self._has_local_tenant = has_local_tenant
        self._is_rated = is_rated
        self._has_remote_keys = has_remote_keys
        self._jobs = tuple(jobs)
        self._clock = clock
        self._verified: dict[bytes, tuple[Caller, float]] = {}

    @classmethod
    def from_settings(cls, settings: Settings, jobs: Iterable[GuardedJob] = ()) -> Gate:
        """Make the gate of an installation; keys are read, and on embedded Postgres made, when they are first needed."""

        def make_verifier() -> TokenVerifier:
            from jobforge_mcp.policy.tokens import verifier_from_settings  # loads cryptography

            return verifier_from_settings(settings)

        has_keys = settings.token_keys is not None or settings.is_embedded
        return cls(
            make_verifier if has_keys else None,
            has_local_tenant=settings.is_embedded,
            jobs=jobs,
            is_rated=settings.rate_limits_enabled,
            has_remote_keys=settings.has_remote_keys,
        )

    @property
    def accepts_tokens(self) -> bool:
        """Whether there are keys; without them HTTP must not leave loopback."""
        return self._make_verifier is not None

    def authorize(self, credential: Credential, scope: Scope) -> Caller:
        """Return who acts, if the credential is good and allows this.

        Raises:
            PolicyDeniedError: ``TOKEN_INVALID`` if it is not good, ``POLICY_DENIED`` if it does not allow this.
        """
        caller = self.identify(credential)
        self.require(caller, scope)
        return caller

    def identify(self, credential: Credential) -> Caller:
        """Return who acts, whatever they may do.

        Raises:
            PolicyDeniedError: the credential is absent or not good.
        """
        if credential.token is None:
            if self._has_local_tenant and credential.door is Door.LOCAL:
                return self._confine(LOCAL_CALLER)
            raise self._refusal(credential.door, "absent")
        digest = hashlib.sha256(credential.token.encode("utf-8", "surrogatepass")).digest()
        cached = self._verified.get(digest)
        if cached is not None and self._clock() < cached[1]:
            return cached[0]
        return self._verify(credential.token, credential.door, digest)

    async def prepare(self, token: str | None) -> None:
        """Let the key that a token names be fetched, where keys come from a URL, so that `identify` need not wait for it."""
        if token is None or not self._has_remote_keys or self._make_verifier is None:
            return
        await self._open_verifier(self._make_verifier).prepare(token)

    async def run(self) -> None:
        """Keep keys that come from a URL fresh, until cancelled; returns at once where they do not."""
        if self._has_remote_keys and self._make_verifier is not None:
            keys = self._open_verifier(self._make_verifier).remote_keys
            if keys is not None:
                await keys.run()

    def caller_of(self, token: str | None) -> Caller:
        """Return who acts locally with this token, or without one."""
        return self.identify(Credential(token))

    def require(self, caller: Caller, scope: Scope | str) -> None:
        """Refuse a caller whose token does not allow this; see `require_scope`."""
        require_scope(caller, scope)

    def _verify(self, token: str, door: Door, digest: bytes) -> Caller:
        if self._make_verifier is None:
            raise self._refusal(door, "no_keys")
        answer = self._open_verifier(self._make_verifier).verify(token)
        if isinstance(answer, str):
            raise self._refusal(door, answer)
        caller = self._confine(answer.to_caller())
        self._remember(
            digest, caller, min(answer.expires_at.timestamp(), self._clock() + _CACHE_SECONDS)
        )
        return caller

    def _open_verifier(self, make: Callable[[], TokenVerifier]) -> TokenVerifier:
        if self._verifier is None:
            self._verifier = make()
        return self._verifier

    def _confine(self, caller: Caller) -> Caller:
        if not self._is_rated:
            caller = replace(caller, is_rated=False)
        return confine(caller, self._jobs)

    def _remember(self, digest: bytes, caller: Caller, until: float) -> None:
        if len(self._verified) >= _MOST_CACHED:
            # Oldest first, in order of insertion; only tokens that were verified are here, so nobody can flush it cheaply.
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = (caller, until)

    def _refusal(self, door: Door, reason: Refusal | str) -> PolicyDeniedError:
        _logger.warning("policy_refused", reason=str(reason), door=door.value)
        return PolicyDeniedError(
            "a valid policy token is needed, and none was presented",
            code="TOKEN_INVALID",
            hint="issue one with: jobforge token issue --tenant TENANT --scope SCOPE",
        )
