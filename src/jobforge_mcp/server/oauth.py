"""Say as an OAuth resource server where tokens come from and which scopes a call needs (RFC 9728, RFC 6750).

Only where an issuer is set. Without one, tokens are issued by hand, and telling clients of a server that does not exist
would send them into a discovery that fails.

**Step-up.** A request of 2026-07-28 names its method and its tool in headers, which the SDK compares with the body and
refuses when they differ. So what a call needs is known before its body is read, and a token that lacks it is answered with
403 and the scopes to ask for. That is an early answer and no gate: each tool asks the gate again. What no scope would cure,
such as another project or a limit, is a tool error, or a client would go for the same token for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_NAME_HEADER, decode_header_value
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobforge_mcp.errors import NotFoundError
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import resources
from jobforge_mcp.server.build import find_tool
from jobforge_mcp.server.eras import is_modern
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import Caller

WELL_KNOWN = "/.well-known/oauth-protected-resource"

FIRST_SCOPES = (Scope.JOBS_LIST,)
"""What a client asks for before it knows what it will do: enough to connect and look around."""


@dataclass(frozen=True, slots=True)
class ResourceServer:
    """What this server says of itself to OAuth clients."""

    issuer: str
    resource: str
    """Canonical URL: what the audience of a token must be."""

    @classmethod
    def from_settings(cls, settings: Settings) -> ResourceServer | None:
        """Return it where an OAuth server is set."""
        if settings.oauth_issuer is None or settings.resource_url is None:
            return None
        return cls(settings.oauth_issuer, settings.resource_url)

    @property
    def metadata_url(self) -> str:
        """Where the document about this resource is: the well-known path stands before the resource's own."""
        parts = urlsplit(self.resource)
        return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path}"

    def routes(self) -> list[Route]:
        """Serve the document at every path where a client may look for it."""

        async def metadata(_: Request) -> Response:
            return JSONResponse(self._document(), headers={"Cache-Control": "max-age=300"})

        path = urlsplit(self.resource).path
        # A proxy may have put a prefix before ours, or cut one off.
        paths = dict.fromkeys([WELL_KNOWN, f"{WELL_KNOWN}/mcp", f"{WELL_KNOWN}{path}"])
        return [Route(path, metadata, methods=["GET"]) for path in paths]

    def challenge(self, request: Request, error: str | None = None) -> str:
        """Return ``WWW-Authenticate`` for a request; without ``error`` when it brought no token at all."""
        scopes = scopes_of(request) or frozenset(FIRST_SCOPES)
        fields = {
            "error": error,
            "error_description": _DESCRIPTIONS.get(error) if error is not None else None,
            "scope": " ".join(sorted(scopes)),
            "resource_metadata": self.metadata_url,
        }
        shown = (f'{name}="{value}"' for name, value in fields.items() if value is not None)
        return f"Bearer {', '.join(shown)}"

    def _document(self) -> dict[str, object]:
        return {
            "resource": self.resource,
            "authorization_servers": [self.issuer],
            "scopes_supported": [scope.value for scope in FIRST_SCOPES],
            "bearer_methods_supported": ["header"],
            "resource_name": "JobForge",
        }


def tool_of(request: Request) -> str | None:
    """Return the tool that a request calls, as far as its headers tell."""
    if not is_modern(request) or request.headers.get(MCP_METHOD_HEADER) != "tools/call":
        return None
    tool = find_tool(decode_header_value(request.headers.get(MCP_NAME_HEADER)) or "")
    return tool.name if tool is not None else None


def scopes_of(request: Request) -> frozenset[Scope]:
    """Return all scopes that a request needs, as far as its headers tell; none for what every token may do."""
    if not is_modern(request):
        return frozenset()
    name = decode_header_value(request.headers.get(MCP_NAME_HEADER)) or ""
    match request.headers.get(MCP_METHOD_HEADER):
        case "tools/call":
            tool = find_tool(name)
            return frozenset({tool.scope}) if tool is not None else frozenset()
        case "resources/read":
            try:
                scope = resources.scope_of(resources.parse_uri(name))
                return frozenset() if scope is None else frozenset({scope})
            except NotFoundError:
                return frozenset()
        case _:
            return frozenset()


def lacks_scopes(request: Request, caller: Caller) -> frozenset[str]:
    """Return the scopes that a request needs and its caller does not hold."""
    return frozenset(scope.value for scope in scopes_of(request)) - caller.scopes


_DESCRIPTIONS = {
    "invalid_token": "the token is not valid here",
    "insufficient_scope": "the token does not have every scope that this call needs",
}
