"""Says what a process runs with: system, interpreter, and versions of what its handlers stand on."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

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
            tools[name] = version(name)
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
