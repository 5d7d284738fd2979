"""Answers of the doors that are no answers of MCP: a status, and the error in the form that tools use."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.server import wire


def refusal(
    status: int, error: JobForgeError, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer that says why not, and what to do."""
    view = wire.ErrorView(
        code=error.code, message=error.message, hint=error.hint, retryable=error.retryable
    )
    return Response(
        json.dumps({"error": view.wire()}),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )
