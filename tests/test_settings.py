"""Settings: sources and their order, safe defaults, and errors a person can act on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobforge_mcp.embedded.places import state_directory
from jobforge_mcp.errors import SettingsError
from jobforge_mcp.settings import (
    Settings,
    clear_token_from_environment,
    load_settings,
    variable_name,
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test starts in an empty folder with none of our variables set."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)
    monkeypatch.delenv("JOBFORGE_DATABASE_URL", raising=False)


def test_the_defaults_are_embedded_loopback_and_closed() -> None:
    settings = load_settings()

    assert settings.is_embedded
    assert (settings.host, settings.port) == ("127.0.0.1", 8377)
    assert settings.token is None
    assert settings.http_allow_private is False
    assert settings.http_allow_ports == (80, 443)
    assert settings.heartbeat_interval_ms == settings.lease_ms // 3


def test_a_command_line_beats_the_environment_which_beats_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("jobforge.toml").write_text("port = 1001\nhost = '127.0.0.2'\npoll_ms = 50\n")
    monkeypatch.setenv("JOBFORGE_PORT", "1002")
    monkeypatch.setenv("JOBFORGE_HOST", "127.0.0.3")

    settings = load_settings(port=1003, host=None)

    assert (settings.port, settings.host, settings.poll_ms) == (1003, "127.0.0.3", 50)


@pytest.mark.parametrize("name", ["DATABASE_URL", "JOBFORGE_DATABASE_URL"])
def test_both_names_of_the_database_url_are_read(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "postgresql://u:secret@db/jobs")

    settings = load_settings()

    assert not settings.is_embedded
    assert settings.url_for("api") == "postgresql://u:secret@db/jobs"
    assert settings.url_for("worker") == "postgresql://u:secret@db/jobs"


def test_each_role_may_have_a_url_of_its_own() -> None:
    settings = load_settings(database_url="postgresql://a/", worker_database_url="postgresql://w/")

    assert settings.url_for("api") == "postgresql://a/"
    assert settings.url_for("worker") == "postgresql://w/"
    assert settings.url_for("admin") == "postgresql://a/"


def test_lists_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBFORGE_ALLOWED_HOSTS", "jobs.example.com, jobs.example.com:8443,")
    monkeypatch.setenv("JOBFORGE_HTTP_ALLOW_PORTS", "80, 8080")

    settings = load_settings()

    assert settings.allowed_hosts == ("jobs.example.com", "jobs.example.com:8443")
    assert settings.http_allow_ports == (80, 8080)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBFORGE_PORT", "")
    monkeypatch.setenv("DATABASE_URL", "")

    assert load_settings().port == 8377
    assert load_settings().is_embedded


def test_secrets_never_print() -> None:
    settings = load_settings(token="canary-token", database_url="postgresql://u:canary-word@db/x")

    shown = f"{settings!r} {settings} {settings.model_dump()!r} {settings.model_dump_json()}"

    assert "canary" not in shown


def test_an_error_about_a_secret_does_not_quote_it() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(token=["canary"], database_url={"canary": 1})

    assert "canary" not in f"{caught.value!r} {caught.value.hint}"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("JOBFORGE_PORT", "99999", "JOBFORGE_PORT must be at most 65535"),
        ("JOBFORGE_PORT", "x", "JOBFORGE_PORT must be a whole number"),
        ("JOBFORGE_PORT", "-1", "JOBFORGE_PORT must be at least 0"),
        ("JOBFORGE_BEAT_SECONDS", "0", "JOBFORGE_BEAT_SECONDS must be more than 0"),
        ("JOBFORGE_BEAT_SECONDS", "soon", "JOBFORGE_BEAT_SECONDS must be a number"),
        ("JOBFORGE_WORKERS", "maybe", "JOBFORGE_WORKERS must be true or false"),
        ("JOBFORGE_NODE", "on", "JOBFORGE_NODE must be 'auto' or 'off'"),
    ],
)
def test_a_wrong_value_is_named_with_its_limit_and_meaning(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert caught.value.message == message
    assert caught.value.code == "SETTINGS"
    assert caught.value.hint


def test_an_unknown_setting_in_the_file_is_refused_with_the_likely_name() -> None:
    Path("jobforge.toml").write_text("prot = 1\n")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert caught.value.message == "there is no setting 'prot'"
    assert caught.value.hint == "did you mean 'port'?"


def test_a_file_that_is_not_toml_is_named() -> None:
    Path("jobforge.toml").write_text("port == 1")

    with pytest.raises(SettingsError, match=r"jobforge\.toml is not valid TOML"):
        load_settings()


def test_contradictions_are_refused() -> None:
    with pytest.raises(SettingsError, match="more than half"):
        load_settings(lease_ms=1_000, heartbeat_ms=600)
    with pytest.raises(SettingsError, match="WAIT_SECONDS_CAP"):
        load_settings(wait_seconds_default=30, wait_seconds_cap=10)


def test_settings_are_frozen() -> None:
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.port = 1


def test_every_setting_is_described() -> None:
    undescribed = [name for name, info in Settings.model_fields.items() if not info.description]

    assert undescribed == []


def test_the_token_can_be_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBFORGE_TOKEN", "canary")
    settings = load_settings()

    clear_token_from_environment()

    assert settings.token is not None
    assert load_settings().token is None


def test_the_keeper_finds_the_same_state_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load_settings().state_dir == state_directory()

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_settings().state_dir == state_directory()

    monkeypatch.setenv("JOBFORGE_STATE_DIR", "~/elsewhere")
    assert load_settings().state_dir == state_directory()
