"""Jobs that look for what they should not find, each from where it runs; and the connector, under another name too."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel

from jobforge_mcp import JobContext, job


class Nothing(BaseModel):
    """No input."""


@job(name="nosy.loop", description="Looks around in the server's own process.", effects="none")
async def loop(input: Nothing, job: JobContext) -> str:
    seen = {name: repr(getattr(job, name, None)) for name in dir(job)}
    return json.dumps([dict(os.environ), seen])


@job(name="nosy.child", description="Looks around in a child process.", effects="none")
def child(input: Nothing, job: JobContext) -> str:
    seen = {name: repr(getattr(job, name, None)) for name in dir(job) if name[0] != "_"}
    began_with = Path("/proc/self/environ").read_text(errors="replace")
    return json.dumps([dict(os.environ), began_with, seen])
