"""A worker process that the tests may kill: handlers.py and a database URL as arguments, settings in the environment."""

from __future__ import annotations

import sys

import anyio
import structlog

from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.settings import load_settings
from jobforge_mcp.worker.main import run_worker

if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    jobs = Registry(load_jobs([sys.argv[1]]))
    settings, url = load_settings(), sys.argv[2]
    anyio.run(lambda: run_worker(settings, jobs, url=url))
