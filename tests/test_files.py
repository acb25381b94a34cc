"""Atomic files: a reader sees the old file or the new one, never a part, whatever happens while writing."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import smml
from smml.errors import InputError
from smml.files import check_target, replacing, write_text


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old\n", encoding="utf-8")
    return path


def assert_untouched(old: Path) -> None:
    """The old file is as it was and nothing lies beside it."""
    assert old.read_text(encoding="utf-8") == "old\n"
    assert os.listdir(old.parent) == [old.name]


def test_on_success_the_new_file_takes_the_place_of_the_old_one(old):
    write_text(old, "new ä\n")
    assert old.read_bytes() == "new ä\n".encode()
    assert os.listdir(old.parent) == [old.name]


def test_the_old_file_is_visible_until_the_new_one_is_complete(old):
    with replacing(old) as temporary:
        temporary.write_text("half of the")
        assert old.read_text() == "old\n"
        assert temporary.parent == old.parent  # a rename is atomic only inside one file system
    assert old.read_text() == "half of the"


def test_folders_are_made_on_the_way(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("seg.nii.gz", ".nii.gz"),
        ("seg.nii", ".nii"),
        ("VSD.Brain.XX.O.OT.7.mha", ".mha"),
        ("run.2024.pt", ".pt"),
        ("README", ""),
    ],
)
def test_the_temporary_name_ends_like_the_target(tmp_path, name, suffix):
    with replacing(tmp_path / name) as temporary:
        assert temporary.name.endswith(suffix)
        assert temporary.name.startswith(".")
        temporary.write_text("x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_the_file_gets_the_permissions_that_the_user_asked_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "shared.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared.txt").stat().st_mode) == 0o640


def write_half_and_raise(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt(), InputError("bad label")])
def test_an_exception_leaves_the_old_file_and_passes_through(old, error):
    with pytest.raises(type(error)) as raised:
        write_half_and_raise(old, error)
    assert raised.value is error
    assert_untouched(old)


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(old):
    with pytest.raises(InputError, match="free some space") as error:
        write_half_and_raise(old, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(old) in str(error.value)
    assert os.strerror(errno.ENOSPC) in str(error.value)
    assert_untouched(old)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_the_last_moment_leaves_the_old_file(old, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(InputError, match=r"results\.csv"):
        write_text(old, "new")
    monkeypatch.undo()
    assert_untouched(old)


def test_an_error_about_another_file_is_not_blamed_on_the_target(old, tmp_path):
    source = tmp_path.parent / "no such source"
    with pytest.raises(FileNotFoundError), replacing(old):
        source.read_text()
    assert_untouched(old)


KILLED = """
import os, signal, sys
from smml.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half of the new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_kill_while_writing_leaves_the_old_file(old):
    environment = os.environ | {"PYTHONPATH": str(Path(smml.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(old)], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert old.read_text() == "old\n"
    # Nobody is left to tidy up: what remains is hidden, and goes with the next writer of this file, not of another.
    (left,) = [name for name in os.listdir(old.parent) if name != old.name]
    assert left.startswith(".results.csv.")
    write_text(old.with_name("results.txt"), "other")
    assert left in os.listdir(old.parent)
    write_text(old, "new")
    assert old.read_text() == "new"
    assert sorted(os.listdir(old.parent)) == ["results.csv", "results.txt"]


def test_the_file_of_a_living_writer_is_left_alone(old):
    """Two may write one file at a time; the last one wins, and neither fails."""
    with replacing(old) as first:
        first.write_text("first")
        with replacing(old) as second:
            second.write_text("second")
        assert first.exists()
        assert old.read_text() == "second"
    assert old.read_text() == "first"
    assert os.listdir(old.parent) == [old.name]


@pytest.mark.parametrize("hours", [0, 23, 25])
def test_the_file_of_another_machine_s_writer_is_left_alone_for_a_day(old, hours):
    other = old.with_name(".results.csv.0badcafe-1-abcdefgh.csv")
    other.write_text("half")
    os.utime(other, (other.stat().st_atime, other.stat().st_mtime - 3600 * hours))
    write_text(old, "new")
    assert other.exists() == (hours < 24)


@pytest.mark.parametrize("name", [".results.csv", ".results.csv.bak.csv", ".results.csv.0badcafe-1-abcdefgh.csv.mine"])
def test_hidden_files_of_the_user_are_left_alone(old, name):
    old.with_name(name).write_text("kept")
    os.utime(old.with_name(name), (0, 0))
    write_text(old, "new")
    assert old.with_name(name).read_text() == "kept"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("call", ["chmod", "fsync"])
def test_a_file_system_without_permissions_or_flushing_still_gets_the_file(old, monkeypatch, call, number):
    """CIFS, exFAT and some FUSE file systems refuse these calls."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((Path, "chmod") if call == "chmod" else (os, "fsync")), refuse)
    write_text(old, "new")
    assert old.read_text() == "new"
    assert os.listdir(old.parent) == [old.name]


@pytest.mark.parametrize("step", ["missing parent is a file", "target is a folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, step):
    if step == "target is a folder":
        target = tmp_path / "folder"
        target.mkdir()
        (target / "content").write_text("kept")
    else:
        (tmp_path / "file").write_text("kept")
        target = tmp_path / "file" / "new.txt"
    with pytest.raises(InputError) as error:
        write_text(target, "text")
    assert str(target) in str(error.value)
    assert "choose another place" in str(error.value)
    assert [path.read_text() for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["kept"]


def test_a_target_is_tried_beforehand_and_nothing_is_left(old, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name, said in (
        ("results.csv/below/x.md", "Not a directory"),
        ("broken/x.md", "No such file"),
        ("folder", "a folder"),
    ):
        with pytest.raises(InputError, match=said) as error:
            check_target(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    check_target(old)
    check_target(tmp_path / "new" / "below" / "x.md")
    monkeypatch.chdir(tmp_path)
    check_target("x.md")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_an_unwritable_folder_is_named(old, monkeypatch):
    if os.geteuid() == 0:  # nothing is unwritable to root, so the refusal is played

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr("tempfile.mkstemp", refuse)
    else:
        old.parent.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written") as error:
            write_text(old, "new")
    finally:
        old.parent.chmod(0o700)
    assert str(old) in str(error.value)
    assert_untouched(old)


def test_what_utf8_cannot_hold_is_written_as_its_number(tmp_path):
    """A folder's name from an old archive, in the heading of a table that took hours."""
    write_text(tmp_path / "table.md", os.fsdecode(b"M\xfcller"))
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == "M\\udcfcller"


@pytest.mark.parametrize(
    ("name", "ends"), [("a.MHA", ".mha"), ("b.Nii.GZ", ".nii.gz"), ("c.tar.PNG", ".png"), ("d", "")]
)
def test_the_hidden_file_ends_in_small_letters_by_which_writers_know_the_format(tmp_path, name, ends):
    with replacing(tmp_path / name) as temporary:
        assert re.search(r"-\w{8}(\D*)$", temporary.name)[1] == ends
        temporary.write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]
