"""Keys: made once, readable by their owner alone, rotated without locking anybody out."""

from __future__ import annotations

import base64
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from jobforge_mcp.errors import SettingsError
from jobforge_mcp.policy.keys import KeyFolder, KeySource, load_signing_key, thumbprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys"


def test_the_first_use_makes_a_key_that_only_its_owner_can_read(folder: Path) -> None:
    key = KeyFolder(folder).ensure()

    assert stat.S_IMODE((folder / "signing.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [found.key_id for found in KeySource(folder).all()] == [key.public.key_id]
    assert sorted(path.name for path in folder.iterdir()) == ["jwks.json", "signing.pem"]


def test_a_second_use_finds_the_same_key(folder: Path) -> None:
    first = KeyFolder(folder).ensure()

    assert KeyFolder(folder).ensure().public.key_id == first.public.key_id


def test_two_that_make_the_first_key_at_once_agree(folder: Path) -> None:
    folders = [KeyFolder(folder) for _ in range(16)]

    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(KeyFolder.ensure, folders))

    assert len({key.public.key_id for key in keys}) == 1
    assert KeySource(folder).find(keys[0].public.key_id) is not None


def test_rotation_keeps_the_key_before_and_drops_the_one_before_that(folder: Path) -> None:
    keys = KeyFolder(folder)
    first = keys.ensure().public.key_id

    second = keys.rotate().public.key_id
    assert [key.key_id for key in KeySource(folder).all()] == [second, first]

    third = keys.rotate().public.key_id
    assert [key.key_id for key in KeySource(folder).all()] == [third, second]

    keys.retire()
    assert [key.key_id for key in KeySource(folder).all()] == [third]


def test_a_running_process_notices_a_rotation(folder: Path) -> None:
    clock = [0.0]
    keys = KeyFolder(folder)
    keys.ensure()
    source = KeySource(folder, clock=lambda: clock[0])

    new = keys.rotate().public.key_id
    assert source.find(new) is None

    clock[0] += 5
    assert source.find(new) is not None


def test_a_key_file_that_vanishes_for_a_moment_locks_nobody_out(folder: Path) -> None:
    clock = [0.0]
    key = KeyFolder(folder).ensure()
    source = KeySource(folder, clock=lambda: clock[0])
    (folder / "jwks.json").unlink()

    clock[0] += 5

    assert source.find(key.public.key_id) is not None


def test_a_private_key_that_others_may_read_is_not_used(folder: Path) -> None:
    keys = KeyFolder(folder)
    keys.ensure()
    (folder / "signing.pem").chmod(0o640)

    with pytest.raises(SettingsError, match="others may read"):
        keys.ensure()


def test_a_private_key_may_be_a_jwk(folder: Path) -> None:
    key = KeyFolder(folder).ensure()
    path = folder / "signing.json"
    private = key.key.private_bytes_raw()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": key.public.to_jwk()["x"], "d": encode(private)}
    path.write_text(json.dumps(jwk))
    path.chmod(0o600)

    assert load_signing_key(path).public.key_id == key.public.key_id


def test_the_repr_of_a_signing_key_shows_its_id_alone(folder: Path) -> None:
    key = KeyFolder(folder).ensure()

    assert repr(key) == f"SigningKey({key.public.key_id})"


def test_public_keys_are_read_from_text_file_and_pem(folder: Path, tmp_path: Path) -> None:
    key = KeyFolder(folder).ensure()
    pem = tmp_path / "public.pem"
    pem.write_bytes(
        key.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )

    for where in ((folder / "jwks.json").read_text(), folder / "jwks.json", folder, pem):
        assert KeySource(where).find(thumbprint(key.key.public_key())) is not None


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def jwk(**changes: Any) -> dict[str, Any]:
    raw = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key().public_bytes_raw()
    members = {"kty": "OKP", "crv": "Ed25519", "x": encode(raw), "kid": "k1"} | changes
    return {name: value for name, value in members.items() if value is not None}


@pytest.mark.parametrize(
    "document",
    [
        {"keys": []},
        {"keys": "x"},
        {"keys": [1]},
        {},
        {"keys": [jwk(), jwk(kid="k2"), jwk(kid="k3")]},
        {"keys": [jwk(), jwk()]},
        {"keys": [jwk(kty="oct")]},
        {"keys": [jwk(crv="Ed448")]},
        {"keys": [jwk(alg="HS256")]},
        {"keys": [jwk(use="enc")]},
        {"keys": [jwk(x=None)]},
        {"keys": [jwk(x="AAAA")]},
        {"keys": [jwk(x=7)]},
        {"keys": [jwk(kid="")]},
        {"keys": [jwk(kid="a\nb")]},
        {"keys": [jwk(kid=3)]},
        {"keys": [jwk(d="canary")]},
    ],
    ids=ascii,
)
def test_a_key_set_that_is_not_ours_is_refused_without_being_quoted(
    document: dict[str, Any],
) -> None:
    with pytest.raises(SettingsError) as caught:
        KeySource(json.dumps(document))

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"keys": [], "keys": []}', "{", "{}", "-----BEGIN NONSENSE"])
def test_text_that_is_no_key_set_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)

    with pytest.raises(SettingsError):
        KeySource(path)


def test_a_key_of_another_kind_does_not_sign(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    elliptic = generate_private_key(SECP256R1())
    path.write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)

    with pytest.raises(SettingsError, match="not an Ed25519 private key"):
        load_signing_key(path)


def test_a_private_key_is_not_taken_for_a_public_one(folder: Path) -> None:
    KeyFolder(folder).ensure()

    with pytest.raises(SettingsError, match="holds a private key"):
        KeySource(folder / "signing.pem")


def test_keys_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        KeySource(tmp_path / "absent.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(SettingsError, match="cannot be kept"):
        KeyFolder(tmp_path / "keys").ensure()
