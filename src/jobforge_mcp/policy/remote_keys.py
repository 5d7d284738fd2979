"""The public keys of an OAuth server, fetched from where it publishes them (``JOBFORGE_TOKEN_KEYS=https://…``).

Only from the issuer's own origin, by the rules of `egress`: one address that was judged, no redirect, no proxy, 5 seconds and
64 KiB at most. What was fetched is kept and fetched again every few minutes, so that a rotation is seen without a restart
and a key that was taken back is forgotten. A token that names a key nobody knows has it fetched at once, but not twice in a
minute, or strangers could make this server call another one as often as they like. When fetching fails, the last
good keys stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import anyio
import structlog

from jobforge_mcp.errors import JobForgeError, SettingsError
from jobforge_mcp.policy.keys import PublicKey, parse_published_keys
from jobforge_mcp.settings import Settings

REFRESH_SECONDS: Final = 300.0
"""How long a key that the issuer took back is accepted at most."""

REFETCH_SECONDS: Final = 60.0
"""Unknown keys have the keys fetched again once in this time."""

FETCH_SECONDS: Final = 5.0
LARGEST_KEY_SET: Final = 64 * 1024

log = structlog.stdlib.get_logger("jobforge.policy")


class RemoteKeys:
    """The keys at one URL. `find` never waits once they were fetched; whoever can wait calls `learn` before it."""

    def __init__(
        self,
        url: str,
        *,
        allow_private: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._allow_private = allow_private
        self._clock = clock
        self._keys: dict[str, PublicKey] = {}
        self._tried_at: float | None = None
        self._fetching = anyio.Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> RemoteKeys | None:
        """Return them where ``token_keys`` is a URL."""
        if settings.token_keys is None or not settings.has_remote_keys:
            return None
        return cls(settings.token_keys, allow_private=settings.token_keys_allow_private)

    def find(self, key_id: str) -> PublicKey | None:
        """Return the accepted key of this id, as it was fetched last.

        Raises:
            SettingsError: none were ever fetched.
        """
        if not self._keys and self._may_fetch():
            self._fetch_blocking()
        if not self._keys:
            raise SettingsError(
                f"the keys of the issuer could not be fetched from {self._place()}",
                hint="the log says why; JOBFORGE_TOKEN_KEYS names the URL",
            )
        return self._keys.get(key_id)

    def all(self) -> list[PublicKey]:
        """Return every accepted key."""
        if not self._keys and self._may_fetch():
            self._fetch_blocking()
        return list(self._keys.values())

    async def learn(self, key_id: str | None) -> None:
        """Fetch the keys if this one is not known, and none were fetched within a minute."""
        if key_id in self._keys or not self._may_fetch():
            return
        async with self._fetching:
            if key_id not in self._keys and self._may_fetch():
                await self._fetch()

    async def run(self) -> None:
        """Fetch the keys now and every few minutes, until cancelled."""
        while True:
            async with self._fetching:
                await self._fetch()
            await anyio.sleep(REFRESH_SECONDS)

    def _may_fetch(self) -> bool:
        return self._tried_at is None or self._clock() - self._tried_at >= REFETCH_SECONDS

    async def _fetch(self) -> None:
        self._tried_at = self._clock()
        try:
            found = await fetch_keys(self._url, allow_private=self._allow_private)
        except (JobForgeError, TimeoutError) as error:
            reason = error.message if isinstance(error, JobForgeError) else "it took too long"
            log.warning("token_keys_not_fetched", place=self._place(), reason=reason)
            return
        if found.keys() != self._keys.keys():
            log.info("token_keys_changed", key_ids=sorted(found))
        self._keys = found

    def _fetch_blocking(self) -> None:
        """Fetch on a thread with a loop of its own: commands have none, and a server has called `run` before."""
        thread = threading.Thread(target=lambda: anyio.run(self._fetch), name="token-keys")
        thread.start()
        thread.join()

    def _place(self) -> str:
        return urlsplit(self._url).netloc


async def fetch_keys(url: str, *, allow_private: bool = False) -> dict[str, PublicKey]:
    """Fetch a key set once.

    Raises:
        JobForgeError: the address may not be called, does not answer, or answers with something else.
        TimeoutError: it took more than 5 seconds.
    """
    from jobforge_mcp.egress.client import EgressPolicy, Outgoing, send
    from jobforge_mcp.egress.urls import parse_url

    target = parse_url(url)
    policy = EgressPolicy(hosts=(target.host,), ports=(target.port,), allow_private=allow_private)
    request = Outgoing("GET", url, {"accept": "application/json"}, max_bytes=LARGEST_KEY_SET)
    with anyio.fail_after(FETCH_SECONDS):
        answer = await send(request, policy)
    if answer.status != 200:
        raise SettingsError(f"{target.place} answered {answer.status}")
    if answer.is_truncated:
        raise SettingsError(f"{target.place} answered with more than {LARGEST_KEY_SET} bytes")
    return parse_published_keys(answer.content, target.place)
