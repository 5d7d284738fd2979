"""``audit list``, ``seal``, ``export`` and ``verify``: what was done, and the proof that nobody rewrote it.

Listing needs a policy token with ``audit:read`` and shows its tenant. The others are the operator's: they act as
``jobforge_auditor`` on the log of all tenants, except ``verify FILE``, which needs a public key and no database.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, say, show
from jobforge_mcp.cli.session import call, read_settings
from jobforge_mcp.errors import InvalidInputError, SettingsError

if TYPE_CHECKING:
    from jobforge_mcp.audit.checker import AuditFault
    from jobforge_mcp.audit.keys import AuditKeys
    from jobforge_mcp.audit.ledger import Verified
    from jobforge_mcp.db.installation import Installation
    from jobforge_mcp.router.seals import SealRouter
    from jobforge_mcp.settings import Settings
    from jobforge_mcp.types import AuditEntry, AuditFilter, JsonObject, JsonValue

PublicKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--public-key",
        help="Public key to verify with: PEM, JWKS or a key folder; repeatable. By default that of JOBFORGE_AUDIT_KEYS.",
    ),
]


def list_entries(
    action: Annotated[str | None, typer.Option(help="Only this action: enqueue, cancel.")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only this outcome; refused for what was not allowed.")
    ] = None,
    token_id: Annotated[str | None, typer.Option("--token-id", help="Only this token.")] = None,
    before: Annotated[str | None, typer.Option(help="Go on after this place.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows to show.")] = 50,
    json: Json = False,
) -> None:
    """Show the audit log of the token's tenant, newest first."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.types import AuditFilter

    settings = read_settings()
    wanted = AuditFilter(
        action=action, outcome=outcome, token_id=token_id, before=before, limit=limit
    )
    entries = call(lambda: _list(settings, wanted))
    rows = [
        (
            f"{entry.occurred_at:%Y-%m-%d %H:%M:%S}",
            entry.action,
            entry.outcome,
            entry.actor or "",
            entry.tool or "",
            entry.job_type or "",
            "" if entry.job_id is None else str(entry.job_id),
            str(entry.detail.get("reason", "")) if entry.detail else "",
        )
        for entry in entries
    ]
    columns = ("at", "action", "outcome", "who", "through", "job", "run", "why")
    show(
        {"entries": [_document(entry) for entry in entries]},
        is_json=json,
        people=lambda console: console.print(table(columns, rows)),
    )


def seal(json: Json = False) -> None:
    """Seal what can be sealed now; serving processes do it by themselves every few seconds."""
    from jobforge_mcp.audit.keys import signing_key
    from jobforge_mcp.audit.sealer import Sealer

    settings = read_settings()
    key = signing_key(settings)

    async def work() -> int:
        async with _seals(settings) as router:
            return await Sealer(router, key).seal_all()

    sealed = call(work)
    show(
        {"sealedRows": sealed, "keyId": key.public.key_id},
        is_json=json,
        people=lambda console: console.print(f"sealed {sealed} rows", markup=False),
    )


def keys(
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate", help="Seal with a new key; what old ones sealed stays verifiable."
        ),
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Key folder; by default that of JOBFORGE_AUDIT_KEYS."),
    ] = None,
    json: Json = False,
) -> None:
    """Show the keys that seals are verified with, the one that seals first; make it where there is none."""
    from jobforge_mcp.audit.keys import AuditKeys, audit_keys_folder, rotate_key
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.policy.keys import KeyFolder

    where = folder.expanduser() if folder is not None else audit_keys_folder(read_settings())
    if where is None:
        raise SettingsError(
            "there are no keys to seal the audit log with",
            hint="make some with: jobforge audit keys --folder FOLDER, and set JOBFORGE_AUDIT_KEYS=FOLDER",
        )
    if rotate:
        rotate_key(where)
    elif folder is not None or not (where / "jwks.json").is_file():
        KeyFolder(where).ensure()
    key_ids = AuditKeys.load([where]).key_ids
    rows = [(key_id, "seals" if place == 0 else "verifies") for place, key_id in enumerate(key_ids)]
    found: list[JsonValue] = [*key_ids]
    show(
        {"folder": str(where), "keyIds": found},
        is_json=json,
        people=lambda console: console.print(table(("key", "use"), rows)),
    )


def export(
    file: Annotated[Path, typer.Argument(help="File to write; it must not exist yet.")],
    json: Json = False,
) -> None:
    """Write the audit log of all tenants into a file that can be verified without a database."""
    from jobforge_mcp.audit.keys import find_signing_key
    from jobforge_mcp.audit.ledger import export_log
    from jobforge_mcp.audit.sealer import Sealer

    settings = read_settings()
    key = find_signing_key(settings)

    async def work() -> int:
        async with _seals(settings) as router:
            if key is not None:
                await Sealer(router, key).seal_all()
            # For its owner alone: who did what is nobody else's business.
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                return await export_log(router, out.write, key)

    try:
        rows = call(work)
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be written: {error.strerror}") from None
    if key is None and not json:
        say("this process has no audit key, so the end of the file is not signed")
    show(
        {"rows": rows, "isEndSigned": key is not None},
        is_json=json,
        people=lambda console: console.print(f"wrote {rows} rows", markup=False),
    )


def verify(
    file: Annotated[Path | None, typer.Argument(help="An exported audit log.")] = None,
    database: Annotated[
        bool, typer.Option("--database", help="Verify the log in the database instead.")
    ] = False,
    public_key: PublicKeys = None,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier export, kept elsewhere: its seals must all be there still."),
    ] = None,
    allow_unsigned_end: Annotated[
        bool, typer.Option("--allow-unsigned-end", help="Accept a file that may have been cut off.")
    ] = False,
    json: Json = False,
) -> int:
    """Check that the audit log is what was sealed; names the first row that is not."""
    from jobforge_mcp.audit.checker import AuditFault
    from jobforge_mcp.audit.ledger import verify_database, verify_file

    if (file is None) == (not database):
        raise InvalidInputError("name a file, or --database", code="INVALID_ARGUMENTS")
    settings = read_settings()
    keys = _public_keys(settings, public_key)

    async def look() -> Verified:
        async with _seals(settings) as router:
            return await verify_database(router, keys)

    try:
        if file is not None:
            found = verify_file(file, keys, allow_unsigned_end=allow_unsigned_end)
        else:
            found = call(look)
        if against is not None:
            kept = verify_file(against, keys, allow_unsigned_end=True)
            found.checker.expect(kept.checkpoints)
    except AuditFault as fault:
        return _show_fault(fault, is_json=json)
    except OSError as error:
        raise InvalidInputError(f"{error.filename} cannot be read: {error.strerror}") from None
    _show_verified(found, is_kept=against is not None, is_json=json)
    return 0


def _show_fault(fault: AuditFault, *, is_json: bool) -> int:
    document: JsonObject = {
        "isValid": False,
        "problem": fault.problem,
        "tenantId": fault.tenant_id,
        "row": fault.row,
        "line": fault.line,
    }
    where = f"row {fault.row} of tenant {fault.tenant_id}" if fault.tenant_id else "the beginning"
    line = f" (line {fault.line})" if fault.line else ""
    show(
        document,
        is_json=is_json,
        people=lambda console: console.print(
            f"not valid from {where}{line} on: {fault.problem}", markup=False
        ),
    )
    return CALLER_EXIT


def _show_verified(found: Verified, *, is_kept: bool, is_json: bool) -> None:
    from jobforge_mcp.cli.output import table

    totals = found.checker.totals
    document: JsonObject = {
        "isValid": True,
        "isWhole": found.is_whole or is_kept,
        "tenants": [
            {
                "tenantId": tenant_id,
                "rows": total.rows,
                "unsealedRows": total.unsealed_rows,
                "seals": total.seals,
            }
            for tenant_id, total in totals.items()
        ],
    }
    rows = [
        (tenant_id, str(total.rows), str(total.unsealed_rows), str(total.seals))
        for tenant_id, total in totals.items()
    ]
    show(
        document,
        is_json=is_json,
        people=lambda console: console.print(table(("tenant", "rows", "unsealed", "seals"), rows)),
    )
    if not is_json and not document["isWhole"]:
        say(
            "valid; only an export that was kept elsewhere shows (--against) that its newest part was not cut off"
        )


def _document(entry: AuditEntry) -> JsonObject:
    return {
        "place": entry.place,
        "occurredAt": entry.occurred_at.isoformat(),
        "action": entry.action,
        "outcome": entry.outcome,
        "actor": entry.actor,
        "tokenId": entry.token_id,
        "tool": entry.tool,
        "traceId": entry.trace_id,
        "runId": None if entry.job_id is None else str(entry.job_id),
        "jobName": entry.job_type,
        "detail": entry.detail,
    }


def _public_keys(settings: Settings, given: list[Path] | None) -> AuditKeys:
    from jobforge_mcp.audit.keys import AuditKeys, audit_keys_folder

    if given:
        return AuditKeys.load(given)
    folder = audit_keys_folder(settings)
    if folder is None:
        raise SettingsError(
            "there is no public key to verify with", hint="name one with --public-key"
        )
    return AuditKeys.load([folder])


@asynccontextmanager
async def _seals(settings: Settings) -> AsyncGenerator[SealRouter]:
    from jobforge_mcp.db.pool import Database
    from jobforge_mcp.router.seals import SealRouter

    async with (
        _installation(settings) as installation,
        Database(installation.auditor_url, role="jobforge_auditor", max_size=2) as database,
    ):
        yield SealRouter(database)


@asynccontextmanager
async def _installation(settings: Settings) -> AsyncGenerator[Installation]:
    import anyio
    import anyio.to_thread

    from jobforge_mcp.db.installation import open_installation

    manager = open_installation(settings, on_progress=say)
    installation = await anyio.to_thread.run_sync(manager.__enter__)
    try:
        yield installation
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(manager.__exit__, None, None, None)


async def _list(settings: Settings, wanted: AuditFilter) -> list[AuditEntry]:
    from jobforge_mcp.db.pool import Database
    from jobforge_mcp.policy.gate import Gate
    from jobforge_mcp.policy.scopes import Scope
    from jobforge_mcp.router.audit import AuditRouter

    gate = Gate.from_settings(settings)
    caller = gate.caller_of(settings.token.get_secret_value() if settings.token else None)
    gate.require(caller, Scope.AUDIT_READ)
    async with (
        _installation(settings) as installation,
        Database(installation.api_url, role="jobforge_api", max_size=2) as database,
    ):
        return await AuditRouter(database, signer=installation.signer).list_audit(caller, wanted)
