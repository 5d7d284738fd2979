"""The Python client: the verbs of the tools, for applications, the command line and tests.

It speaks to the database through the router, as a server would; no server needs to run for it, but a worker must, or
nothing is executed. It acts as one caller, made from a policy token, and is held to that caller's scopes and projects.

Not empty as other packages' ``__init__`` are: to applications this is one module, ``client``.
"""

from __future__ import annotations

from jobforge_mcp.client.answers import RunRef, result_of, to_job_id
from jobforge_mcp.client.blocking import SyncClient
from jobforge_mcp.client.bundles import BundleRequest, Verdict
from jobforge_mcp.client.events import EventVerbs, from_cloudevent, to_cloudevent
from jobforge_mcp.client.options import Options
from jobforge_mcp.client.verbs import Client
from jobforge_mcp.evidence.reading import Part, Range

__all__ = [
    "BundleRequest",
    "Client",
    "EventVerbs",
    "Options",
    "Part",
    "Range",
    "RunRef",
    "SyncClient",
    "Verdict",
    "from_cloudevent",
    "result_of",
    "to_cloudevent",
    "to_job_id",
]
