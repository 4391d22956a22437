"""Replacing files and folders: whole or not at all, through kills, full disks and other people's folders."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from regionrt.runtime import atomic
from regionrt.runtime.atomic import replace_file, replace_folder, write_file_atomic
from regionrt.runtime.errors import OutputError


def anything(_: Path) -> bool:
    return True


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def old_folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old.txt").write_text("old")
    return path


def test_a_new_folder_with_new_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "bundle"
    with replace_folder(path) as temporary:
        assert not path.exists()
        (temporary / "engines").mkdir()
        (temporary / "engines" / "x").write_text("1")
    assert contents(path) == {"engines/x": "1"}
    assert os.listdir(path.parent) == ["bundle"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask


def test_an_old_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    with replace_folder(path, ours=anything) as temporary:
        (temporary / "new.txt").write_text("new")
        assert contents(path) == {"old.txt": "old"}
    assert contents(path) == {"new.txt": "new"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_the_name_is_never_absent_while_folders_change_places(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    stop, missed = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if not path.exists():
                missed.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(50):
        with replace_folder(path, ours=anything) as temporary:
            (temporary / "n").write_text(str(number))
    stop.set()
    watcher.join()
    assert not missed
    assert contents(path) == {"n": "49"}


def test_an_error_in_the_block_leaves_the_old_one(tmp_path: Path) -> None:
    path = old_folder(tmp_path)

    def fail_half_way() -> None:
        with replace_folder(path, ours=anything) as temporary:
            (temporary / "half.txt").write_text("half")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert contents(path) == {"old.txt": "old"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_that_is_not_ours_is_refused_before_any_work(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    for ours in (None, lambda folder: (folder / "manifest.json").exists()):
        with (
            pytest.raises(OutputError, match="holds files that this command did not write"),
            replace_folder(path, ours=ours),
        ):
            pytest.fail("the block ran")
    assert contents(path) == {"old.txt": "old"}
    (tmp_path / "empty").mkdir()
    with replace_folder(tmp_path / "empty") as temporary:
        (temporary / "x").write_text("x")
    assert contents(tmp_path / "empty") == {"x": "x"}


def test_what_comes_into_the_folder_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def write_while_another_does() -> None:
        with replace_folder(path) as temporary:
            (temporary / "x").write_text("x")
            path.mkdir()
            (path / "someone.txt").write_text("else")

    with pytest.raises(OutputError, match="did not write"):
        write_while_another_does()
    assert contents(path) == {"someone.txt": "else"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("file")
    with (
        pytest.raises(OutputError, match="expected a folder to write, found a file"),
        replace_folder(tmp_path / "bundle"),
    ):
        pytest.fail("the block ran")
    with (
        pytest.raises(OutputError, match="a folder above it is a file"),
        replace_folder(tmp_path / "bundle" / "deeper"),
    ):
        pytest.fail("the block ran")
    with pytest.raises(OutputError, match="a folder above it is a file"):
        write_file_atomic(tmp_path / "bundle" / "x", b"")
    assert (tmp_path / "bundle").read_text() == "file"


def test_a_link_is_followed(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    (tmp_path / "current").symlink_to("bundle")
    with replace_folder(tmp_path / "current", ours=anything) as temporary:
        (temporary / "new.txt").write_text("new")
    assert (tmp_path / "current").is_symlink()
    assert contents(path) == {"new.txt": "new"}


KILLED = """
import os, signal, sys
from pathlib import Path
from regionrt.runtime import atomic
moment = sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if moment in ("_put", "_sync_tree", "_exchange"):
    setattr(atomic, moment, die)
if moment == "after":
    exchange = atomic._exchange
    atomic._exchange = lambda *names: (exchange(*names), die())
if moment == "between":
    def unsupported(*_):
        raise OSError(22, "no exchange here")
    atomic._exchange = unsupported
    rename, count = os.rename, []
    def once(*names):
        rename(*names)
        die()
    os.rename = once
with atomic.replace_folder(sys.argv[1], ours=lambda _: True) as temporary:
    (temporary / "new.txt").write_text("new")
    if moment == "block":
        die()
"""


@pytest.mark.parametrize("moment", ["block", "_sync_tree", "_put", "_exchange", "after", "between"])
def test_kill_9_leaves_the_old_or_the_new_folder_whole(tmp_path: Path, moment: str) -> None:
    path = old_folder(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), moment], capture_output=True, timeout=60, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    if moment == "after":
        assert contents(path) == {"new.txt": "new"}
    elif moment == "between":  # without exchange: the old one is aside, whole, and the next run puts it back
        assert not path.exists()
    else:
        assert contents(path) == {"old.txt": "old"}
    assert len(os.listdir(tmp_path)) == 2  # the stray one
    seen = {}
    with replace_folder(path, ours=anything) as temporary:
        seen = contents(path)
        (temporary / "third.txt").write_text("3")
    assert seen == ({"new.txt": "new"} if moment == "after" else {"old.txt": "old"})
    assert contents(path) == {"third.txt": "3"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_the_folder_of_a_run_in_progress_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with replace_folder(path, ours=anything) as first:
        (first / "x").write_text("first")
        with replace_folder(path, ours=anything) as second:
            (second / "x").write_text("second")
        assert contents(path) == {"x": "second"}
        assert first.exists()
    assert contents(path) == {"x": "first"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_files_that_only_look_alike_are_left(tmp_path: Path) -> None:
    others = [".bundle.tmp", ".bundle.notes.tmp", "bundle.0123456789ab.tmp", ".other.0123456789ab.tmp"]
    for name in others:
        (tmp_path / name).write_text("mine")
    with replace_folder(tmp_path / "bundle") as temporary:
        (temporary / "x").write_text("x")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "bundle"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["block", "fsync", "rename"])
def test_a_full_disk(tmp_path: Path, number: int, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_folder(tmp_path)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    if step == "rename":
        monkeypatch.setattr(atomic, "_exchange", full)

    def write() -> None:
        with replace_folder(path, ours=anything) as temporary:
            (temporary / "half.txt").write_text("half")
            if step == "block":
                full()

    with pytest.raises(OutputError, match="the disk is full") as caught:
        write()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert contents(path) == {"old.txt": "old"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_without_exchange_the_folder_is_replaced_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_folder(tmp_path)

    def unsupported(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(atomic, "_exchange", unsupported)
    with replace_folder(path, ours=anything) as temporary:
        (temporary / "new.txt").write_text("new")
    assert contents(path) == {"new.txt": "new"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_other_errors_of_the_block_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_folder(tmp_path / "bundle"):
        open(tmp_path / "no" / "such" / "file")  # noqa: SIM115
    with pytest.raises(PermissionError), replace_folder(tmp_path / "bundle"):
        raise PermissionError(errno.EACCES, "reading something else")


def test_write_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    write_file_atomic(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_file_atomic(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert os.listdir(path.parent) == ["report.json"]
    with pytest.raises(OutputError, match="found a folder"):
        write_file_atomic(path.parent, b"")


def test_a_file_on_a_full_disk_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_file_atomic(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_killed_write_leaves_no_stray_file_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    code = (
        "import os, signal, sys\nfrom regionrt.runtime.atomic import replace_file\n"
        "with replace_file(sys.argv[1]) as t:\n    t.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with replace_file(path) as temporary:
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["report.json"]
    assert path.read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        write_file_atomic(tmp_path / "x", b"")
