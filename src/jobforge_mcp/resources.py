"""Find the files that the package needs and that are not Python modules of it: ``sql/`` and ``job_definitions/``.

A wheel carries both inside the package, as ``_sql`` and ``_job_definitions``. An editable install runs from a checkout,
where they lie at the top. Nothing else in the package may know of the two places.
"""

from __future__ import annotations

from pathlib import Path

from jobforge_mcp.errors import OperatorError

_PACKAGE = Path(__file__).resolve().parent


def sql_folder() -> Path:
    """Return the folder with ``migrations/``, ``functions/`` and ``policies/``."""
    return _find("sql")


def job_definitions_folder() -> Path:
    """Return the folder with one folder of job definitions per domain."""
    return _find("job_definitions")


def _find(name: str) -> Path:
    in_wheel = _PACKAGE / f"_{name}"
    in_checkout = _PACKAGE.parents[1] / name
    for folder in (in_wheel, in_checkout):
        if folder.is_dir():
            return folder
    raise OperatorError(
        f"the installation has no {name}: neither {in_wheel} nor {in_checkout} is a folder",
        hint="install jobforge-mcp again, from a wheel or from a complete checkout",
    )
