"""Read the settings of an installation, once, into one frozen object.

Sources, strongest first: what a command was told on its command line, the environment (``JOBFORGE_*`` and
``DATABASE_URL``), ``jobforge.toml`` in the working directory, the defaults below. Nothing else in the package reads the
environment, except the keeper and the bridge, which start before pydantic could be loaded and know
``JOBFORGE_STATE_DIR``, ``JOBFORGE_NODE`` and the like by themselves.

Secrets are ``SecretStr``: they print as asterisks, and an error about them never quotes them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from jobforge_mcp.errors import SettingsError

SETTINGS_FILE = "jobforge.toml"
"""File in the working directory that may hold any setting under its field name."""

_MEBIBYTE = 1024 * 1024


def _split(value: object) -> object:
    """Let a list be written as ``a, b`` in the environment."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


_Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
_Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], BeforeValidator(_split)]


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def default_state_dir() -> Path:
    """Return where the local node keeps its data unless it is told otherwise.

    The system's state directory for root, whose home is often unreadable for the account that Postgres runs as; the
    user's data directory for everybody else. The bridge and the keeper follow the same rule without this module.
    """
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "jobforge"
    if os.geteuid() == 0:
        return Path("/var/lib/jobforge")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "jobforge"
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification: a relative path in it is invalid and to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "jobforge"


class Settings(BaseModel):
    """Every setting of a server, worker, node or command. Frozen: a process keeps what it started with."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    database_url: SecretStr | None = None
    """Postgres for callers: a connection that is, or may become, role ``jobforge_api``. Unset: the embedded Postgres."""

    worker_database_url: SecretStr | None = None
    """Postgres for workers, as role ``jobforge_worker``. Unset: the same as ``database_url``."""

    scheduler_database_url: SecretStr | None = None
    """Postgres for due schedules and events that wait, as role ``jobforge_scheduler``. Unset: the connections of
    workers do that as well."""

    admin_database_url: SecretStr | None = None
    """Postgres for ``migrate`` alone, as the owner of the database. Unset: the same as ``database_url``."""

    audit_database_url: SecretStr | None = None
    """Postgres for sealing and exporting the audit log, as role ``jobforge_auditor``. Unset: the same as ``database_url``."""

    context_key: SecretStr | None = None
    """Key that signs the tenant of each call, printed once by ``jobforge context-key create``. Unset on embedded Postgres:
    one made by itself; unset elsewhere: nothing is signed."""

    database_pool_size: int = Field(default=8, ge=1, le=500)
    """Most connections a process opens for each of its roles."""

    token: SecretStr | None = None
    """Policy token that stdio and the command line present. Unset on embedded Postgres: the local tenant."""

    token_keys: str | None = None
    """Public keys that policy tokens are checked with: a JWKS file, a folder of keys, JWKS text itself, or the URL at
    which the issuer publishes them. Unset on embedded Postgres: the folder ``keys`` in the state directory, made on first
    use."""

    token_keys_allow_private: bool = False
    """Whether ``token_keys`` may be a URL on loopback or a private network. Only for an issuer of your own in there."""

    token_audience: str = Field(default="jobforge", min_length=1, max_length=512)
    """What a token's ``aud`` must name; on a public server its own canonical URL."""

    token_issuer: str = Field(default="jobforge", min_length=1, max_length=512)
    """What a token's ``iss`` must be, and what ``token issue`` writes there."""

    audit_keys: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Folder of the key that seals the audit log, made on first use; without it nothing is sealed. Unset on embedded
    Postgres: the folder ``audit-keys`` in the state directory."""

    audit_seal_seconds: float = Field(default=10, ge=0, le=86_400)
    """Seconds between two rounds of sealing the audit log; 0 leaves it to ``jobforge audit seal``."""

    payload_scan: Literal["refuse", "warn", "off"] = "refuse"
    """What becomes of an input that holds an obvious key or token: ``refuse`` it, only ``warn`` in the log, or nothing."""

    secrets_dir: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Folder with one file for each secret of the workers, named as the secret; asked after the environment."""

    secrets_command: str | None = None
    """Command that prints the secret whose name it gets as its last argument; asked after the environment and the folder."""

    secret_references: _Words = ()
    """Secrets that inputs may name as ``secret://NAME``, comma separated: ``NAME``, ``NAME@HOST`` for requests to that
    host alone, ``TENANT/NAME@HOST`` for one tenant; ``*`` stands for anything. Empty: none. A definition's own fixed input
    may name every secret."""

    oauth_issuer: str | None = Field(default=None, min_length=1, max_length=512)
    """Issuer URL of the OAuth server that gives out tokens. Set: HTTP tells clients where to get one, and
    ``token_issuer`` and ``token_audience`` follow from this and ``resource_url``."""

    resource_url: str | None = Field(default=None, min_length=1, max_length=512)
    """This server's own URL as OAuth clients know it, such as ``https://jobs.example/mcp``; goes with ``oauth_issuer``."""

    state_dir: Annotated[Path, AfterValidator(_absolute)] = Field(default_factory=default_state_dir)
    """Folder of the local node: embedded Postgres, keys, locks, logs."""

    node: Literal["auto", "off"] = "auto"
    """``auto``: stdio talks to the one local node, which is started when none runs. ``off``: each process works alone."""

    node_linger_seconds: float = Field(default=60, ge=0, le=86_400)
    """Seconds the local node outlives its last client when nothing runs or is due within ten minutes."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    """Address that HTTP binds. Without token keys only loopback is accepted."""

    port: int = Field(default=8377, ge=0, le=65535)
    """Port that HTTP binds; 0 takes a free one."""

    allowed_hosts: _Words = ()
    """``Host`` headers that HTTP answers besides loopback's, comma separated, ``name`` or ``name:port``."""

    allowed_origins: _Words = ()
    """``Origin`` headers that HTTP accepts from browsers besides loopback's, comma separated."""

    most_sessions: int = Field(default=1_000, ge=1, le=10_000)
    """Sessions of the older protocol eras, and SSE connections, that HTTP keeps at a time."""

    most_sessions_per_caller: int = Field(default=50, ge=1, le=10_000)
    """The same for one subject of one tenant."""

    session_idle_seconds: float = Field(default=1_800, ge=1, le=86_400)
    """Seconds after which a session that nobody uses ends."""

    request_seconds: float = Field(default=30, gt=0, le=3_600)
    """Seconds a client has to send a whole request; then the server hangs up."""

    workers: bool = True
    """Whether a server also runs jobs. Off: separate ``jobforge worker`` processes do."""

    worker_concurrency: int = Field(default=10, ge=1, le=1_000)
    """Jobs that one process runs at the same time."""

    process_children: int = Field(default=2, ge=0, le=64)
    """Warm child processes kept ready for jobs with ``isolation: process``."""

    child_memory_mb: int = Field(default=0, ge=0, le=1_048_576)
    """Mebibytes of address space a child process may take; 0 sets no limit."""

    child_cpu_seconds: int = Field(default=0, ge=0, le=604_800)
    """Seconds of CPU a job may use in its child process before that is ended; 0 sets no limit."""

    child_processes: int = Field(default=0, ge=0, le=1_000_000)
    """Processes the account of a worker may have before a job can start no more; 0 sets no limit, and root has none."""

    wait_seconds_default: float = Field(default=20, ge=0, le=600)
    """Seconds ``execute-job`` waits for the result when the caller does not say."""

    wait_seconds_cap: float = Field(default=45, ge=0, le=600)
    """Seconds a call waits at most, whatever the caller says: many hosts give up after 60."""

    beat_seconds: float = Field(default=10, gt=0, le=60)
    """Seconds after which a waiting call sends progress even when nothing changed."""

    lease_ms: int = Field(default=30_000, ge=500, le=3_600_000)
    """Milliseconds a worker holds a job without a heartbeat before anyone may claim it again."""

    heartbeat_ms: int | None = Field(default=None, ge=100, le=1_800_000)
    """Milliseconds between heartbeats, at most half the lease. Unset: a third of the lease."""

    poll_ms: int = Field(default=1_000, ge=10, le=60_000)
    """Milliseconds after which an idle worker looks for jobs although no wake-up came; five times as many, at most 5 s, where it
    hears wake-ups and knows of nothing that is due before."""

    drain_grace_seconds: float = Field(default=30, ge=0, le=3_600)
    """Seconds that running jobs get to finish after SIGTERM before they are released."""

    kill_grace_seconds: float = Field(default=5, ge=0, le=600)
    """Seconds between asking a child process to stop and killing it."""

    max_payload_bytes: int = Field(default=_MEBIBYTE, ge=1_024, le=_MEBIBYTE)
    """Bytes of JSON text that an input may have, by whatever tool, client, event or handler; the database's own limit is 1 MiB,
    and that of plain SQL is set with ``jobforge limit set``."""

    artifact_dir: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Folder for artifacts that are too large for the database, shared by all workers and servers. Unset: the folder
    ``artifacts`` in the state directory."""

    artifact_url: str | None = Field(
        default=None, pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._/-]*)?$"
    )
    """S3-compatible store for them instead, as ``s3://BUCKET/PREFIX``; needs the extra ``s3``, and takes endpoint, region and
    credentials from the usual ``AWS_*`` variables."""

    artifact_inline_bytes: int = Field(default=65_536, ge=0, le=_MEBIBYTE)
    """Bytes up to which an artifact lies in the database itself."""

    artifact_max_bytes: int = Field(default=64 * _MEBIBYTE, ge=1_024, le=5_368_709_120)
    """Bytes that one artifact may have."""

    artifacts_per_attempt: int = Field(default=100, ge=1, le=1_000)
    """Artifacts that one attempt of a run may make."""

    artifact_days: float = Field(default=0, ge=0, le=36_500)
    """Days after which artifacts are deleted, unless the handler said otherwise; 0 keeps them as long as their run."""

    jobs: _Words = ()
    """Further job definitions to load, comma separated: files, folders, or importable modules."""

    rate_limits_enabled: bool = True
    """Whether the rates (``rps``) of tenants, job types, tools and tokens hold for calls through this process. Off only for
    measurements and closed installations: budgets, queues and sizes hold all the same."""

    action_jobs_enabled: bool = False
    """Whether jobs with ``effects: external`` are listed and run."""

    events_enabled: bool | None = None
    """Whether events may be submitted and listed through tools, clients and commands. Unset: by the local tenant on embedded
    Postgres, and by nobody else."""

    triggers_enabled: bool | None = None
    """Whether triggers may be registered and listed, and whether this process lets those that exist fire. Unset: for the
    local tenant on embedded Postgres, and for nobody else."""

    event_depth_most: int = Field(default=20, ge=1, le=1_000)
    """Events of one trace that start jobs one after the other, before the loop guard stops the next."""

    http_connector_enabled: bool = False
    """Whether ``connector.http.request``, and what is composed over it, is listed and run."""

    webhook_connector_enabled: bool = False
    """Whether ``connector.webhook.deliver``, and what is composed over it, is listed and run. Completion webhooks need it."""

    webhooks_enabled: bool = False
    """Whether HTTP hears deliveries at ``/hooks/TENANT/NAME``, checked by their signature alone. Needs events."""

    register_job_enabled: bool | None = None
    """Whether jobs may be registered, approved and removed through tools, clients and commands. Unset: by the local tenant
    on embedded Postgres, and by nobody else."""

    bundles_enabled: bool = False
    """Whether ``execute-bundle`` is listed and allowed; the client and ``jobforge bundle`` always may."""

    http_allow_hosts: _Words = ()
    """Hosts the connectors may call, comma separated, ``*.example.com`` for all below. Empty: every public one."""

    http_allow_ports: _Ports = (80, 443)
    """Ports the connectors may call, comma separated."""

    http_allow_private: bool = False
    """Whether the connectors may reach loopback and private addresses. Only for closed test networks."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged to stderr."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """``json`` lines or ``console`` text; ``auto`` is console on a terminal."""

    @model_validator(mode="before")
    @classmethod
    def _read_sources(cls, given: object) -> object:
        """Add what environment and file say, and let issuer and audience of tokens be those of the OAuth server, unless named."""
        if not isinstance(given, Mapping):
            return given
        told = cast("Mapping[str, object]", given)
        found = {**_read_file(), **_read_environment(cls.model_fields), **told}
        pairs = (("token_issuer", "oauth_issuer"), ("token_audience", "resource_url"))
        return {**{name: found[source] for name, source in pairs if found.get(source)}, **found}

    @model_validator(mode="after")
    def _refuse_unsafe_oauth(self) -> Settings:
        if self.oauth_issuer is None and self.resource_url is None:
            return self
        if self.oauth_issuer is None or self.resource_url is None:
            raise _unsafe(
                "JOBFORGE_OAUTH_ISSUER and JOBFORGE_RESOURCE_URL go together, and one of them is not set",
                "set both, or none for tokens of your own",
            )
        if problem := _url_problem(self.oauth_issuer):
            raise _unsafe(f"JOBFORGE_OAUTH_ISSUER {problem}", "name it as its tokens do in iss")
        if problem := _url_problem(self.resource_url, is_resource=True):
            hint = "name the URL that clients are given, such as https://jobs.example/mcp"
            raise _unsafe(f"JOBFORGE_RESOURCE_URL {problem}", hint)
        if (self.token_issuer, self.token_audience) != (self.oauth_issuer, self.resource_url):
            raise _unsafe(
                "JOBFORGE_TOKEN_ISSUER or JOBFORGE_TOKEN_AUDIENCE is not that of the OAuth settings",
                "leave both unset: they follow from JOBFORGE_OAUTH_ISSUER and JOBFORGE_RESOURCE_URL",
            )
        if self.token_keys is None:
            raise _unsafe(
                "without the public keys of the OAuth server none of its tokens could be checked",
                "set JOBFORGE_TOKEN_KEYS to the URL of its JWKS, or to a file with it",
            )
        return self

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Settings:
        if self.heartbeat_ms is not None and self.heartbeat_ms * 2 > self.lease_ms:
            raise PydanticCustomError(
                "contradiction",
                "JOBFORGE_HEARTBEAT_MS is more than half of JOBFORGE_LEASE_MS, so one late heartbeat would lose the lease",
            )
        if self.wait_seconds_default > self.wait_seconds_cap:
            raise PydanticCustomError(
                "contradiction", "JOBFORGE_WAIT_SECONDS_DEFAULT is above JOBFORGE_WAIT_SECONDS_CAP"
            )
        return self

    @model_validator(mode="after")
    def _refuse_foreign_keys(self) -> Settings:
        if not self.has_remote_keys:
            return self
        assert self.token_keys is not None
        if problem := _url_problem(self.token_keys):
            raise _unsafe(f"JOBFORGE_TOKEN_KEYS {problem}", "name the issuer's own jwks_uri")
        if _origin(self.token_keys) != _origin(self.token_issuer):
            raise _unsafe(
                "JOBFORGE_TOKEN_KEYS is a URL of somebody else than the issuer of the tokens",
                "set JOBFORGE_OAUTH_ISSUER, or JOBFORGE_TOKEN_ISSUER, to a URL of the same host",
            )
        return self

    @property
    def has_remote_keys(self) -> bool:
        """Whether the keys of policy tokens are fetched from a URL."""
        return self.token_keys is not None and self.token_keys.startswith(("https://", "http://"))

    @property
    def is_embedded(self) -> bool:
        """Whether the embedded Postgres is to be used, because no other was named."""
        return self.database_url is None

    @property
    def heartbeat_interval_ms(self) -> int:
        """Milliseconds between heartbeats, as set or derived from the lease."""
        return self.heartbeat_ms if self.heartbeat_ms is not None else self.lease_ms // 3

    @property
    def artifacts_path(self) -> Path:
        """Folder of large artifacts, and of those on their way to a store elsewhere."""
        return self.artifact_dir or self.state_dir / "artifacts"

    @property
    def scheduler_url(self) -> str | None:
        """The plain connection URL of the scheduler's own login, if it has one, to be shown to nobody."""
        url = self.scheduler_database_url
        return None if url is None else url.get_secret_value()

    @property
    def keys_dir(self) -> Path:
        """Folder of the keys that the embedded default makes on first use."""
        return self.state_dir / "keys"

    def url_for(self, role: Literal["api", "worker", "admin", "auditor"]) -> str | None:
        """Return the plain connection URL for a role, to be given to the pool and shown to nobody.

        ``None`` means that the embedded Postgres serves this installation.
        """
        special = {
            "api": None,
            "worker": self.worker_database_url,
            "admin": self.admin_database_url,
            "auditor": self.audit_database_url,
        }
        url = special[role] or self.database_url
        return url.get_secret_value() if url is not None else None


def load_settings(**overrides: object) -> Settings:
    """Read all sources; ``overrides`` win, and an override that is ``None`` was not given.

    Raises:
        SettingsError: A value is malformed, out of range or contradicts another; the message names the setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # pyright: ignore[reportArgumentType]  # validated by the call itself
    except ValidationError as error:
        # Not chained: pydantic's own text would show in a traceback beside ours.
        raise _explain(error.errors(include_url=False, include_input=False)[0]) from None


def _read_environment(fields: Iterable[str]) -> dict[str, str]:
    """Return what is set by variables; an empty one is not set, and capitals do not matter."""
    variables = {name.upper(): value for name, value in os.environ.items() if value}
    found = {
        field: variables[f"JOBFORGE_{field.upper()}"]
        for field in fields
        if f"JOBFORGE_{field.upper()}" in variables
    }
    if "DATABASE_URL" in variables:
        found.setdefault("database_url", variables["DATABASE_URL"])
    return found


def _read_file() -> dict[str, object]:
    file = Path(SETTINGS_FILE)
    if not file.is_file():
        return {}
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _unsafe(
            f"{SETTINGS_FILE} is not valid TOML: {error}", f"mend or remove {file.absolute()}"
        ) from None


def clear_token_from_environment() -> None:
    """Forget ``JOBFORGE_TOKEN`` and ``JOBFORGE_CONTEXT_KEY``: no handler, child process or crash report inherits them."""
    os.environ.pop("JOBFORGE_TOKEN", None)
    os.environ.pop("JOBFORGE_CONTEXT_KEY", None)


def variable_name(field: str) -> str:
    """Return the environment variable that sets a field, as messages and docs call it."""
    return "DATABASE_URL" if field == "database_url" else f"JOBFORGE_{field.upper()}"


def _unsafe(message: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("unsafe", "{message}", {"message": message, "hint": hint})


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _url_problem(url: str, *, is_resource: bool = False) -> str | None:
    """Say why a URL cannot be one that is compared letter by letter; ``None`` when it can."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    host = parts.hostname or ""
    if not _PLAIN_URL.fullmatch(url) or not host or parts.username is not None:
        return "is not a plain http or https URL without query and fragment"
    is_near = host == "localhost" or host.startswith("127.") or host == "::1"
    if parts.scheme != "https" and not is_near:
        return "must be an https URL: tokens must not travel in the clear"
    if parts.netloc != parts.netloc.lower() or port == {"http": 80, "https": 443}[parts.scheme]:
        return "must be written with a small-letter host and without its default port"
    if is_resource and parts.path.endswith("/"):
        return "must not end with a slash"
    return None


_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9._~:\[\]-]+(/[A-Za-z0-9._~%:@!$&'()*+,;=/-]*)?")


def _explain(detail: ErrorDetails) -> SettingsError:
    if detail["type"] == "unsafe":
        return SettingsError(detail["msg"], hint=str(detail.get("ctx", {}).get("hint")))
    if detail["type"] == "contradiction":
        return SettingsError(detail["msg"], hint="change one of the two")
    field = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        from difflib import get_close_matches

        close = get_close_matches(field, Settings.model_fields, n=1)
        return SettingsError(
            f"there is no setting {field!r}",
            hint=f"did you mean {close[0]!r}?"
            if close
            else "docs/operations.md lists all settings",
        )
    info = Settings.model_fields.get(field)
    return SettingsError(
        f"{variable_name(field)} {_complaint(detail)}",
        hint=" ".join((info.description if info and info.description else "").split()) or None,
    )


def _complaint(detail: ErrorDetails) -> str:
    context = cast("Mapping[str, object]", detail.get("ctx", {}))
    match detail["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "greater_than_equal":
            return f"must be at least {_plain(context['ge'])}"
        case "greater_than":
            return f"must be more than {_plain(context['gt'])}"
        case "less_than_equal":
            return f"must be at most {_plain(context['le'])}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must be at most {context['max_length']} characters long"
        case _:
            return "has a value of the wrong kind"


def _plain(limit: object) -> str:
    """Write 600.0 as people do."""
    return str(int(limit)) if isinstance(limit, float) and limit.is_integer() else str(limit)
