"""Make an MCP server of the tools: everything the SDK's low-level server asks, answered from the parts.

The only file that knows tool results exist. A ``CallerError`` becomes a result with ``isError`` and its code, sentence and
hint; anything else becomes ``INTERNAL`` with a trace id, and the log has the rest. Both protocol eras are served: what a
client may do is decided anew for each request, from the credential that came with it.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import anyio
import mcp_types as types
import structlog
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import (
    SUBSCRIPTION_ID_META_KEY,
    ResourceUpdated,
    event_to_notification,
)

from jobforge_mcp.definitions.catalog import Wanted
from jobforge_mcp.errors import (
    CallerError,
    DatabaseUnavailableError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    PolicyDeniedError,
)
from jobforge_mcp.policy.denials import Denial, action_of, is_denial
from jobforge_mcp.policy.gate import Credential, Door
from jobforge_mcp.policy.permissions import may_list
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import resources, wire
from jobforge_mcp.server.arguments import schema_of
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.server.subscriptions import (
    MOST_SUBSCRIPTIONS,
    Connection,
    follow,
    open_connection,
)
from jobforge_mcp.server.tools.table import TOOLS, AnyTool
from jobforge_mcp.types import Caller, JsonObject

NAME = "jobforge"
CREDENTIAL_KEY = "jobforge.credential"
"""Where the HTTP doors leave a request's credential in its ASGI scope."""

INSTRUCTIONS = (
    "Durable jobs: a run survives this call, this chat and a restart. list-jobs shows what can run; execute-job runs it "
    "and waits a while; when the answer is not final, keep the runId and call get-job-status with waitSeconds. "
    "Every answer says in `next` what to do now. Pass an idempotencyKey to execute-job, the same one when you repeat a "
    "call, so that nothing runs twice. A tool error has code, message and hint: mend what the hint says; repeat only "
    "if retryable."
)

TOOLS_TTL_MS = 300_000
RESOURCES_MOST = 200
"""Definitions that are listed as resources; list-jobs pages through all, and each can be read by its name."""
PING_SECONDS = 10.0

log = structlog.stdlib.get_logger(__name__)

Context = ServerRequestContext[Connection, Any]


def build_server(parts: ServerParts, credential: Credential | None = None) -> Server[Connection]:
    """Return a server over the parts.

    ``credential`` is who acts on a connection that is not HTTP: the process's own. Over HTTP each request brings its own,
    and a request without one is refused whatever is passed here.
    """
    doors = _Doors(parts, credential)
    return Server[Connection](
        NAME,
        version=version("jobforge-mcp"),
        title="JobForge",
        instructions=INSTRUCTIONS,
        lifespan=_lifespan,
        get_tool_input_schema=_input_schema,
        on_list_tools=doors.list_tools,
        on_call_tool=doors.call_tool,
        on_list_resources=doors.list_resources,
        on_list_resource_templates=doors.list_resource_templates,
        on_read_resource=doors.read_resource,
        on_subscribe_resource=doors.subscribe,
        on_unsubscribe_resource=doors.unsubscribe,
        on_subscriptions_listen=doors.listen,
    )


def find_tool(name: str) -> AnyTool | None:
    """Return a tool by its name or by the same name with underscores, which is not listed."""
    return _BY_NAME.get(name) or _BY_ALIAS.get(name)


def listed(tool: AnyTool) -> types.Tool:
    """Return a tool as clients see it."""
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=schema_of(tool.arguments),
        output_schema=wire.schema_of(tool.answers),
        annotations=types.ToolAnnotations(
            read_only_hint=tool.is_read_only,
            destructive_hint=None if tool.is_read_only else tool.is_destructive,
            idempotent_hint=tool.is_idempotent,
            open_world_hint=False,
        ),
    )


class _Doors:
    """The handlers of every method the SDK knows."""

    def __init__(self, parts: ServerParts, credential: Credential | None) -> None:
        self._parts = parts
        self._credential = credential

    async def list_tools(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        caller = await self._identify(ctx)
        return types.ListToolsResult(
            tools=[
                _LISTED[tool.name]
                for tool in TOOLS
                if tool.scope in caller.scopes and self._has(caller, tool)
            ],
            ttl_ms=TOOLS_TTL_MS,
            cache_scope="private",
        )

    async def call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = find_tool(params.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:64]}")
        started = time.perf_counter()
        trace_id = _trace_id(ctx)
        answer, outcome = await self._answer(ctx, tool, params.arguments, trace_id)
        self._parts.metrics.calls.labels(tool.name, outcome).inc()
        self._parts.metrics.seconds.labels(tool.name).observe(time.perf_counter() - started)
        return _to_result(answer)

    async def _answer(
        self, ctx: Context, tool: AnyTool, given: Mapping[str, Any] | None, trace_id: str
    ) -> tuple[wire.Answer, str]:
        """Check, authorize and run one call."""
        try:
            run = tool.prepare(given)
            caller = self._parts.gate.authorize(self._credential_of(ctx), tool.scope)
            if tool.feature is not None:
                tool.feature.require(self._parts.settings, caller, tool.name)
            if tool.is_read_only:  # a write asks in its own transaction
                await self._require_living(caller)
            call = Call(caller, tool.name, trace_id, ctx.session.report_progress)
            answer = await run(self._parts, call)
        except CallerError as error:
            await self._record_denial(ctx, tool, error, trace_id, arguments=given)
            return wire.tool_error(wire.view_error(error)), error.code
        except DatabaseUnavailableError as error:
            log.warning("database_unavailable", tool=tool.name, trace_id=trace_id, code=error.code)
            return wire.tool_error(_unavailable(error)), error.code
        except Exception:  # whatever else happens must reach the log and not the wire
            log.exception("tool_failed", tool=tool.name, trace_id=trace_id)
            return wire.tool_error(_internal(trace_id)), "INTERNAL"
        return answer, "run_failed" if answer.is_error else "ok"

    def _has(self, caller: Caller, tool: AnyTool) -> bool:
        return tool.feature is None or tool.feature.is_on_for(self._parts.settings, caller)

    async def _record_denial(
        self,
        ctx: Context,
        tool: AnyTool,
        error: CallerError,
        trace_id: str,
        *,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Have a refused write in the audit log, if it is known whose it was."""
        if tool.is_read_only or not is_denial(error) or self._parts.denials is None:
            return
        try:
            caller = self._parts.gate.identify(self._credential_of(ctx))
        except PolicyDeniedError:
            return
        job_type, job_id = args.what_is_named(tool.name, arguments)
        denial = Denial(action_of(tool.name), error.code, job_type, job_id, tool.name, trace_id)
        await self._parts.denials.record(caller, denial)

    async def list_resources(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        caller = await self._identify(ctx)
        own = types.Resource(
            uri=resources.ACCOUNT_URI,
            name="token",
            title="Your token",
            description="What your token allows, and what is left of each limit.",
            mime_type="application/json",
        )
        if Scope.JOBS_LIST not in caller.scopes:
            return types.ListResourcesResult(resources=[own], cache_scope="private")
        with _protocol_errors(ctx, ctx.method):
            jobs, _ = await self._parts.catalog.list(
                caller, Wanted(limit=RESOURCES_MOST), is_visible=may_list(caller)
            )
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    uri=resources.SERVER_URI,
                    name="server",
                    title="This server",
                    description="Version, features, limits, and how callers are told apart.",
                    mime_type="application/json",
                ),
                own,
                *(
                    types.Resource(
                        uri=f"{resources.SCHEME}jobs/{bound.name}",
                        name=bound.name,
                        title=bound.definition.title,
                        mime_type="application/json",
                    )
                    for bound in jobs
                ),
            ],
            cache_scope="private",
        )

    async def list_resource_templates(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        await self._identify(ctx)
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(
                    name=name, uri_template=uri, description=description, mime_type=mime_type
                )
                for name, uri, description, mime_type in resources.TEMPLATES
            ],
            cache_scope="private",
        )

    async def read_resource(
        self, ctx: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        with _protocol_errors(ctx, "resources/read"):
            address = resources.parse_uri(str(params.uri))
            caller = await self._authorize(ctx, resources.scope_of(address))
            content = await resources.read(self._parts, caller, address)
        return types.ReadResourceResult(
            contents=[_contents(str(params.uri), content)], cache_scope="private"
        )

    async def subscribe(
        self, ctx: Context, params: types.SubscribeRequestParams
    ) -> types.EmptyResult:
        """Follow one run for a client of the handshake era."""
        uri = str(params.uri)
        session = ctx.session

        async def tell() -> None:
            await session.send_resource_updated(uri)

        async def is_still_there() -> bool:
            # Notifications to a client that is gone vanish without a trace; a ping does not.
            try:
                with anyio.fail_after(PING_SECONDS):
                    await session.send_ping()  # an era that has it
            except (TimeoutError, MCPError):
                return False
            return True

        with _protocol_errors(ctx, "resources/subscribe"):
            caller, address = await self._may_follow(ctx, uri)
            work = _Follow(self._parts, caller, address, tell, is_still_there)
            if not ctx.lifespan_context.add(_session_id(ctx), uri, work):
                raise LimitError(
                    f"a connection may subscribe to {MOST_SUBSCRIPTIONS} resources at most"
                )
        return types.EmptyResult()

    async def unsubscribe(
        self, ctx: Context, params: types.UnsubscribeRequestParams
    ) -> types.EmptyResult:
        ctx.lifespan_context.remove(_session_id(ctx), str(params.uri))
        return types.EmptyResult()

    async def listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Follow runs for a client of 2026-07-28, on this request's own stream, until it is closed."""
        assert ctx.request_id is not None
        meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        followed = await self._followable(ctx, params.notifications.resource_subscriptions or [])
        honored = types.SubscriptionFilter(resource_subscriptions=list(followed) or None)
        await ctx.session.send_notification(
            types.SubscriptionsAcknowledgedNotification(
                params=types.SubscriptionsAcknowledgedNotificationParams(
                    notifications=honored, _meta=meta
                )
            ),
            related_request_id=ctx.request_id,
        )
        async with anyio.create_task_group() as tasks:
            for uri, (caller, address) in followed.items():
                tell = _Tell(ctx, uri, meta)
                tasks.start_soon(follow, self._parts, caller, address, tell)
            await self._parts.watcher.stopped()
            tasks.cancel_scope.cancel()
        return types.SubscriptionsListenResult(_meta=meta)

    async def _followable(
        self, ctx: Context, uris: list[str]
    ) -> dict[str, tuple[Caller, resources.RunAddress]]:
        """Return what this caller may follow; what it may not is left out, as if it never changed."""
        found: dict[str, tuple[Caller, resources.RunAddress]] = {}
        for uri in uris[:MOST_SUBSCRIPTIONS]:
            try:
                found[str(uri)] = await self._may_follow(ctx, str(uri))
            except CallerError:
                continue
        return found

    async def _may_follow(self, ctx: Context, uri: str) -> tuple[Caller, resources.RunAddress]:
        address = resources.parse_uri(uri)
        caller = await self._authorize(ctx, resources.scope_of(address))
        if not isinstance(address, resources.RunAddress):
            raise InvalidInputError("only runs can be subscribed to: definitions do not change")
        try:
            await self._parts.router.get_run(caller, address.job_id)
        except NotFoundError:
            raise resources.not_found() from None
        return caller, address

    async def _identify(self, ctx: Context) -> Caller:
        with _protocol_errors(ctx, ctx.method):
            caller = self._parts.gate.identify(self._credential_of(ctx))
            await self._require_living(caller)
        return caller

    async def _authorize(self, ctx: Context, scope: Scope | None) -> Caller:
        caller = self._parts.gate.identify(self._credential_of(ctx))
        if scope is not None:
            self._parts.gate.require(caller, scope)
        await self._require_living(caller)
        return caller

    async def _require_living(self, caller: Caller) -> None:
        if self._parts.living is not None:
            await self._parts.living.require(caller)

    def _credential_of(self, ctx: Context) -> Credential:
        """Return who asks: over HTTP what this very request presented, else the process's own."""
        if ctx.request is None and self._credential is not None:
            return self._credential
        presented = ctx.request.scope.get(CREDENTIAL_KEY) if ctx.request is not None else None
        if isinstance(presented, Credential):
            return presented
        return Credential(None, Door.HTTP)


class _Follow:
    """The work of one subscription, with what it needs."""

    def __init__(self, *what: Any) -> None:
        self._what = what

    async def __call__(self) -> None:
        await follow(*self._what)


class _Tell:
    """Sends one kind of notification on the stream of a listen request."""

    def __init__(self, ctx: Context, uri: str, meta: dict[str, Any]) -> None:
        self._ctx = ctx
        self._event = event_to_notification(ResourceUpdated(uri=uri), meta)

    async def __call__(self) -> None:
        await self._ctx.session.send_notification(
            self._event, related_request_id=self._ctx.request_id
        )


class _protocol_errors:  # noqa: N801  # reads as a phrase where it is used
    """Turn errors of methods that have no tool result into errors of the protocol."""

    def __init__(self, ctx: Context, method: str) -> None:
        self._ctx = ctx
        self._method = method

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CallerError):
            is_missing = isinstance(error, NotFoundError) and self._ctx.protocol_version < "2026"
            code = LEGACY_RESOURCE_NOT_FOUND if is_missing else types.INVALID_PARAMS
            raise MCPError(code, error.message, data=wire.view_error(error).wire()) from None
        if isinstance(error, DatabaseUnavailableError):
            log.warning("database_unavailable", method=self._method, code=error.code)
            raise MCPError(
                types.INTERNAL_ERROR, error.message, data=_unavailable(error).wire()
            ) from None
        if isinstance(error, Exception) and not isinstance(error, MCPError):
            trace_id = _trace_id(self._ctx)
            log.error("request_failed", method=self._method, trace_id=trace_id, exc_info=error)
            raise MCPError(
                types.INTERNAL_ERROR, "Internal error", data=_internal(trace_id).wire()
            ) from None


LEGACY_RESOURCE_NOT_FOUND = -32002
"""Where the revisions before 2026-07-28 had a code of their own."""


@asynccontextmanager
async def _lifespan(server: Server[Connection]) -> AsyncGenerator[Connection]:
    # Entered per pipe and once per HTTP server, so it holds nothing but subscriptions: pools live in the app.
    async with open_connection() as connection:
        yield connection


def _to_result(answer: wire.Answer) -> types.CallToolResult:
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=answer.text)]
    content += [
        types.ResourceLink(
            type="resource_link", uri=link.uri, name=link.name, mime_type=link.mime_type
        )
        for link in answer.links
    ]
    return types.CallToolResult(
        content=content, structured_content=answer.structured, is_error=answer.is_error
    )


def _internal(trace_id: str) -> wire.ErrorView:
    return wire.ErrorView(
        code="INTERNAL",
        message=f"the server failed to do this; its log has the details under trace {trace_id}",
        hint="repeat it with the same idempotencyKey; if it happens again, tell the operator the trace",
        retryable=True,
    )


def _unavailable(error: DatabaseUnavailableError) -> wire.ErrorView:
    return wire.ErrorView(
        code=error.code,
        message="the database did not answer, so this was not done, or its answer was lost",
        hint="repeat it in a few seconds, with the same idempotencyKey if it had one",
        retryable=True,
    )


def _trace_id(ctx: Context) -> str:
    """Return the trace that the client is in (W3C ``traceparent``), or a new one."""
    given = (ctx.meta or {}).get("traceparent")
    if isinstance(given, str):
        parts = given.split("-")
        if (
            len(parts) >= 4
            and len(parts[1]) == 32
            and set(parts[1]) <= _HEX
            and set(parts[1]) != {"0"}
        ):
            return parts[1]
    return uuid4().hex


def _contents(
    uri: str, content: resources.Content
) -> types.TextResourceContents | types.BlobResourceContents:
    meta = dict(content.meta) if content.meta is not None else None
    if content.blob is None:
        return types.TextResourceContents(
            uri=uri, text=content.text, mime_type=content.mime_type, _meta=meta
        )
    blob = base64.b64encode(content.blob).decode()
    return types.BlobResourceContents(uri=uri, blob=blob, mime_type=content.mime_type, _meta=meta)


def _session_id(ctx: Context) -> str:
    """Return which session of an HTTP server asks; on a pipe there is one."""
    if ctx.request is None:
        return ""
    return ctx.request.headers.get("mcp-session-id") or ""


def _input_schema(name: str) -> JsonObject | None:
    tool = find_tool(name)
    return schema_of(tool.arguments) if tool is not None else None


_HEX = frozenset("0123456789abcdef")
_BY_NAME = {tool.name: tool for tool in TOOLS}
_BY_ALIAS = {tool.name.replace("-", "_"): tool for tool in TOOLS}
_LISTED = {tool.name: listed(tool) for tool in TOOLS}
