"""What a measure returns, and how a run is printed."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One number."""

    row: str
    """Name of the measure, as ``--only`` takes it."""
    name: str
    value: float
    unit: str
    most: float | None = None
    """The bound it must stay within."""
    least: float | None = None
    """The bound it must reach."""

    @property
    def is_good(self) -> bool:
        return (self.most is None or self.value <= self.most) and (
            self.least is None or self.value >= self.least
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; the tiny ones only prove that the harness works."""

    jobs: int = 20_000
    bulk: int = 10_000
    seconds: float = 4.0
    idle_seconds: float = 30.0
    probes: int = 200
    calls: int = 300
    starts: int = 20
    cold_starts: int = 3
    passes: int = 3
    rounds: int = 10
    round_jobs: int = 30_000
    definitions: int = 10_000


TINY = Sizes(
    jobs=60,
    bulk=60,
    seconds=0.2,
    idle_seconds=0.2,
    probes=5,
    calls=6,
    starts=2,
    cold_starts=1,
    passes=1,
    rounds=2,
    round_jobs=60,
    definitions=50,
)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def machine(server_version: str) -> dict[str, str]:
    """Say what the numbers were measured with."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processors()}, {_memory_gib()} GiB, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": f"{server_version}, defaults of the embedded server, fsync on",
        "jobforge-mcp": version("jobforge-mcp"),
        "psycopg": version("psycopg"),
        "mcp": version("mcp"),
    }


def table(figures: Sequence[Figure], facts: dict[str, str]) -> str:
    lines = [
        "| measure | value | bound | |",
        "| --- | ---: | ---: | --- |",
        *(
            f"| {figure.name} | {_number(figure.value)} {figure.unit} | {_bound(figure)} | {_mark(figure)} |"
            for figure in figures
        ),
        "",
        *(f"* {name}: {value}" for name, value in facts.items()),
    ]
    return "\n".join(lines)


def _bound(figure: Figure) -> str:
    if figure.most is not None:
        return f"≤ {_number(figure.most)}"
    return f"≥ {_number(figure.least)}" if figure.least is not None else ""


def _mark(figure: Figure) -> str:
    if figure.most is None and figure.least is None:
        return ""
    return "met" if figure.is_good else "**missed**"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _processors() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in _read("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def _memory_gib() -> int:
    sizes = [line.split()[1] for line in _read("/proc/meminfo") if line.startswith("MemTotal")]
    return round(int(sizes[0]) / 1024**2) if sizes else 0


def _read(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
