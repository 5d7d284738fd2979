"""Ids, closed vocabularies and frozen rows that every layer above shares.

Nothing here knows of SQL, of the wire or of pydantic: a row is what the router read, under the names of the database. Most
rows are frozen dataclasses; those that are made for every job a worker runs are named tuples, which cost a fifth of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple, NewType, TypeAlias
from uuid import UUID

TenantId = NewType("TenantId", str)
"""Owner of rows: 1–63 characters of ``[A-Za-z0-9._:-]``, the first a letter or digit."""

ProjectId = NewType("ProjectId", str)
"""Optional scope inside a tenant, of the same form."""

JobId = NewType("JobId", UUID)
"""Id of one job, and the ``runId`` an agent sees. A UUIDv7 made by the database."""

LeaseId = NewType("LeaseId", UUID)
"""Random id of one claim; with the epoch it is the fence of every call a worker makes."""

WorkerId = NewType("WorkerId", str)
"""Name of one worker process for its lifetime; never reused."""

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""Any JSON value."""

JsonObject: TypeAlias = dict[str, JsonValue]
"""A JSON object."""


class RunStatus(StrEnum):
    """Where a run stands. The last four are final: a run leaves them only by ``retry-job``."""

    QUEUED = "queued"
    """May be claimed once ``run_at`` is reached; a later ``run_at`` is a delay or a retry."""
    RUNNING = "running"
    """A worker holds a living lease on it."""
    WAITING = "waiting"
    """Blocked on something named in ``waiting_for``; holds no worker."""
    SUCCEEDED = "succeeded"
    """Its result was accepted and never changes."""
    FAILED = "failed"
    """Ended by an error not worth retrying."""
    DEAD = "dead"
    """Ran out of attempts."""
    CANCELED = "canceled"
    """Ended because somebody asked for that."""

    @property
    def is_final(self) -> bool:
        """Whether nothing but an explicit retry moves the run again."""
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset(
    {RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.DEAD, RunStatus.CANCELED}
)


class EnqueueOutcome(StrEnum):
    """What an enqueue did with its idempotency key."""

    CREATED = "created"
    """A new job was committed."""
    REPLAYED = "replayed"
    """The key is known with the same input: this is the job it made."""
    CONFLICT = "conflict"
    """The key is known with another input: nothing was written."""


class FailureKind(StrEnum):
    """How an attempt ended that did not succeed; SQL decides what follows."""

    FAILED = "failed"
    """An error worth retrying, while attempts are left."""
    PERMANENT = "permanent"
    """An error not worth retrying: the run goes ``failed``."""
    TIMED_OUT = "timed_out"
    """The work passed its timeout and was stopped; retried like a failure."""
    CANCELED = "canceled"
    """The work was stopped because the run's cancellation was requested."""
    DEFERRED = "deferred"
    """The handler raised ``RetryLater``: queued again after its delay, no attempt spent."""


class SettleOutcome(StrEnum):
    """How the database answered a worker that settled an attempt."""

    ACCEPTED = "accepted"
    """The outcome was written by this call."""
    REPEATED = "repeated"
    """The same outcome was written by an earlier call whose answer was lost."""
    STALE = "stale"
    """The lease is gone: nothing was written."""


class Isolation(StrEnum):
    """Where a handler runs."""

    ASYNC = "async"
    """On the worker's event loop: ``async def`` only, stopped by cancellation."""
    PROCESS = "process"
    """In a warm child process that is killed when it must stop."""
    THREAD = "thread"
    """On a thread of the worker: cannot be stopped, only abandoned."""


class Effects(StrEnum):
    """What a job changes besides its own run."""

    NONE = "none"
    INTERNAL = "internal"
    EXTERNAL = "external"
    """Outside this database: such a job needs an idempotency key."""


class JobAction(StrEnum):
    """What permissions on a job definition speak of."""

    LIST = "list"
    """See the definition."""
    READ = "read"
    """See runs of it."""
    EXECUTE = "execute"
    """Enqueue it, and retry runs of it."""
    CANCEL = "cancel"
    """Cancel runs of it."""
    REGISTER = "register"
    """Replace or remove the definition."""


@dataclass(frozen=True, slots=True)
class GuardedCall:
    """What a guard of a job definition is asked about."""

    caller: Caller
    action: JobAction
    job_name: str
    input: JsonValue = None
    """The checked input, where the action is ``execute``."""


Guard: TypeAlias = Callable[[GuardedCall], bool]
"""Says whether a call may be; anything but ``True``, an exception included, refuses it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps that a token states; the database counts against them. ``None`` is no cap of the token's own."""

    rps: float | None = None
    """Writes a second, refilled steadily."""
    burst: int | None = None
    """Writes at once, above the rate."""
    max_running: int | None = None
    """Runs of this token that may be running at once."""
    max_queued: int | None = None
    """Runs of this token that may be open and not running at once."""
    max_payload_bytes: int | None = None
    max_priority: int | None = None
    """Most urgent priority it may ask for, 0 to 3: 0 allows all."""
    budget_jobs: int | None = None
    """Jobs over the token's whole life."""
    budget_units: int | None = None
    """Cost of the jobs over the token's whole life; a job costs 1 unless its type's limit says otherwise."""
    budget_run_seconds: int | None = None
    """Seconds that its runs ran, over the token's whole life."""
    max_children: int | None = None
    """Children of one run."""
    max_depth: int | None = None
    """Generations of children below a run."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who acts, after the gate: made from a verified policy token and from nothing else."""

    tenant_id: TenantId
    subject: str
    """Who holds the token, for the audit log."""
    scopes: frozenset[str]
    projects: frozenset[str] | None = None
    """Projects the caller is confined to; ``None`` is every project of the tenant."""
    token_id: str | None = None
    """``jti`` of the token as issued, whatever it was narrowed to; ``None`` for the local tenant without a token."""
    expires_at: datetime | None = None
    job_types: tuple[str, ...] | None = None
    """Patterns of the job types it may name; ``None`` is every type. A dot-segment ``*`` is one segment, a last ``**`` the rest."""
    deny_types: tuple[str, ...] = ()
    """Patterns of job types it may not name, whatever ``job_types`` allows."""
    events: tuple[str, ...] | None = None
    """Patterns of the event types it may submit; ``None`` is every type."""
    limits: Limits | None = None
    """Caps of the token; the database adds those of the tenant."""
    epoch: int | None = None
    """When the token was issued, in milliseconds unless its issuer counts otherwise; below the tenant's token epoch it is
    revoked. ``None`` without a token."""
    is_single_use: bool = False
    """Good for one write; the database remembers which."""
    single_use_ids: tuple[str, ...] = ()
    """Ids of tokens that this caller's one write uses up: its own, and those above it that are good for one write."""
    links: tuple[str, ...] = ()
    """Ids of the narrowed tokens between ``token_id`` and what was presented, outermost first: each can be revoked."""
    hidden_types: frozenset[str] = frozenset()
    """Job types whose runs the permissions of their definitions keep from this caller."""
    roles: frozenset[str] = frozenset()
    """Roles that permissions on job definitions may ask for; ``*`` is every role, and no token carries it."""
    actors: tuple[str, ...] = ()
    """For whom the subject acts, nearest first: for the audit log, never to widen."""
    is_rated: bool = True
    """Whether rates hold for its calls: not where the operator switched them off for the whole process."""


@dataclass(frozen=True, slots=True)
class LimitLeft:
    """One limit that a call would be held to, and what is left of it."""

    kind: str
    """``token``, ``tenant``, ``type`` or ``tool``."""
    name: str
    """Of the job type, tool or token; empty for the tenant."""
    limit_name: str
    value: float
    used: float | None
    """``None`` where nothing is counted, as for the size of an input."""
    remaining: float | None
    resets_at: datetime | None
    """When a budget is whole again; ``None`` is never."""


@dataclass(frozen=True, slots=True)
class TokenState:
    """What the database knows of a token and the links that narrowed it."""

    token_epoch: int
    """Tokens of the tenant with a smaller epoch are revoked."""
    revoked_id: str | None
    """Which of them was revoked first, if one was."""
    revoked_at: datetime | None
    revoked_reason: str | None
    used_id: str | None
    """Which of them was good for one write and used, if one was."""
    used_at: datetime | None
    used_jobs: int
    """Jobs that were counted against the token's limits, as far as it has any."""
    used_units: int
    used_run_ms: int


@dataclass(frozen=True, slots=True)
class CallOrigin:
    """Through which door a call came, for the audit log."""

    tool: str | None = None
    """Name of the tool, command or client method."""
    trace_id: str | None = None


class NewJob(NamedTuple):
    """One job to enqueue, already validated against its definition. A tuple, because a bulk makes thousands."""

    job_type: str
    payload: str
    """JSON text of the input with the definition's defaults filled in."""
    received: str | None = None
    """JSON text of the input as the caller sent it, which the idempotency hash covers; ``None`` means the payload."""
    idempotency_key: str | None = None
    ordering_key: str | None = None
    priority: int = 2
    """0 is the most urgent, 3 the least."""
    run_at: datetime | None = None
    """Not before this time; ``None`` is now, by the database's clock."""
    project_id: str | None = None
    labels: Mapping[str, str] | None = None
    trace_id: str | None = None
    job_version: str = "1"
    max_attempts: int = 3
    backoff_ms: int = 1_000
    backoff_multiplier: float = 2.0
    max_backoff_ms: int = 60_000
    timeout_ms: int = 300_000
    is_dry_run: bool = False
    """Run the handler with ``dry_run`` set; not the same as planning a call."""
    cost: int = 1
    """Units of a budget that the run uses, unless the operator has set another price for its type."""
    lane_type: str | None = None
    """For a job of a registered definition the type that workers claim it by; ``None`` is the job type itself."""
    claim_limits: str | None = None
    """JSON text of what a claim obeys: ``concurrency`` and ``rateLimit``, with the keys of this input."""


class PauseKind(StrEnum):
    """What can be paused."""

    TENANT = "tenant"
    """All of it."""
    TYPE = "type"
    """One job type, and what was registered over its handler."""
    PROJECT = "project"
    """One project."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Something of which no run starts until it is resumed."""

    kind: PauseKind
    name: str | None
    """Job type or project; ``None`` for the tenant."""
    reason: str | None
    paused_by: str | None
    """Actor of the call that paused it."""
    paused_at: datetime


@dataclass(frozen=True, slots=True)
class BulkFilter:
    """Which runs a bulk cancel or retry means: those that fit all that is said."""

    job_type: str | None = None
    statuses: Sequence[RunStatus] = ()
    """Open ones to cancel, or ``failed``, ``dead`` and ``canceled`` ones to retry; none means all of these."""
    project_ids: Sequence[str] = ()
    trace_id: str | None = None
    labels: Mapping[str, str] | None = None
    """Labels that a run has, all of them."""
    error_code: str | None = None
    """What it failed with; for retries."""
    since: datetime | None = None
    before: datetime | None = None
    """Created since, and before."""
    without_types: Sequence[str] = ()
    """Job types that are not meant."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction of a bulk call did, or what a plan counted."""

    matched: int | None
    """Runs that the filter finds, to 100,000; only of a plan."""
    job_ids: tuple[JobId, ...]
    """Those that were touched; the first ten of a plan."""
    skipped_ids: tuple[JobId, ...]
    """Those that had moved on meanwhile."""
    after_id: JobId | None
    """Where the next batch goes on; ``None`` when nothing is left."""


@dataclass(frozen=True, slots=True)
class Bulked:
    """What a bulk call did."""

    job_ids: tuple[JobId, ...]
    """Runs that were touched."""
    skipped_ids: tuple[JobId, ...]
    """Runs that had moved on meanwhile."""


@dataclass(frozen=True, slots=True)
class InlineLease:
    """Ask an enqueue to hand the job to a free slot of this process's own pool, if its lane allows that."""

    worker_id: WorkerId
    lease_ms: int


class Enqueued(NamedTuple):
    """What an enqueue answered for one job. A tuple, because a bulk gets thousands."""

    job_id: JobId
    outcome: EnqueueOutcome
    status: RunStatus
    version: int
    run_at: datetime
    created_at: datetime
    lease_id: LeaseId | None = None
    """Set when the job was inserted already leased: epoch and attempt are then 1."""
    lease_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run or an attempt did not succeed, as stored; a traceback stays with the attempt."""

    code: str
    message: str
    retryable: bool
    type: str | None = None
    """Class of the exception, where there was one."""
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One job with its true status, as the view ``jobforge.runs`` shows it."""

    tenant_id: TenantId
    job_id: JobId
    project_id: str | None
    job_type: str
    job_version: str
    status: RunStatus
    waiting_for: str | None
    attempt_no: int
    """Attempts counted so far; 0 before the first claim."""
    max_attempts: int
    epoch: int
    version: int
    """Grows with every visible change."""
    priority: int
    run_at: datetime
    ordering_key: str | None
    labels: Mapping[str, str] | None
    trace_id: str | None
    parent_id: JobId | None
    timeout_ms: int
    created_at: datetime
    created_by: str | None
    started_at: datetime | None
    finished_at: datetime | None
    worker_id: str | None
    lease_until: datetime | None
    progress_done: float | None
    progress_total: float | None
    progress_message: str | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    error: RunError | None
    result: str | None = None
    """JSON text of the accepted result; only ``get_run`` reads it."""
    is_dry_run: bool = False
    """Whether it is a rehearsal: its handler gets ``dry_run``."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs ``list_runs`` returns, newest first."""

    job_type: str | None = None
    status: RunStatus | None = None
    project_id: str | None = None
    projects: frozenset[str] | None = None
    """Confine to these projects, from the caller's token."""
    trace_id: str | None = None
    since: datetime | None = None
    before_id: JobId | None = None
    """Keyset cursor: only runs older than this one."""
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Cause:
    """One named reason why a run is not running."""

    cause: str
    message: str
    until: datetime | None = None
    blocked_by: JobId | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try that did not succeed."""

    attempt_no: int
    epoch: int
    outcome: str
    """``failed``, ``permanent``, ``timed_out``, ``canceled``, ``deferred``, ``released`` or ``lost``."""
    worker_id: str
    started_at: datetime
    finished_at: datetime
    error: RunError | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a handler logged."""

    line_no: int
    """Cursor of the line within its run; grows, may have gaps."""
    attempt_no: int
    level: str
    message: str
    logged_at: datetime


class Fence(NamedTuple):
    """Which claim a worker's call speaks for. Refused unless that claim is the living one."""

    tenant_id: TenantId
    lease_id: LeaseId
    job_id: JobId
    epoch: int


class ClaimedJob(NamedTuple):
    """One job a worker holds, with its input still undecoded: one bad row must not strand its batch."""

    fence: Fence
    job_type: str
    job_version: str
    payload: str
    """JSON text."""
    project_id: str | None
    trace_id: str | None
    attempt_no: int
    max_attempts: int
    timeout_ms: int
    is_dry_run: bool
    is_suspect: bool
    """Lost before together with others, so claimed apart from what was not."""
    claimed_at: datetime
    lease_until: datetime
    lane_type: str | None = None
    """Set for a job of a registered definition: the type it was claimed by."""
    definition: str | None = None
    """JSON text of that definition, of the version the run began with."""
    priority: int = 2
    run_at: datetime | None = None
    """With lane and priority its place in the queue; absent where it had none."""
    after_tenant: str | None = None
    """Tenant after which the turn goes on, the same in all jobs of a claim; absent when only newcomers were served."""


@dataclass(frozen=True, slots=True)
class ClaimStart:
    """Places in the queue behind which alone a claim looks, as parallel columns; what is not named is read from its edge."""

    tenants: list[str] = field(default_factory=list[str])
    types: list[str] = field(default_factory=list[str])
    """Lanes."""
    priorities: list[int] = field(default_factory=list[int])
    run_ats: list[datetime] = field(default_factory=list[datetime])
    job_ids: list[JobId] = field(default_factory=list[JobId])


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that a heartbeat extended, with what was asked of its jobs meanwhile."""

    tenant_id: TenantId
    lease_id: LeaseId
    lease_until: datetime
    cancel_ids: frozenset[JobId]
    """Jobs of this lease whose cancellation was requested."""


@dataclass(frozen=True, slots=True)
class Report:
    """Coalesced progress and log lines of one attempt."""

    fence: Fence
    done: float | None = None
    total: float | None = None
    message: str | None = None
    logs: tuple[tuple[str, str], ...] = ()
    """Pairs of level and message, oldest first."""


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What the database answered to one report."""

    job_id: JobId
    is_accepted: bool
    is_cancel_requested: bool


class Completion(NamedTuple):
    """One successful attempt to settle."""

    fence: Fence
    result: str
    """JSON text, at most 1 MiB."""
    manifest: str | None = None
    """What the attempt says of itself that follows from nothing else, as a JSON object; mostly nothing."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One unsuccessful attempt to settle."""

    fence: Fence
    kind: FailureKind
    error: RunError
    traceback: str | None = None
    """Kept with the attempt; never leaves over the wire."""
    delay_ms: int | None = None
    """Not before this much later: a receiver's retry-after, or the delay of ``RetryLater``."""
    manifest: str | None = None
    """As of a `Completion`."""


@dataclass(frozen=True, slots=True)
class BundleItem:
    """One job of a bundle."""

    job: NewJob
    needs: tuple[int, ...] = ()
    """Places, counted from zero, of the items before it that must end first."""
    on_failure: str = "cancel"
    """``cancel`` or ``continue``: what becomes of it when one of these does not succeed."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """What became of one item of a bundle."""

    job_id: JobId
    outcome: EnqueueOutcome
    status: RunStatus | None
    """``None`` in a plan, for a run that would be made."""


@dataclass(frozen=True, slots=True)
class CurrentDefinition:
    """A registered definition as a new run gets it: of a trigger, or as a step of a composition."""

    job_type: str
    job_version: str
    lane_type: str
    """Type that workers claim its runs by."""
    definition: str
    """JSON text."""


@dataclass(frozen=True, slots=True)
class StepRun:
    """How one step of a composition stands."""

    step: str
    """Path of the step in the definition."""
    child_id: JobId
    status: str
    """``open``, ``purged`` when the run is gone, ``refused`` when there never was one, or the run's final status."""
    result: str | None
    """JSON text, where it was asked for."""
    error: str | None
    """JSON text of why it did not succeed."""
    made_at: datetime


class Settled(NamedTuple):
    """What the database answered for one settled attempt."""

    job_id: JobId
    epoch: int
    outcome: SettleOutcome
    status: RunStatus
    """Status of the run after the call."""
    finished_at: datetime | None = None
    """Set where the run's row is known without reading it: it holds what its worker knows, and nobody changed more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that succeeded at its first claim, as its worker knows it: together with what was enqueued the whole row."""

    job_id: JobId
    worker_id: WorkerId
    started_at: datetime
    finished_at: datetime
    result: str
    """JSON text as it was sent; the stored one may have its members in another order."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Open jobs of one type of a tenant, by place."""

    job_type: str
    queued: int
    due: int
    """Those of the queued whose ``run_at`` has been reached."""
    running: int
    waiting: int
    oldest_due_at: datetime | None
    """``run_at`` of the job that has been due longest."""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which audit rows to list; ``None`` does not narrow."""

    action: str | None = None
    outcome: str | None = None
    """``refused`` for what was not allowed."""
    token_id: str | None = None
    job_id: JobId | None = None
    since: datetime | None = None
    before: str | None = None
    """``place`` of the last row of the page before."""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One call as its tenant sees it in the audit log."""

    place: str
    """Where it stands in the log, for the next page."""
    occurred_at: datetime
    action: str
    outcome: str
    actor: str | None
    """Subject of the token, or the local user."""
    token_id: str | None
    tool: str | None
    trace_id: str | None
    job_id: JobId | None
    job_type: str | None
    detail: JsonObject | None
    """Counts and reasons; never inputs, results or credentials."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One row of the audit log as it is sealed."""

    tenant_id: TenantId
    era: int
    xact_no: int
    """With ``era`` and ``id``: its place in the chain."""
    id: UUID
    occurred_at: datetime
    action: str
    outcome: str
    actor: str | None
    token_id: str | None
    tool: str | None
    trace_id: str | None
    job_id: UUID | None
    job_type: str | None
    detail: str | None
    """JSON text, as the database writes it."""


@dataclass(frozen=True, slots=True)
class AuditSeal:
    """A signed checkpoint of one tenant's audit log."""

    tenant_id: TenantId
    seal_no: int
    """Counts from 1 without a gap."""
    first_row: int
    last_row: int
    """How many rows of the tenant are sealed up to here."""
    last_era: int
    last_xact_no: int
    last_id: UUID
    hashes: tuple[bytes, ...]
    """The chain, one hash for each row from ``first_row`` to ``last_row``."""
    sealed_at: datetime
    key_id: str
    signature: bytes


ArtifactStore: TypeAlias = Literal["table", "directory", "s3"]
"""Where the content of an artifact lies."""


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """An artifact to record."""

    name: str
    mime_type: str
    size: int
    sha256: str
    """In hexadecimal."""
    store: ArtifactStore
    content: bytes | None = None
    """Its bytes, when they are to lie in the table."""
    keep_ms: int | None = None
    """Milliseconds after which it is deleted; as long as the run if absent."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or text that an attempt made, without its content."""

    name: str
    attempt_no: int
    epoch: int
    mime_type: str
    size: int
    sha256: str
    store: ArtifactStore
    created_at: datetime
    expires_at: datetime | None
    """After this it is deleted; without it, with its run."""


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """What is known of one attempt of a run: the ground of its manifest."""

    attempt_no: int
    """0 for a run that never began."""
    epoch: int
    outcome: str
    """``succeeded``, ``running``, the outcome of an attempt that did not succeed, or the status of a run without attempts."""
    worker_id: str | None
    started_at: datetime | None
    finished_at: datetime | None
    error: RunError | None
    input_hash: str
    """SHA-256 of the input as it is stored, in hexadecimal."""
    input_bytes: int
    result_hash: str | None
    result_bytes: int | None
    log_lines: int
    facts: JsonObject
    """What the attempt said of itself: decisions, readings, measures."""
    environment_hash: str | None
    environment: JsonObject
    """System and versions of the worker; empty when nobody remembers."""


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run that the handler of another one enqueued."""

    job_id: JobId
    job_type: str
    status: RunStatus


class TriggerKind(StrEnum):
    """What makes a trigger decide."""

    CRON = "cron"
    EVENT = "event"


class FireDecision(StrEnum):
    """What a trigger decided about one event or one time."""

    FIRED = "fired"
    """It made a job."""
    PLANNED = "planned"
    """It would have, and is on trial."""
    SKIPPED = "skipped"
    """Deduplicated, stopped by the loop guard, or a missed time that is not caught up."""
    RATE_LIMITED = "rate_limited"
    """Too many within an hour, or a limit of whoever registered it."""
    COOLDOWN = "cooldown"
    DISABLED = "disabled"
    """Switched off, paused, or registered by a token that was revoked."""
    OVERLAP = "overlap"
    """The run of the time before is still open."""
    NO_MATCH = "no_match"
    ERROR = "error"
    """Its mapping, its job or its rights do not fit any more."""
    LATE = "late"
    """A missed time for which nothing is caught up."""
    CAUGHT_UP = "caught_up"
    """It made a job for a time that was missed."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something that happened, to be submitted."""

    event_type: str
    payload: str = "{}"
    """JSON text of one object."""
    source: str | None = None
    subject: str | None = None
    occurred_at: datetime | None = None
    idempotency_key: str | None = None
    trace_id: str | None = None
    project_id: str | None = None
    contains_pii: bool = False
    redaction_hints: JsonObject | None = None
    """``redactFields``, ``encryptFields``, ``retentionDays``."""
    attributes: JsonObject | None = None
    """Further members of the envelope; nothing matches on them."""


@dataclass(frozen=True, slots=True)
class TriggerDecision:
    """What one trigger decided about a submitted event."""

    trigger_name: str
    job_name: str | None
    decision: FireDecision
    reason: str | None
    job_id: JobId | None


@dataclass(frozen=True, slots=True)
class SubmittedEvent:
    """What a submit answered."""

    event_id: UUID | None
    """``None`` for a plan."""
    outcome: EnqueueOutcome
    received_at: datetime
    depth: int
    is_processed: bool
    """Whether its triggers were asked; if not, they will be within seconds."""
    decisions: tuple[TriggerDecision, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A stored event as it may be shown: what it hides is struck out."""

    event_id: UUID
    event_type: str
    source: str | None
    subject: str | None
    project_id: str | None
    trace_id: str
    actor: str | None
    occurred_at: datetime
    received_at: datetime
    payload: str
    """JSON text."""
    attributes: str | None
    contains_pii: bool
    is_redacted: bool
    depth: int
    processed_at: datetime | None
    expires_at: datetime | None
    fired: int
    """Jobs that it started."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events ``list_events`` returns, newest first."""

    event_type: str | None = None
    """A type, or a pattern with ``*`` and ``**``."""
    source: str | None = None
    since: datetime | None = None
    trace_id: str | None = None
    project_id: str | None = None
    is_processed: bool | None = None
    before_id: UUID | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Registrar:
    """Whose rights a trigger acts with."""

    subject: str | None
    token_id: str | None
    claims: JsonObject
    scopes: frozenset[str]
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trigger that could want an event, or is due: what it takes to work out its job."""

    trigger_name: str
    version: int
    job_name: str
    project_id: str | None
    match: JsonValue
    input_mapping: JsonValue
    input: JsonObject | None
    dedupe_key: JsonValue
    registrar: Registrar
    definition: CurrentDefinition | None = None
    """What is registered under the name of its job, if anything is and may be run."""
    is_removed: bool = False
    """Whether its job was registered and removed."""


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """A stored event whose triggers nobody has asked yet, as they may see it."""

    tenant_id: TenantId
    event_id: UUID
    event_type: str
    source: str | None
    subject: str | None
    project_id: str | None
    trace_id: str
    occurred_at: datetime
    payload: str
    waited_seconds: float
    """Since it was received."""


@dataclass(frozen=True, slots=True)
class DueTrigger:
    """A schedule that is due, with what it takes to work out its runs."""

    tenant_id: TenantId
    candidate: Candidate
    cron: str
    timezone: str
    catch_up: str
    catch_up_most: int
    jitter_ms: int
    due_at: datetime
    """The first time it is due for."""
    observed_at: datetime
    """The database's clock when it was found."""


@dataclass(frozen=True, slots=True)
class DueTime:
    """What was worked out for one time of a schedule."""

    at: datetime
    fire: Fire
    run_at: datetime
    is_late: bool = False
    """Caught up: missed when it was due."""


@dataclass(frozen=True, slots=True)
class DuePlan:
    """What was worked out for a schedule that is due; the database has the last word."""

    due: DueTrigger
    times: tuple[DueTime, ...]
    next_at: datetime | None
    """``None`` where the schedule cannot be read any more: it is switched off."""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleFire:
    """One decision of a schedule, as it was just made."""

    tenant_id: TenantId
    trigger_name: str
    scheduled_at: datetime
    decision: FireDecision
    reason: str | None
    job_id: JobId | None


@dataclass(frozen=True, slots=True)
class TriggerSpec:
    """A trigger as somebody wants it."""

    name: str
    kind: TriggerKind
    job_name: str
    project_id: str | None = None
    input: JsonObject | None = None
    is_enabled: bool = True
    is_dry_run: bool = False
    """Decide and remember, and start nothing."""
    cron: str | None = None
    timezone: str | None = None
    catch_up: str | None = None
    catch_up_most: int | None = None
    overlap: str | None = None
    jitter_ms: int | None = None
    event_type: str | None = None
    event_source: str | None = None
    match: JsonValue = None
    input_mapping: JsonValue = None
    dedupe_key: JsonValue = None
    cooldown_ms: int | None = None
    max_per_hour: int | None = None


@dataclass(frozen=True, slots=True)
class Trigger:
    """A registered trigger and what it did last."""

    spec: TriggerSpec
    version: int
    next_fire_at: datetime | None
    paused_at: datetime | None
    disabled_reason: str | None
    created_at: datetime
    updated_at: datetime
    registrar: Registrar
    last_fired_at: datetime | None
    last_job_id: JobId | None
    last_decision: FireDecision | None
    last_reason: str | None
    fires: int
    """Jobs it made, counted up to 10,000 and as far back as decisions are kept."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What registering a trigger answered."""

    trigger_name: str
    outcome: str
    """``created``, ``updated`` or ``unchanged``."""
    version: int
    next_fire_at: datetime | None


@dataclass(frozen=True, slots=True)
class TriggerFilter:
    """Which triggers ``list_triggers`` returns, by name."""

    name: str | None = None
    kind: TriggerKind | None = None
    job_name: str | None = None
    project_id: str | None = None
    after: str | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class TriggerFire:
    """One decision of a trigger, from its history."""

    trigger_name: str
    fire_key: str
    kind: str
    """``cron``, ``event`` or ``manual``."""
    trigger_version: int
    scheduled_at: datetime | None
    event_id: UUID | None
    decision: FireDecision
    reason: str | None
    job_id: JobId | None
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class FireFilter:
    """Which decisions ``list_trigger_fires`` returns, newest first."""

    trigger_name: str | None = None
    decision: FireDecision | None = None
    event_id: UUID | None = None
    before: datetime | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Fire:
    """What was worked out for one trigger: the job to make, or why not. The database has the last word."""

    trigger_name: str
    version: int
    job: NewJob | None
    """``None`` where ``decision`` says why not."""
    decision: FireDecision | None = None
    reason: str | None = None
    key: str | None = None
    """Deduplication key."""
    definition: str | None = None
    """Version of the job's registered definition that was looked at; ``None`` if there was none."""


@dataclass(frozen=True, slots=True)
class RegisteredDefinition:
    """One version of a definition that a tenant registered as data. Its content never changes; the rest may."""

    job_type: str
    job_version: str
    current_version: str | None
    """Version that new runs get; ``None`` while none is approved."""
    latest_version: str
    """Version registered last; another than the current one while it is quarantined."""
    lane_type: str
    """Type that workers claim its runs by: its handler's, or that of compositions."""
    definition: str
    """JSON text."""
    definition_hash: str
    """SHA-256 of the content, in hexadecimal digits."""
    created_at: datetime
    created_by: str | None
    approved_at: datetime | None
    """``None`` while the version is quarantined."""
    approved_by: str | None
    removed_at: datetime | None
    """Set while the job is removed: new runs are refused."""


@dataclass(frozen=True, slots=True)
class DefinitionChange:
    """What a registered definition is searched by, as it is now."""

    job_type: str
    job_version: str | None
    """Version that new runs get; ``None`` while none is approved."""
    search_text: str
    """Name, title, description and tags in lower case."""
    tags: frozenset[str]
    labels: Mapping[str, str]
    is_listed: bool
    """Whether it can be run and is not hidden."""


@dataclass(frozen=True, slots=True)
class ListedDefinition:
    """A registered job as a list shows it."""

    job_type: str
    job_version: str | None
    """Version that new runs get; ``None`` while none is approved."""
    latest_version: str
    title: str | None
    description: str | None
    tags: Sequence[str]
    is_hidden: bool
    registered_by: str | None
    updated_at: datetime
    removed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of a definition that was registered, approved or removed."""

    job_type: str
    outcome: str
    """``created``, ``unchanged``, ``quarantined``, ``approved``, ``removed`` or ``planned``."""
    job_version: str | None = None
    definition_hash: str | None = None
    runs: int = 0
    """Queued runs that this let be claimed again, or keeps from being claimed."""
    needs_approval: bool = False
    """Whether the version waits for somebody else's approval, or would."""
