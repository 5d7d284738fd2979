"""Keys that sign the scope of a call: made by whoever administers the database, held by whoever serves.

A scope is a handful of settings that any session may set. Signed, they are worth something: the functions of the schema
recompute the signature with the key that only they can read, and refuse what does not match. The secret is a string for
``JOBFORGE_CONTEXT_KEY``; the database keeps what HMAC makes of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow

from jobforge_mcp.db.failures import malformed_url, unreachable
from jobforge_mcp.db.session import CONNECTION_OPTIONS
from jobforge_mcp.errors import ConflictError, NotFoundError, SchemaError, SettingsError

SIGNATURE_SECONDS: Final = 30
"""How long a signature lasts. The database allows a minute, so half of it is left for clocks that differ."""

_PREFIX = "jfck1"
_KEY_ID = re.compile(r"[a-z0-9]{1,16}")
_KEY_BYTES = 32
_BLOCK_BYTES = 64
_MADE_BY_ITSELF = "embedded"
_LOCK = 7_201_943


@dataclass(frozen=True, slots=True)
class ContextKey:
    """A secret and the name under which the database knows it."""

    key_id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"ContextKey({self.key_id})"

    @classmethod
    def generate(cls) -> ContextKey:
        """Make a new key."""
        return cls(secrets.token_hex(4), secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> ContextKey:
        """Read what `text` wrote.

        Raises:
            SettingsError: it is something else. The message does not repeat it.
        """
        prefix, _, rest = text.strip().partition(".")
        key_id, _, encoded = rest.partition(".")
        try:
            secret = base64.b64decode(encoded + "=", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if prefix != _PREFIX or not _KEY_ID.fullmatch(key_id) or len(secret) != _KEY_BYTES:
            raise SettingsError(
                "JOBFORGE_CONTEXT_KEY is not a key of this product",
                hint="make one with: jobforge context-key create",
            )
        return cls(key_id, secret)

    def text(self) -> str:
        """Write the key for ``JOBFORGE_CONTEXT_KEY``."""
        encoded = base64.urlsafe_b64encode(self.secret).decode().rstrip("=")
        return f"{_PREFIX}.{self.key_id}.{encoded}"

    def pads(self) -> tuple[bytes, bytes]:
        """Return the two blocks that HMAC begins its hashes with."""
        filled = self.secret.ljust(_BLOCK_BYTES, b"\0")
        return bytes(byte ^ 0x36 for byte in filled), bytes(byte ^ 0x5C for byte in filled)


class ContextSigner:
    """Signs scopes with one key. Shared by all calls of a process; keeps nothing between them."""

    def __init__(self, key: ContextKey) -> None:
        """Hash the key's pads once; each signature starts from copies."""
        inner, outer = key.pads()
        self.key_id = key.key_id
        self._inner = hashlib.sha256(inner)
        self._outer = hashlib.sha256(outer)

    def __repr__(self) -> str:
        return f"ContextSigner({self.key_id})"

    def sign(
        self,
        tenant_id: str,
        actor: str | None,
        token_id: str | None,
        tool: str | None,
        trace_id: str | None,
        claims: str | None,
    ) -> str:
        """Write the signature of these arguments of ``enter_scope``, good for half a minute from now."""
        expires_at = str(int(time.time()) + SIGNATURE_SECONDS)
        parts = (tenant_id, actor, token_id, tool, trace_id, claims, expires_at)
        # Each part after its length in characters, as jobforge.scope_mac puts them together.
        message = "jobforge-scope-1 " + "".join(
            f"{len(part)}:{part}" if part else "0:" for part in parts
        )
        inner = self._inner.copy()
        inner.update(message.encode("utf-8", "surrogatepass"))
        outer = self._outer.copy()
        outer.update(inner.digest())
        return f"{self.key_id}.{expires_at}.{outer.hexdigest()}"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What may be told of a key in the database."""

    key_id: str
    is_enforced: bool
    """Whether unsigned scopes are refused because of it."""
    created_at: datetime


def create_key(admin_url: str) -> ContextKey:
    """Make a key that the database accepts from now on. The first refuses nothing yet; a second is as strict as the first.

    Raises:
        ConflictError: there are two already.
    """
    key = ContextKey.generate()
    with administering(admin_url) as connection:
        _insert(connection, key, is_enforced=False)
    return key


def enforce_keys(admin_url: str) -> None:
    """Refuse scopes that are not signed, from now on.

    Raises:
        NotFoundError: there is no key to sign with.
    """
    with administering(admin_url) as connection:
        changed = connection.execute("update jobforge.context_keys set is_enforced = true")
        if changed.rowcount == 0:
            raise NotFoundError(
                "there is no key that scopes could be signed with",
                hint="make one with: jobforge context-key create",
            )


def list_keys(admin_url: str) -> list[KeyRecord]:
    """List the keys that the database accepts, oldest first."""
    with administering(admin_url) as connection:
        rows = connection.execute(
            "select k.key_id, k.is_enforced, k.created_at from jobforge.context_keys k"
            " order by k.created_at, k.key_id"
        ).fetchall()
    return [KeyRecord(*row) for row in rows]


def remove_key(admin_url: str, key_id: str, *, is_last_too: bool = False) -> None:
    """Accept a key no more. While another is enforced nothing else changes.

    Raises:
        NotFoundError: there is no such key.
        ConflictError: it is the last one that is enforced, and removing it would let unsigned scopes in.
    """
    with administering(admin_url) as connection:
        rows = connection.execute(
            "select k.key_id, k.is_enforced from jobforge.context_keys k for update"
        ).fetchall()
        kept = [is_enforced for name, is_enforced in rows if name != key_id]
        if len(kept) == len(rows):
            raise NotFoundError(
                f"there is no context key {key_id}",
                hint="list them with: jobforge context-key list",
            )
        if any(is_enforced for _, is_enforced in rows) and not any(kept) and not is_last_too:
            raise ConflictError(
                f"{key_id} is the last key that is enforced; without it unsigned scopes are accepted",
                hint="create and enforce another first, or add --last to switch signing off",
            )
        connection.execute("delete from jobforge.context_keys k where k.key_id = %s", [key_id])


def ensure_own_key(admin_url: str) -> ContextKey | None:
    """Read the key of a database that belongs to this installation alone, made and enforced on first use.

    ``None`` when the schema is older than keys are.
    """
    try:
        return _own_key(admin_url)
    except SchemaError:
        return None


def _own_key(admin_url: str) -> ContextKey:
    with administering(admin_url) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
        row = connection.execute(
            "select k.inner_pad from jobforge.context_keys k where k.key_id = %s", [_MADE_BY_ITSELF]
        ).fetchone()
        if row is not None:
            pad: bytes = row[0]
            return ContextKey(_MADE_BY_ITSELF, bytes(byte ^ 0x36 for byte in pad[:_KEY_BYTES]))
        key = ContextKey(_MADE_BY_ITSELF, secrets.token_bytes(_KEY_BYTES))
        _insert(connection, key, is_enforced=True)
        return key


def _insert(
    connection: psycopg.Connection[TupleRow], key: ContextKey, *, is_enforced: bool
) -> None:
    inner, outer = key.pads()
    inserted = connection.execute(
        """insert into jobforge.context_keys (key_id, slot, inner_pad, outer_pad, is_enforced, created_at)
           select %s, s.slot, %s, %s, %s or exists (select from jobforge.context_keys k where k.is_enforced), jobforge.now()
           from unnest(array[1, 2]) s(slot)
           where not exists (select from jobforge.context_keys k where k.slot = s.slot)
           order by s.slot limit 1""",
        [key.key_id, inner, outer, is_enforced],
    )
    if inserted.rowcount == 0:
        raise ConflictError(
            "there are two context keys already: the one in use and the one that replaces it",
            hint="remove the older with: jobforge context-key remove",
        )


@contextmanager
def administering(
    admin_url: str,
) -> Generator[psycopg.Connection[TupleRow]]:
    """Act as the owner of the schema, in one transaction."""
    try:
        connection = psycopg.connect(admin_url, prepare_threshold=None, **CONNECTION_OPTIONS)
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    except psycopg.ProgrammingError as error:
        raise malformed_url() from error
    with connection:
        try:
            connection.execute("set local role jobforge_owner")
            yield connection
        except (
            errors.UndefinedTable,
            errors.UndefinedFunction,
            errors.InvalidSchemaName,
            errors.InvalidParameterValue,  # the role does not exist
        ) as error:
            raise SchemaError(
                "the schema of this database is older than context keys",
                hint="run: jobforge migrate",
            ) from error
        except errors.InsufficientPrivilege as error:
            raise SettingsError(
                "this login may not administer the schema jobforge",
                hint="set JOBFORGE_ADMIN_DATABASE_URL to the login that migrates",
            ) from error
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
