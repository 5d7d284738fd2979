"""The Ed25519 keys of the audit log: one private key where it is sealed, public keys wherever it is verified.

Its own folder, apart from the keys of policy tokens: whoever may issue tokens need not be able to rewrite history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.policy.keys import (
    PUBLIC_FILE,
    SIGNING_FILE,
    KeyFolder,
    PublicKey,
    SigningKey,
    thumbprint,
)
from jobforge_mcp.policy.strict_json import decode_base64url
from jobforge_mcp.settings import Settings

_LARGEST_FILE = 1024 * 1024


def audit_keys_folder(settings: Settings) -> Path | None:
    """Return where the keys of this installation are: as set, or the embedded default's own; ``None`` if nowhere."""
    if settings.audit_keys is not None:
        return settings.audit_keys
    return settings.state_dir / "audit-keys" if settings.is_embedded else None


def signing_key(settings: Settings) -> SigningKey:
    """Return the key that seals, made on first use.

    Raises:
        SettingsError: there is none, or its file is open to others.
    """
    folder = audit_keys_folder(settings)
    if folder is None:
        raise SettingsError(
            "there is no key to seal the audit log with",
            hint="set JOBFORGE_AUDIT_KEYS to a folder; the first use makes a key there",
        )
    return KeyFolder(folder).ensure()


def find_signing_key(settings: Settings) -> SigningKey | None:
    """Return the key that seals if this installation has it; a folder with public keys alone only verifies."""
    folder = audit_keys_folder(settings)
    if folder is None:
        return None
    if (folder / PUBLIC_FILE).is_file() and not (folder / SIGNING_FILE).is_file():
        return None
    return KeyFolder(folder).ensure()


def rotate_key(folder: Path) -> SigningKey:
    """Seal with a new key from now on. Every public key of before stays: what it sealed must be verifiable for ever.

    Raises:
        SettingsError: the folder cannot be read or written, or holds public keys alone.
    """
    keys = KeyFolder(folder)
    former = _read_keys(folder) if (folder / PUBLIC_FILE).is_file() else []
    return keys.rotate(
        keep=[keys.ensure().public, *(PublicKey(thumbprint(key), key) for key in former)]
    )


class AuditKeys:
    """Public keys by id."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys: Mapping[str, Ed25519PublicKey] = {thumbprint(key): key for key in keys}

    @classmethod
    def load(cls, paths: Iterable[Path]) -> AuditKeys:
        """Read public keys: PEM files, JWKS files, or folders of keys.

        Raises:
            SettingsError: a file cannot be read or holds no Ed25519 key.
        """
        return cls([key for path in paths for key in _read_keys(path)])

    def accepts(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Whether a key of ours made this signature over this message."""
        key = self._keys.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @property
    def key_ids(self) -> list[str]:
        """The ids of all, in the order they were read: the newest of a folder first."""
        return list(self._keys)

    def knows(self, key_id: str) -> bool:
        """Whether there is a key of this id."""
        return key_id in self._keys


def _read_keys(path: Path) -> list[Ed25519PublicKey]:
    file = path / PUBLIC_FILE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            text = opened.read(_LARGEST_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the public key {file} cannot be read: {type(error).__name__}"
        ) from None
    try:
        found = [_from_pem(text)] if "-----BEGIN" in text else _from_jwks(text)
    except (ValueError, TypeError, KeyError, AttributeError):
        found = []
    if not found:
        raise SettingsError(
            f"{file} holds no public Ed25519 key",
            hint="pass the jwks.json of the folder that JOBFORGE_AUDIT_KEYS names, or a PEM file",
        )
    return found


def _from_pem(text: str) -> Ed25519PublicKey:
    key = load_pem_public_key(text.encode())
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError
    return key


def _from_jwks(text: str) -> list[Ed25519PublicKey]:
    document = cast("dict[str, list[dict[str, str]]]", json.loads(text))
    return [
        Ed25519PublicKey.from_public_bytes(decode_base64url(key["x"]))
        for key in document["keys"]
        if key.get("crv") == "Ed25519"
    ]
