"""Signs and checks webhooks: what is computed over a body, not who may send or what becomes of it.

Secrets of Standard Webhooks say by their prefix what they are: ``whsec_`` an HMAC key, ``whsk_`` an Ed25519 private key and
``whpk_`` a public one, each followed by base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
