"""What is off until an operator switches it on, and by which setting.

A job that acts outside this database is one that a model, steered by what it read, could be made to misuse. So it is
neither listed nor run, by any door and any worker, before somebody said that this installation needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.settings import Settings, variable_name
from jobforge_mcp.types import Effects

HTTP_CONNECTOR = "connector.http.request"
WEBHOOK_CONNECTOR = "connector.webhook.deliver"


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the product with a switch."""

    name: str
    """As `jobforge doctor` and ``jobforge://server`` call it."""
    setting: str
    """Field of the settings that switches it on."""
    covers: Callable[[BoundJob], bool]
    """Whether a job needs it; that to register needs no job."""

    @property
    def variable(self) -> str:
        """The environment variable that switches it on."""
        return variable_name(self.setting)

    def is_on(self, settings: Settings) -> bool:
        """Whether this installation has it."""
        return bool(getattr(settings, self.setting))


def _sends_http(bound: BoundJob) -> bool:
    # By handler, not by name: a declarative definition over the connector is the connector.
    return bound.ref.name == HTTP_CONNECTOR


def _delivers_webhooks(bound: BoundJob) -> bool:
    return bound.ref.name == WEBHOOK_CONNECTOR


def _acts_outside(bound: BoundJob) -> bool:
    has_own_switch = _sends_http(bound) or _delivers_webhooks(bound)
    return bound.effects is Effects.EXTERNAL and not has_own_switch


def _is_no_job(_: BoundJob) -> bool:
    return False


FEATURES = (
    Feature("httpConnector", "http_connector_enabled", _sends_http),
    Feature("webhookConnector", "webhook_connector_enabled", _delivers_webhooks),
    Feature("actionJobs", "action_jobs_enabled", _acts_outside),
    Feature("registerJob", "register_job_enabled", _is_no_job),
    Feature("events", "events_enabled", _is_no_job),
    Feature("webhooks", "webhooks_enabled", _is_no_job),
    Feature("triggers", "triggers_enabled", _is_no_job),
    Feature("bundles", "bundles_enabled", _is_no_job),
)

NOT_AVAILABLE: tuple[str, ...] = ()
"""What this version does not have, and therefore no switch for."""


def missing_feature(bound: BoundJob, settings: Settings) -> Feature | None:
    """Return the feature that a job needs and this installation has switched off."""
    return next(
        (found for found in FEATURES if found.covers(bound) and not found.is_on(settings)), None
    )
