"""A folder is written by one process at a time, and a kill leaves nothing that keeps the next one away."""

import errno
import fcntl
import os
import signal

import pytest

from smml import locks
from smml.errors import InputError
from smml.locks import claimed

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")


def in_child(work) -> int:
    """Exit status of a process of its own that does this: 0, 2 for an InputError; it knows nothing of our locks."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            locks._held.clear()
            work()
            status = 0
        except InputError:
            status = 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def claim(folder) -> None:
    with claimed(folder):
        (folder / "written").touch()


def test_a_second_process_is_refused_and_the_next_is_not(tmp_path):
    with claimed(tmp_path):
        assert in_child(lambda: claim(tmp_path)) == 2
        assert not (tmp_path / "written").exists()
    assert in_child(lambda: claim(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_the_same_process_is_refused_too_and_keeps_others_away_still(tmp_path):
    with claimed(tmp_path):
        with pytest.raises(InputError, match="another run is writing it right now"), claimed(tmp_path):
            pass
        assert in_child(lambda: claim(tmp_path)) == 2


def test_a_kill_frees_the_folder_though_a_process_that_it_started_lives_on(tmp_path):
    ready, tell = os.pipe()
    hold, release = os.pipe()

    def killed():
        with claimed(tmp_path):
            if os.fork() == 0:  # as a loader's process
                os.close(release)
                os.read(hold, 1)
                os._exit(0)
            os.write(tell, b"1")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    assert os.read(ready, 1) == b"1"
    claim(tmp_path)
    for end in (ready, tell, hold, release):
        os.close(end)
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_a_folder_into_which_nothing_was_written_goes_again(tmp_path):
    with pytest.raises(InputError, match="bad option"), claimed(tmp_path / "a" / "run"):
        raise InputError("bad option")
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_a_place_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"), claimed(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match="cannot be made"), claimed(tmp_path / "file" / "run"):
        pass

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"), claimed(tmp_path):
        pass


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unknown)
    claim(tmp_path)
    assert (tmp_path / "written").exists()
