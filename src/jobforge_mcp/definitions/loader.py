"""Finds job definitions in files, folders and modules, and finds one handler again in a fresh interpreter.

A definition that is wrong stops the start, with its file and line: a server that came up without a job somebody counts
on would tell them nothing. Python files are executed, so only what the operator names is loaded, never what a caller
sends.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from jobforge_mcp.definitions.declarative import bind, read_definition
from jobforge_mcp.definitions.model import FILE_MODULE_PREFIX, BoundJob, HandlerRef, JobDefinition
from jobforge_mcp.errors import DefinitionError


def load_jobs(sources: Iterable[str | Path]) -> list[BoundJob]:
    """Load every job of the sources: folders, ``.py`` and ``.json`` files, and dotted names of modules.

    In a folder each file whose name does not begin with ``_`` is read, folders within included, in the order of names;
    the others are helpers, which a file imports as ``from ._helpers import …``.

    Raises:
        DefinitionError: A source does not exist, a definition is wrong, or a name is taken twice.
    """
    jobs: dict[str, BoundJob] = {}
    declared: list[tuple[Path, JobDefinition]] = []
    for source in sources:
        for item in _expand(source):
            if isinstance(item, Path) and item.suffix == ".json":
                declared.append((item, read_definition(item)))
                continue
            for bound in jobs_of(_load_module(item)):
                _add(jobs, bound, str(item))
    # Declarative definitions last: the handlers they name may come from any source. They never name each other.
    handlers = dict(jobs)
    for path, definition in declared:
        try:
            _add(jobs, bind(definition, handlers.get), str(path))
        except DefinitionError as error:
            raise DefinitionError(f"{path}:1: {error.message}", hint=error.hint) from None
    return list(jobs.values())


def resolve(ref: HandlerRef) -> BoundJob:
    """Find the decorated job that a reference means; modules are loaded once per process.

    Raises:
        DefinitionError: The source cannot be loaded, or has no such job any more.
    """
    source = Path(ref.source) if ref.source.endswith(".py") else ref.source
    for bound in jobs_of(_load_module(source)):
        if bound.name == ref.name:
            return bound
    raise DefinitionError(f"{ref.source} has no job {ref.name!r}")


def jobs_of(module: ModuleType) -> list[BoundJob]:
    """Return the jobs that a module defines, in its order; imported ones belong to their own module."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, BoundJob) and value.handler.__module__ == module.__name__
    ]


def _add(jobs: dict[str, BoundJob], bound: BoundJob, source: str) -> None:
    if bound.name in jobs:
        raise DefinitionError(
            f"{source}: the job name {bound.name!r} is taken by {jobs[bound.name].ref.source}",
            hint="rename one of the two",
        )
    jobs[bound.name] = bound


def _expand(source: str | Path) -> Iterator[Path | str]:
    """Turn a source into files, or the name of a module."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from sorted(
            file.resolve()
            for file in path.rglob("*")
            if file.suffix in (".py", ".json")
            and file.is_file()
            and not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
        )
    elif path.suffix in (".py", ".json") and path.is_file():
        yield path.resolve()
    elif path.suffix not in (".py", ".json") and all(
        part.isidentifier() for part in str(source).split(".")
    ):
        yield str(source)
    else:
        raise DefinitionError(
            f"{source} is neither a file, a folder nor the name of a module",
            hint="correct JOBFORGE_JOBS: .py and .json files, folders, or dotted names of modules",
        )


def _load_module(item: Path | str) -> ModuleType:
    """Import a module by name, or execute a file under a name made from its path; either once."""
    try:
        return importlib.import_module(item) if isinstance(item, str) else _load_file(item)
    except DefinitionError:
        raise
    except Exception as error:
        place = _place(error, item)
        raise DefinitionError(
            f"{place}: cannot be loaded: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _load_file(path: Path) -> ModuleType:
    name = f"{_package_of(path.parent)}.{path.stem.replace('.', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{path}:1: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: pydantic looks up the names in annotations there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package_of(folder: Path) -> str:
    """Return a package that stands for a folder, so that ``from ._helpers import …`` finds its neighbours."""
    name = f"{FILE_MODULE_PREFIX}{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        package = ModuleType(name, f"The job definitions in {folder}.")
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _place(error: Exception, item: Path | str) -> str:
    """Name the last line of the item itself that was being executed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(item)
    ]
    return f"{item}:{lines[-1]}" if lines else str(item)
