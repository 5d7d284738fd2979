"""A revoked token sees nothing more, also of what a server answers from memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import httpx2
import psycopg
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from jobforge_mcp.errors import DatabaseUnavailableError, PolicyDeniedError
from jobforge_mcp.policy.gate import Credential
from jobforge_mcp.policy.living import KEPT_SECONDS, LivingTokens
from jobforge_mcp.router.tokens import TokenRouter
from jobforge_mcp.server.build import build_server
from jobforge_mcp.types import Caller, CallOrigin
from tests.end_to_end.doors import http_server
from tests.server.stage import Stage
from tests.server.test_http import MODERN

ORIGIN = CallOrigin(tool="test")


async def revoke(stage: Stage, caller: Caller) -> None:
    """Revoke the caller's token as another holder of the tenant would."""
    living = stage.parts.living
    assert living is not None
    other = stage.parts.gate.identify(stage.credential())
    assert caller.token_id is not None
    await living.router.revoke_token(other, caller.token_id, origin=ORIGIN)


async def refusal_of(call: Callable[[], Awaitable[object]]) -> str | None:
    """Return the code of what the call is refused with; none when it is answered."""
    try:
        answer = await call()
    except MCPError as error:
        return error.error.data["code"]
    structured = getattr(answer, "structured_content", None)
    is_error = getattr(answer, "is_error", False)
    return structured["error"]["code"] if is_error and structured else None


READS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "list-jobs": lambda client: client.call_tool("list-jobs", {}),
    "list-runs": lambda client: client.call_tool("list-runs", {}),
    "tools/list": lambda client: client.list_tools(),
    "resources/list": lambda client: client.list_resources(),
    "resources/templates/list": lambda client: client.list_resource_templates(),
    "server": lambda client: client.read_resource("jobforge://server"),
    "job": lambda client: client.read_resource("jobforge://jobs/test.noop"),
}


@pytest.mark.requirement("policy.revocation-of-reads")
async def test_every_read_refuses_a_revoked_token_within_five_seconds(stage: Stage) -> None:
    credential = stage.credential()

    async def read_all() -> dict[str, str | None]:
        # A client of its own each time: this one remembers lists for as long as the server said.
        async with Client(build_server(stage.parts, credential)) as client:
            return {
                name: await refusal_of(lambda c=call: c(client)) for name, call in READS.items()
            }

    before = await read_all()
    await revoke(stage, stage.parts.gate.identify(credential))
    after = before
    with anyio.fail_after(30):
        while set(after.values()) != {"TOKEN_REVOKED"}:
            await anyio.sleep(0.2)
            after = await read_all()

    assert set(before.values()) == {None}
    assert KEPT_SECONDS <= 5
    assert after == dict.fromkeys(READS, "TOKEN_REVOKED")


@pytest.mark.requirement("policy.revocation-of-reads")
async def test_over_http_a_client_is_told_to_get_another_token(stage: Stage) -> None:
    token = stage.token()
    await revoke(stage, stage.parts.gate.identify(Credential(token)))
    headers = {
        **MODERN,
        "Mcp-Method": "tools/list",
        "Mcp-Name": "",
        "Authorization": f"Bearer {token}",
    }

    async with http_server(stage) as server, httpx2.AsyncClient(base_url=server.url) as http:
        answer = await http.post("/mcp", headers=headers, content=b"{")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert answer.json()["error"]["code"] == "TOKEN_REVOKED"


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_kept_for_its_seconds_and_asked_anew_after_them(stage: Stage) -> None:
    assert stage.parts.living is not None
    clock = Clock()
    living = LivingTokens(stage.parts.living.router, clock)
    caller = stage.parts.gate.identify(stage.credential())
    await living.require(caller)
    await revoke(stage, caller)

    clock.now += KEPT_SECONDS - 0.01
    await living.require(caller)
    clock.now += 0.02
    with pytest.raises(PolicyDeniedError) as caught:
        await living.require(caller)

    assert caught.value.code == "TOKEN_REVOKED"


async def test_a_tenants_new_epoch_ends_every_older_token(stage: Stage) -> None:
    assert stage.parts.living is not None
    living = LivingTokens(stage.parts.living.router)
    caller = stage.parts.gate.identify(stage.credential())
    other = stage.parts.gate.identify(stage.credential("globex"))
    await stage.parts.living.router.revoke_tenant_tokens(caller, origin=ORIGIN)

    with pytest.raises(PolicyDeniedError) as caught:
        await living.require(caller)
    await living.require(other)

    assert caught.value.code == "TOKEN_REVOKED"


async def test_without_a_database_nothing_is_answered_from_memory(
    stage: Stage, admin: psycopg.Connection
) -> None:
    from jobforge_mcp.db.pool import Database

    caller = stage.parts.gate.identify(stage.credential())
    closed = Database(
        "host=127.0.0.1 port=1 dbname=none user=jobforge_api", role="jobforge_api", min_size=0
    )

    with pytest.raises(DatabaseUnavailableError):
        await LivingTokens(TokenRouter(closed)).require(caller)
