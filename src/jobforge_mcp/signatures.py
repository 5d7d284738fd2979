"""Signs and checks webhooks: what is computed over a body, not who may send or what becomes of it.

Secrets of Standard Webhooks say by their prefix what they are: ``whsec_`` an HMAC key, ``whsk_`` an Ed25519 private key and
``whpk_`` a public one, each followed by base64. What Ed25519 needs is loaded by the first such key: it is 6 MB of every worker.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

from jobforge_mcp.errors import PermanentError

_SMALLEST_KEY = 24
"""Bytes; what Standard Webhooks asks of an HMAC key at least."""


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return one signature as the header ``webhook-signature`` lists it.

    Raises:
        PermanentError: the secret is of no known form.
    """
    content = signed_content(message_id, timestamp, body)
    if secret.startswith("whsec_"):
        key = _key(secret, "whsec_")
        if len(key) < _SMALLEST_KEY:
            raise _unusable("it has fewer than 24 bytes")
        digest = hmac.new(key, content, hashlib.sha256).digest()
        return f"v1,{base64.b64encode(digest).decode()}"
    if secret.startswith("whsk_"):
        key = _key(secret, "whsk_")
        if len(key) not in (32, 64):
            raise _unusable("it is no Ed25519 key")
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        # Some tools write the public key behind the seed.
        signature = Ed25519PrivateKey.from_private_bytes(key[:32]).sign(content)
        return f"v1a,{base64.b64encode(signature).decode()}"
    raise _unusable("it begins with neither whsec_ nor whsk_")


def signed_content(message_id: str, timestamp: int, body: bytes) -> bytes:
    """Return what Standard Webhooks signs."""
    return f"{message_id}.{timestamp}.".encode() + body


def _key(secret: str, prefix: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise _unusable(f"what follows {prefix} is not base64") from None


def _unusable(why: str) -> PermanentError:
    return PermanentError(
        f"a signing secret cannot be used: {why}",
        code="WEBHOOK_SECRET",
        hint="write it as whsec_ and base64 of 24 to 64 random bytes, or whsk_ and base64 of an Ed25519 private key",
    )


REPLAY_SECONDS: Final = 300
"""How far the time of a signed delivery may be off, where the scheme has one."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came in, once its signature was found good."""

    delivery_id: str
    """The same each time it is sent."""
    event_type: str
    """What the sender calls it; empty if it does not say."""


def verify(
    scheme: str, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float
) -> Delivery | None:
    """Return what a delivery says of itself; ``None`` unless one of the secrets signed it, in time.

    Every secret is tried whatever the others said, and every comparison takes the same time. Header names are in lower case.
    """
    header = headers.get(_SIGNATURE_HEADERS.get(scheme, ""), "")
    timestamp = _timestamp(scheme, headers, header)
    given = _given(scheme, header)
    match scheme:
        case "standard":
            content = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
        case "stripe":
            content = f"{timestamp}.".encode() + body
        case _:
            content = body
    is_signed = False
    for secret in secrets:
        is_signed |= _signs(scheme, secret, given, content)
    if scheme in _TIMED and not _is_fresh(timestamp, now):
        return None
    return _delivery(scheme, headers, body) if is_signed else None


_SIGNATURE_HEADERS = {
    "standard": "webhook-signature",
    "github": "x-hub-signature-256",
    "stripe": "stripe-signature",
    "shopify": "x-shopify-hmac-sha256",
}
_TIMED = frozenset({"standard", "stripe"})
_MOST_SIGNATURES = 5
"""As many as a sender with several keys needs; each costs a look at the whole body where the key is a public one."""


def _given(scheme: str, header: str) -> list[bytes]:
    """List the signatures that a header offers, as the scheme writes them."""
    match scheme:
        case "standard":
            found = header.split(" ", _MOST_SIGNATURES)
        case "stripe":
            parts = header.split(",", 4 * _MOST_SIGNATURES)
            found = [part.removeprefix("v1=") for part in parts if part.startswith("v1=")]
        case _:
            found = [header]
    return [one.encode() for one in found[:_MOST_SIGNATURES]]


def _timestamp(scheme: str, headers: Mapping[str, str], signature: str) -> str:
    if scheme == "stripe":
        return next((p[2:] for p in signature.split(",") if p.startswith("t=")), "")
    return headers.get("webhook-timestamp", "")


def _is_fresh(timestamp: str, now: float) -> bool:
    is_plain = timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12
    return is_plain and abs(now - int(timestamp)) <= REPLAY_SECONDS


def _signs(scheme: str, secret: str, given: Sequence[bytes], content: bytes) -> bool:
    """Say whether one of the signatures is what this secret makes of the content, which is read once."""
    if scheme == "standard" and secret.startswith("whpk_"):
        return _signs_with_public_key(secret, given, content)
    key = secret.encode()
    if scheme == "standard":
        try:
            key = _key(secret, "whsec_") if secret.startswith("whsec_") else b""
        except PermanentError:
            key = b""
        if len(key) < _SMALLEST_KEY:
            return False
    digest = hmac.new(key, content, hashlib.sha256)
    match scheme:
        case "standard":
            made = b"v1," + base64.b64encode(digest.digest())
        case "github":
            made = b"sha256=" + digest.hexdigest().encode()
        case "stripe":
            made = digest.hexdigest().encode()
        case "shopify":
            made = base64.b64encode(digest.digest())
        case _:
            return False
    is_made = False
    for one in given:
        is_made |= hmac.compare_digest(made, one)
    return is_made


def _signs_with_public_key(secret: str, given: Sequence[bytes], content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(_key(secret, "whpk_"))
    except (PermanentError, ValueError):
        return False
    for one in given:
        if one.startswith(b"v1a,"):
            with suppress(InvalidSignature, ValueError):
                key.verify(base64.b64decode(one.removeprefix(b"v1a,"), validate=True), content)
                return True
    return False


def _delivery(scheme: str, headers: Mapping[str, str], body: bytes) -> Delivery:
    match scheme:
        case "github":
            return Delivery(headers.get("x-github-delivery", ""), headers.get("x-github-event", ""))
        case "shopify":
            return Delivery(
                headers.get("x-shopify-webhook-id", ""), headers.get("x-shopify-topic", "")
            )
        case "stripe":
            return Delivery(_member(body, "id"), _member(body, "type"))
        case _:
            return Delivery(headers.get("webhook-id", ""), _member(body, "type"))


def _member(body: bytes, name: str) -> str:
    """Read a text at the top of a body; empty if there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    value = cast("dict[str, object]", document).get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) else ""
