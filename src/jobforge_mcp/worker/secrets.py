"""Secrets of workers: where they come from, and ``secret://NAME`` in inputs.

Asked in turn: the environment (``JOBFORGE_SECRET_<NAME>``), a folder with a file for each, a command that prints one. What
they answer goes to the handler and to the redactor, and nowhere else.

An input is written by whoever may enqueue, an agent that was talked into it included. So it may name only the secrets that
the operator listed (``JOBFORGE_SECRET_REFERENCES``), for the hosts listed with them. The fixed input of a declarative
definition is written by its author, who may name all.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from jobforge_mcp.errors import PermanentError, RetryableError
from jobforge_mcp.redaction import KNOWN, MIN_SECRET_LENGTH
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import JsonValue

SECRET_PREFIX = "JOBFORGE_SECRET_"
"""Environment variables of a worker that handlers may ask for, by the rest of the name in any case."""

REFERENCE: Final = re.compile(r"secret://([A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*)")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*")
_LONGEST_NAME = 100
_LARGEST = 64 * 1024
_COMMAND_SECONDS = 10.0
_KEPT_SECONDS = 60.0


@dataclass(slots=True)
class SecretStore:
    """The providers of one worker."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    folder: Path | None = None
    command: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    """What inputs may name: ``[TENANT/]NAME[@HOST]``."""
    _kept: dict[str, tuple[str, float]] = field(
        default_factory=dict[str, tuple[str, float]], repr=False
    )

    @classmethod
    def from_settings(cls, settings: Settings, environ: Mapping[str, str]) -> SecretStore:
        """Take the providers that the settings name."""
        command = tuple(shlex.split(settings.secrets_command or ""))
        return cls(environ, settings.secrets_dir, command, settings.secret_references)

    @property
    def is_slow(self) -> bool:
        """Whether asking may take a while, because a command is run."""
        return bool(self.command)

    def is_at_hand(self, name: str) -> bool:
        """Whether asking for this one runs no command, so that an event loop need not wait for it."""
        if not self.command or not _NAME.fullmatch(name) or self.environ.get(variable_of(name)):
            return True
        kept = self._kept.get(name)
        is_kept = kept is not None and time.monotonic() < kept[1]
        return is_kept or (self.folder is not None and (self.folder / name).is_file())

    def get(self, name: str) -> str:
        """Return a secret; its value is struck from this process's logs from now on.

        Raises:
            PermanentError: there is none, or it is too short to be kept secret.
            RetryableError: the command that knows it failed.
        """
        value = self._find(name) if _NAME.fullmatch(name) and len(name) <= _LONGEST_NAME else None
        variable = variable_of(name)
        if not value:
            raise PermanentError(
                f"this worker has no secret {name[:_LONGEST_NAME]!r}",
                code="SECRET_MISSING",
                hint=f"set {variable[:150]} in the environment of the workers",
            )
        if len(value) < MIN_SECRET_LENGTH:
            raise PermanentError(
                f"the secret {name!r} has fewer than {MIN_SECRET_LENGTH} characters and cannot be kept out of logs",
                code="SECRET_TOO_SHORT",
            )
        KNOWN.learn(name, value)
        return value

    def require_allowed(self, name: str, tenant_id: str, payload: Mapping[str, JsonValue]) -> None:
        """Refuse a secret that an input may not name.

        Raises:
            PermanentError: no rule allows it here.
        """
        url = payload.get("url")
        host = _host_of(url) if isinstance(url, str) else None
        if not any(_allows(rule, name, tenant_id, host) for rule in self.references):
            where = f" for requests to {host}" if host else ""
            raise PermanentError(
                f"the input may not name the secret {name!r}{where}",
                code="SECRET_NOT_ALLOWED",
                hint="the operator lists what inputs may name in JOBFORGE_SECRET_REFERENCES: NAME@HOST",
            )

    def _find(self, name: str) -> str | None:
        if value := self.environ.get(variable_of(name)):
            return value
        if self.folder is not None and (value := _read(self.folder, name)):
            return value
        return self._ask(name) if self.command else None

    def _ask(self, name: str) -> str | None:
        kept = self._kept.get(name)
        if kept is not None and time.monotonic() < kept[1]:
            return kept[0]
        try:
            answer = subprocess.run(
                [*self.command, name],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_COMMAND_SECONDS,
                check=False,
                env={
                    key: self.environ[key]
                    for key in self.environ
                    if not key.startswith(SECRET_PREFIX)
                },
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            # Never chained: what such a command printed may be the secret.
            raise RetryableError(
                f"the command for secrets failed: {type(error).__name__}", code="SECRET_UNAVAILABLE"
            ) from None
        if answer.returncode != 0:
            return None
        value = answer.stdout[:_LARGEST].decode("utf-8", errors="replace").removesuffix("\n")
        self._kept[name] = (value, time.monotonic() + _KEPT_SECONDS)
        return value


def variable_of(name: str) -> str:
    """Name the environment variable of a secret."""
    return SECRET_PREFIX + name.upper().replace("-", "_").replace(".", "_")


def may_refer(text: str) -> bool:
    """Tell at a glance whether JSON text can refer to a secret, which hardly any does."""
    return "secret:" in text


def references_in(texts: Iterable[str]) -> set[str]:
    """Name the secrets that JSON texts refer to."""
    return {name for text in texts for name in REFERENCE.findall(text.replace("\\/", "/"))}


def resolved(value: JsonValue, secrets: Mapping[str, str]) -> JsonValue:
    """Put the values of secrets where their references are; names of properties stay as they are."""
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: secrets.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {name: resolved(member, secrets) for name, member in value.items()}
    if isinstance(value, list):
        return [resolved(member, secrets) for member in value]
    return value


def _allows(rule: str, name: str, tenant_id: str, host: str | None) -> bool:
    rest, _, wanted_host = rule.partition("@")
    wanted_tenant, _, wanted_name = rest.rpartition("/")
    return (
        fnmatchcase(name, wanted_name)
        and (not wanted_tenant or fnmatchcase(tenant_id, wanted_tenant))
        and (not wanted_host or (host is not None and fnmatchcase(host, wanted_host.lower())))
    )


def _host_of(url: str) -> str | None:
    try:
        return (urlsplit(url).hostname or "").lower() or None
    except ValueError:
        return None


def _read(folder: Path, name: str) -> str | None:
    try:
        with (folder / name).open("rb") as file:
            return file.read(_LARGEST).decode("utf-8", errors="replace").removesuffix("\n")
    except (OSError, ValueError):
        return None
