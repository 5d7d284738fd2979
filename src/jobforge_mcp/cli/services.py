"""The commands that stay, and the program that holds them, which every other command joins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import typer

from jobforge_mcp.cli import serving

SERVICES: Mapping[str, Callable[..., object]] = {
    "serve": serving.serve,
    "worker": serving.worker,
    "demo": serving.demo,
}


def new_program(commands: Mapping[str, Callable[..., object]]) -> typer.Typer:
    """Assemble a program of these commands."""
    program = typer.Typer(
        name="jobforge",
        help="Jobs for AI agents: work that survives the call that asked for it, on Postgres.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, command in commands.items():
        program.command(name)(command)
    program.callback()(_describe_version)
    return program


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
