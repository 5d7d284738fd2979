"""The one entry for people who work on jobforge-mcp: makes ``.venv`` and runs everything inside it.

Standard library only, and nothing here may be needed at run time of the package. ``.venv`` is brought up to date when
``pyproject.toml`` or the Python version changes; a second ``dev.py`` started meanwhile waits for the first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "dev.stamp"
LOCK = ROOT / ".venv.lock"
OLDEST = (3, 11)


def main(arguments: list[str]) -> int:
    """Run one command of ``COMMANDS`` and return its exit code."""
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        print(
            f"dev.py: {sys.executable} is Python {found}, and 3.11 is the oldest that works.\n"
            "Start it with a newer one, for example: python3.12 dev.py setup",
            file=sys.stderr,
        )
        return 2
    if not arguments or arguments[0] not in COMMANDS:
        print(usage())
        return 0 if not arguments or arguments[0] in ("-h", "--help", "help") else 2
    try:
        prepare()
        return COMMANDS[arguments[0]](arguments[1:])
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    """List the commands with the first line of their docstrings."""
    lines = [f"  {name:8}{(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(["usage: python3 dev.py <command> [arguments]", "", *lines])


def setup(_: list[str]) -> int:
    """Make or refresh .venv; every other command does that first, too."""
    print(f"ready: {BIN}")
    return 0


def demo(arguments: list[str]) -> int:
    """Run real jobs end to end through a real MCP client (--once: end by itself)."""
    return become(tool("jobforge"), "demo", *arguments)


def test(arguments: list[str]) -> int:
    """Run the tests in two processes; arguments go to pytest."""
    return become(tool("pytest"), "-n", "2", *arguments)


def check(_: list[str]) -> int:
    """Check format, lint, types and import contracts; changes nothing."""
    checks = {
        "format": [tool("ruff"), "format", "--check", "."],
        "lint": [tool("ruff"), "check", "."],
        "types": [tool("basedpyright")],
        "imports": [tool("lint-imports"), "--no-cache"],
    }
    failed = [name for name, command in checks.items() if run(f"check {name}", *command) != 0]
    print(f"check failed: {', '.join(failed)}" if failed else "check passed")
    return 1 if failed else 0


def judge(arguments: list[str]) -> int:
    """Let outside tools judge SQL, code and server; arguments choose some of them."""
    return become(tool("python"), str(ROOT / "judges" / "run.py"), *arguments)


def fix(_: list[str]) -> int:
    """Format the code and apply the safe fixes of the linter."""
    linted = run("lint", tool("ruff"), "check", "--fix", ".")
    return run("format", tool("ruff"), "format", ".") or linted


def bench(arguments: list[str]) -> int:
    """Measure, and print a table with machine and versions; arguments go to the harness."""
    return become(tool("python"), str(ROOT / "benchmarks" / "run.py"), *arguments)


def soak(arguments: list[str]) -> int:
    """Break everything at random for some minutes, and check every promise: --minutes, --mutant."""
    return become(tool("python"), "-m", "soak.run", *arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "setup": setup,
    "demo": demo,
    "test": test,
    "check": check,
    "judge": judge,
    "fix": fix,
    "bench": bench,
    "soak": soak,
}


class SetupError(Exception):
    """The environment cannot be made; the message says what the person at the keyboard can do."""


def prepare() -> None:
    """Bring ``.venv`` up to date, unless it is."""
    stamp = fresh_stamp()
    if stamp_on_disk() == stamp:
        return
    try:
        with locked():
            if stamp_on_disk() != stamp:
                make_venv()
                install()
                STAMP.write_text(stamp, encoding="utf-8")
    except PermissionError as error:
        advice = "make this checkout writable for you, or clone it anew"
        raise SetupError(f"cannot write {error.filename}; {advice}") from None


def fresh_stamp() -> str:
    """Say what ``.venv`` must have been made from: a Python and a place, then this project file."""
    project = (ROOT / "pyproject.toml").read_bytes()
    return f"{made_from()}\n{hashlib.sha256(project).hexdigest()}\n"


def made_from() -> str:
    """Name what no refresh can change: installed programs carry the interpreter's path in them."""
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]} {VENV}"


def stamp_on_disk() -> str:
    """Read the stamp that the last complete set-up left, if its interpreter is still there."""
    try:
        return STAMP.read_text(encoding="utf-8") if Path(tool("python")).exists() else ""
    except FileNotFoundError:
        return ""


@contextmanager
def locked() -> Generator[None]:
    """Hold the set-up lock; the kernel lets go of it however this process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two set-ups at once are the user's to avoid
        yield
        return
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another dev.py that is making .venv …", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_venv() -> None:
    """Make an empty environment, unless a complete one is there that a refresh can use."""
    can_install = uv() or Path(tool("pip")).exists()
    if can_install and stamp_on_disk().split("\n")[0] == made_from():
        return
    options = ["--clear", "--without-pip"] if uv() else ["--clear"]
    if not uv() and importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "this Python comes without ensurepip, so it cannot make a virtual environment.\n"
            "  Debian and Ubuntu: apt-get install python3-venv\n"
            "  anywhere: install uv, which needs neither (https://docs.astral.sh/uv/)"
        )
    if run(f"making {VENV}", sys.executable, "-m", "venv", *options, str(VENV)) != 0:
        raise SetupError("the virtual environment could not be made; the reason is above")


def install() -> None:
    """Install this checkout, editable, with embedded Postgres and the tools of the dev group."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = ["--editable", f"{ROOT}[local]", *project["dependency-groups"]["dev"]]
    if found := uv():
        installer = [found, "pip", "install", "--compile-bytecode", "--python", tool("python")]
    else:
        installer = [tool("python"), "-m", "pip", "install", "--disable-pip-version-check"]
    if run("installing, about half a minute", *installer, "--quiet", *wanted) != 0:
        raise SetupError("the installation failed; the reason is above. The next call tries again")


def uv() -> str | None:
    """Find uv, which installs several times faster than pip."""
    return shutil.which("uv")


def tool(name: str) -> str:
    """Return the path of a program of ``.venv``."""
    return str(BIN / (f"{name}.exe" if os.name == "nt" else name))


def run(what: str, *command: str) -> int:
    """Run a command from the checkout, under a heading, and return its exit code."""
    print(f"== {what}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def become(*command: str) -> int:
    """Hand this process over to a command, so that signals and the terminal are its own."""
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(command[0], command, environment())  # noqa: S606 - a list, no shell
    return subprocess.run(command, env=environment(), check=False).returncode


def environment() -> dict[str, str]:
    """Return this environment with ``.venv`` first on the path, as activating it would."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    return {**kept, "VIRTUAL_ENV": str(VENV), "PATH": path}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
