"""What is off until an operator switches it on, and by which setting.

A job that acts outside this database is one that a model, steered by what it read, could be made to misuse. So it is
neither listed nor run, by any door and any worker, before somebody said that this installation needs it. What lets callers
set up work for later (registered jobs, events, triggers) is off in the same way, with one exception that is shown wherever
features are: on embedded Postgres the local tenant has it unless the setting says no, since nobody else is in there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobforge_mcp.definitions.model import BoundJob
from jobforge_mcp.errors import PolicyDeniedError
from jobforge_mcp.settings import Settings, variable_name
from jobforge_mcp.types import Caller, Effects

HTTP_CONNECTOR = "connector.http.request"
WEBHOOK_CONNECTOR = "connector.webhook.deliver"


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the product with a switch."""

    name: str
    """As `jobforge doctor` and ``jobforge://server`` call it."""
    setting: str
    """Field of the settings that switches it on; one that may be ``None`` is the local tenant's until it is set."""
    covers: Callable[[BoundJob], bool]
    """Whether a job needs it; that to register needs no job."""

    @property
    def variable(self) -> str:
        """The environment variable that switches it on."""
        return variable_name(self.setting)

    def is_on(self, settings: Settings) -> bool:
        """Whether this installation has it for everybody."""
        return bool(getattr(settings, self.setting))

    def is_local(self, settings: Settings) -> bool:
        """Whether the local tenant alone has it, because nobody said anything and embedded Postgres is its own."""
        return getattr(settings, self.setting) is None and settings.is_embedded

    def is_on_for_some(self, settings: Settings) -> bool:
        """Whether anybody has it here, and so whether what serves it must run."""
        return self.is_on(settings) or self.is_local(settings)

    def is_on_for(self, settings: Settings, caller: Caller) -> bool:
        """Whether this caller has it; whoever came with a token is not the local tenant."""
        return self.is_on(settings) or (self.is_local(settings) and caller.token_id is None)

    def require(self, settings: Settings, caller: Caller, what: str) -> None:
        """Refuse what this caller asked for where it is off.

        Raises:
            PolicyDeniedError: ``FEATURE_DISABLED``; the hint names the setting.
        """
        if not self.is_on_for(settings, caller):
            whom = "token holders" if self.is_local(settings) else "every caller"
            raise PolicyDeniedError(
                f"{what} is switched off on this installation, for {whom}",
                code="FEATURE_DISABLED",
                hint=f"whoever operates it can set {self.variable}=true for servers and workers",
            )


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


REGISTER_JOB = Feature("registerJob", "register_job_enabled", _is_no_job)
EVENTS = Feature("events", "events_enabled", _is_no_job)
TRIGGERS = Feature("triggers", "triggers_enabled", _is_no_job)
BUNDLES = Feature("bundles", "bundles_enabled", _is_no_job)

FEATURES = (
    Feature("httpConnector", "http_connector_enabled", _sends_http),
    Feature("webhookConnector", "webhook_connector_enabled", _delivers_webhooks),
    Feature("actionJobs", "action_jobs_enabled", _acts_outside),
    REGISTER_JOB,
    EVENTS,
    Feature("webhooks", "webhooks_enabled", _is_no_job),
    TRIGGERS,
    BUNDLES,
)

NOT_AVAILABLE: tuple[str, ...] = ()
"""What this version does not have, and therefore no switch for."""


def missing_feature(bound: BoundJob, settings: Settings) -> Feature | None:
    """Return the feature that a job needs and this installation has switched off."""
    return next(
        (found for found in FEATURES if found.covers(bound) and not found.is_on(settings)), None
    )


def fires_triggers(settings: Settings) -> bool:
    """Whether a process with these settings lets triggers fire, whoever registered them."""
    return TRIGGERS.is_on_for_some(settings)
