"""What the local node does from its start to its end: the composed application, served to all chats.

Imported late: while these imports run, the embedded Postgres is already being started beside them.
"""

from __future__ import annotations

import os
import signal
import socket
import time

import anyio
import structlog
from anyio.abc import SocketListener, TaskStatus

from jobforge_mcp.app import App, open_app
from jobforge_mcp.embedded import Cluster
from jobforge_mcp.errors import JobForgeError
from jobforge_mcp.local import rendezvous
from jobforge_mcp.local.connections import Connections
from jobforge_mcp.local.place import Place
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import JsonObject
from jobforge_mcp.worker.ending import end_for_certain

log = structlog.stdlib.get_logger(__name__)

DUE_SOON_SECONDS = 600
"""A node waits for jobs that are due within this time rather than leave them to the next chat."""

ANSWER_SECONDS = 5.0
"""How long calls under way may take to be answered when the node ends; waits are cut short and need none of it."""

_IDLE_LOOK_SECONDS = 5.0
"""Between looks whether there is still something to do, once the linger time is over."""

_SHORTEST_LOOK_SECONDS = 0.2

_WATCH_SECONDS = 1.0
"""Between looks at what the node stands on: its place, and the keeper of its Postgres."""


class Node:
    """The life of one node. It is also what a connection may give orders to."""

    def __init__(
        self,
        place: Place,
        lock: int,
        listener: socket.socket,
        cluster: Cluster | None,
        *,
        is_kept: bool,
    ) -> None:
        """Take the lock and the listener, which are this object's to close, and the hold on Postgres, which is not."""
        self._place = place
        self._lock: int | None = lock
        self._listener = listener
        self._socket_inode = rendezvous.inode_of(place.socket_path)
        self._cluster = cluster
        self._is_kept = is_kept
        # Not when it was started on a terminal, to be looked at.
        self._has_log = _is_same_file(2, place.log_path)
        self._started_at = time.time()
        self._ending = anyio.Event()
        self._app: App | None = None
        self._connections: Connections | None = None

    async def run(self, settings: Settings) -> None:
        """Compose the application, serve, and drain."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._heed_signals)
            try:
                async with open_app(settings) as app:
                    self._app = app
                    await self._serve(app)
                    if app.pool is not None:
                        await app.pool.drain(settings.drain_grace_seconds)
                        end_for_certain()
            finally:
                self._leave_place()
            tasks.cancel_scope.cancel()
        log.info("node_ended")

    def describe(self) -> JsonObject:
        """Say how the node is, under the names of ``NodeStatus``."""
        pool = self._app.pool if self._app else None
        return {
            "version": rendezvous.VERSION,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "chats": len(self._connections) if self._connections else 0,
            "running_jobs": pool.running if pool else 0,
            "is_kept": self._is_kept,
            "postgres": self._cluster.version if self._cluster else None,
        }

    def stop(self, reason: str) -> None:
        """End in order, soon."""
        if not self._ending.is_set():
            log.info("node_ending", reason=reason)
            self._ending.set()

    def keep(self) -> None:
        """Stay when nothing is left to do."""
        self._is_kept = True

    async def _serve(self, app: App) -> None:
        """Serve chats until the end begins; then let them go before the worker pool drains."""
        connections = Connections(identify=app.gate.caller_of, serve=app.serve_streams, orders=self)
        self._connections = connections
        listener = await SocketListener.from_socket(self._listener)
        log.info("node_ready", place=self._place.directory, version=rendezvous.VERSION)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connections.accept, listener)
            tasks.start_soon(self._end_when_idle, app, connections)
            tasks.start_soon(self._watch_ground)
            await self._ending.wait()
            self._leave_place()
            connections.stop_accepting()
            await listener.aclose()
            app.watcher.stop_waiting()
            await connections.drain(ANSWER_SECONDS)
            tasks.cancel_scope.cancel()

    async def _heed_signals(self, *, task_status: TaskStatus[None]) -> None:
        """Drain on the first signal, give up the running jobs on the second."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                if self._ending.is_set() and self._app and self._app.pool:
                    self._app.pool.abandon()
                self.stop(signal.Signals(number).name)

    async def _end_when_idle(self, app: App, connections: Connections) -> None:
        """End the linger time after the last chat, once nothing is left that this node should do."""
        linger = app.settings.node_linger_seconds
        while True:
            while len(connections):
                await connections.changed.wait()
            with anyio.move_on_after(linger):
                await connections.changed.wait()
            while not len(connections):
                if not self._is_kept and not await self._has_work(app):
                    self.stop("idle")
                    return
                pause = min(_IDLE_LOOK_SECONDS, max(linger, _SHORTEST_LOOK_SECONDS))
                with anyio.move_on_after(pause):
                    await connections.changed.wait()

    async def _has_work(self, app: App) -> bool:
        """Tell whether something runs or is due soon; a database that does not answer is no reason to end."""
        if app.pool is None or app.worker_router is None:
            return False
        try:
            return await app.worker_router.has_work(app.pool.job_types, DUE_SOON_SECONDS * 1_000)
        except JobForgeError as error:
            log.warning("idle_unknown", code=error.code, error=error.message)
            return True

    async def _watch_ground(self) -> None:
        """Have Postgres's keeper replaced when it was killed, and end when nobody can reach this node any more."""
        while True:
            await anyio.sleep(_WATCH_SECONDS)
            if rendezvous.inode_of(self._place.socket_path) != self._socket_inode:
                self.stop("its socket is gone")
                return
            if self._has_log and rendezvous.is_log_long(self._place):
                rendezvous.write_to_log(self._place)
            if self._cluster:
                try:
                    await anyio.to_thread.run_sync(self._cluster.ensure_alive)
                except (JobForgeError, OSError) as error:
                    # Tried again in a second; until then calls are told that the database is away.
                    log.error("postgres_lost", error=str(error), hint=getattr(error, "hint", None))

    def _leave_place(self) -> None:
        """Give the place to whoever comes next: first nobody finds the socket, then somebody may take the lock."""
        if self._lock is None:
            return
        rendezvous.leave(self._place, self._lock, self._socket_inode)
        self._lock = None


def _is_same_file(descriptor: int, path: str) -> bool:
    return os.fstat(descriptor).st_ino == rendezvous.inode_of(path)
