"""Messages between a worker and its child processes: four bytes of length, then JSON.

JSON and not pickle: a child runs other people's code, and what it sends is read by the process that holds the database.
"""

from __future__ import annotations

import json
import struct
from typing import cast

from jobforge_mcp.types import JsonObject

MAX_FRAME_BYTES = 48 * 1024 * 1024
"""A result is at most 16 MiB, and more as text in a message: whatever is larger than this is no message of ours."""

END_OF_OUTPUT = "\0jobforge:end:"
"""What a child prints after a job's own output, with the number of the call: it goes another way than the answer."""

HEADER = struct.Struct(">I")


class FrameError(Exception):
    """The other side sent something that is no message."""


def encode_frame(message: JsonObject) -> bytes:
    """Write one message."""
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", errors="surrogatepass"
    )
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(body)} bytes is above {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Puts messages together from bytes as they come."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[JsonObject]:
        """Take some bytes, and return the messages that are complete now.

        Raises:
            FrameError: What came is no message; nothing after it can be read.
        """
        self._buffer += data
        messages: list[JsonObject] = []
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a message of {length} bytes is above {MAX_FRAME_BYTES}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return messages


def _decode(body: bytes) -> JsonObject:
    try:
        message: object = json.loads(body.decode("utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise FrameError("a message is not JSON") from error
    if not isinstance(message, dict):
        raise FrameError("a message is not an object")
    return cast("JsonObject", message)
