"""Says what a process runs with: system, interpreter, and versions of what its handlers stand on."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, distribution

from jobforge_mcp.types import JsonObject, JsonValue

TOOLS = (
    "jobforge-mcp",
    "anyio",
    "httpx2",
    "jsonschema-rs",
    "mcp",
    "psycopg",
    "pydantic",
    "pydantic-core",
    "pyjwt",
)
"""Packages whose versions a manifest tells."""


def describe_environment() -> str:
    """Return it as a JSON object, equal for equal environments; nothing in it tells hosts apart."""
    tools: dict[str, JsonValue] = {}
    for name in TOOLS:
        try:
            tools[name] = package_version(name)
        except PackageNotFoundError:
            continue
    environment: JsonObject = {
        "os": platform.system(),
        "osRelease": platform.release(),
        "arch": platform.machine(),
        "runtime": f"{platform.python_implementation()} {platform.python_version()}",
        "tools": tools,
    }
    return json.dumps(environment, sort_keys=True)


def package_version(name: str) -> str:
    """Return the version of an installed package, from the head of what it says of itself.

    ``importlib.metadata.version`` reads all of that as an e-mail, read-me included: 50 ms and 1 MB of a worker for ten packages.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    found = distribution(name)
    line = re.search(r"^Version: (.+)$", found.read_text("METADATA") or "", re.MULTILINE)
    return line[1] if line else found.version
