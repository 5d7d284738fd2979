"""The tools: one table, one function each, from checked arguments to an answer.

Nothing here knows MCP: ``build`` finds the tool, checks the arguments, asks the gate and makes a tool result of the
answer or of the error. Descriptions are written for language models: when to use it, what comes back, what to call next.
"""

from __future__ import annotations

from jobforge_mcp.definitions.features import BUNDLES, EVENTS, REGISTER_JOB, TRIGGERS
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import event_arguments, event_wire, wire
from jobforge_mcp.server.tools import events
from jobforge_mcp.server.tools.bundles import execute_bundle
from jobforge_mcp.server.tools.definitions import register_job, remove_job
from jobforge_mcp.server.tools.executing import execute_job
from jobforge_mcp.server.tools.listing import list_jobs
from jobforge_mcp.server.tools.status import get_job_status, list_runs
from jobforge_mcp.server.tools.steering import cancel_job, retry_job
from jobforge_mcp.server.tools.tool import Tool

AnyTool = (
    Tool[args.ListJobs]
    | Tool[args.ExecuteJob]
    | Tool[args.ExecuteBundle]
    | Tool[args.GetJobStatus]
    | Tool[args.ListRuns]
    | Tool[args.CancelJob]
    | Tool[args.RetryJob]
    | Tool[args.RegisterJob]
    | Tool[args.RemoveJob]
    | Tool[event_arguments.SubmitEvent]
    | Tool[event_arguments.ListEvents]
    | Tool[event_arguments.RegisterTrigger]
    | Tool[event_arguments.ListTriggers]
    | Tool[event_arguments.RemoveTrigger]
)

TOOLS: tuple[AnyTool, ...] = (
    Tool(
        name="list-jobs",
        scope=Scope.JOBS_LIST,
        title="List jobs",
        description="Find jobs that can be run, with what each does. Use detail true and a query to see the input schema of one "
        "before you run it with execute-job.",
        arguments=args.ListJobs,
        answers=(wire.JobPage,),
        run=list_jobs,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="execute-job",
        scope=Scope.JOBS_EXECUTE,
        title="Execute a job",
        description="Run a job and wait for its result. The run is stored before anything happens, so it survives this call and this "
        "chat. If it takes longer than the wait you get its runId and status: call get-job-status then. Pass an "
        "idempotencyKey, so that repeating a lost call runs nothing twice.",
        arguments=args.ExecuteJob,
        answers=(wire.RunView, wire.PlanView),
        run=execute_job,
        is_destructive=True,
    ),
    Tool(
        name="get-job-status",
        scope=Scope.JOBS_READ,
        title="Get the status of a run",
        description="Status, progress, result or error of a run. Pass waitSeconds to wait for the end instead of polling; follow next.",
        arguments=args.GetJobStatus,
        answers=(wire.RunView, wire.RunsView),
        run=get_job_status,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="list-runs",
        scope=Scope.JOBS_READ,
        title="List runs",
        description="Find runs, newest first: when a runId was lost, or to see what failed or still runs.",
        arguments=args.ListRuns,
        answers=(wire.RunPage,),
        run=list_runs,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="cancel-job",
        scope=Scope.JOBS_CANCEL,
        title="Cancel a run",
        description="Stop a run that is not final. A running job is asked to stop and ends soon after; get-job-status tells.",
        arguments=args.CancelJob,
        answers=(wire.RunView, wire.PlanView),
        run=cancel_job,
        is_destructive=True,
        is_idempotent=True,
    ),
    Tool(
        name="retry-job",
        scope=Scope.JOBS_RETRY,
        title="Retry a run",
        description="Run a failed, dead or canceled run again under the same runId, after its cause was mended.",
        arguments=args.RetryJob,
        answers=(wire.RunView, wire.PlanView),
        run=retry_job,
    ),
    Tool(
        name="register-job",
        scope=Scope.DEFINITIONS_REGISTER,
        title="Register a job",
        description="Make a job of data, never code: a name, schemas and the handler (a job from list-jobs) that does the work, "
        "with a part of its input fixed or mapped. Runs at once through execute-job, unless it is quarantined until approved. "
        "The same definition again changes nothing; another one is a new version.",
        arguments=args.RegisterJob,
        answers=(wire.RegistrationView,),
        run=register_job,
        feature=REGISTER_JOB,
        is_idempotent=True,
    ),
    Tool(
        name="remove-job",
        scope=Scope.DEFINITIONS_REGISTER,
        title="Remove a registered job",
        description="Refuse new runs of a job that was registered. Runs that began go on; queued ones wait until it is registered "
        "again.",
        arguments=args.RemoveJob,
        answers=(wire.RegistrationView,),
        run=remove_job,
        feature=REGISTER_JOB,
        is_destructive=True,
        is_idempotent=True,
    ),
    Tool(
        name="execute-bundle",
        scope=Scope.JOBS_EXECUTE,
        title="Execute jobs that wait for each other",
        description="Enqueue up to 100 jobs at once; one with dependsOn starts when those have ended, and is canceled if one of them "
        "fails, unless its onFailure is continue. Returns a runId or the reason of the refusal for each, at once.",
        arguments=args.ExecuteBundle,
        answers=(wire.BundleView,),
        run=execute_bundle,
        feature=BUNDLES,
        is_destructive=True,
    ),
    Tool(
        name="submit-event",
        scope=Scope.EVENTS_SUBMIT,
        title="Submit an event",
        description="Tell that something happened. It is stored once for its idempotencyKey and starts the jobs of the triggers "
        "that want it: the answer names the runs, and for each trigger that did not fire why.",
        arguments=event_arguments.SubmitEvent,
        answers=(event_wire.SubmittedView,),
        run=events.submit_event,
        feature=EVENTS,
        is_destructive=True,
    ),
    Tool(
        name="list-events",
        scope=Scope.EVENTS_READ,
        title="List events",
        description="Find events, newest first, with how many runs each started.",
        arguments=event_arguments.ListEvents,
        answers=(event_wire.EventPage,),
        run=events.list_events,
        feature=EVENTS,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="register-trigger",
        scope=Scope.TRIGGERS_WRITE,
        title="Register a trigger",
        description="Have a job started by a schedule (kind cron) or by events (kind event). Registering a name again changes it; "
        "nothing fires by that. Runs have your rights.",
        arguments=event_arguments.RegisterTrigger,
        answers=(event_wire.RegisteredView,),
        run=events.register_trigger,
        feature=TRIGGERS,
        is_destructive=True,
        is_idempotent=True,
    ),
    Tool(
        name="list-triggers",
        scope=Scope.EVENTS_READ,
        title="List triggers",
        description="Find triggers, when they are due and what they did; with history why one did not fire.",
        arguments=event_arguments.ListTriggers,
        answers=(event_wire.TriggerPage,),
        run=events.list_triggers,
        feature=TRIGGERS,
        is_read_only=True,
        is_idempotent=True,
    ),
    Tool(
        name="remove-trigger",
        scope=Scope.TRIGGERS_WRITE,
        title="Remove a trigger",
        description="Remove a trigger; its history and runs stay.",
        arguments=event_arguments.RemoveTrigger,
        answers=(event_wire.RemovedTrigger,),
        run=events.remove_trigger,
        feature=TRIGGERS,
        is_destructive=True,
    ),
)
"""In the order they are listed: stable, because models' caches depend on it."""
