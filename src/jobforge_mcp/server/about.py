"""What this installation is and what it allows, for ``jobforge://server`` and for ``doctor``: facts, and no secret."""

from __future__ import annotations

from importlib.metadata import version

from jobforge_mcp.definitions.features import FEATURES, NOT_AVAILABLE, Feature
from jobforge_mcp.definitions.json_limits import MAX_DEPTH
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import JsonObject


def describe_server(settings: Settings, *, accepts_tokens: bool) -> JsonObject:
    """Return version, features, limits and how callers are told apart."""
    return {
        "version": version("jobforge-mcp"),
        "features": describe_features(settings),
        "limits": {
            "waitSecondsDefault": settings.wait_seconds_default,
            "waitSecondsCap": settings.wait_seconds_cap,
            "maxPayloadBytes": settings.max_payload_bytes,
            "maxPayloadDepth": MAX_DEPTH,
        },
        "auth": describe_auth(settings, accepts_tokens=accepts_tokens),
        "database": "embedded" if settings.is_embedded else "external",
        "runsJobs": settings.workers,
    }


def describe_features(settings: Settings) -> JsonObject:
    """Return each feature with ``on``, the setting that would switch it on, or that this version has none."""
    known: JsonObject = {feature.name: _state(feature, settings) for feature in FEATURES}
    known["rateLimits"] = (
        "on" if settings.rate_limits_enabled else "off: unset JOBFORGE_RATE_LIMITS_ENABLED"
    )
    return {**known, **dict.fromkeys(NOT_AVAILABLE, "not available in this version")}


def describe_local_features(settings: Settings) -> str | None:
    """Say in one sentence what the local tenant has although nobody switched it on, and why; ``None`` where that is nothing."""
    names = [feature.name for feature in FEATURES if feature.is_local(settings)]
    if not names:
        return None
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{', '.join(names)} {verb} on for the local tenant, because this embedded PostgreSQL is its own; "
        "token holders have them once a setting switches them on"
    )


def _state(feature: Feature, settings: Settings) -> str:
    if feature.is_on(settings):
        return "on"
    if feature.is_local(settings):
        return f"on for the local tenant alone, whose PostgreSQL this is: set {feature.variable}=true for everybody"
    return f"off: set {feature.variable}=true to switch it on"


def describe_auth(settings: Settings, *, accepts_tokens: bool) -> JsonObject:
    """Return how HTTP and the local doors find out who calls."""
    http: JsonObject = {"mode": "bearer" if accepts_tokens else "closed: there are no token keys"}
    if settings.oauth_issuer is not None:
        http = {
            "mode": "oauth",
            "issuer": settings.oauth_issuer,
            "resource": settings.resource_url,
        }
    return {
        "http": http,
        "local": "tenant local, or the token's" if settings.is_embedded else "token",
    }
