"""``token narrow``, ``check`` and ``revoke``: what becomes of a policy token after it was issued.

Narrowing needs the holder's key and nothing else. Whoever has the key that signs tokens may check and revoke those of every
tenant; others need a token with ``admin:tenant`` to revoke, and may check what they hold.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, show
from jobforge_mcp.cli.session import call, read_settings
from jobforge_mcp.cli.tokens import (
    Actor,
    DenyTypes,
    Events,
    JobTypes,
    LimitOptions,
    Once,
    Projects,
    Roles,
    Scopes,
    has_signing_key,
    parse_limits,
    read_lifetime,
    read_token,
)
from jobforge_mcp.errors import InvalidInputError

if TYPE_CHECKING:
    from jobforge_mcp.definitions.model import BoundJob
    from jobforge_mcp.policy.account import Question
    from jobforge_mcp.policy.tokens import PolicyToken
    from jobforge_mcp.router.tokens import TokenRouter
    from jobforge_mcp.settings import Settings
    from jobforge_mcp.types import Caller, JsonObject, JsonValue

TokenArgument = Annotated[
    str | None, typer.Argument(help="The token; - for standard input. Default: JOBFORGE_TOKEN.")
]


def narrow(
    holder: Annotated[Path, typer.Option("--holder", help="Key folder of the token's holder.")],
    token: TokenArgument = None,
    scope: Scopes = None,
    project: Projects = None,
    job_type: JobTypes = None,
    deny_type: DenyTypes = None,
    event: Events = None,
    role: Roles = None,
    limit: LimitOptions = None,
    once: Once = False,
    ttl: Annotated[str | None, typer.Option(help="How long it lives at most.")] = None,
    actor: Actor = None,
    next_holder: Annotated[
        Path | None, typer.Option("--next-holder", help="Key folder of who may narrow it further.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a token that allows less, without its issuer; print it, alone, on stdout."""
    from jobforge_mcp.policy.keys import KeyFolder
    from jobforge_mcp.policy.narrowing import Narrowing, narrow_token

    settings = read_settings()
    narrowing = Narrowing(
        scopes=scope or None,
        projects=project or None,
        job_types=job_type or None,
        deny_types=deny_type or (),
        events=event or None,
        roles=role or None,
        limits=parse_limits(limit),
        is_single_use=once,
        lifetime=None if ttl is None else read_lifetime(ttl),
        actor=actor,
        holder=None if next_holder is None else KeyFolder(next_holder.expanduser()).ensure().public,
    )
    key = KeyFolder(holder.expanduser()).ensure()
    child = narrow_token(read_token(settings, token), key, narrowing)
    if json:
        show({"token": child}, is_json=True, people=lambda _: None)
    else:
        print(child)


def check(
    token: TokenArgument = None,
    job: Annotated[
        str | None, typer.Option("--job", help="Say why this job would be refused, if it would.")
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", help="The same for a project.")
    ] = None,
    tool: Annotated[
        str, typer.Option("--tool", help="By which tool; its limits count as well.")
    ] = "execute-job",
    json: Json = False,
) -> int:
    """Tell what a token allows here and now, what is left of it, and why a call would be refused."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.policy.account import Question
    from jobforge_mcp.policy.tokens import inspect_token, verifier_from_settings
    from jobforge_mcp.server.wire import compact

    settings = read_settings()
    has_keys = settings.token_keys is not None or settings.is_embedded
    seen = inspect_token(
        read_token(settings, token), verifier_from_settings(settings) if has_keys else None
    )
    if seen.token is None:
        document: JsonObject = {"isGood": False, "refusal": str(seen.refusal)}
    else:
        document = _told(settings, seen.token, Question(job, project, tool))
    rows = [
        (name, value if isinstance(value, str) else compact(value))
        for name, value in document.items()
    ]
    show(
        document, is_json=json, people=lambda console: console.print(table(("fact", "value"), rows))
    )
    return 0 if document["isGood"] and "refusal" not in document else CALLER_EXIT


def revoke(
    token: Annotated[
        str | None, typer.Argument(help="The token, or its id (jti); - for standard input.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every token of the tenant that was issued until now.")
    ] = False,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose it is, where an id or --all is given.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why, for the audit log.")] = None,
    json: Json = False,
) -> None:
    """Revoke a token, with all that were narrowed from it, or all tokens of a tenant. It holds from the next call on."""
    from jobforge_mcp.policy.claims import is_name
    from jobforge_mcp.types import CallOrigin

    if (token is None) != everything:
        raise InvalidInputError(
            "either a token or --all has to be named", hint="jobforge token revoke TOKEN"
        )
    settings = read_settings()
    token_id, of_tenant, ends = _named(settings, token)
    if tenant is not None and (not is_name(tenant) or of_tenant not in (None, tenant)):
        raise InvalidInputError("the token is not of this tenant", hint="leave --tenant out")
    origin = CallOrigin(tool="cli token revoke")

    async def work() -> JsonObject:
        caller = _revoker(settings, tenant or of_tenant)
        async with _open_tokens(settings) as tokens:
            if token_id is None:
                epoch = await tokens.revoke_tenant_tokens(caller, reason=reason, origin=origin)
                return {"tenant": caller.tenant_id, "outcome": "revoked", "epoch": epoch}
            is_new = await tokens.revoke_token(
                caller, token_id, reason=reason, expires_at=ends, origin=origin
            )
            outcome = "revoked" if is_new else "unchanged"
            return {"tenant": caller.tenant_id, "tokenId": token_id, "outcome": outcome}

    document = call(work)
    what = "all tokens issued until now" if token_id is None else f"token {token_id}"
    show(
        document,
        is_json=json,
        people=lambda console: console.print(f"{document['outcome']}: {what}", markup=False),
    )


def _named(settings: Settings, token: str | None) -> tuple[str | None, str | None, datetime | None]:
    """Find id, tenant and end of what is to be revoked: of the last link, if the token was narrowed."""
    from jobforge_mcp.policy.tokens import read_unverified

    if token is None:
        return None, None, None
    text = read_token(settings, token)
    if text.count(".") < 2:
        return text, None, None
    _, claims = read_unverified(text)
    jf, token_id, ends = claims.get("jf"), claims.get("jti"), claims.get("exp")
    tenant = jf.get("tenant") if isinstance(jf, dict) else None
    if not isinstance(token_id, str) or not isinstance(tenant, str):
        raise InvalidInputError("the text is not a policy token", hint="name its id (jti) instead")
    if not isinstance(ends, int) or not 0 < ends < 2**33:
        return token_id, tenant, None
    return token_id, tenant, datetime.fromtimestamp(ends, UTC)


def _revoker(settings: Settings, tenant: str | None) -> Caller:
    """Return who revokes: the keeper of the signing key for any tenant, or the holder of a token for its own."""
    from jobforge_mcp.policy.gate import Credential, Gate
    from jobforge_mcp.policy.scopes import Scope

    if has_signing_key(settings):
        if tenant is None and settings.is_embedded and settings.token is None:
            tenant = "local"
        if tenant is not None:
            return _operator(tenant)
    token = settings.token.get_secret_value() if settings.token is not None else None
    caller = Gate.from_settings(settings).authorize(Credential(token), Scope.ADMIN_TENANT)
    if tenant not in (None, caller.tenant_id):
        raise InvalidInputError(
            "only tokens of one's own tenant can be revoked without the signing key",
            hint="run it where the key folder is",
        )
    return caller


def _operator(tenant: str) -> Caller:
    from jobforge_mcp.policy.claims import is_name
    from jobforge_mcp.policy.scopes import Scope
    from jobforge_mcp.types import Caller, TenantId

    if not is_name(tenant):
        raise InvalidInputError(f"{tenant!r} cannot be the name of a tenant")
    return Caller(TenantId(tenant), "operator", frozenset({Scope.ADMIN_TENANT.value}))


@asynccontextmanager
async def _open_tokens(settings: Settings) -> AsyncGenerator[TokenRouter]:
    import anyio.to_thread

    from jobforge_mcp.db.installation import open_installation
    from jobforge_mcp.db.pool import Database
    from jobforge_mcp.router.tokens import TokenRouter

    opening = open_installation(settings)
    installation = await anyio.to_thread.run_sync(opening.__enter__)
    try:
        async with Database(
            installation.api_url, role="jobforge_api", max_size=1, name="jobforge token"
        ) as database:
            yield TokenRouter(database, signer=installation.signer)
    finally:
        opening.__exit__(None, None, None)


def _told(settings: Settings, token: PolicyToken, question: Question) -> JsonObject:
    from jobforge_mcp.definitions.installed import load_registry
    from jobforge_mcp.policy.account import Account, look
    from jobforge_mcp.policy.permissions import may_list
    from jobforge_mcp.types import CallOrigin

    caller = token.to_caller()
    registry = load_registry(settings)
    # whoever may sign looks as operator, so that a revoked token gets its answer too
    asking = _operator(caller.tenant_id) if has_signing_key(settings) else caller

    async def find(name: str) -> tuple[BoundJob, int]:
        bound = registry.get(name, is_visible=may_list(caller))
        return bound, bound.definition.cost

    async def work() -> Account:
        async with _open_tokens(settings) as tokens:
            origin = CallOrigin("cli token check")
            return await look(tokens, caller, question, find=find, origin=origin, asking=asking)

    found = call(work)
    shown: list[JsonValue] = [bound.name for bound in registry.list(is_visible=may_list(caller))]
    document: JsonObject = {**found.facts, "jobs": shown}
    if found.refusal is not None:
        document["refusal"] = found.refusal.message
    return document
