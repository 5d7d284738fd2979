"""All commands in one table. What becomes of whatever they raise is `running`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import typer

from jobforge_mcp.cli import (
    audit,
    bundles,
    context_keys,
    diagnosis,
    events,
    evidence,
    follow,
    jobs,
    limits,
    logins,
    migration,
    node,
    queues,
    retention,
    runs,
    steering,
    token_life,
    tokens,
    webhooks,
)
from jobforge_mcp.cli.services import SERVICES, new_program


def build_program() -> typer.Typer:
    """Assemble the commands."""
    program = new_program(COMMANDS)
    for name, text, members in (
        ("jobs", "Jobs that may be run; those that are data are registered and approved.", JOBS),
        ("node", "The local node: the one process that owns embedded Postgres and workers.", NODE),
        ("token", "Policy tokens and the keys that sign them.", TOKEN),
        ("login", "Logins for plain SQL, each bound to one tenant.", LOGIN),
        ("context-key", "Keys that sign the tenant of each call for the database.", CONTEXT_KEY),
        ("limit", "What tenants, job types and tools may use.", LIMIT),
        ("queue", "Pause and resume what may start.", QUEUE),
        ("webhooks", "Who is told when runs end, and who is heard.", WEBHOOKS),
        ("retention", "For how long ended runs are kept.", RETENTION),
        ("audit", "What was done, and the proof that nobody rewrote it.", AUDIT),
        ("events", "What was told to have happened, and what it started.", EVENTS),
        ("triggers", "Rules that turn times and events into jobs.", TRIGGERS),
    ):
        is_default = members is JOBS
        group = typer.Typer(
            cls=jobs.ListsByDefault if is_default else None,
            help=text,
            no_args_is_help=not is_default,
            rich_markup_mode=None,
        )
        for verb, command in members:
            group.command(verb)(command)
        program.add_typer(group, name=name)
    return program


COMMANDS: Mapping[str, Callable[..., object]] = {
    **SERVICES,
    "install": node.install,
    "migrate": migration.migrate,
    "doctor": diagnosis.doctor,
    "run": follow.run,
    "bundle": bundles.bundle,
    "runs": runs.runs,
    "status": follow.status,
    "artifacts": evidence.artifacts,
    "cancel": steering.cancel,
    "retry": steering.retry,
}
JOBS: tuple[tuple[str, Callable[..., object]], ...] = (
    ("list", jobs.list_),
    ("show", jobs.show_),
    ("register", jobs.register),
    ("approve", jobs.approve),
    ("remove", jobs.remove),
    ("require-approval", jobs.require_approval),
)
NODE: tuple[tuple[str, Callable[..., object]], ...] = (
    ("status", node.status),
    ("start", node.start),
    ("stop", node.stop),
)
LIMIT: tuple[tuple[str, Callable[..., object]], ...] = (
    ("set", limits.set_),
    ("list", limits.list_),
    ("remove", limits.remove),
)
QUEUE: tuple[tuple[str, Callable[..., object]], ...] = (
    ("pause", queues.pause),
    ("resume", queues.resume),
    ("list", queues.list_),
    ("stats", queues.stats),
)
RETENTION: tuple[tuple[str, Callable[..., object]], ...] = (
    ("set", retention.set_),
    ("list", retention.list_),
)
CONTEXT_KEY: tuple[tuple[str, Callable[..., object]], ...] = (
    ("create", context_keys.create),
    ("enforce", context_keys.enforce),
    ("list", context_keys.list_all),
    ("remove", context_keys.remove),
)
LOGIN: tuple[tuple[str, Callable[..., object]], ...] = (
    ("create", logins.create),
    ("list", logins.list_all),
    ("remove", logins.remove),
)
TOKEN: tuple[tuple[str, Callable[..., object]], ...] = (
    ("issue", tokens.issue),
    ("narrow", token_life.narrow),
    ("inspect", tokens.inspect),
    ("check", token_life.check),
    ("revoke", token_life.revoke),
    ("keys", tokens.keys),
)
EVENTS: tuple[tuple[str, Callable[..., object]], ...] = (
    ("submit", events.submit),
    ("list", events.list_events),
)
TRIGGERS: tuple[tuple[str, Callable[..., object]], ...] = (
    ("register", events.register),
    ("list", events.list_triggers),
    ("remove", events.remove),
    ("pause", events.pause),
    ("resume", events.resume),
    ("run", events.run),
    ("history", events.history),
)
WEBHOOKS: tuple[tuple[str, Callable[..., object]], ...] = (
    ("add", webhooks.add),
    ("hear", webhooks.hear),
    ("list", webhooks.list_all),
    ("remove", webhooks.remove),
)
AUDIT: tuple[tuple[str, Callable[..., object]], ...] = (
    ("list", audit.list_entries),
    ("seal", audit.seal),
    ("export", audit.export),
    ("verify", audit.verify),
    ("keys", audit.keys),
)


def help_for(given: Sequence[str]) -> str:
    """Name the help of the command that was meant, as far as one was."""
    groups = {
        "audit": AUDIT,
        "context-key": CONTEXT_KEY,
        "events": EVENTS,
        "jobs": JOBS,
        "limit": LIMIT,
        "login": LOGIN,
        "node": NODE,
        "queue": QUEUE,
        "retention": RETENTION,
        "token": TOKEN,
        "triggers": TRIGGERS,
        "webhooks": WEBHOOKS,
    }
    words = [word for word in given if not word.startswith("-")]
    known = [word for word in words[:1] if word in groups or word in COMMANDS]
    for group in (groups[word] for word in known if word in groups):
        known += [word for word in words[1:2] if word in dict(group)]
    return " ".join(("jobforge", *known, "--help"))
