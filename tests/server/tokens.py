"""Count the tokens that a model reads, by the tokenizer of current OpenAI models."""

from __future__ import annotations

import json
import warnings
from functools import cache
from typing import Protocol

from jobforge_mcp.types import JsonValue


class _Encoding(Protocol):
    def encode(self, text: str) -> list[int]: ...


@cache
def _encoding() -> _Encoding:
    with warnings.catch_warnings():
        # The package opens its own data with a deprecated function.
        warnings.simplefilter("ignore", DeprecationWarning)
        import bpe_openai  # pyright: ignore[reportMissingTypeStubs]  # compiled, and has none

        return bpe_openai.get_encoding("o200k_base")


def count_tokens(content: JsonValue) -> int:
    """Count for a text, or for a value as compact JSON."""
    is_text = isinstance(content, str)
    text = content if is_text else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return len(_encoding().encode(text))
