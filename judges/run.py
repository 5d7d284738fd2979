"""Let outside tools judge the SQL, the code and a running server: zero findings, or each with its reason in excuses.toml.

Started by ``dev.py judge``, in the environment of the tests; the tools themselves live in ``.venv-judges``, made from
``judges/requirements.txt``. What a machine lacks is skipped aloud. An excuse that excuses nothing is told, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import psycopg
from psycopg import sql

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jobforge_mcp.db.migrate import migrate, plan_sql  # noqa: E402  # the checkout's root must be known first
from jobforge_mcp.embedded.cluster import SUPERUSER  # noqa: E402
from jobforge_mcp.policy.scopes import ALL_SCOPES  # noqa: E402
from jobforge_mcp.policy.tokens import Grant, issue_token  # noqa: E402
from jobforge_mcp.server.http import serve_http  # noqa: E402
from tests.postgres import (  # noqa: E402
    ADMIN,
    Binaries,
    DatabaseMaker,
    ScratchDatabase,
    running_cluster,
)
from tests.server.stage import open_stage  # noqa: E402

HERE = ROOT / "judges"
VENV = ROOT / ".venv-judges"
DEBIAN = Path("/usr/lib/postgresql/15/bin")
EXTENSIONS = Path("/usr/share/postgresql/15/extension")
SECONDS = 180


@dataclass(frozen=True, slots=True)
class Finding:
    """What a judge holds against us."""

    rule: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule} {self.place}: {self.text}"


class Skipped(Exception):  # no error: the machine lacks what this judge needs
    """Why a judge could not be asked."""


def main(names: list[str]) -> int:
    """Ask the named judges, or all of them."""
    if unknown := set(names) - JUDGES.keys():
        say(f"no such judge: {', '.join(sorted(unknown))}; there are {', '.join(JUDGES)}")
        return 2
    make_venv()
    excuses = tomllib.loads((HERE / "excuses.toml").read_text(encoding="utf-8"))["excuse"]
    count = 0
    for name in names or JUDGES:
        count += report(name, [excuse for excuse in excuses if excuse["judge"] == name])
    say(f"\n{count} findings without a reason" if count else "\nno finding without a reason")
    return 1 if count else 0


def report(name: str, excuses: list[dict[str, str]]) -> int:
    """Ask one judge, print the answer, and count what is not excused."""
    began = time.monotonic()
    try:
        findings = JUDGES[name]()
    except Skipped as reason:
        say(f"{name:14} skipped: {reason}")
        return 0
    used = set[int]()
    left = list[Finding]()
    for finding in findings:
        fits = [n for n, excuse in enumerate(excuses) if is_excused(finding, excuse)]
        used.update(fits)
        if not fits:
            left.append(finding)
    took = time.monotonic() - began
    say(f"{name:14} {len(findings):4} findings, {len(left)} without a reason, {took:.1f} s")
    for finding in left:
        say(f"    {finding}")
    for number, excuse in enumerate(excuses):
        if number not in used:
            say(f"    (not needed any more: {excuse['rule']}: {excuse['reason']})")
    return len(left)


def is_excused(finding: Finding, excuse: dict[str, str]) -> bool:
    """Whether an excuse names this rule, and this place if it names any."""
    about = f"{finding.place} {finding.text}"
    return excuse["rule"] == finding.rule and re.search(excuse.get("where", ""), about) is not None


def say(line: str) -> None:
    """Tell whoever waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# --- judges that read


def bandit() -> list[Finding]:
    """Read the Python that ships."""
    answer = ask("bandit", "-q", "-r", "src", "job_definitions", "dev.py", "-f", "json")
    return [
        Finding(one["test_id"], f"{one['filename']}:{one['line_number']}", one["issue_text"])
        for one in json.loads(answer)["results"]
    ]


def squawk() -> list[Finding]:
    """Read the migrations."""
    files = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("sql/migrations/*.sql"))]
    answer = ask("squawk", "-c", "judges/squawk.toml", "--reporter", "json", *files)
    return [
        Finding(one["rule_name"], f"{one['file']}:{one['line']}", one["message"])
        for one in json.loads(answer)
    ]


def sqlfluff() -> list[Finding]:
    """Read all SQL."""
    answer = ask("sqlfluff", "lint", "--config", "judges/sqlfluff.cfg", "--format", "json", "sql")
    return [
        Finding(one["code"], f"{file['filepath']}:{one['start_line_no']}", one["description"][:160])
        for file in json.loads(answer)
        for one in file["violations"]
    ]


def pgspot() -> list[Finding]:
    """Read everything a migrator would run, as one script."""
    # Its parser knows no tables, so a variable of a table's type would have no columns; a record may have any.
    plan = re.sub(
        r"^(  v_\w+) jobforge\.\w+(%rowtype)?(;| :=)",
        r"\1 record\3",
        plan_sql(),
        flags=re.MULTILINE,
    )
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(plan)
        script.flush()
        answer = ask("pgspot", script.name)
    said, summary, rest = answer.rpartition("Unknown: 0")
    if not summary or rest.strip():
        raise RuntimeError(f"pgspot did not finish: {answer[-2000:]}")
    found = re.findall(r"^(PS\d+): (.*) at line (\d+)$", said, re.MULTILINE)
    return [Finding(rule, made_at(plan, int(line)), text[:160]) for rule, text, line in found]


def made_at(plan: str, line: int) -> str:
    """Name the function that is made by the statement which begins on this line, or the line."""
    rest = "\n".join(plan.splitlines()[line - 1 :])
    made = re.match(r"\W*(?:--.*\s+)*create (?:or replace )?function (jobforge\.\w+)\(", rest)
    return made[1] if made else f"plan:{line}"


def zizmor() -> list[Finding]:
    """Read workflow files, of which there are none."""
    if not (ROOT / ".github" / "workflows").is_dir():
        raise Skipped("this repository has no workflow files")
    answer = ask("zizmor", "--offline", "--format", "json", ".")
    return [Finding(one["ident"], "workflows", one["desc"]) for one in json.loads(answer)]


# --- judges that act on a database


@contextmanager
def migrated() -> Generator[ScratchDatabase]:
    """Run Debian's PostgreSQL 15 with a migrated database."""
    if not (DEBIAN / "postgres").exists():
        raise Skipped("PostgreSQL 15 of Debian is not here")
    binaries = Binaries(DEBIAN, "15", "Debian")
    with (
        running_cluster(binaries) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as admin,
    ):
        database = DatabaseMaker(cluster, admin, "judge").create_empty()
        migrate(database.url(ADMIN))
        yield database


def need_extension(name: str, package: str) -> None:
    """Skip without an extension."""
    if not (EXTENSIONS / f"{name}.control").exists():
        raise Skipped(f"install {package}")


def plpgsql_check() -> list[Finding]:
    """Check every plpgsql function against the schema."""
    need_extension("plpgsql_check", "postgresql-15-plpgsql-check")
    with migrated() as database, database.connect() as connection:
        connection.execute("create schema judge; create extension plpgsql_check schema judge")
        rows: list[tuple[Any, ...]] = connection.execute(
            """select c.level, p.proname, c.lineno, c.message, c.detail
            from pg_proc p join pg_language l on l.oid = p.prolang
            cross join lateral (select coalesce(
              (select t.tgrelid from pg_trigger t where t.tgfoid = p.oid limit 1), 0) as relation) t
            cross join lateral judge.plpgsql_check_function_tb(p.oid, t.relation, extra_warnings => true,
              performance_warnings => true, security_warnings => true) c
            where p.pronamespace = 'jobforge'::regnamespace and l.lanname = 'plpgsql'"""
        ).fetchall()
    return [
        Finding(level, f"{name}:{line}", f"{message} {detail or ''}")
        for level, name, line, message, detail in rows
    ]


def pgtap() -> list[Finding]:
    """Run the suite in judges/pgtap."""
    need_extension("pgtap", "postgresql-15-pgtap")
    if shutil.which("pg_prove") is None:
        raise Skipped("install libtap-parser-sourcehandler-pgtap-perl")
    with migrated() as database:
        with database.connect() as connection:
            connection.execute("create schema judge; create extension pgtap schema judge")
        files = [str(path) for path in sorted((HERE / "pgtap").glob("*.sql"))]
        place = {
            "PGHOST": database.cluster.socket,
            "PGUSER": SUPERUSER,
            "PGDATABASE": database.name,
        }
        done = run(["pg_prove", "--verbose", *files], place)
    failed = re.findall(r"^not ok \d+ - (.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 and not failed:
        failed = [f"{done.stdout[-1500:]}{done.stderr[-1500:]}"]
    return [Finding("not-ok", "judges/pgtap", text) for text in failed]


def rlsautotest() -> list[Finding]:
    """Probe every policy with each role, in transactions that are rolled back."""
    with migrated() as database, tempfile.TemporaryDirectory() as folder:
        with database.connect() as connection:
            # what it takes for granted; none of them has a right here, which is what it then finds out
            for role in ("anon", "authenticated", "service_role"):
                connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))
        told = Path(folder) / "report.json"
        command = ["rlsautotest", "--schema", "jobforge", "--report", "--no-fail"]
        ask(*command, "--db-url", database.url(), "--report-json", str(told))
        said: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    findings = list[Finding]()
    for table in said["tables"]:
        if not table["rls_enabled"]:
            findings.append(Finding("no-rls", table["table"], "row level security is off"))
        for verb, cells in table["idgrid"].items():
            for who, cell in cells.items():
                if cell.get("pass") is False:
                    rule = "allowed" if cell["exp"] is False else "blocked"
                    doubts = [f"unreliable: {why}" for why in table["unreliable"]]
                    is_doubted = any(verb == name for name, _ in table["unreliable_cells"])
                    said_of_it = "; ".join(doubts) if is_doubted else str(cell)
                    findings.append(Finding(rule, f"{table['table']}:{verb}:{who}", said_of_it))
    for surface in said["bypass_surfaces"]:
        findings.append(Finding("bypass", "schema", json.dumps(surface)[:300]))
    return findings


# --- judges that talk to a server


def mcp_authlab() -> list[Finding]:
    """Scan a running server over HTTP, with a token and without."""
    return anyio.run(_scan)


@contextmanager
def issuer() -> Generator[str]:
    """Run an authorization server as far as anybody asks it: the document that describes it, with PKCE."""

    class Described(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.path.startswith("/.well-known/oauth-authorization-server")
            url = f"http://{self.headers['Host']}"
            said = {
                "issuer": url,
                "authorization_endpoint": f"{url}/authorize",
                "token_endpoint": f"{url}/token",
                "jwks_uri": f"{url}/jwks",
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code"],
                "code_challenge_methods_supported": ["S256"],
                "client_id_metadata_document_supported": True,
                "authorization_response_iss_parameter_supported": True,
            }
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(said if is_known else {}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Described) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    """Find a port for a server that must know its own address before it starts."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


async def _scan() -> list[Finding]:
    port, answer = free_port(), ""
    resource = f"http://127.0.0.1:{port}/mcp"
    with migrated() as database, tempfile.TemporaryDirectory() as folder, issuer() as login:
        places = {"port": port, "oauth_issuer": login, "resource_url": resource}
        async with (
            open_stage(database, Path(folder), has_pool=False, **places) as stage,
            anyio.create_task_group() as tasks,
        ):

            def token(audience: str) -> str:
                grant = Grant("acme", ALL_SCOPES, (), subject="a", lifetime=timedelta(hours=1))
                return issue_token(stage.keys.ensure(), grant, issuer=login, audience=audience)

            stop, ready = anyio.Event(), anyio.Event()
            urls = list[str]()

            def on_ready(url: str) -> None:
                urls.append(url)
                ready.set()

            tasks.start_soon(partial(serve_http, stage.parts, stop=stop, on_ready=on_ready))
            await ready.wait()
            command = ["mcp-authlab", "scan", f"{urls[0]}/mcp", "--no-login", "--format", "json"]
            tokens = ["--token", token(resource), "--foreign-token", token(f"{login}/other")]
            scan = partial(ask, *command, *tokens)
            answer = await anyio.to_thread.run_sync(scan)
            stop.set()
    results: list[dict[str, Any]] = json.loads(answer)["results"]
    if not any(one["status"] == "pass" for one in results):
        raise RuntimeError(f"mcp-authlab found nothing to look at: {answer[:2000]}")
    return [
        Finding(one["id"], one["status"], str(one.get("message") or one.get("detail") or ""))
        for one in results
        if one["status"] in ("fail", "warn", "error")
    ]


def mcp_fuzzer() -> list[Finding]:
    """Let a fuzzer loose on every tool and every message of the protocol of a running server."""
    return anyio.run(_fuzz)


async def _fuzz() -> list[Finding]:
    said, found = "", list[dict[str, Any]]()
    with migrated() as database, tempfile.TemporaryDirectory() as folder:
        async with (
            open_stage(database, Path(folder)) as stage,
            anyio.create_task_group() as tasks,
        ):
            stop, ready = anyio.Event(), anyio.Event()
            urls = list[str]()

            def on_ready(url: str) -> None:
                urls.append(url)
                ready.set()

            tasks.start_soon(partial(serve_http, stage.parts, stop=stop, on_ready=on_ready))
            await ready.wait()
            header = {
                "type": "api_key",
                "api_key": stage.token(),
                "header_name": "Authorization",
                "prefix": "Bearer",
            }
            providers = {
                "providers": {"token": header},
                "default_provider": "token",
                "tool_mapping": {},
            }
            config = Path(folder) / "auth.json"
            config.write_text(json.dumps(providers))
            command = [
                "mcp-fuzzer",
                "--mode",
                "all",
                "--protocol",
                "streamablehttp",
                "--endpoint",
                f"{urls[0]}/mcp",
            ]
            command += [
                "--auth-config",
                str(config),
                "--runs",
                "5",
                "--runs-per-type",
                "2",
                "--seed",
                "7",
                "--no-corpus",
            ]
            command += ["--timeout", "30", "--output-dir", folder, "--fs-root", f"{folder}/files"]
            said = await anyio.to_thread.run_sync(partial(ask, *command))
            stop.set()
        found = json.loads((Path(folder) / "findings.json").read_text())["findings"]
    if "execute-job: " not in said:
        raise RuntimeError(f"mcp-fuzzer found no tool to call: {said[-2000:]}")
    # In its realistic phase it sends messages of the protocol that are right, and counts it against us that they are answered.
    return [
        Finding(str(one["category"]), str(one["target"]), str(one["detail"]))
        for one in found
        if (one["kind"], one["category"]) != ("protocol", "accepted_malformed")
    ]


JUDGES: dict[str, Callable[[], list[Finding]]] = {
    "bandit": bandit,
    "squawk": squawk,
    "sqlfluff": sqlfluff,
    "pgspot": pgspot,
    "zizmor": zizmor,
    "plpgsql_check": plpgsql_check,
    "pgtap": pgtap,
    "rlsautotest": rlsautotest,
    "mcp-authlab": mcp_authlab,
    "mcp-fuzzer": mcp_fuzzer,
}


# --- tools


def ask(program: str, *arguments: str) -> str:
    """Run a program of ``.venv-judges``, and return what it says; findings are no failure."""
    done = run([str(VENV / "bin" / program), *arguments])
    if not done.stdout.strip():
        raise RuntimeError(f"{program} said nothing: {done.stderr[-2000:]}")
    return done.stdout


def run(command: list[str], more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program from the checkout, with a bound."""
    environment = {**os.environ, "NO_COLOR": "1", **(more or {})}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        timeout=SECONDS,
    )  # fmt: skip


def make_venv() -> None:
    """Install the judges, unless they are."""
    wanted = HERE / "requirements.txt"
    stamp = VENV / "judges.stamp"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    subprocess.run(
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)], check=True
    )
    python = str(VENV / "bin" / "python")
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        subprocess.run([python, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", str(wanted)], check=True)
    stamp.write_text(digest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
