"""Which era of the protocol an HTTP request speaks, by its headers alone."""

from __future__ import annotations

from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request


def is_modern(request: Request) -> bool:
    """Whether the SDK will take the request for one of 2026-07-28 or later, which has no session."""
    version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER)
    return version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS
