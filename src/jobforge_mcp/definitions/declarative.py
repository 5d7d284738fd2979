"""Declarative definitions: data that names a registered handler, narrows its input and fixes a part of it.

Never code: what may run is what is decorated. The order in the worker is the declared schema first, then the fixed input
underneath, then the handler's own type.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from jobforge_mcp.definitions.mapping import check
from jobforge_mcp.definitions.model import BoundJob, JobDefinition, complaint
from jobforge_mcp.errors import CallerError, DefinitionError
from jobforge_mcp.types import Effects, JsonValue

_MAX_BYTES = 128 * 1024
STRENGTH = {Effects.NONE: 0, Effects.INTERNAL: 1, Effects.EXTERNAL: 2}
"""How much of the world an effect reaches."""


def read_definition(path: Path) -> JobDefinition:
    """Read one JSON file.

    Raises:
        DefinitionError: The file is not one definition; file and line are named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _MAX_BYTES:
            raise DefinitionError(f"{path}:1: the file has more than {_MAX_BYTES} characters")
        document = json.loads(text)
    except UnicodeDecodeError:
        raise DefinitionError(f"{path}:1: the file is not UTF-8") from None
    except RecursionError:
        raise DefinitionError(f"{path}:1: the file is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise DefinitionError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    try:
        definition = JobDefinition.model_validate(document)
    except ValidationError as error:
        line = _line_of(text, str(error.errors()[0]["loc"][-1]) if error.errors()[0]["loc"] else "")
        raise DefinitionError(f"{path}:{line}: {complaint(error)}") from None
    if definition.handler is None:
        raise DefinitionError(
            f"{path}:1: the definition names no handler",
            hint='a JSON definition needs "handler": the name of a registered job',
        )
    return definition


def bind(definition: JobDefinition, find: Callable[[str], BoundJob | None]) -> BoundJob:
    """Join a declarative definition with the job whose handler it names.

    Raises:
        DefinitionError: There is no such handler, or the definition promises less than its handler does.
    """
    base = find(definition.handler or "")
    if base is None:
        raise DefinitionError(
            f"job {definition.name!r}: there is no handler {definition.handler!r}"
        )
    bound = join(definition, base)
    compile_all(bound)  # now, so that a bad one is found here
    return bound


def compile_all(bound: BoundJob) -> None:
    """Compile the schemas of a definition and check its template.

    Raises:
        DefinitionError: one of them is wrong.
    """
    _ = bound.input_schema, bound.output_schema
    if bound.is_templated:
        try:
            check(cast("JsonValue", bound.definition.input))
        except CallerError as error:
            raise DefinitionError(f"job {bound.name!r}: {error.message}", hint=error.hint) from None


def join(definition: JobDefinition, base: BoundJob) -> BoundJob:
    """Join a definition with the job whose handler does its work; nothing is compiled yet.

    Raises:
        DefinitionError: The definition promises less than its handler does.
    """
    if definition.isolation not in (None, base.isolation):
        raise DefinitionError(
            f"job {definition.name!r}: the isolation is its handler's, {base.isolation}"
        )
    effects = definition.effects or base.effects
    if STRENGTH[effects] < STRENGTH[base.effects]:
        raise DefinitionError(
            f"job {definition.name!r}: effects {effects} is less than those of its handler, {base.effects}"
        )
    whole = definition.model_copy(
        update={
            "isolation": base.isolation,
            "effects": effects,
            "output_schema": definition.output_schema or base.definition.output_schema,
            "permissions": (*base.definition.permissions, *definition.permissions),
        }
    )
    return replace(base, definition=whole)


def _line_of(text: str, name: str) -> int:
    """Find the line that a complaint about a property means, as well as text can tell."""
    quoted = json.dumps(name)
    lines = text.splitlines()
    return next((number for number, line in enumerate(lines, 1) if quoted in line), 1)
