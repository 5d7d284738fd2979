"""``token issue``, ``inspect`` and ``keys``: policy tokens for people who hand them to agents.

Issuing needs the private key and no database. The token goes to stdout and nowhere else.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import CALLER_EXIT, say, show
from jobforge_mcp.cli.session import read_settings
from jobforge_mcp.errors import DefinitionError, InvalidInputError, SettingsError
from jobforge_mcp.policy.scopes import ALL_SCOPES, Scope

if TYPE_CHECKING:
    from jobforge_mcp.policy.keys import KeyFinder, KeyFolder
    from jobforge_mcp.settings import Settings
    from jobforge_mcp.types import JsonValue, Limits

Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="Key folder; by default that of JOBFORGE_TOKEN_KEYS."),
]

Projects = Annotated[
    list[str] | None, typer.Option("--project", help="Confine it to a project; repeatable.")
]
Scopes = Annotated[list[Scope] | None, typer.Option("--scope", help="What it allows; repeatable.")]
JobTypes = Annotated[
    list[str] | None,
    typer.Option("--job-type", help="Confine it to job types: report.*, demo.**; repeatable."),
]
DenyTypes = Annotated[
    list[str] | None,
    typer.Option("--deny-type", help="Job types it may not name, whatever else; repeatable."),
]
Events = Annotated[
    list[str] | None, typer.Option("--event", help="Confine it to event types; repeatable.")
]
Roles = Annotated[
    list[str] | None, typer.Option("--role", help="Role that definitions may ask for; repeatable.")
]
LimitOptions = Annotated[
    list[str] | None,
    typer.Option("--limit", help="A limit, name=value: rps=5, max_running=2; repeatable."),
]
Once = Annotated[bool, typer.Option("--once", help="Good for one write.")]
Actor = Annotated[str | None, typer.Option("--actor", help="For whom its holder acts.")]


def issue(
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant the token acts for.")],
    project: Projects = None,
    scope: Scopes = None,
    all_scopes: Annotated[bool, typer.Option("--all-scopes", help="Allow everything.")] = False,
    ttl: Annotated[str, typer.Option(help="How long it lives, at most 24h: 15m, 12h.")] = "12h",
    subject: Annotated[str, typer.Option(help="Who will hold it, for the audit log.")] = "cli",
    job_type: JobTypes = None,
    deny_type: DenyTypes = None,
    event: Events = None,
    role: Roles = None,
    limit: LimitOptions = None,
    once: Once = False,
    epoch: Annotated[
        int | None, typer.Option(help="Token epoch; by default the moment of issue.")
    ] = None,
    actor: Actor = None,
    holder: Annotated[
        Path | None,
        typer.Option("--holder", help="Key folder of who may narrow it; made if it is not there."),
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Issue a policy token and print it, alone, on stdout."""
    from jobforge_mcp.policy.keys import KeyFolder
    from jobforge_mcp.policy.tokens import Grant, issue_token

    if not scope and not all_scopes:
        raise InvalidInputError(
            "a token without scopes would allow nothing",
            hint="name what it is for: --scope jobs:execute, or --all-scopes",
        )
    settings = read_settings()
    grant = Grant(
        tenant,
        ALL_SCOPES if all_scopes else frozenset(scope or ()),
        projects=project or (),
        subject=subject,
        lifetime=read_lifetime(ttl),
        job_types=job_type or (),
        deny_types=deny_type or (),
        events=event or (),
        roles=role or (),
        limits=parse_limits(limit),
        is_single_use=once,
        epoch=epoch,
        actors=() if actor is None else (actor,),
        holder=None if holder is None else KeyFolder(holder.expanduser()).ensure().public,
    )
    key = _signing_folder(settings, folder).ensure()
    token = issue_token(key, grant, issuer=settings.token_issuer, audience=settings.token_audience)
    if json:
        show({"token": token, "keyId": key.public.key_id}, is_json=True, people=lambda _: None)
    else:
        # Not through rich: a token must not be wrapped.
        print(token)


def inspect(
    token: Annotated[
        str | None,
        typer.Argument(help="The token; - for standard input. Default: JOBFORGE_TOKEN."),
    ] = None,
    json: Json = False,
) -> int:
    """Show what a token says, and whether this installation accepts it. Does not print the token."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.policy.tokens import inspect_token, verifier_from_settings

    settings = read_settings()
    text = read_token(settings, token)
    has_keys = settings.token_keys is not None or settings.is_embedded
    seen = inspect_token(text, verifier_from_settings(settings) if has_keys else None)
    document: dict[str, JsonValue] = {
        "isValid": seen.refusal is None,
        "header": seen.header,
        "claims": seen.claims,
    }
    if seen.refusal is not None:
        document["refusal"] = seen.refusal.value
    verdict = "accepted here" if seen.refusal is None else f"refused here: {seen.refusal.value}"
    rows = [(name, _claim(name, value)) for name, value in seen.claims.items()]
    show(
        document,
        is_json=json,
        people=lambda console: console.print(table(("claim", verdict), rows)),
    )
    return 0 if seen.refusal is None else CALLER_EXIT


def keys(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Sign with a new key; accept the old one meanwhile.")
    ] = False,
    retire: Annotated[
        bool, typer.Option("--retire", help="Stop accepting all keys but the one that signs.")
    ] = False,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Show the keys that are accepted; make the first one where there is none."""
    from jobforge_mcp.cli.output import table
    from jobforge_mcp.policy.keys import KeySource
    from jobforge_mcp.policy.tokens import open_keys

    settings = read_settings()
    if folder is None and not rotate and not retire and settings.token_keys is not None:
        source: KeyFinder = open_keys(settings)
        where = "JOBFORGE_TOKEN_KEYS"
    else:
        made = _signing_folder(settings, folder)
        made.ensure()
        if rotate:
            made.rotate()
        if retire:
            made.retire()
        source, where = KeySource(made.path), str(made.path)
        if folder is not None and not json:
            say(f"to use them: JOBFORGE_TOKEN_KEYS={folder.absolute()}")
    found = source.all()
    show(
        {"folder": where, "keys": [key.to_jwk() for key in found]},
        is_json=json,
        people=lambda console: console.print(
            table(("key", "algorithm"), [(key.key_id, key.algorithm) for key in found])
        ),
    )


def has_signing_key(settings: Settings) -> bool:
    """Whether this installation can sign tokens."""
    from jobforge_mcp.policy.keys import SIGNING_FILE

    if settings.token_keys is None:
        return settings.is_embedded
    if settings.token_keys.lstrip().startswith("{"):
        return False
    return (Path(settings.token_keys).expanduser() / SIGNING_FILE).is_file()


def parse_limits(given: list[str] | None) -> Limits | None:
    """Read limits as they are written on a command line: ``rps=5``.

    Raises:
        InvalidInputError: a name or a value is none.
    """
    from jobforge_mcp.policy.claims import LIMITS, BadClaimError, check_limit, make_limits

    values: dict[str, float | int] = {}
    for text in given or ():
        name, _, value = text.partition("=")
        try:
            number = float(value) if name == "rps" else int(value)
            values[name] = check_limit(name, number)
        except (ValueError, BadClaimError):
            raise InvalidInputError(
                f"{text!r} is no limit", hint=f"name=number, with one of {', '.join(LIMITS)}"
            ) from None
    return make_limits(values) if values else None


def _signing_folder(settings: Settings, folder: Path | None) -> KeyFolder:
    """Find the folder of the private key: as named, as set, or the embedded default's own.

    Raises:
        SettingsError: there is no private key, because this installation only checks tokens.
    """
    from jobforge_mcp.policy.keys import SIGNING_FILE, KeyFolder

    if folder is not None:
        return KeyFolder(folder.expanduser())
    if settings.token_keys is None:
        if settings.is_embedded:
            return KeyFolder(settings.keys_dir)
        raise SettingsError(
            "there are no keys to sign tokens with",
            hint="make some with: jobforge token keys --folder FOLDER, and set JOBFORGE_TOKEN_KEYS=FOLDER",
        )
    path = Path(settings.token_keys).expanduser()
    if settings.token_keys.lstrip().startswith("{") or not (path / SIGNING_FILE).is_file():
        raise SettingsError(
            "JOBFORGE_TOKEN_KEYS holds public keys only, which check tokens and cannot sign them",
            hint=f"name the folder that holds {SIGNING_FILE} with --folder",
        )
    return KeyFolder(path)


def read_lifetime(text: str) -> timedelta:
    """Read a duration such as 15m.

    Raises:
        InvalidInputError: it is none.
    """
    from jobforge_mcp.definitions.durations import milliseconds

    try:
        return timedelta(milliseconds=milliseconds(text))
    except DefinitionError as error:
        raise InvalidInputError(error.message, hint=error.hint) from None


def read_token(settings: Settings, given: str | None) -> str:
    """Take the token that was named, that of standard input, or that of the settings."""
    if given is not None and given != "-":
        return given.strip()
    if given == "-" or settings.token is None:
        return sys.stdin.readline().strip()
    return settings.token.get_secret_value()


def _claim(name: str, value: JsonValue) -> str:
    from datetime import UTC, datetime

    from jobforge_mcp.server.wire import compact

    if name in {"iat", "nbf", "exp"} and isinstance(value, int):
        try:
            return datetime.fromtimestamp(value, UTC).isoformat()
        except (ValueError, OverflowError, OSError):
            return str(value)
    return value if isinstance(value, str) else compact(value)
