"""What this product promises, one sentence each, under an id that tests name.

A test that proves a promise carries ``@pytest.mark.requirement("id", ...)``; ``test_requirements.py`` refuses an id
without a test and a mark without an id. So a promise is added here in the same commit as its first test, next to those of
its area. Not every test needs a requirement: this is the list of what users and operators rely on.

Sources are ``design N`` (a decision), ``mcp <section>`` (the protocol's specification), ``security``, ``operations`` or
``development`` (a promise of our own about that).
"""

from __future__ import annotations

from typing import NamedTuple


class Requirement(NamedTuple):
    """One promise: where it comes from, and what it says."""

    source: str
    sentence: str


REQUIREMENTS: dict[str, Requirement] = {
    # --- development: packaging, dev.py, the rules that keep the rest true
    "dev.explains-itself": Requirement(
        "development", "dev.py without a command lists its commands and touches nothing."
    ),
    "dev.old-python": Requirement(
        "development", "On a Python older than 3.11, dev.py says so in one sentence."
    ),
    "dev.no-ensurepip": Requirement(
        "development", "Where Python comes without ensurepip, dev.py names the package to install."
    ),
    "dev.one-set-up-at-a-time": Requirement(
        "development", "A second dev.py waits for the one that makes the environment."
    ),
    "dev.refresh": Requirement(
        "development", "The environment is refreshed when pyproject.toml changes, and only then."
    ),
    "dev.requirements": Requirement(
        "development", "Every requirement has a test, and every mark names a requirement."
    ),
    "docs.names": Requirement(
        "development",
        "Every table, function of a login, status, scope, setting, command and tool is described.",
    ),
    "docs.examples": Requirement(
        "development", "Code in README and docs comes from files that tests run."
    ),
    "faults.clock": Requirement(
        "security",
        "A worker whose clock is an hour off keeps leases, timeouts, retries and delays: every time is the database's.",
    ),
    "faults.connections": Requirement(
        "security",
        "A server that has no connection to spare is waited for, and work goes on by itself.",
    ),
    "faults.definitions": Requirement(
        "security",
        "A definition that is removed while runs of it wait loses none of them, and they run as they were accepted.",
    ),
    "faults.disk-full": Requirement(
        "security",
        "A full disk refuses what may be tried again, keeps what was acknowledged, and work goes on when there is room.",
    ),
    "faults.fuzz": Requirement(
        "security",
        "No message and no client makes a server answer with a failure of its own, hang, or take memory without bound.",
    ),
    "faults.isolation": Requirement(
        "security",
        "A handler that ignores everything is ended with all that it started, and costs no other job its lease.",
    ),
    "faults.listener": Requirement(
        "security",
        "Jobs start while every listener is killed: notifications are hints.",
    ),
    "faults.poison-row": Requirement(
        "security",
        "A row that cannot be understood fails alone in its batch, with a code.",
    ),
    "faults.pool": Requirement(
        "security",
        "Callers beyond the pool are served in turn or told within their time.",
    ),
    "faults.restore": Requirement(
        "security",
        "After a restore from a backup no claim of the lost time is believed.",
    ),
    "faults.versions": Requirement(
        "security",
        "Workers and schemas of neighbouring versions work together, or say which is too old.",
    ),
    "faults.zombie": Requirement(
        "security",
        "No call of a worker that lost its lease changes the run.",
    ),
    "package.light-start": Requirement(
        "design 18", "What the stdio bridge imports is standard library only."
    ),
    "package.public-names": Requirement(
        "development", "Every name the package root exports can be imported from it."
    ),
    "package.resources": Requirement(
        "development", "Wheel and checkout find the same SQL and the same job definitions."
    ),
    # --- definitions: decorated handlers and JSON files, what stands before and after a handler
    "definitions.bad-input": Requirement(
        "security", "Input beyond a limit is refused with a code of its own and never repeated."
    ),
    "definitions.broken-file": Requirement(
        "development", "A wrong definition stops the start, and the message names file and line."
    ),
    "definitions.checked-twice": Requirement(
        "design 5", "Input is checked before it is enqueued and again before the handler runs."
    ),
    "definitions.closed-schemas": Requirement(
        "design 13", "A schema reaches nothing outside itself, and matching takes linear time."
    ),
    "definitions.declarative": Requirement(
        "design 13", "A JSON definition runs a registered handler with a part of its input fixed."
    ),
    "definitions.found-again": Requirement(
        "design 5", "A fresh interpreter finds a handler by its source and name alone."
    ),
    "bundles.order": Requirement(
        "design 7",
        "Each item of a bundle runs after all it depends on; in any graph each ends once.",
    ),
    "bundles.failure": Requirement(
        "design 7", "What depends on a failed item is canceled with it, or continues if it says so."
    ),
    "bundles.idempotent": Requirement(
        "design 8", "The same bundle again answers with the same runs."
    ),
    "compositions.data": Requirement(
        "design 13",
        "A composition is data: names, bounded lists and mappings, refused when it could never run.",
    ),
    "compositions.slots": Requirement(
        "design 21",
        "A worker full of handlers drives compositions, and compositions take no slot of handlers.",
    ),
    "compositions.registered": Requirement(
        "design 13",
        "A step may be a registered job, of the version that was there when the composition was registered.",
    ),
    "compositions.wait": Requirement(
        "design 21",
        "A composition waits for its steps without a worker, and no wake-up is lost or doubled.",
    ),
    "compositions.once": Requirement(
        "design 1", "A step of a composition is enqueued once, however often it is replayed."
    ),
    "compositions.cancel": Requirement(
        "design 21", "Open steps are canceled with their composition."
    ),
    "compositions.retry": Requirement(
        "design 21", "A retried composition keeps the steps that succeeded."
    ),
    "definitions.mapping": Requirement(
        "design 13", "Mappings reach nothing but their scope, and cost a bounded number of steps."
    ),
    "definitions.lanes": Requirement(
        "design 13",
        "A job of a registered definition is seen and limited under its own name and claimed in its handler's lane.",
    ),
    "definitions.one-model": Requirement(
        "design 5", "A decorated function and a JSON file yield one and the same definition."
    ),
    "definitions.output-checked": Requirement(
        "design 5", "A run succeeds only with a result that fits its definition."
    ),
    "definitions.visible": Requirement(
        "design 5", "A caller is shown the jobs that its scopes allow, and no hidden one."
    ),
    # --- worker: claims, leases, attempts, and how they end
    "worker.blocked-loop": Requirement(
        "design 4",
        "A handler that blocks the event loop is named and costs no neighbour its lease.",
    ),
    "worker.child-dies-alone": Requirement(
        "design 5", "A child process that dies fails its attempt and nothing else."
    ),
    "worker.child-knows-nothing": Requirement(
        "security", "A child process holds no database URL, no token and no secret."
    ),
    "worker.light": Requirement(
        "development",
        "A worker loads what the jobs that it runs need, and nothing of servers, clients and commands.",
    ),
    "worker.drain": Requirement(
        "operations", "SIGTERM finishes or releases every job, burns no attempt, and ends in time."
    ),
    "worker.effects-once": Requirement(
        "design 2", "What a handler writes in its transaction is committed with its result or not."
    ),
    "worker.fails-alone": Requirement(
        "design 7", "A row that cannot be decoded, or an outcome that is refused, fails alone."
    ),
    "worker.fence": Requirement(
        "design 2", "An attempt that lost its lease is stopped, and what it settles is refused."
    ),
    "worker.gives-up-first": Requirement(
        "design 3", "A worker that cannot extend a lease stops its jobs before the lease ends."
    ),
    "worker.poison": Requirement(
        "design 3", "A job that kills its worker goes dead, and its neighbours are not charged."
    ),
    "worker.rescue": Requirement(
        "design 3", "The job of a killed worker starts again within lease + 1 s."
    ),
    "audit.confined": Requirement(
        "security",
        "A reader who is confined to projects or job types sees the audit rows of those alone.",
    ),
    "audit.rotation": Requirement(
        "security",
        "The audit key rotates without a restart, and what former keys sealed is verified.",
    ),
    "audit.denials": Requirement(
        "security", "A refused call is in the audit log, with who and why."
    ),
    "audit.append-only": Requirement("security", "No login and no owner changes the audit log."),
    "audit.sealed": Requirement("security", "Audit rows are chained per tenant and signed."),
    "audit.tampering-found": Requirement(
        "security", "Any single change of the audit log is found, and the first bad row is named."
    ),
    "audit.truncation": Requirement(
        "security", "A log that was cut off is found by its count or by a copy kept elsewhere."
    ),
    "secrets.no-blocking": Requirement(
        "security", "No handler's secret that a command has to print keeps the event loop waiting."
    ),
    "secrets.scan-of-arguments": Requirement(
        "security", "Obvious keys are refused in labels, keys and reasons as they are in inputs."
    ),
    "secrets.redacted": Requirement("security", "Logs hold no secret, not even in a traceback."),
    "secrets.payload-scan": Requirement(
        "security", "An input with an obvious key is refused, naming the place and not the value."
    ),
    "secrets.canaries": Requirement(
        "security", "Of 1,000 planted secrets none is stored, logged, returned or told."
    ),
    "secrets.references": Requirement(
        "security", "An input names only the secrets, and for the hosts, that the operator listed."
    ),
    "worker.secrets": Requirement(
        "security", "A secret is struck from the logs, progress and errors of its attempt."
    ),
    "worker.stdout": Requirement(
        "operations", "Nothing that a handler prints reaches the worker's own stdout."
    ),
    "worker.stops-for-real": Requirement(
        "design 5", "A timeout and a cancel end the work, with every process it started."
    ),
    "worker.unstoppable": Requirement(
        "design 5", "What cannot be stopped is named, settled, and keeps its slot until it ends."
    ),
    # --- isolation: what one tenant can learn of another, or do to it
    "isolation.logins": Requirement(
        "design 10",
        "A login bound to a tenant is told of others what it is told of nothing, whatever it names or sets.",
    ),
    "isolation.functions": Requirement(
        "design 10",
        "Of another tenant, every SQL function tells what it tells of nothing, and changes nothing.",
    ),
    "isolation.tools": Requirement(
        "design 10",
        "Of another tenant, every tool and resource tells every scope what it tells of nothing.",
    ),
    # --- egress: requests that jobs send
    "egress.addresses": Requirement(
        "security", "Only public addresses are connected to, in whatever notation they come."
    ),
    "egress.judged": Requirement(
        "security",
        "Host, port and every address are judged before anything is sent; no proxy is used.",
    ),
    "egress.limits": Requirement(
        "security", "What a receiver answers is bounded in size, time and unpacking."
    ),
    "egress.redirects": Requirement(
        "security",
        "Each redirect passes the same checks; credentials and bodies stay with their origin.",
    ),
    "egress.urls": Requirement(
        "security", "A URL that two readers could read differently is refused."
    ),
    # --- demo and examples: what a newcomer runs first
    "demo.promises": Requirement(
        "design 6", "The demo ends with 0 only if each of its four runs ended as promised."
    ),
    "demo.leaves-nothing": Requirement(
        "own", "Whatever ends the demo, what it started is canceled and ended."
    ),
    # --- registering: jobs as data
    "registering.runs": Requirement(
        "design 13",
        "A registered job can be run at once through every replica, by every worker that has its handler.",
    ),
    "registering.idempotent": Requirement(
        "design 13",
        "The same definition again changes nothing; another one is a new version, and versions never change.",
    ),
    "registering.removed": Requirement(
        "design 13",
        "New runs of a removed job are refused, and queued ones wait until it is registered again.",
    ),
    "registering.found": Requirement(
        "design 5",
        "Registered jobs are found among the installed ones by text, tag and label, page by page.",
    ),
    "registering.permissions": Requirement(
        "security",
        "What a registered definition asks of callers is asked for every action, on it and on its runs, at every door.",
    ),
    "registering.sql": Requirement(
        "design 4",
        "Plain SQL starts a registered job by its name, in the version and with the settings that a server would take.",
    ),
    "registering.triggers": Requirement(
        "features B",
        "Triggers start registered jobs in the version that runs now, whoever evaluates them.",
    ),
    "registering.approval": Requirement(
        "security",
        "Where a tenant asks for it, a definition runs only after somebody other than its author approved it.",
    ),
    "registering.rights": Requirement(
        "security", "Whoever registers or runs a job must be allowed to run the handler behind it."
    ),
    "registering.names": Requirement(
        "security", "No registered job can be taken for another one by its name."
    ),
    "registering.texts": Requirement(
        "security", "What a definition says to models holds no character that does not show."
    ),
    "registering.schemas": Requirement(
        "security",
        "A schema that somebody registers is bounded before it is compiled, and reaches nothing outside itself.",
    ),
    "examples.run": Requirement(
        "style 10", "Every example runs with one command and prints what it promises."
    ),
    # --- jobs: what ships in job_definitions
    "jobs.demo": Requirement(
        "design 5", "The demo jobs progress, fail, resist and end as they say."
    ),
    "jobs.http": Requirement(
        "design 5", "An HTTP request is tried again when that may help and can do no harm."
    ),
    "jobs.webhook": Requirement(
        "design 5",
        "A webhook is signed as Standard Webhooks has it, keeps its id through all attempts, and fails when it is not accepted.",
    ),
    "events.from-runs": Requirement(
        "design 5",
        "A running job submits events: fenced by its lease, once over its attempts, in its project and trace, and held to its token.",
    ),
    "webhooks.in": Requirement(
        "design 4",
        "A delivery that is signed as its scheme says becomes one event; all else gets one answer, which tells no names.",
    ),
    "webhooks.completion": Requirement(
        "design 4",
        "A completion webhook is told of every run that ends, once for each time, and of no delivery.",
    ),
    "jobs.report": Requirement(
        "design 10", "A report holds runs of its own tenant and project, and of no other."
    ),
    "jobs.scan": Requirement(
        "design 5",
        "The database scan finds what hurts health, security and cost, and says what to do.",
    ),
    "jobs.shipped": Requirement(
        "design 5", "The shipped jobs keep their names, effects and scopes."
    ),
    # --- local: bridge, node, configuration of clients
    "local.both-eras": Requirement(
        "design 14", "A chat over stdio is served in both protocol eras through the node."
    ),
    "local.idle-end": Requirement(
        "design 18",
        "A node ends when no chat is left and nothing runs or is due soon, unless it is kept.",
    ),
    "local.light-bridge": Requirement("design 18", "A bridge takes at most 12 MB."),
    "local.no-orphans": Requirement(
        "design 18", "A bridge ends within a second of its input or its parent."
    ),
    "local.node-lost": Requirement(
        "design 18", "A chat survives its node, and what was committed survives both and Postgres."
    ),
    "local.one-node": Requirement(
        "design 18", "One state directory and database have one node, however many chats start."
    ),
    "local.outlives-chat": Requirement("design 18", "A job goes on when its chat is closed."),
    "local.own-user-only": Requirement(
        "security", "Nobody but its own user gets an answer from a node."
    ),
    "local.stale-socket": Requirement(
        "design 18", "What a killed node leaves behind does not hinder the next."
    ),
    "local.told-why": Requirement(
        "operations", "When no node can be had, client and log say why and what to do."
    ),
    "local.token": Requirement(
        "security", "Each chat acts as its own token says, and the token stays with the chat."
    ),
    "local.upgrade": Requirement("design 18", "An older node gives way to a newer bridge."),
    "local.whole-messages": Requirement(
        "design 18", "A chat's messages arrive whole, and one that is too long costs only itself."
    ),
    "local.without-node": Requirement(
        "design 18", "JOBFORGE_NODE=off serves a chat in one process and starts no node."
    ),
    "install.clients": Requirement(
        "design 6", "Each client's own file gets an entry with an absolute command."
    ),
    "install.no-secrets-shown": Requirement("security", "What is printed holds no secret."),
    "install.nothing-lost": Requirement(
        "design 6", "Whatever else a client's file holds stays, or the file is not touched."
    ),
    # --- policy: tokens, scopes, the gate
    "operations.ready-pool": Requirement(
        "operations", "A server whose worker pool claims nothing says that it is not ready."
    ),
    "worker.ends": Requirement(
        "reliability",
        "A handler that cannot be stopped does not keep its process, whose runs are taken by others.",
    ),
    "policy.plain-sql": Requirement(
        "security",
        "Plain SQL is charged what a job declares, and starts what acts outside only with the right to.",
    ),
    "secrets.scan-of-plain-sql": Requirement(
        "security", "What comes by plain SQL is looked through for obvious keys as well."
    ),
    "policy.check-token": Requirement(
        "security",
        "A check of a token says what is left of each limit and why a call would be refused.",
    ),
    "policy.children": Requirement(
        "security",
        "What a handler enqueues is held to the type patterns of the token behind its run.",
    ),
    "policy.steps": Requirement(
        "security",
        "A step of a composition is held to the token of whoever started the run, and one that it refuses never runs.",
    ),
    "policy.cost": Requirement(
        "security", "A run uses as many units of a budget as its definition declares."
    ),
    "policy.gate": Requirement(
        "security", "A verified token and its scopes decide who acts; every refusal reads the same."
    ),
    "policy.hostile-tokens": Requirement(
        "security", "A token that is not exactly of our form is refused, whatever signed it."
    ),
    "policy.http-without-keys": Requirement(
        "design 6", "Without token keys HTTP refuses every address but loopback, and says why."
    ),
    "policy.local-tenant": Requirement(
        "design 6", "On embedded Postgres a local door needs no token; HTTP always does."
    ),
    "policy.narrowing": Requirement(
        "security", "A holder narrows its token offline, at most three times, and never widens it."
    ),
    "policy.patterns": Requirement(
        "security", "What a token's patterns leave out does not exist for it; deny beats allow."
    ),
    "policy.permissions": Requirement(
        "security", "Permissions and guards of a definition hold for every action at every door."
    ),
    "policy.rates-switch": Requirement(
        "security",
        "Rates hold unless the operator switched them off, which an open server refuses.",
    ),
    "policy.remote-keys": Requirement(
        "security",
        "An issuer's keys are fetched from it alone, rotate without a restart, and stay when it is away.",
    ),
    "policy.retry-runnable": Requirement(
        "security", "A run is not queued again while nothing here may run its job."
    ),
    "policy.revocation-of-reads": Requirement(
        "design 11", "Every read refuses a revoked token within five seconds."
    ),
    "policy.revocation": Requirement(
        "design 11", "A revoked token is refused in the transaction of the very next call."
    ),
    "policy.single-use": Requirement(
        "design 11", "A token for one write is good for one that commits, however many race."
    ),
    "policy.tokens": Requirement(
        "design 11",
        "Policy tokens are JWTs signed with Ed25519 that carry tenant, projects, scopes.",
    ),
    # --- server: what stands before the tools on HTTP, and what is switched off
    "server.places": Requirement(
        "security",
        "Whatever HTTP binds, a foreign Host or Origin is refused, however it is written.",
    ),
    "server.sessions": Requirement(
        "security", "Sessions belong to who opened them, are limited in number, and end when idle."
    ),
    "server.exposure": Requirement(
        "security", "Settings that are unsafe together stop the start, and the message says why."
    ),
    "server.features": Requirement(
        "security", "Jobs that act outside are neither listed nor run before a setting allows them."
    ),
    "server.features-off": Requirement(
        "security",
        "What lets callers set up work for later is off before a setting allows it, except for the local tenant, which is shown.",
    ),
    "server.about": Requirement(
        "operations",
        "Features, limits and the way of telling callers apart are shown, no secret is.",
    ),
    "server.no-passthrough": Requirement(
        "mcp Access Token Privilege Restriction",
        "The token of a caller reaches no handler, no child process and no receiver.",
    ),
    "oauth.metadata": Requirement(
        "mcp Authorization Server Location",
        "With an issuer set, the RFC 9728 document is at its well-known paths; without, nothing is.",
    ),
    "oauth.challenge": Requirement(
        "mcp Protected Resource Metadata",
        "A 401 names the metadata and the scopes of the call, and an error only if a token came.",
    ),
    "oauth.step-up": Requirement(
        "mcp Scope Challenge Handling",
        "A call that lacks a scope gets 403 before its body is read; what no scope cures never does.",
    ),
    # --- embedded: the PostgreSQL that comes along
    "embedded.start": Requirement(
        "design 16",
        "The first start makes a whole cluster with its roles; what was committed is there at every later start.",
    ),
    "embedded.roles": Requirement(
        "design 19",
        "The roles that serve on the embedded server are no superusers, own nothing and bypass nothing.",
    ),
    "embedded.one-server": Requirement(
        "design 18", "However many users start at once, one server serves them all."
    ),
    "embedded.no-leak": Requirement(
        "design 19",
        "When every user was killed, the embedded server stops by itself after its linger time.",
    ),
    "embedded.keeper-killed": Requirement(
        "design 19", "A killed keeper leaves no orphan behind, and the next user gets a server."
    ),
    "embedded.postmaster-killed": Requirement(
        "design 19", "A killed postmaster is started again with every committed row."
    ),
    "embedded.whole-or-nothing": Requirement(
        "design 19", "A cluster that was left half made is thrown away, never used."
    ),
    "embedded.strangers": Requirement(
        "design 19",
        "A process is signalled only if it is PostgreSQL on this very data directory, whatever a pid file says.",
    ),
    "embedded.not-ours": Requirement(
        "design 19", "No mode or owner of a directory that was there before is ever changed."
    ),
    "embedded.socket": Requirement(
        "design 19",
        "The embedded server listens on a socket only, in a directory that only its account can enter.",
    ),
    "embedded.versions": Requirement(
        "operations", "Data of another PostgreSQL version is never passed over in silence."
    ),
    "embedded.failure": Requirement(
        "operations",
        "When the embedded server cannot start, everybody who waits is told why and where to look.",
    ),
    "embedded.binaries": Requirement(
        "operations", "Without programs of PostgreSQL, the error names both ways out."
    ),
    "embedded.locks": Requirement(
        "operations", "A state directory whose file system has no proper locks is refused."
    ),
    # --- client: the Python client
    "client.sync": Requirement("design 1", "Code without an event loop has the same client."),
    "client.transactional-enqueue": Requirement(
        "design 4",
        "What a client enqueues, cancels or submits in the application's transaction is done if and only if that commits.",
    ),
    # --- migrations, connections, routers: sql/ applied, and what stands between Python and it
    "migrate.check": Requirement(
        "operations", "migrate --check says what is pending and writes nothing."
    ),
    "migrate.changed-file": Requirement(
        "operations", "A released migration that was changed stops the migrator, which names it."
    ),
    "migrate.newer-schema": Requirement(
        "operations", "A schema newer than this version is refused and left as it is."
    ),
    "migrate.half-failed": Requirement(
        "operations",
        "A file that fails leaves nothing of itself, and the message says where it failed.",
    ),
    "migrate.two-at-once": Requirement("operations", "Two migrators at once apply each file once."),
    "migrate.any-owner": Requirement(
        "operations", "A superuser and an ordinary owner with createrole can both migrate."
    ),
    "migrate.plan": Requirement("operations", "migrate --sql prints what psql can run."),
    "database.bound-roles": Requirement(
        "design 10", "A role that row level security does not bind is never served with."
    ),
    "database.unknown-outcome": Requirement(
        "security", "A call whose answer was lost is repeated only if that cannot do it twice."
    ),
    "database.canceled-caller": Requirement(
        "operations", "A canceled caller costs no connection and leaves no statement in doubt."
    ),
    "database.listener-tests-itself": Requirement(
        "design 6", "A listener that hears nothing knows it, and says so."
    ),
    "heartbeat.bounded": Requirement(
        "design 4", "A server that does not answer holds a heartbeat no longer than a few seconds."
    ),
    "router.strangers": Requirement(
        "design 5", "Another tenant's or project's run answers in the words of an unknown one."
    ),
    "router.projects": Requirement(
        "security", "A token confined to projects enqueues, sees and changes jobs of these alone."
    ),
    "router.effects-once": Requirement(
        "design 1",
        "Effects in the same database and the completion of their job are one transaction.",
    ),
    # --- cli: the command line
    "cli.context-key": Requirement(
        "operations",
        "Signing is switched on, and its key changed, without a moment in which calls fail.",
    ),
    "cli.doctor": Requirement(
        "design 6", "The doctor proves tenant isolation both ways and names what does not hold."
    ),
    "cli.exit-codes": Requirement(
        "operations", "A command ends with 0 done, 1 caller's mistake, 2 usage, 3 operator's turn."
    ),
    "cli.json": Requirement("design 6", "With --json a command prints one JSON document."),
    "cli.leaving": Requirement(
        "design 9", "Whoever interrupts a command that waits stops no run and is told its id."
    ),
    "cli.migrate": Requirement(
        "operations", "migrate says what is pending, prints it, and applies it once."
    ),
    "cli.secrets": Requirement("design 6", "No command prints a secret but the token it issues."),
    # --- sql: the router's functions
    # --- evidence: what runs leave behind
    "evidence.artifacts": Requirement(
        "design 5",
        "What a handler leaves as an artifact can be listed and read, whole and by ranges, with its hash.",
    ),
    "evidence.fence": Requirement(
        "design 2",
        "An artifact of an attempt that lost its lease is neither accepted nor shown.",
    ),
    "evidence.manifest": Requirement(
        "design 4",
        "Every finished attempt has a manifest: input hash, outputs, measures, environment, decisions.",
    ),
    "evidence.results": Requirement(
        "design 5",
        "A result above 1 MiB becomes an artifact, and every long one can be read by ranges.",
    ),
    "evidence.report": Requirement(
        "design 5",
        "A run's report keeps its budget, is the same every time, holds no secret, and nobody's words forge its form.",
    ),
    "evidence.orphans": Requirement(
        "operations",
        "Content that no artifact needs is swept, whatever died while it was written or swept.",
    ),
    "sql.bounded-plans": Requirement(
        "design 7",
        "With 100,000 ready rows and no statistics, no hot call reads a table whole.",
    ),
    "sql.cancel": Requirement(
        "design 4",
        "A run is canceled in every state that is not final, and every race has one winner.",
    ),
    "sql.fair": Requirement(
        "design 7",
        "Every tenant with due work gets an equal share of a claim, and leftovers go to the rest.",
    ),
    "soak.mutants": Requirement(
        "own promise",
        "The bugs that the soak's checker has to catch can be planted in the functions as they are.",
    ),
    "sql.retention": Requirement(
        "features G19",
        "Ended runs go once their tenant has kept them long enough, in small batches, and never before.",
    ),
    "tools.rehearsal": Requirement(
        "design 5",
        "A rehearsal runs with the handler's dry_run set, says so wherever it is shown, and is never taken for the real run.",
    ),
    "tools.dry-run": Requirement(
        "design 5",
        "Every tool that writes can say what it would do, and then writes nothing but its audit row.",
    ),
    "sql.frontier": Requirement(
        "design 7",
        "A claim reads nothing in front of the place it is told, so old transactions do not slow claims down.",
    ),
    "sql.fence": Requirement(
        "design 2",
        "A claim that is not the living one changes nothing.",
    ),
    "sql.idempotency": Requirement(
        "design 8",
        "Racers with one key get one run; the same key with another input is a conflict.",
    ),
    "sql.invariants": Requirement(
        "security",
        "A job keeps its invariants under any order of calls.",
    ),
    "sql.interleavings": Requirement(
        "security",
        "Any two functions at once, wherever the first is stopped, end as if one came after the other, and leave what is true.",
    ),
    "sql.lock-order": Requirement(
        "design 1",
        "No pair of calls in flight deadlocks.",
    ),
    "sql.order": Requirement(
        "design 17",
        "Jobs of an ordering key run one at a time, in the order in which their enqueues committed.",
    ),
    "sql.poison": Requirement(
        "design 3",
        "A job that kills its workers goes dead, and its neighbours do not pay.",
    ),
    "sql.tenant-login": Requirement(
        "security",
        "A login for plain SQL acts for its one tenant and projects, within its scopes, whatever it sets.",
    ),
    "events.jobs": Requirement(
        "design 5",
        "An event and the jobs it starts are one transaction, and the answer names each run and each trigger that did not fire.",
    ),
    "events.once": Requirement(
        "design 8",
        "An event with a key is stored and starts its jobs once, however often and from wherever it is submitted.",
    ),
    "events.rules": Requirement(
        "design 5",
        "A rule that fails loses neither the event nor other rules, and why a trigger did not fire is in its history.",
    ),
    "events.loop": Requirement(
        "design 5",
        "A circle of events and jobs within one trace comes to an end.",
    ),
    "events.pii": Requirement(
        "security",
        "What an event hides is shown by no list and reaches no run, key, log or audit row.",
    ),
    "events.patterns": Requirement(
        "security",
        "A token submits and sees only events of its patterns and projects.",
    ),
    "events.sql": Requirement(
        "design 4",
        "An event submitted by plain SQL starts its jobs within seconds, whichever process dies meanwhile.",
    ),
    "triggers.cron": Requirement(
        "design 4",
        "A schedule makes a run at its time in its zone, and not before.",
    ),
    "triggers.once": Requirement(
        "design 4",
        "Each time of a schedule makes one run, with any number of schedulers and whichever of them dies.",
    ),
    "triggers.dst": Requirement(
        "operations",
        "When clocks change, what names hour and minute is due once a day, and what begins with a star follows the time that passes.",
    ),
    "triggers.catch-up": Requirement(
        "operations",
        "Times that were missed are caught up as the trigger says: none, one or all up to a number.",
    ),
    "triggers.overlap": Requirement(
        "operations",
        "While a run is open the next is skipped, queued behind it or replaces it, as the trigger says.",
    ),
    "triggers.rights": Requirement(
        "security",
        "A trigger starts jobs with the rights of whoever registered it, and none once their token was revoked.",
    ),
    "db.pooler": Requirement(
        "operations",
        "The router works through PgBouncer in transaction mode and leaves nothing on a connection.",
    ),
    "sql.signed-scope": Requirement(
        "security",
        "Where scopes are signed, setting a tenant, changing what was signed or repeating it a minute later is refused.",
    ),
    "sql.concurrency": Requirement(
        "design 5",
        "No key ever has more runs in leases than its limit, however many workers claim.",
    ),
    "sql.concurrency-goes-on": Requirement(
        "design 5",
        "Whatever frees a slot, a settle, a cancel or a lost worker, the next run of the key follows.",
    ),
    "sql.start-rate": Requirement(
        "design 5", "Within any period no more attempts of a key start than its rate allows."
    ),
    "sql.pause": Requirement(
        "design 4",
        "Nothing of a paused tenant, type or project starts until it is resumed, and everything does then.",
    ),
    "sql.debounce": Requirement(
        "design 4",
        "Of the pending runs of a debounce key the newest stays, and it starts within the longest wait.",
    ),
    "sql.bulk": Requirement(
        "design 4",
        "Runs are canceled and retried by filter only as far as they were counted, batch by batch, and audited.",
    ),
    "cli.bulk": Requirement(
        "operations",
        "cancel and retry touch many runs only after a filter and a count or a cap were said.",
    ),
    "cli.queue": Requirement(
        "operations", "queue pause, resume, list and stats do what the SQL functions do."
    ),
    "sql.rights": Requirement(
        "design 10",
        "Logins hold no right on any table, and row level security shows the scope's tenant alone.",
    ),
    "sql.transactional-enqueue": Requirement(
        "design 4",
        "A job enqueued in an application's transaction exists if and only if that commits.",
    ),
    "sql.version": Requirement(
        "design 4",
        "A run's version grows with every visible change.",
    ),
}
