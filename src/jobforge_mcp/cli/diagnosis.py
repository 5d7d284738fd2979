"""``doctor``: prove the installation, and say what to do where a proof fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import OPERATOR_EXIT, say, show
from jobforge_mcp.cli.session import call, open_client, read_settings
from jobforge_mcp.errors import JobForgeError, PolicyDeniedError
from jobforge_mcp.types import JsonObject, JsonValue, RunFilter, RunStatus

if TYPE_CHECKING:
    from rich.console import Console

    from jobforge_mcp.db.doctor import Finding
    from jobforge_mcp.db.installation import Installation
    from jobforge_mcp.settings import Settings

_LONG_DUE = timedelta(minutes=1)
_EXPIRED = timedelta(seconds=1)
_STYLES = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def doctor(json: Json = False) -> int:
    """Check versions, schema, roles, tenant isolation both ways, notifications, clock, durability, stuck runs."""
    from jobforge_mcp.db.doctor import State
    from jobforge_mcp.db.installation import open_installation

    settings = read_settings()
    findings = [*_examine_package(settings)]
    try:
        progress = say if sys.stderr.isatty() else None
        with open_installation(settings, on_progress=progress) as installation:
            findings += _examine_embedded(settings, installation)
            findings += _examine_database(installation)
            findings += _guarded("runs", lambda: _examine_runs(settings))
    except JobForgeError as error:
        findings.append(_failed("database", error))
    is_well = not any(finding.state is State.FAILED for finding in findings)
    document: JsonObject = {
        "isWell": is_well,
        "findings": [_document(finding) for finding in findings],
    }
    show(document, is_json=json, people=lambda console: _print(console, findings))
    return 0 if is_well else OPERATOR_EXIT


def _examine_package(settings: Settings) -> Iterator[Finding]:
    from importlib.metadata import version

    from jobforge_mcp.db.doctor import Finding, State
    from jobforge_mcp.definitions.installed import load_registry

    python = ".".join(map(str, sys.version_info[:3]))
    versions = ", ".join(f"{name} {version(name)}" for name in ("mcp", "psycopg", "pydantic"))
    said = f"jobforge-mcp {version('jobforge-mcp')}, Python {python}, {versions}"
    yield Finding("versions", State.OK, said)
    yield from _guarded(
        "jobs",
        lambda: [Finding("jobs", State.OK, f"{len(load_registry(settings).names())} definitions")],
    )
    yield from _guarded("tokens", lambda: _examine_keys(settings))
    yield from _guarded("settings", lambda: _examine_settings(settings))


def _examine_settings(settings: Settings) -> list[Finding]:
    """Show what ``jobforge://server`` shows, and say whether HTTP would serve with these settings."""
    from jobforge_mcp.db.doctor import Finding, State
    from jobforge_mcp.policy.gate import Gate
    from jobforge_mcp.server.about import describe_local_features, describe_server
    from jobforge_mcp.server.exposure import check_exposure
    from jobforge_mcp.server.origins import Origins

    accepts_tokens = Gate.from_settings(settings).accepts_tokens
    about = describe_server(settings, accepts_tokens=accepts_tokens)
    shown = [Finding(name, State.OK, _one_line(about[name])) for name in ("features", "limits")]
    if local := describe_local_features(settings):
        shown.insert(1, Finding("features: local", State.OK, local))
    said = _one_line(about["auth"])
    try:
        check_exposure(settings, accepts_tokens=accepts_tokens)
        Origins.from_settings(settings)
    except JobForgeError as error:
        return [*shown, Finding("auth", State.FAILED, f"{said}; {error.message}", error.hint)]
    return [*shown, Finding("auth", State.OK, said)]


def _one_line(about: JsonValue) -> str:
    if not isinstance(about, dict):
        return str(about)
    return "; ".join(
        f"{name} {f'({_one_line(value)})' if isinstance(value, dict) else value}"
        for name, value in about.items()
    )


def _examine_keys(settings: Settings) -> list[Finding]:
    from jobforge_mcp.db.doctor import Finding, State
    from jobforge_mcp.policy.gate import Gate

    gate = Gate.from_settings(settings)
    if not gate.accepts_tokens:
        hint = "make keys with: jobforge token keys --folder FOLDER, and set JOBFORGE_TOKEN_KEYS"
        return [Finding("tokens", State.WARNING, "no keys are set, so no token is accepted", hint)]
    token = settings.token.get_secret_value() if settings.token is not None else None
    if token is None and not settings.is_embedded:
        return [Finding("tokens", State.OK, "keys are set; JOBFORGE_TOKEN is not")]
    caller = gate.caller_of(token)
    ends = f", until {caller.expires_at.isoformat()}" if caller.expires_at is not None else ""
    return [Finding("tokens", State.OK, f"commands act as tenant {caller.tenant_id}{ends}")]


def _examine_embedded(settings: Settings, installation: Installation) -> list[Finding]:
    from jobforge_mcp.db.doctor import Finding, State

    cluster = installation.cluster
    if cluster is None:
        return [Finding("database", State.OK, "a PostgreSQL of yours")]
    socket = cluster.socket_dir / ".s.PGSQL.5432"
    length = len(str(socket).encode())
    return [
        Finding("database", State.OK, f"embedded PostgreSQL {cluster.version}"),
        Finding("data", State.OK, f"{cluster.data_dir}, keeper {cluster.keeper_pid}"),
        Finding("socket", State.OK, f"{socket}, {length} bytes"),
        *_guarded("node", lambda: _examine_node(settings)),
    ]


def _examine_node(settings: Settings) -> list[Finding]:
    from jobforge_mcp.cli.session import uses_node
    from jobforge_mcp.db.doctor import Finding, State

    if not uses_node(settings):
        return [Finding("node", State.OK, "switched off: each process works alone")]
    from jobforge_mcp.local.node import node_status

    found = node_status(settings)
    return [Finding("node", State.OK, f"the local node is {found.state}")]


def _examine_database(installation: Installation) -> Iterator[Finding]:
    from jobforge_mcp.db import doctor as proofs

    yield from proofs.examine_schema(installation.admin_url)
    yield from proofs.examine_role(installation.api_url, "jobforge_api")
    yield from proofs.examine_role(installation.worker_url, "jobforge_worker")
    if installation.scheduler_url is not None:
        yield from proofs.examine_role(installation.scheduler_url, "jobforge_scheduler")
    yield from proofs.examine_server(installation.api_url)
    yield from proofs.examine_tenants(installation.api_url, installation.signer)
    yield from proofs.examine_signing(installation.api_url, installation.signer)
    yield from proofs.examine_notifications(installation.api_url)


def _examine_runs(settings: Settings) -> list[Finding]:
    """Look for runs of this tenant that nobody takes care of."""
    from jobforge_mcp.db.doctor import Finding, State

    async def work() -> list[Finding]:
        async with open_client(settings, "doctor") as client:
            running = await client.list_runs(RunFilter(status=RunStatus.RUNNING, limit=100))
            queued = await client.list_runs(RunFilter(status=RunStatus.QUEUED, limit=100))
        now = datetime.now(UTC)
        expired = [
            run
            for run in running
            if run.lease_until is not None and run.lease_until < now - _EXPIRED
        ]
        overdue = [run for run in queued if run.run_at < now - _LONG_DUE]
        hint = "start a worker: jobforge worker, or serve with workers"
        return [
            Finding("runs: leases", State.WARNING, f"{len(expired)} leases expired unnoticed", hint)
            if expired
            else Finding("runs: leases", State.OK, f"{len(running)} running, none stuck"),
            Finding(
                "runs: queue",
                State.WARNING,
                f"{len(overdue)} runs have been due for more than a minute, the oldest of {overdue[-1].job_type}",
                hint,
            )
            if overdue
            else Finding("runs: queue", State.OK, "nothing is overdue"),
        ]

    try:
        return call(work)
    except PolicyDeniedError as error:
        return [Finding("runs", State.SKIPPED, error.message, "set JOBFORGE_TOKEN")]


def _guarded(check: str, examine: Callable[[], list[Finding]]) -> list[Finding]:
    from jobforge_mcp.cli.node import is_node_error
    from jobforge_mcp.db.doctor import Finding, State

    try:
        return examine()
    except JobForgeError as error:
        return [_failed(check, error)]
    except Exception as error:
        if not is_node_error(error):
            raise
        return [Finding(check, State.FAILED, error.message, error.hint or None)]


def _failed(check: str, error: JobForgeError) -> Finding:
    from jobforge_mcp.db.doctor import Finding, State

    return Finding(check, State.FAILED, error.message, error.hint)


def _document(finding: Finding) -> JsonObject:
    return {name: str(value) for name, value in asdict(finding).items() if value is not None}


def _print(console: Console, findings: list[Finding]) -> None:
    from rich.text import Text

    for finding in findings:
        state = Text(f"{finding.state.value:<8}", style=_STYLES[finding.state.value])
        console.print(Text.assemble(state, f"{finding.check}: {finding.message}"))
        if finding.hint is not None and finding.state.value != "ok":
            console.print(Text(f"        {finding.hint}", style="dim"))
