"""Refuse to serve where the settings, each harmless by itself, would together let strangers in or our jobs out."""

from __future__ import annotations

import ipaddress

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.settings import Settings


def check_exposure(settings: Settings, *, accepts_tokens: bool) -> None:
    """Look at what HTTP is about to open.

    Raises:
        SettingsError: A combination that is not safe; the message says why.
    """
    check_address(settings.host, accepts_tokens=accepts_tokens)
    connects = settings.http_connector_enabled or settings.webhook_connector_enabled
    acts_outside = connects or settings.action_jobs_enabled
    if acts_outside and not accepts_tokens:
        raise SettingsError(
            "jobs that act outside are switched on, and without token keys nobody could be held to account for them",
            hint="set JOBFORGE_TOKEN_KEYS, or leave JOBFORGE_HTTP_CONNECTOR_ENABLED, JOBFORGE_WEBHOOK_CONNECTOR_ENABLED "
            "and JOBFORGE_ACTION_JOBS_ENABLED unset",
        )
    if settings.webhooks_enabled and not settings.events_enabled:
        raise SettingsError(
            "deliveries of webhooks become events, and events are switched off",
            hint="set JOBFORGE_EVENTS_ENABLED=true, or leave JOBFORGE_WEBHOOKS_ENABLED unset",
        )
    plans_ahead = settings.register_job_enabled or settings.triggers_enabled
    if plans_ahead and not accepts_tokens:
        raise SettingsError(
            "callers may set up what runs later, and without token keys nobody could be held to account for it",
            hint="set JOBFORGE_TOKEN_KEYS, or leave JOBFORGE_REGISTER_JOB_ENABLED and JOBFORGE_TRIGGERS_ENABLED unset",
        )
    if connects and settings.http_allow_private and is_open(settings):
        raise SettingsError(
            f"callers from elsewhere ({settings.host}) could reach this machine's own network through the connectors",
            hint="unset JOBFORGE_HTTP_ALLOW_PRIVATE, or bind loopback and name no public JOBFORGE_RESOURCE_URL",
        )
    if not settings.rate_limits_enabled and is_open(settings):
        raise SettingsError(
            f"callers from elsewhere ({settings.host}) would be held to no rate, whatever was set for them",
            hint="unset JOBFORGE_RATE_LIMITS_ENABLED, or bind loopback and name no public JOBFORGE_RESOURCE_URL",
        )
    if not settings.rate_limits_enabled and acts_outside:
        raise SettingsError(
            "jobs that act outside are switched on, and without rates nothing would slow down an agent that was talked into one",
            hint="unset JOBFORGE_RATE_LIMITS_ENABLED, or the settings that switched these jobs on",
        )


def check_address(host: str, *, accepts_tokens: bool) -> None:
    """Refuse to be reachable from elsewhere while nobody could be told apart.

    Raises:
        SettingsError: The address is not loopback and there are no token keys.
    """
    if not accepts_tokens and not is_loopback(host):
        raise SettingsError(
            f"without token keys HTTP binds loopback only, and {host} is not",
            hint="set JOBFORGE_TOKEN_KEYS and issue tokens with: jobforge token issue --tenant TENANT --all-scopes",
        )


def is_open(settings: Settings) -> bool:
    """Whether callers from elsewhere are expected: by the bound address, or through a proxy on loopback."""
    return (
        not is_loopback(settings.host)
        or bool(settings.allowed_hosts)
        or (settings.resource_url is not None and settings.resource_url.startswith("https:"))
    )


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
