"""Runs one command line, and says what becomes of whatever it raises.

A process that stays loads the one command that it is, and not the thirty that answer and end: `program` is for those. A
worker does not even load a parser.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

from jobforge_mcp.cli.output import (
    CALLER_EXIT,
    INTERRUPTED_EXIT,
    OPERATOR_EXIT,
    USAGE_EXIT,
    show_error,
)
from jobforge_mcp.cli.working import plain_options, work
from jobforge_mcp.errors import CallerError, JobForgeError


def run_program(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, errors included."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    is_json = "--json" in given
    try:
        if (options := plain_options(given)) is not None:
            work(options)
            return 0
        return _parse_and_run(given, is_json)
    except KeyboardInterrupt:
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


def _parse_and_run(given: list[str], is_json: bool) -> int:
    import typer

    from jobforge_mcp.cli.services import SERVICES, new_program

    if given and given[0] in SERVICES:
        program = new_program(SERVICES)
    else:
        from jobforge_mcp.cli.program import build_program

        program = build_program()
    try:
        code = typer.main.get_command(program).main(
            given, prog_name="jobforge", standalone_mode=False
        )
    except typer.TyperException as error:
        return show_error("USAGE", error.format_message(), _help_for(given), is_json, USAGE_EXIT)
    except typer.Abort:
        return INTERRUPTED_EXIT
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _help_for(given: Sequence[str]) -> str:
    from jobforge_mcp.cli.program import help_for

    return help_for(given)


def _known(error: BaseException) -> tuple[str, str, str | None] | None:
    """Return code, message and hint of an error that was raised for people; ``None`` for a fault of ours."""
    error = _innermost(error)
    if isinstance(error, JobForgeError):
        return error.code, error.message, error.hint
    from jobforge_mcp.cli.node import is_node_error

    if is_node_error(error):
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
