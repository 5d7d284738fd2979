"""All commands in one table, and what becomes of whatever they raise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import cast

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
    serving,
    steering,
    token_life,
    tokens,
    webhooks,
)
from jobforge_mcp.cli.output import (
    CALLER_EXIT,
    INTERRUPTED_EXIT,
    OPERATOR_EXIT,
    USAGE_EXIT,
    show_error,
)
from jobforge_mcp.errors import CallerError, JobForgeError


def run_program(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, errors included."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    is_json = "--json" in given
    try:
        command = typer.main.get_command(build_program())
        code = command.main(given, prog_name="jobforge", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return show_error("USAGE", error.format_message(), _help_for(given), is_json, USAGE_EXIT)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED_EXIT
    except Exception as error:
        if isinstance(_innermost(error), BrokenPipeError):
            # Whoever read our output has enough; without this the interpreter complains at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CALLER_EXIT
        known = _known(error)
        if known is None:
            raise
        return show_error(*known, is_json, _exit_code(error))
    return code if isinstance(code, int) else 0


def build_program() -> typer.Typer:
    """Assemble the commands."""
    program = typer.Typer(
        name="jobforge",
        help="Jobs for AI agents: work that survives the call that asked for it, on Postgres.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, command in COMMANDS.items():
        program.command(name)(command)
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
    program.callback()(_describe_version)
    return program


COMMANDS: Mapping[str, Callable[..., object]] = {
    "serve": serving.serve,
    "worker": serving.worker,
    "demo": serving.demo,
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


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"jobforge-mcp {version('jobforge-mcp')}")
        raise typer.Exit


def _describe_version(
    _: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _help_for(given: Sequence[str]) -> str:
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


def _known(error: BaseException) -> tuple[str, str, str | None] | None:
    """Return code, message and hint of an error that was raised for people; ``None`` for a fault of ours."""
    error = _innermost(error)
    if isinstance(error, JobForgeError):
        return error.code, error.message, error.hint
    if node.is_node_error(error):
        return "NODE", error.message, error.hint or None
    return None


def _exit_code(error: BaseException) -> int:
    return CALLER_EXIT if isinstance(_innermost(error), CallerError) else OPERATOR_EXIT


def _innermost(error: BaseException) -> BaseException:
    """Task groups wrap what is raised in them, even a single error."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _innermost(group.exceptions[0]) if len(group.exceptions) == 1 else group
