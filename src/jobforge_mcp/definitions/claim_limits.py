"""What a definition's limits mean for one input: the JSON text that a claim obeys.

A key is a literal that all runs share, or a JSON Pointer into the input (it begins with ``/``), so that each value has
slots of its own. Inputs that lack the value, or have null there, share one key between them: a limit is never passed by
leaving something out.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from jobforge_mcp.definitions.mapping import evaluate

if TYPE_CHECKING:
    from jobforge_mcp.definitions.model import JobDefinition
    from jobforge_mcp.types import JsonObject, JsonValue

_LONGEST_KEY_BYTES = 200
LONGEST_MS = 7 * 86_400_000
"""What a debounced run waits at most."""


def claim_limits(definition: JobDefinition, payload: str) -> str | None:
    """Return what is to be enqueued with an input; ``None`` for a definition without limits."""
    concurrency, rate, debounce = definition.concurrency, definition.rate_limit, definition.debounce
    if concurrency is None and rate is None and debounce is None:
        return None
    input: JsonValue = json.loads(payload)
    limits: JsonObject = {}
    if concurrency is not None:
        limits["concurrency"] = {"limit": concurrency.limit, "key": _key(concurrency.key, input)}
    if rate is not None:
        limits["rateLimit"] = {
            "count": rate.count,
            "periodMs": rate.period_ms,
            "key": _key(rate.key, input),
        }
    if debounce is not None:
        limits["debounce"] = {
            "windowMs": debounce.window_ms,
            "maxWaitMs": debounce.max_wait_ms or min(10 * debounce.window_ms, LONGEST_MS),
            "key": _key(debounce.key, input),
        }
    return json.dumps(limits, ensure_ascii=False)


def _key(template: str | None, input: JsonValue) -> str:
    if template is None or not template.startswith("/"):
        return template or ""
    found = evaluate({"$ref": "/input" + template, "$default": None}, {"input": input})
    if found is None:
        return ""
    text = (
        found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, sort_keys=True)
    )
    if len(encoded := text.encode()) > _LONGEST_KEY_BYTES:  # it must fit an index
        return "sha256:" + hashlib.sha256(encoded).hexdigest()
    return text
