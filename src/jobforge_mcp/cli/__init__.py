"""The command line: ``serve`` and ``worker`` for machines, the tools' verbs, ``doctor`` and the rest for people.

Not empty as other packages' ``__init__`` are: to ``entry`` this is one module, ``cli``. Everything heavy is imported by
the command that needs it, so that ``jobforge --help`` stays light.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the caller's mistake, 2 wrong usage, 3 the operator's turn."""
    from jobforge_mcp.cli.running import run_program

    return run_program(arguments)
