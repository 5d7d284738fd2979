"""Kernel locks: what they promise, and which file systems are refused."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from jobforge_mcp.embedded import locks
from jobforge_mcp.errors import OperatorError

RUNNING = locks.Running(1, 2, "18.6", "/data", "/socket")

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /home rw - nfs4 server:/home rw
31 30 0:27 / /home/alice/local\\040disk rw - xfs /dev/vdb rw
32 22 0:28 / /mnt rw - ext4 /dev/vdc rw
33 22 0:29 / /mnt rw - cifs //server/share rw
"""


def test_what_is_published_can_be_read_while_its_writer_holds_it(tmp_path: Path) -> None:
    before = locks.read_published(tmp_path)
    held = locks.publish(tmp_path, RUNNING)
    during = locks.read_published(tmp_path)
    os.close(held)
    after = locks.read_published(tmp_path)

    assert (before, during, after) == (None, RUNNING, None)


def test_a_new_writer_replaces_what_a_dead_one_left(tmp_path: Path) -> None:
    os.close(locks.publish(tmp_path, RUNNING))
    newer = locks.Running(3, 4, "18.7", "/data", "/socket")

    held = locks.publish(tmp_path, newer)

    assert locks.read_published(tmp_path) == newer
    os.close(held)


def test_waiting_for_a_lock_ends_at_the_deadline(tmp_path: Path) -> None:
    first, second = (locks.open_lock(tmp_path / "lock") for _ in range(2))
    assert locks.try_lock(first, exclusive=True)

    refused = locks.lock_before(second, time.monotonic() + 0.05, exclusive=False)
    locks.unlock(first)
    granted = locks.lock_before(second, time.monotonic() + 0.05, exclusive=False)

    assert (refused, granted) == (False, True)
    os.close(first)
    os.close(second)


def test_a_local_directory_is_accepted_and_left_as_it_was(tmp_path: Path) -> None:
    locks.refuse_unlockable(tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/jobforge", "ext4"),
        ("/home/alice/.local/share/jobforge", "nfs4"),
        ("/home/alice/local disk/jobforge", "xfs"),
        ("/homework", "ext4"),
        ("/mnt/jobforge", "cifs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_and_latest_mount(path: str, kind: str) -> None:
    assert locks.file_system_of(Path(path), MOUNTS) == kind


@pytest.mark.requirement("embedded.locks")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(_fd: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)

    with pytest.raises(OperatorError) as refused:
        locks.refuse_unlockable(tmp_path)

    assert "has no file locks" in refused.value.message
    assert "JOBFORGE_STATE_DIR" in str(refused.value.hint)


@pytest.mark.requirement("embedded.locks")
def test_a_file_system_whose_locks_do_not_exclude_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grant(_fd: int, _operation: int) -> None:
        pass

    monkeypatch.setattr(fcntl, "flock", grant)

    with pytest.raises(OperatorError) as refused:
        locks.refuse_unlockable(tmp_path)

    assert "do not exclude" in refused.value.message


def test_an_unreadable_last_word_is_no_word(tmp_path: Path) -> None:
    (tmp_path / "keeper.failed").write_text("{")

    assert locks.read_failure(tmp_path) is None
