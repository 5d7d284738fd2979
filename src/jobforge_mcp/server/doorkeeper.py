"""Stand before every HTTP door of MCP: the right host, the right origin, a good token; or an answer that says why not.

The SDK's own pieces for this would advertise an OAuth server that does not exist. What is verified here is verified for one
request and left in its ASGI scope; tools ask the gate again for the scope they need. The principal goes along as well, so
that the SDK lets a session of the handshake era be used by nobody but whoever opened it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import structlog
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jobforge_mcp.errors import JobForgeError, PolicyDeniedError
from jobforge_mcp.policy.gate import Credential, Door, Gate
from jobforge_mcp.server import wire
from jobforge_mcp.server.build import CREDENTIAL_KEY
from jobforge_mcp.server.metrics import Metrics
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import Caller

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

log = structlog.stdlib.get_logger(__name__)


class Doorkeeper:
    """ASGI middleware before one app."""

    def __init__(
        self, app: ASGIApp, *, gate: Gate, security: TransportSecuritySettings, metrics: Metrics
    ) -> None:
        self._app = app
        self._gate = gate
        self._security = TransportSecurityMiddleware(security)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        request = Request(scope, receive)
        refusal = await self._security.validate_request(request, is_post=False)
        if refusal is None:
            refusal = self._identify(request, scope)
        if refusal is not None:
            self._metrics.refusals.labels(refusal.status_code).inc()
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _identify(self, request: Request, scope: Scope) -> Response | None:
        """Leave the credential and its principal in the scope, or return why not."""
        token = _bearer(request)
        credential = Credential(token, Door.HTTP)
        try:
            caller = self._gate.identify(credential)
        except PolicyDeniedError as error:
            challenge = "Bearer" if token is None else 'Bearer error="invalid_token"'
            return _error(401, error, {"WWW-Authenticate": challenge})
        except (
            JobForgeError
        ) as error:  # keys that cannot be read: the operator's fault, not the caller's
            log.exception("gate_failed", code=error.code)
            return _error(
                503,
                PolicyDeniedError(
                    "tokens cannot be checked now", code="UNAVAILABLE", retryable=True
                ),
            )
        scope[CREDENTIAL_KEY] = credential
        scope["user"] = AuthenticatedUser(_principal(caller))
        return None


def security_of(settings: Settings) -> TransportSecuritySettings:
    """Return which hosts and origins are answered: loopback's, the bound address, and what the settings add."""
    hosts = {*LOOPBACK, *settings.allowed_hosts}
    if settings.host not in ("0.0.0.0", "::", ""):  # noqa: S104  # compared with, not bound
        hosts.add(f"[{settings.host}]" if ":" in settings.host else settings.host)
    with_ports = {f"{host}:*" for host in hosts if not _has_port(host)}
    origins = {f"{scheme}://{host}" for scheme in ("http", "https") for host in LOOPBACK}
    return TransportSecuritySettings(
        allowed_hosts=sorted(hosts | with_ports),
        allowed_origins=sorted(
            origins | {f"{origin}:*" for origin in origins} | set(settings.allowed_origins)
        ),
    )


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _bearer(request: Request) -> str | None:
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _principal(caller: Caller) -> AccessToken:
    """Return who acts, without the token: sessions compare this and nothing else."""
    return AccessToken(token="", client_id=caller.subject, subject=caller.tenant_id, scopes=[])


def _error(status: int, error: JobForgeError, headers: Mapping[str, str] | None = None) -> Response:
    view = wire.ErrorView(
        code=error.code, message=error.message, hint=error.hint, retryable=error.retryable
    )
    return Response(
        json.dumps({"error": view.wire()}),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )
