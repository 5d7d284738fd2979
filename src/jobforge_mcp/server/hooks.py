"""``POST /hooks/{tenant}/{name}``: deliveries of other systems become events, if their signature is good.

There is no token here: the signature is all that says who sends. So an unknown tenant, an unknown name and a bad signature
get the same answer, after the same look-up and the same work on the body.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobforge_mcp.definitions.features import EVENTS
from jobforge_mcp.definitions.json_limits import load_limited
from jobforge_mcp.errors import DatabaseUnavailableError, InvalidInputError, JobForgeError
from jobforge_mcp.server.parts import ServerParts
from jobforge_mcp.signatures import Delivery, verify
from jobforge_mcp.types import Caller, CallOrigin, TenantId

log = structlog.stdlib.get_logger(__name__)

MOST_BYTES: Final = 1024 * 1024
BODY_SECONDS: Final = 10.0
_SMALL_BYTES: Final = 64 * 1024

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NOBODY = ("nobody", "-")
"""What is looked up where a name is malformed; no webhook can be called so."""


def hook_routes(parts: ServerParts) -> list[Route]:
    """Return the route, or none where webhooks are switched off."""
    settings = parts.settings
    if not (settings.webhooks_enabled and EVENTS.is_on_for_some(settings)):
        return []
    return [Route("/hooks/{tenant}/{name}", partial(_receive, parts), methods=["POST"])]


async def _receive(parts: ServerParts, request: Request) -> Response:
    try:
        with anyio.fail_after(BODY_SECONDS):
            body = await _read(request)
    except (TimeoutError, ClientDisconnect):
        return _answer(408, "the body did not come in time")
    if body is None:
        return _answer(413, f"a delivery has at most {MOST_BYTES} bytes")
    tenant, name = request.path_params["tenant"], request.path_params["name"]
    if _TENANT.fullmatch(tenant) is None or _NAME.fullmatch(name) is None:
        tenant, name = _NOBODY
    caller = Caller(TenantId(tenant), f"webhook:{name}", frozenset())
    try:
        delivery = await _verified(parts, caller, name, request, body)
        if delivery is None:
            log.info("webhook_refused", tenant_id=tenant, webhook=name)
            return _answer(401, "there is no such webhook, or its signature is not good")
        return await _store(parts, caller, name, delivery, body)
    except DatabaseUnavailableError:
        return _answer(503, "nothing was stored; send it again")


async def _verified(
    parts: ServerParts, caller: Caller, name: str, request: Request, body: bytes
) -> Delivery | None:
    found = await parts.desk.router.webhooks.get_webhook(caller, name)
    config = found or {}
    # Somebody who guesses names must not learn from the time it takes which exist: no secret can be called "-".
    known = await _secrets(parts, config.get("secrets", ["-"]), name if found else None)
    keys = known or [f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"]
    scheme = str(config.get("scheme", "standard"))
    headers = {key.lower(): value for key, value in request.headers.items()}
    arguments = (scheme, keys, headers, body, time.time())
    # A mebibyte takes a millisecond for each secret: not on the loop, where everybody else would wait for it.
    is_small = len(body) <= _SMALL_BYTES
    delivery = verify(*arguments) if is_small else await run_sync(verify, *arguments)
    return delivery if known else None


async def _secrets(parts: ServerParts, names: object, webhook: str | None) -> list[str]:
    """Fetch what signs; one that is missing is the operator's to mend, and not told to the sender."""
    found: list[str] = []
    for name in names if isinstance(names, list) else []:  # pyright: ignore[reportUnknownVariableType]  # JSON
        try:
            if parts.secret is not None:
                found.append(await run_sync(parts.secret, str(name)))  # pyright: ignore[reportUnknownArgumentType]
        except JobForgeError as error:
            if webhook is not None:
                log.warning("webhook_secret_missing", webhook=webhook, code=error.code)
    return found


async def _store(
    parts: ServerParts, caller: Caller, name: str, delivery: Delivery, body: bytes
) -> Response:
    try:
        payload = body.decode()
        content = load_limited(payload)
    except (UnicodeDecodeError, JobForgeError):
        return _answer(400, "the body is not JSON within the limits of events")
    try:
        scan = partial(parts.registry.scan, {"the body": content})
        await run_sync(scan) if len(body) > _SMALL_BYTES else scan()
    except InvalidInputError as error:
        return _answer(400, error.message)
    if not 1 <= len(delivery.delivery_id.encode()) <= 255:
        return _answer(400, "the delivery has no id by which it could be known again")
    try:
        event_id, outcome = await parts.desk.router.webhooks.receive_webhook(
            caller,
            name,
            delivery.delivery_id,
            event_type_of(name, delivery.event_type),
            payload if isinstance(content, dict) else f'{{"body": {payload}}}',
            origin=CallOrigin("webhook"),
        )
    except DatabaseUnavailableError:
        raise
    except JobForgeError as error:
        return _answer(429 if error.retryable else 400, error.message)
    return JSONResponse({"eventId": str(event_id), "outcome": outcome}, status_code=202)


def event_type_of(name: str, said: str) -> str:
    """Name the event: the webhook, then what the sender calls it as far as a type can hold that."""
    segments = [re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in re.split(r"[./]", said)]
    return ".".join([name, *(part for part in segments if part)])[:100].rstrip(".")


async def _read(request: Request) -> bytes | None:
    if int(request.headers.get("content-length", "0")) > MOST_BYTES:
        return None
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _answer(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)
