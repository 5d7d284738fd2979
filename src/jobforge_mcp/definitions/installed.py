"""The jobs of an installation: those that ship with the package, then those that its settings name."""

from __future__ import annotations

from jobforge_mcp.definitions.features import missing_feature
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.resources import job_definitions_folder
from jobforge_mcp.settings import Settings


def load_registry(settings: Settings) -> Registry:
    """Load every job that this installation knows; what needs a feature that is off is known to be off.

    Raises:
        DefinitionError: one of them is wrong, or two have one name.
    """
    jobs = load_jobs([job_definitions_folder(), *settings.jobs])
    missing = {bound.name: missing_feature(bound, settings) for bound in jobs}
    off = {name: feature.variable for name, feature in missing.items() if feature is not None}
    return Registry(
        jobs,
        switched_off=off,
        payload_scan=settings.payload_scan,
        max_payload_bytes=settings.max_payload_bytes,
    )
