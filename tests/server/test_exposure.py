from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.server.exposure import check_exposure
from jobforge_mcp.server.http import serve_http
from jobforge_mcp.settings import load_settings
from tests.postgres import ScratchDatabase
from tests.server.stage import open_stage

OPEN = {"http_connector_enabled": True, "http_allow_private": True}


@pytest.mark.requirement("server.exposure")
@pytest.mark.parametrize(
    ("overrides", "accepts_tokens", "said"),
    [
        ({"host": "0.0.0.0"}, False, "without token keys"),  # noqa: S104
        ({"http_connector_enabled": True}, False, "without token keys"),
        ({"action_jobs_enabled": True}, False, "without token keys"),
        ({"webhooks_enabled": True}, True, "events are switched off"),
        ({"register_job_enabled": True}, False, "what runs later"),
        ({"triggers_enabled": True}, False, "what runs later"),
        ({**OPEN, "host": "0.0.0.0"}, True, "own network"),  # noqa: S104
        ({**OPEN, "allowed_hosts": "jobs.example"}, True, "own network"),
        ({"rate_limits_enabled": False, "host": "0.0.0.0"}, True, "held to no rate"),  # noqa: S104
        ({"rate_limits_enabled": False, "action_jobs_enabled": True}, True, "without rates"),
    ],
)
def test_settings_that_are_unsafe_together_are_refused_with_the_reason(
    overrides: dict[str, object], accepts_tokens: bool, said: str
) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        check_exposure(load_settings(**overrides), accepts_tokens=accepts_tokens)

    assert "JOBFORGE_" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("overrides", "accepts_tokens"),
    [
        ({}, False),
        (OPEN, True),
        ({"rate_limits_enabled": False}, True),
        ({"host": "0.0.0.0", "http_connector_enabled": True}, True),  # noqa: S104
        ({"host": "0.0.0.0", "http_allow_private": True}, True),  # noqa: S104
    ],
)
def test_settings_that_are_safe_together_are_served(
    overrides: dict[str, object], accepts_tokens: bool
) -> None:
    check_exposure(load_settings(**overrides), accepts_tokens=accepts_tokens)


@pytest.mark.requirement("server.exposure")
async def test_an_unsafe_server_does_not_start(database: ScratchDatabase, tmp_path: Path) -> None:
    overrides: dict[str, object] = {**OPEN, "allowed_hosts": "jobs.example"}
    async with open_stage(database, tmp_path, has_pool=False, **overrides) as stage:
        with pytest.raises(SettingsError, match="own network"), anyio.fail_after(60):
            await serve_http(stage.parts, stop=anyio.Event())


KEYS = {"token_keys": "jwks.json"}
BOTH = {"oauth_issuer": "https://login.example", "resource_url": "https://jobs.example/mcp"}


@pytest.mark.requirement("server.exposure")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"oauth_issuer": "https://login.example", **KEYS}, "go together"),
        ({"resource_url": "https://jobs.example", **KEYS}, "go together"),
        (BOTH, "public keys"),
        ({**BOTH, **KEYS, "token_audience": "jobforge"}, "JOBFORGE_TOKEN_AUDIENCE"),
        ({**BOTH, **KEYS, "token_issuer": "jobforge"}, "JOBFORGE_TOKEN_ISSUER"),
        ({**BOTH, **KEYS, "oauth_issuer": "http://login.example"}, "https"),
        ({**BOTH, **KEYS, "oauth_issuer": "login.example"}, "plain"),
        ({**BOTH, **KEYS, "resource_url": "http://jobs.example/mcp"}, "https"),
        ({**BOTH, **KEYS, "resource_url": "https://Jobs.example/mcp"}, "small-letter"),
        ({**BOTH, **KEYS, "resource_url": "https://jobs.example:443/mcp"}, "default port"),
        ({**BOTH, **KEYS, "resource_url": "https://jobs.example/mcp/"}, "slash"),
        ({**BOTH, **KEYS, "resource_url": "https://jobs.example/"}, "slash"),
        ({**BOTH, **KEYS, "resource_url": "https://jobs.example/mcp#a"}, "plain"),
        ({**BOTH, **KEYS, "resource_url": "https://u:p@jobs.example/mcp"}, "plain"),
        ({**BOTH, **KEYS, "resource_url": 'https://jobs.example/"'}, "plain"),
        ({**BOTH, **KEYS, "resource_url": "https://jobs.example:99999/mcp"}, "not a URL"),
    ],
)
def test_half_an_oauth_server_is_refused(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        load_settings(**overrides)

    assert caught.value.hint
    assert "u:p" not in caught.value.message


def test_issuer_and_audience_follow_from_the_oauth_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBFORGE_OAUTH_ISSUER", "https://login.example/")
    monkeypatch.setenv("JOBFORGE_RESOURCE_URL", "http://127.0.0.1:8377/mcp")
    monkeypatch.setenv("JOBFORGE_TOKEN_KEYS", "jwks.json")

    settings = load_settings()

    assert settings.token_issuer == "https://login.example/"
    assert settings.token_audience == "http://127.0.0.1:8377/mcp"
