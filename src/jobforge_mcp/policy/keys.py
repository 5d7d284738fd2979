"""The Ed25519 keys that sign policy tokens and check them.

A key folder holds ``signing.pem``, the one private key, and ``jwks.json``, the public keys that are accepted: the current
one and, after a rotation, the one before it. A server that only checks tokens needs the ``jwks.json`` alone. A key's id is
its RFC 7638 thumbprint, so the same key has the same id everywhere.

Files are written whole and renamed, and two processes that make the first key at once agree on one of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.policy.strict_json import NotStrictJsonError, decode_base64url, parse_object
from jobforge_mcp.types import JsonObject, JsonValue

ALGORITHM = "EdDSA"
"""The only algorithm of policy tokens, and of every key."""

LIVE_KEYS = 2
"""Keys accepted at the same time: the current one and the one that is being rotated out."""

SIGNING_FILE = "signing.pem"
PUBLIC_FILE = "jwks.json"

# A rotated key is noticed within this time, for the price of one stat() in it.
_RECHECK_SECONDS = 5.0
_LARGEST_KEY_FILE = 64 * 1024


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that tokens are checked with."""

    key_id: str
    key: Ed25519PublicKey
    algorithm: str = ALGORITHM

    def to_jwk(self) -> JsonObject:
        """Return the key as one element of a JWKS."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _encode(_raw(self.key)),
            "kid": self.key_id,
            "alg": self.algorithm,
            "use": "sig",
        }


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key that tokens are signed with. Its ``repr`` shows only the id."""

    key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """The key that others check the signature with."""
        public = self.key.public_key()
        return PublicKey(thumbprint(public), public)

    def __repr__(self) -> str:
        return f"SigningKey({self.public.key_id})"


class KeyFolder:
    """A folder with the private key and the accepted public keys of one installation."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def ensure(self) -> SigningKey:
        """Return the signing key; make folder and key if this is the first use.

        Raises:
            SettingsError: the folder or a file in it cannot be read or written, or others may read the private key.
        """
        path = self.path / SIGNING_FILE
        try:
            if not path.exists():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write_once(path, _to_pem(Ed25519PrivateKey.generate()))
            key = load_signing_key(path)
            if not (self.path / PUBLIC_FILE).exists():
                _replace(self.path / PUBLIC_FILE, _to_jwks([key.public]), mode=0o644)
        except OSError as error:
            raise _unusable(self.path, error) from error
        return key

    def rotate(self, *, keep: Iterable[PublicKey] | None = None) -> SigningKey:
        """Sign with a new key from now on; accept the one before it until the next rotation, or all of ``keep``."""
        old = self.ensure()
        kept = {key.key_id: key for key in (keep if keep is not None else [old.public])}
        new = SigningKey(Ed25519PrivateKey.generate())
        # Public first: whoever dies between the two still has a signing key that is accepted.
        try:
            public = _to_jwks([new.public, *kept.values()])
            _replace(self.path / PUBLIC_FILE, public, mode=0o644)
            _replace(self.path / SIGNING_FILE, _to_pem(new.key), mode=0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        return new

    def retire(self) -> None:
        """Stop accepting every key but the one that signs."""
        try:
            _replace(self.path / PUBLIC_FILE, _to_jwks([self.ensure().public]), mode=0o644)
        except OSError as error:
            raise _unusable(self.path, error) from error


class KeyFinder(Protocol):
    """Where a verifier looks for the key that a token names."""

    def find(self, key_id: str) -> PublicKey | None:
        """Return the accepted key of this id."""
        ...

    def all(self) -> list[PublicKey]:
        """Return every accepted key."""
        ...


class KeySource:
    """The public keys that a process accepts, read again when their file changes."""

    def __init__(self, where: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take JWKS text, or the path of a JWKS file, of a public key in PEM, or of a key folder."""
        text = str(where)
        self._text = text if text.lstrip().startswith("{") else None
        path = Path(text).expanduser()
        self._path = path / PUBLIC_FILE if self._text is None and path.is_dir() else path
        self._clock = clock
        self._checked_at = clock()
        self._state = self._file_state()
        self._keys = self._load()

    def find(self, key_id: str) -> PublicKey | None:
        """Return the accepted key of this id."""
        self._refresh()
        return self._keys.get(key_id)

    def all(self) -> list[PublicKey]:
        """Return every accepted key, the newest first."""
        self._refresh()
        return list(self._keys.values())

    def _refresh(self) -> None:
        if self._text is not None or self._clock() - self._checked_at < _RECHECK_SECONDS:
            return
        self._checked_at = self._clock()
        # A file that is absent or broken for a moment must not lock everybody out: the keys known before stay.
        with suppress(SettingsError):
            state = self._file_state()
            if state != self._state:
                self._keys = self._load()
                self._state = state

    def _file_state(self) -> tuple[int, int, int] | None:
        if self._text is not None:
            return None
        try:
            found = self._path.stat()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _load(self) -> dict[str, PublicKey]:
        if self._text is not None:
            return _parse_jwks(self._text, "the text in JOBFORGE_TOKEN_KEYS")
        text = _read(self._path)
        if "-----BEGIN" in text:
            key = _parse_public_pem(text, self._path)
            return {key.key_id: key}
        return _parse_jwks(text, str(self._path))


def load_signing_key(path: Path) -> SigningKey:
    """Read a private Ed25519 key, as PEM or JWK, that only its owner may read.

    Raises:
        SettingsError: it cannot be read, is something else, or its file is open to others.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(path, error) from error
    if os.name == "posix" and mode & 0o077:
        raise SettingsError(
            f"others may read the private key {path}", hint=f"chmod 600 {path}, and rotate the key"
        )
    text = _read(path)
    if "-----BEGIN" not in text:
        return _parse_private_jwk(text, path)
    # Never chained: what a parser says of a private key may quote it.
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _no_private_key(path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_private_key(path)
    return SigningKey(key)


def thumbprint(key: Ed25519PublicKey) -> str:
    """Return the RFC 7638 thumbprint, which is the key's id."""
    members = {"crv": "Ed25519", "kty": "OKP", "x": _encode(_raw(key))}
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True)
    return _encode(hashlib.sha256(canonical.encode()).digest())


def _parse_jwks(text: str, where: str) -> dict[str, PublicKey]:
    try:
        document = parse_object(text.encode())
        elements = document.get("keys", [document])
        if not isinstance(elements, list) or not 1 <= len(elements) <= LIVE_KEYS:
            raise SettingsError(
                f"{where} does not hold one or two keys",
                hint="a key set holds the current key and at most the one before it",
            )
        keys = [parse_public_jwk(element) for element in elements]
    except (NotStrictJsonError, KeyError, ValueError) as error:
        detail = f": {error}" if isinstance(error, _UnfitKeyError) else ""
        raise SettingsError(
            f"{where} is not a JSON Web Key Set of Ed25519 public keys{detail}",
            hint="make one with: jobforge token keys --folder FOLDER",
        ) from None
    if len({key.key_id for key in keys}) != len(keys):
        raise SettingsError(
            f"two keys in {where} have the same id", hint="give each key its own kid"
        )
    return {key.key_id: key for key in keys}


def parse_published_keys(content: bytes, where: str) -> dict[str, PublicKey]:
    """Read the key set of an OAuth server: its Ed25519 keys for signatures, whatever else it publishes beside them.

    Raises:
        SettingsError: it is no key set, or has not one or two such keys.
    """
    try:
        elements = parse_object(content).get("keys")
    except NotStrictJsonError:
        elements = None
    if not isinstance(elements, list):
        raise SettingsError(f"{where} answered with something that is not a JSON Web Key Set")
    keys: list[PublicKey] = []
    for element in elements:
        with suppress(ValueError, KeyError):
            keys.append(parse_public_jwk(element))
    found = {key.key_id: key for key in keys}
    if not 1 <= len(keys) <= LIVE_KEYS or len(found) != len(keys):
        raise SettingsError(
            f"{where} publishes {len(keys)} Ed25519 keys for signatures, and one or two with ids of their own are accepted"
        )
    return found


class _UnfitKeyError(ValueError):
    """Why one element of a key set is no key for us; says nothing of its content."""


def parse_public_jwk(element: JsonValue) -> PublicKey:
    """Read one public key of a set, or the one a token names as its holder's.

    Raises:
        ValueError: it is no Ed25519 public key, or more than that.
    """
    if not isinstance(element, dict):
        raise _UnfitKeyError("an element is not an object")
    if "d" in element:
        raise _UnfitKeyError("it holds a private key, which belongs with the signer alone")
    key = Ed25519PublicKey.from_public_bytes(_key_bytes(element, "x"))
    key_id = element.get("kid", thumbprint(key))
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= 128 or not key_id.isprintable():
        raise _UnfitKeyError("a kid is not 1 to 128 printable characters")
    return PublicKey(key_id, key)


def _parse_private_jwk(text: str, path: Path) -> SigningKey:
    try:
        element = parse_object(text.encode())
        key = Ed25519PrivateKey.from_private_bytes(_key_bytes(element, "d"))
        stated = _key_bytes(element, "x")
    except (NotStrictJsonError, ValueError):
        raise _no_private_key(path) from None
    if _raw(key.public_key()) != stated:
        raise _no_private_key(path)
    return SigningKey(key)


def _key_bytes(element: JsonObject, member: str) -> bytes:
    if element.get("kty") != "OKP" or element.get("crv") != "Ed25519":
        raise _UnfitKeyError("a key is not of type OKP with curve Ed25519")
    if element.get("alg", ALGORITHM) != ALGORITHM or element.get("use", "sig") != "sig":
        raise _UnfitKeyError("a key is for another algorithm or use")
    value = element.get(member)
    if not isinstance(value, str) or len(value) != 43:
        raise _UnfitKeyError("a key is not 32 bytes long")
    return decode_base64url(value)


def _parse_public_pem(text: str, path: Path) -> PublicKey:
    if "PRIVATE KEY" in text:
        raise SettingsError(
            f"{path} holds a private key, and JOBFORGE_TOKEN_KEYS needs public ones",
            hint=f"point JOBFORGE_TOKEN_KEYS at {PUBLIC_FILE}, or at the folder of both",
        )
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{path} is not an Ed25519 public key in PEM")
    return PublicKey(thumbprint(key), key)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_KEY_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    if len(text) > _LARGEST_KEY_FILE:
        raise SettingsError(f"{path} is larger than any key file")
    return text


def _write_once(path: Path, content: bytes) -> None:
    """Make the file unless another process made it first; it appears whole or not at all."""
    scratch = _scratch(path, content, 0o600)
    try:
        with suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    _scratch(path, content, mode).replace(path)


def _scratch(path: Path, content: bytes, mode: int) -> Path:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(name).chmod(mode)
    return Path(name)


def _to_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _to_jwks(keys: Iterable[PublicKey]) -> bytes:
    document = {"keys": [key.to_jwk() for key in keys]}
    return json.dumps(document, indent=2).encode() + b"\n"


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _no_private_key(path: Path) -> SettingsError:
    return SettingsError(
        f"{path} is not an Ed25519 private key without a passphrase, as PEM or JWK",
        hint="make one with: jobforge token keys --folder FOLDER",
    )


def _unreadable(path: Path, error: Exception) -> SettingsError:
    reason = cast("str | None", getattr(error, "strerror", None)) or "it is not text"
    return SettingsError(
        f"the keys in {path} cannot be read: {reason}",
        hint="set JOBFORGE_TOKEN_KEYS to a JWKS file, a key folder, or JWKS text",
    )


def _unusable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"keys cannot be kept in {folder}: {error.strerror}",
        hint="set JOBFORGE_TOKEN_KEYS to a folder of your own",
    )
