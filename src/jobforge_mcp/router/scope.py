"""The scope a call acts in: tenant, author and what the token carries, as ``jobforge.enter_scope`` takes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import LiteralString, Protocol, cast

from jobforge_mcp.types import (
    Caller,
    CallOrigin,
    JsonObject,
    JsonValue,
    Limits,
    Registrar,
    TenantId,
)

SCOPE: LiteralString = "jobforge.enter_scope(%s, %s, %s, %s, %s, %s, %s) as s(tenant_id)"
"""Enters the scope and hands the tenant to the function that the same statement calls."""


class ScopeSigner(Protocol):
    """Signs scopes with the key that the database knows, so that a tenant cannot be made up inside of it."""

    def sign(
        self,
        tenant_id: str,
        actor: str | None,
        token_id: str | None,
        tool: str | None,
        trace_id: str | None,
        claims: str | None,
    ) -> str:
        """Write the signature of these arguments of ``enter_scope``."""
        ...


def split_signature(signature: str) -> list[object]:
    """Take a signature apart: the name of its key, when it ends in seconds since 1970, and what proves it."""
    key_id, signed_until, mac = signature.split(".")
    return [key_id, int(signed_until), bytes.fromhex(mac)]


def scope_arguments(
    caller: Caller,
    origin: CallOrigin,
    signer: ScopeSigner | None = None,
    *,
    has_claims: bool = True,
) -> tuple[str | None, ...]:
    """List the arguments of ``enter_scope``; without claims the token is named, and nothing it says holds."""
    said = (
        caller.tenant_id,
        caller.subject,
        caller.token_id,
        origin.tool,
        origin.trace_id,
        claims_text(caller) if has_claims else None,
    )
    return (*said, None if signer is None else signer.sign(*said))


def stated_limits(limits: Limits) -> JsonObject:
    """Return the limits that have a value, as the database calls them."""
    return {name: value for name, value in asdict(limits).items() if value is not None}


def claims_text(caller: Caller) -> str | None:
    """Write what the caller's token carries as compact JSON; what it does not carry is left out."""
    claims: JsonObject = {}
    if caller.projects is not None:
        claims["projects"] = [*sorted(caller.projects)]
    if caller.job_types is not None:
        claims["jobTypes"] = [*caller.job_types]
    if caller.deny_types:
        claims["denyTypes"] = [*caller.deny_types]
    if caller.events is not None:
        claims["events"] = [*caller.events]
    if caller.limits is not None and (limits := stated_limits(caller.limits)):
        claims["limits"] = limits
    if caller.epoch is not None:
        claims["epoch"] = caller.epoch
    if caller.is_single_use:
        claims["once"] = True
    if caller.single_use_ids:
        claims["singleUse"] = [*caller.single_use_ids]
    if caller.links:
        claims["links"] = [*caller.links]
    if caller.expires_at is not None:
        claims["expiresAt"] = int(caller.expires_at.timestamp())
    if caller.token_id is not None:
        claims["jti"] = caller.token_id
    if caller.actors:
        claims["actors"] = [*caller.actors]
    if not caller.is_rated:
        claims["rates"] = False
    return json.dumps(claims, separators=(",", ":")) if claims else None


def registrar_caller(tenant_id: TenantId, registrar: Registrar) -> Caller:
    """Return as whom a trigger acts: what `claims_text` wrote when it was registered, read back."""
    claims = registrar.claims
    limits = claims.get("limits")
    expires_at = claims.get("expiresAt")
    epoch = claims.get("epoch")
    return Caller(
        tenant_id=tenant_id,
        subject=registrar.subject or "",
        scopes=registrar.scopes,
        roles=registrar.roles,
        projects=None if "projects" not in claims else frozenset(_texts(claims["projects"])),
        token_id=registrar.token_id,
        expires_at=datetime.fromtimestamp(expires_at, UTC) if isinstance(expires_at, int) else None,
        job_types=None if "jobTypes" not in claims else _texts(claims["jobTypes"]),
        deny_types=_texts(claims.get("denyTypes")),
        events=None if "events" not in claims else _texts(claims["events"]),
        limits=Limits(**cast("dict[str, int]", limits)) if isinstance(limits, dict) else None,
        epoch=epoch if isinstance(epoch, int) else None,
    )


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
