"""Stand before every HTTP door of MCP: the right host, the right origin, a good token, the scopes of the call; or say why not.

The SDK's own pieces for this would advertise an OAuth server where there is none, and name no scopes where there is one.
What is verified here is verified for one request and left in its ASGI scope; tools ask the gate again for the scope they
need. The principal goes along as well, so that the SDK lets a session of the handshake era be used by nobody but whoever
opened it.
"""

from __future__ import annotations

from contextlib import suppress

import structlog
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jobforge_mcp.errors import DatabaseUnavailableError, JobForgeError, PolicyDeniedError
from jobforge_mcp.policy.denials import NOBODY, Denial, action_of
from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.server.build import CREDENTIAL_KEY
from jobforge_mcp.server.oauth import ResourceServer, lacks_scopes, tool_of
from jobforge_mcp.server.origins import Origins
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.server.refusals import refusal
from jobforge_mcp.server.sessions import PRINCIPAL_KEY
from jobforge_mcp.types import Caller

log = structlog.stdlib.get_logger(__name__)


class Doorkeeper:
    """ASGI middleware before one app."""

    def __init__(
        self,
        app: ASGIApp,
        parts: ServerParts,
        *,
        origins: Origins,
        resource: ResourceServer | None = None,
    ) -> None:
        """Take what to protect; ``resource`` where an OAuth server gives out the tokens."""
        self._app = app
        self._gate = parts.gate
        self._living = parts.living
        self._denials = parts.denials
        self._metrics = parts.metrics
        self._origins = origins
        self._resource = resource

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it before its body is read."""
        request = Request(scope)
        refused = self._check_place(request)
        if refused is not None:
            reason = "FOREIGN_HOST" if refused.status_code == 421 else "FOREIGN_ORIGIN"
            await self._record(request, NOBODY, "connect", reason)
        else:
            refused = await self._identify(request, scope)
        if refused is not None:
            self._metrics.refusals.labels(refused.status_code).inc()
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_place(self, request: Request) -> Response | None:
        """Refuse what a page of somebody else, or a name of somebody else, sent here."""
        if not self._origins.allows_host(request.headers.getlist("host")):
            return Response("Invalid Host header", status_code=421)
        if not self._origins.allows_origin(request.headers.getlist("origin")):
            return Response("Invalid Origin header", status_code=403)
        return None

    async def _identify(self, request: Request, scope: Scope) -> Response | None:
        """Leave the credential and its principal in the scope, or return why not."""
        token = _bearer(request)
        credential = Credential(token, Door.HTTP)
        revoked: Caller | None = None
        try:
            await self._gate.prepare(token)
            caller = revoked = self._gate.identify(credential)
            await self._require_living(caller)
        except PolicyDeniedError as error:
            if token is not None:  # without one a client only asks where to get it
                await self._record(request, revoked or NOBODY, "authenticate", error.code)
            return self._challenge(request, error, None if token is None else "invalid_token")
        except (
            JobForgeError
        ) as error:  # keys that cannot be read: the operator's fault, not the caller's
            log.exception("gate_failed", code=error.code)
            return refusal(
                503,
                PolicyDeniedError(
                    "tokens cannot be checked now", code="UNAVAILABLE", retryable=True
                ),
            )
        if self._resource is not None and (lacking := lacks_scopes(request, caller)):
            await self._record(
                request, caller, action_of(tool_of(request) or "request"), "INSUFFICIENT_SCOPE"
            )
            return self._step_up(request, caller, lacking)
        scope[CREDENTIAL_KEY] = credential
        scope[PRINCIPAL_KEY] = (caller.tenant_id, caller.subject)
        scope["user"] = AuthenticatedUser(_principal(caller))
        return None

    async def _record(self, request: Request, caller: Caller, action: str, reason: str) -> None:
        """Have what the door refused in the audit log: of the token's tenant, or of nobody's where it is not good."""
        if self._denials is not None:
            tool = tool_of(request)
            await self._denials.record(caller, Denial(action, reason, tool=tool or "http"))

    async def _require_living(self, caller: Caller) -> None:
        """Have a client whose token was revoked ask for another. Without a database the call itself says so."""
        if self._living is not None:
            with suppress(DatabaseUnavailableError):
                await self._living.require(caller)

    def _challenge(
        self, request: Request, refused: PolicyDeniedError, error: str | None
    ) -> Response:
        """Answer 401: without an OAuth server the way to a token is in the body, for people."""
        plain = "Bearer" if error is None else f'Bearer error="{error}"'
        shown = self._resource.challenge(request, error) if self._resource is not None else plain
        return refusal(401, refused, {"WWW-Authenticate": shown})

    def _step_up(self, request: Request, caller: Caller, lacking: frozenset[str]) -> Response:
        assert self._resource is not None
        log.warning(
            "policy_refused",
            reason="scope",
            scope=" ".join(sorted(lacking)),
            tenant_id=caller.tenant_id,
            token_id=caller.token_id,
        )
        error = PolicyDeniedError(
            f"the token does not allow this: it lacks {', '.join(sorted(lacking))}",
            hint="ask the OAuth server for a token with the scopes of the WWW-Authenticate header",
        )
        shown = self._resource.challenge(request, "insufficient_scope")
        return refusal(403, error, {"WWW-Authenticate": shown})


def _bearer(request: Request) -> str | None:
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _principal(caller: Caller) -> AccessToken:
    """Return who acts, without the token: sessions compare this and nothing else."""
    return AccessToken(token="", client_id=caller.subject, subject=caller.tenant_id, scopes=[])
