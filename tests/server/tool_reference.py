"""Write the generated part of docs/tools.md: ``python -m tests.server.tool_reference``."""

from __future__ import annotations

import json
from pathlib import Path

from jobforge_mcp.server.build import listed
from jobforge_mcp.server.tools.table import TOOLS, AnyTool

PAGE = Path(__file__).parents[2] / "docs/tools.md"
BEGIN = "<!-- generated from the tool table: python -m tests.server.tool_reference -->"
END = "<!-- end of the generated part -->"


def render() -> str:
    """Return the reference of all tools."""
    return "\n".join([BEGIN, "", *(part for tool in TOOLS for part in _describe(tool)), END])


def current() -> str:
    """Return what the page holds now."""
    text = PAGE.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def _describe(tool: AnyTool) -> list[str]:
    shown = listed(tool)
    assert shown.output_schema is not None
    return [
        f"### `{tool.name}`",
        "",
        f"Scope `{tool.scope.value}`. {shown.description}",
        "",
        "Arguments:",
        "",
        *_block(shown.input_schema),
        "<details><summary>Answer</summary>",
        "",
        *_block(shown.output_schema),
        "</details>",
        "",
    ]


def _block(schema: object) -> list[str]:
    return ["```json", json.dumps(schema, indent=2, ensure_ascii=False), "```", ""]


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().replace(current(), render()))
