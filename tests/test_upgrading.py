"""The copy that an upgrade makes, and an upgrade that does not come to its end."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import BACKENDS, Cli, clean_environment
from test_migrations import thaw

from recycledb.errors import StoreError
from recycledb.store import Store, parse_url, revisions, upgrade, verify
from recycledb.store.migrate import HEAD, REVISIONS

KILLED = Path(__file__).with_name("killed_upgrade.py")
OLD = REVISIONS[-2]


def rows(url: str) -> int:
    with Store.open(url) as store:
        assert verify.check(store).findings == []
        return int(store.rows("SELECT count(*) FROM loss")[0][0])


@pytest.mark.long
@pytest.mark.default_cases("sqlite-rename", "sqlite-2")
@pytest.mark.parametrize("moment", ["begin", "rename", "0", "2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_upgrade_leaves_the_store_as_it_was(backend: str, moment: str, tmp_path: Path) -> None:
    url = thaw(OLD, backend, tmp_path)
    path = parse_url(url)[1]
    done = subprocess.run([sys.executable, str(KILLED), url, moment], check=False, capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr.decode()
    assert revisions(url) == (OLD, HEAD)
    copies = [other for other in tmp_path.iterdir() if other.name.endswith(".bak")]
    assert len(copies) == (0 if moment in ("begin", "rename") else 1)  # a copy that has its name is complete
    for copy in copies:
        assert revisions(f"{backend}:///{copy}") == (OLD, HEAD)
    partial = [other for other in tmp_path.iterdir() if other.name.endswith(".partial")]
    assert len(partial) == (1 if moment in ("begin", "rename") else 0)
    made = upgrade(url)
    assert made is not None and rows(url) == 32
    left = {other.name for other in tmp_path.iterdir()}
    assert left == {path.name, made.name, *(copy.name for copy in copies)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_copy_has_the_store_s_mode_and_owner(backend: str, tmp_path: Path) -> None:
    url = thaw(OLD, backend, tmp_path)
    path = parse_url(url)[1]
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    before = path.stat()
    copy = upgrade(url)
    assert copy is not None and copy.name.startswith(f"{path.name}.{OLD}-") and copy.name.endswith(".bak")
    after = copy.stat()
    assert stat.S_IMODE(after.st_mode) == 0o640 and (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


@pytest.mark.long
def test_two_copies_of_one_second_have_two_names(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        made = upgrade(thaw(OLD, "sqlite", tmp_path))
        assert made is not None
        names.add(made)
    assert len(names) == 3 and all(name.exists() for name in names)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A folder on a disk of its own of 48 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs a user who may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(folder: Path, leave: int) -> None:
    """Leave only so many bytes of a disk."""
    free = shutil.disk_usage(folder).free
    with (folder / "filler").open("wb", buffering=0) as file:
        file.write(b"x" * max(0, free - leave))


@pytest.mark.long
@pytest.mark.both_backends
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_disk_leaves_the_store_as_it_was(backend: str, small_disk: Path) -> None:
    url = thaw(OLD, backend, small_disk)
    before = parse_url(url)[1].read_bytes()
    fill_up(small_disk, 200_000)
    with pytest.raises(StoreError) as raised:
        upgrade(url)
    assert "\n" not in str(raised.value) and ("space" in str(raised.value))
    assert sorted(other.name for other in small_disk.iterdir()) == ["filler", parse_url(url)[1].name]
    if backend == "sqlite":
        assert parse_url(url)[1].read_bytes() == before
    (small_disk / "filler").unlink()
    assert revisions(url) == (OLD, HEAD) and upgrade(url) is not None and rows(url) == 32


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_disk_lets_a_store_be_read(backend: str, small_disk: Path, tmp_path: Path, cli: Cli) -> None:
    url = thaw(OLD, backend, small_disk)
    copy = upgrade(url)
    assert copy is not None
    copy.unlink()
    fill_up(small_disk, 0)
    assert '"n": 32' in cli("--store", url, "query", "SELECT count(*) AS n FROM losses", "--format", "json").stdout
    cli("--store", url, "report", "-o", tmp_path / "report.html")
    told = cli("--store", url, "select", "selective", "-o", tmp_path / "out.json")
    assert "not recorded" in told.stderr and "no space is left" in told.stderr and (tmp_path / "out.json").exists()
    told = cli("--store", url, "select", "selective", "--json")
    (small_disk / "filler").unlink()
    with Store.open(url) as store:
        assert store.rows("SELECT count(*) FROM selections")[0][0] == 1  # the one that was frozen


@pytest.mark.long
def test_a_disk_that_refuses_to_write_is_one_line(tmp_path: Path) -> None:
    """The kernel answers every fsync with EIO, from before the copy on."""
    url = thaw(OLD, "sqlite", tmp_path)
    before = parse_url(url)[1].read_bytes()
    code = (
        "import sys, errno, platform; sys.path.insert(0, sys.argv[1]); import failing_disk; from recycledb.cli import main; "
        "failing_disk.refuse(failing_disk.CALLS[platform.machine()][3:], errno.EIO); sys.argv[1:] = sys.argv[2:]; main()"
    )
    command = [sys.executable, "-c", code, str(KILLED.parent), "--store", url, "db", "upgrade"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=clean_environment(), timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot back up" in done.stderr, done.stderr
    assert parse_url(url)[1].read_bytes() == before and len(list(tmp_path.iterdir())) == 1
