"""What clients could send: requests that are almost right, and bytes that are nothing of the kind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from jobforge_mcp.server.tools.table import TOOLS as OFFERED

TOOLS = [
    "list-jobs", "execute-job", "get-job-status", "list-runs", "cancel-job", "retry-job", "register-job", "remove-job",
    "submit-event", "list-events", "register-trigger", "list-triggers", "remove-trigger", "no-such-tool", "execute_job",
]  # fmt: skip
FIELDS = [
    "name", "input", "background", "waitSeconds", "idempotencyKey", "runAt", "priority", "orderingKey", "projectId", "labels",
    "dryRun", "runId", "runIds", "sinceVersion", "include", "status", "cursor", "limit", "since", "reason", "ifVersion", "force",
    "type", "payload", "source", "kind", "jobName", "cron", "timezone", "match", "inputMapping", "cooldownMs", "tenant",
]  # fmt: skip
# Not the one that opens a stream without end: an answer that does not end is what the test looks for.
METHODS = [
    "tools/call", "tools/list", "resources/read", "resources/list", "resources/templates/list", "prompts/get", "ping", "initialize",
    "server/discover", "tasks/get", "tasks/cancel", "completion/complete", "logging/setLevel", "notifications/cancelled",
    "no/such", "",
]  # fmt: skip

odd_texts = st.sampled_from(
    ["", "\0", "\ud800", "\ufeff", "\u202e", "a" * 10_000, "../../etc/passwd", "' or 1=1 --", "{{7*7}}", "\r\nX: y", "2026-02-30T25:61:61Z",
     "00000000-0000-0000-0000-000000000000", "jobforge://runs/x", "demo.echo", "1e999", "-0"]
)  # fmt: skip
odd_numbers = st.sampled_from(
    [0, -1, 2**31, 2**53 + 1, 2**63, 10**400, -(10**400), 1e308, 5e-324, 0.1, True]
)
scalars = st.none() | st.booleans() | odd_numbers | odd_texts | st.text(max_size=20) | st.floats()
values: SearchStrategy[object] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
arguments = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), values, max_size=6)
NOTHING: dict[str, object] = {}
SAID: dict[str, object] = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": NOTHING,
}
metas = st.fixed_dictionaries(
    {},
    optional={
        "io.modelcontextprotocol/protocolVersion": st.sampled_from(["2026-07-28", "2025-11-25", "1999-01-01"]) | values,
        "io.modelcontextprotocol/clientCapabilities": st.just(NOTHING) | values,
        "progressToken": values,
    },
)  # fmt: skip
calls = st.fixed_dictionaries(
    {
        "name": st.sampled_from(TOOLS) | scalars,
        "arguments": arguments | values,
        "_meta": metas | st.just(SAID),
    }
)
requests = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | scalars, "method": st.sampled_from(METHODS) | st.just("tools/call") | scalars},
    optional={"id": st.just(1) | scalars | values, "params": calls | calls | values},
)  # fmt: skip

# --- what the models of the tools' own arguments describe: most of it comes as far as the database

KNOWN: dict[str, list[object]] = {
    "name": ["demo.echo", "demo.broken", "fuzz.made", "nothing.here"],
    "jobName": ["demo.echo", "fuzz.made", "nothing.here"],
    "handler": ["demo.echo", "nothing.here"],
    "runId": ["0193f1a5-7c2e-7000-8000-000000000001", "01a203c8-894d-7c87-80ce-e84d9ef2176c"],
    "input": [{}, {"text": "x"}, {"a": {"$ref": "/input/a"}}],
    "type": ["order.paid", "x"],
    "eventType": ["order.paid", "x"],
    "cron": ["* * * * *", "0 0 29 2 *", "@daily", "61 * * * *"],
    "timezone": ["UTC", "Europe/Vienna", "Mars/Olympus"],
    "waitSeconds": [0],
    "background": [True],
    "labels": [{}, {"a": "b"}],
}
"""Words that mean something, and a wait that no example has to sit out."""


def described(schema: Mapping[str, Any], name: str = "") -> SearchStrategy[object]:
    """Make values of a JSON Schema as tools publish it, and now and then others."""
    if name in KNOWN:
        return st.sampled_from(KNOWN[name]) | (
            st.nothing() if name in ("waitSeconds", "background") else values
        )
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([described(each) for each in schema["anyOf"]])
    match schema.get("type"):
        case "string" if schema.get("format") == "date-time":
            return st.sampled_from(
                [
                    "2026-01-01T00:00:00Z",
                    "1969-12-31T23:59:59Z",
                    "9999-12-31T23:59:59-14:00",
                    "soon",
                ]
            )
        case "string":
            return st.text(max_size=12) | odd_texts
        case "integer" | "number":
            least = schema.get("minimum", -5)
            return st.integers(least, max(least, schema.get("maximum", 50))) | odd_numbers
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(described(schema.get("items", {}), name.removesuffix("s")), max_size=3)
        case "object" if schema.get("properties"):
            return st.fixed_dictionaries(
                {
                    each: described(inner, each)
                    for each, inner in schema["properties"].items()
                    if each in schema.get("required", [])
                },
                optional={
                    each: described(inner, each)
                    for each, inner in schema["properties"].items()
                    if each not in schema.get("required", [])
                },
            )
        case _:
            return values


likely_calls = st.sampled_from(OFFERED).flatmap(
    lambda tool: st.fixed_dictionaries(
        {
            "name": st.just(tool.name),
            "arguments": described(tool.arguments.model_json_schema(by_alias=True)),
            "_meta": st.just(SAID),
        }
    )
)
good_calls = (calls | likely_calls).map(lambda params: {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})  # fmt: skip
batches = st.lists(requests | values, max_size=4)


def written(value: object) -> bytes:
    """Write JSON as a careless client does: NaN, huge numbers, halves of surrogate pairs."""
    return json.dumps(value).encode()


def damaged(value: object, damage: Callable[[bytes], bytes]) -> bytes:
    return damage(written(value))


def doubled(body: bytes) -> bytes:
    """Say every key twice."""
    return body.replace(b'"name":', b'"name": "other", "name":').replace(
        b'"id":', b'"id": 7, "id":'
    )


def deep(depth: int, opening: bytes, closing: bytes) -> bytes:
    head = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute-job","arguments":{"name":"demo.echo","input":'
    return head + opening * depth + b"1" + closing * depth + b"}}}"


def broken(changed: tuple[bytes, int, int]) -> bytes:
    body, place, byte = changed
    at = place % (len(body) + 1)
    return body[:at] + bytes([byte]) + body[at + (place % 3) :]


damages: list[Callable[[bytes], bytes]] = [
    lambda body: body, lambda body: body, doubled, lambda body: body[: len(body) // 2], lambda body: body + body,
    lambda body: b"\xef\xbb\xbf" + body, lambda body: body.decode().encode("utf-16"), lambda body: b"[" + body + b"]",
]  # fmt: skip
bodies: SearchStrategy[bytes] = (
    likely_calls.map(lambda params: written({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
    | st.builds(damaged, good_calls | requests | batches, st.sampled_from(damages))
    | st.builds(deep, st.sampled_from([10, 64, 65, 1_000, 100_000]), st.sampled_from([b"[", b'{"a":']), st.sampled_from([b"]", b"}"]))
    | st.tuples(good_calls.map(written), st.integers(0, 10_000), st.integers(0, 255)).map(broken)
    | st.binary(max_size=200)
)  # fmt: skip
headers: SearchStrategy[dict[str, str]] = st.fixed_dictionaries(
    {},
    optional={
        "Accept": st.sampled_from(["application/json, text/event-stream", "text/html", "*/*", ",,,", "text/event-stream"]),
        "Content-Type": st.sampled_from(["application/json", "text/plain", "application/json; charset=utf-16", "x"]),
        "MCP-Protocol-Version": st.sampled_from(["2026-07-28", "2025-11-25", "1", "9" * 500]),
        "Mcp-Method": st.sampled_from(METHODS[:-1]),
        "Mcp-Name": st.sampled_from([*TOOLS, "x" * 5_000]),
        "Mcp-Session-Id": st.sampled_from(["x", "0" * 1_000, "00000000000000000000000000000000"]),
        "Last-Event-ID": st.sampled_from(["0", "x" * 100]),
        "Content-Encoding": st.sampled_from(["gzip", "br"]),
    },
)  # fmt: skip


def named(body: bytes) -> dict[str, str]:
    """Return the header that names the tool, as a good client sends it; without it nothing is read further."""
    try:
        name = json.loads(body)["params"]["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    is_sayable = isinstance(name, str) and name.isascii() and name.isprintable() and name.strip()
    return {"Mcp-Name": name} if is_sayable else {}


def fuzzing(messages: int) -> settings:
    """Send so many messages, the same each time unless ``JOBFORGE_FUZZ_EXAMPLES`` asks for others."""
    return settings(
        max_examples=messages,
        deadline=None,
        derandomize="JOBFORGE_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )
