"""Downloading checkpoints, against a server on this machine."""

import hashlib
import http.server
import multiprocessing
import threading
import types

import pytest

from smml.errors import InputError
from smml.sam import download
from smml.sam.download import RemoteFile, cache_folder, fetch

CONTENT = bytes(range(256)) * 12000  # 3 MB
FILE = RemoteFile("weights.pth", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Server(http.server.BaseHTTPRequestHandler):
    """Sends ``content``; can ignore ranges and drop the connection after some bytes."""

    def do_GET(self):
        state = self.server.state
        state["requests"].append(self.headers.get("Range"))
        if state.get("status"):
            self.send_error(state["status"])
            return
        body, start = state["content"], 0
        wanted = self.headers.get("Range")
        if wanted and state.get("ranges", True):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        if state["drops"]:
            part = part[: state["drops"].pop(0)]
        self.wfile.write(part)
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    web.state = {"content": CONTENT, "requests": [], "drops": []}

    def impatient(_):
        """No pause, and an end to a client that never gives up."""
        assert len(web.state["requests"]) < 20

    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setattr(download, "ADDRESS", f"http://127.0.0.1:{web.server_port}/")
    monkeypatch.setattr(download, "OFFICIAL", {"vit_b": FILE})
    monkeypatch.setattr(download, "time", types.SimpleNamespace(sleep=impatient))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield web.state
    web.shutdown()
    web.server_close()


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_fetched_once(server, tmp_path):
    path = fetch("vit_b", cache=tmp_path, progress=False)
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == ["weights.pth"]
    assert fetch("vit_b", cache=tmp_path, progress=False) == path
    assert server["requests"] == [None]


def test_progress_is_shown_on_stderr(server, tmp_path, capsys):
    fetch("vit_b", cache=tmp_path)
    output = capsys.readouterr()
    assert "weights.pth" in output.err
    assert "3.07M" in output.err
    assert output.out == ""


def test_a_dropped_connection_is_resumed(server, tmp_path):
    server["drops"] = [1_000_000, 500_000]
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT
    assert server["requests"] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_partial_file_of_an_earlier_process_is_resumed(server, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT[:2_000_000])
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT
    assert server["requests"] == ["bytes=2000000-"]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server["ranges"] = False
    server["drops"] = [1_000_000]
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT
    assert len(server["requests"]) == 2


def test_a_complete_partial_file_needs_no_server(server, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT)
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT
    assert server["requests"] == []


def test_a_partial_file_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT + b"more")
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT
    assert server["requests"] == [None]


@pytest.mark.parametrize("content", [b"x" * len(CONTENT), CONTENT + b"more"], ids=["other bytes", "longer"])
def test_wrong_bytes_are_refused_and_deleted(server, tmp_path, content):
    server["content"] = content
    with pytest.raises(InputError, match=r"not the official checkpoint \(expected 3072000 bytes with SHA-256"):
        fetch("vit_b", cache=tmp_path, progress=False)
    assert left(tmp_path) == []
    server["content"] = CONTENT
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT


def test_a_tampered_partial_file_is_refused_and_deleted(server, tmp_path):
    (tmp_path / "weights.pth.partial").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="was deleted; try again"):
        fetch("vit_b", cache=tmp_path, progress=False)
    assert left(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_is_too_short_on_the_server_is_not_fetched_for_ever(server, tmp_path, ranges):
    server["content"], server["ranges"] = CONTENT[:1000], ranges
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch("vit_b", cache=tmp_path, progress=False)
    assert len(server["requests"]) < 10
    assert "weights.pth" not in left(tmp_path)


@pytest.mark.parametrize("content", [CONTENT[:-1], b"x" * len(CONTENT)], ids=["truncated", "tampered"])
def test_a_damaged_cached_file_is_refused(server, tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth: damaged or not the official file .* delete it and try again"):
        fetch("vit_b", cache=tmp_path, progress=False)
    assert server["requests"] == []


def test_without_network_one_sentence_says_where_to_put_the_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ADDRESS", "http://127.0.0.1:9/")
    with pytest.raises(InputError) as caught:
        fetch("vit_b", cache=tmp_path, progress=False)
    text = str(caught.value)
    assert text.startswith("http://127.0.0.1:9/weights.pth cannot be downloaded (")
    assert text.endswith(f"place it at {tmp_path / 'weights.pth'}.")
    assert left(tmp_path) == []
    (tmp_path / "weights.pth").write_bytes(CONTENT)
    assert fetch("vit_b", cache=tmp_path, progress=False).exists()


def test_an_interrupted_download_says_that_it_will_go_on(server, tmp_path):
    server["drops"] = [1_000_000, 0, 0, 0]
    with pytest.raises(InputError, match="The first 1000000 bytes are kept"):
        fetch("vit_b", cache=tmp_path, progress=False)
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT


def test_an_answer_of_the_server_is_passed_on(server, tmp_path):
    server["status"] = 403
    with pytest.raises(InputError, match="the server answers 403"):
        fetch("vit_b", cache=tmp_path, progress=False)


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"the cache cannot be written \(.*\); .* SMML_CACHE"):
        fetch("vit_b", cache=tmp_path / "file" / "cache", progress=False)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(download.os, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        fetch("vit_b", cache=tmp_path / "other", progress=False)


def test_a_finished_file_needs_no_write_access(server, tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(CONTENT)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    # The permissions of a folder would not stop an administrator, who may run this.
    monkeypatch.setattr(download, "FileLock", refuse)
    assert fetch("vit_b", cache=tmp_path, progress=False).read_bytes() == CONTENT


def _fetch_elsewhere(address, folder, results):
    download.ADDRESS, download.OFFICIAL = address, {"vit_b": FILE}
    try:
        results.put(fetch("vit_b", cache=folder, progress=False).read_bytes() == CONTENT)
    except Exception as error:
        results.put(repr(error))


def test_several_processes_fetch_it_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_elsewhere, args=(download.ADDRESS, tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == [True] * 3
    for process in processes:
        process.join()
    assert server["requests"] == [None]
    assert left(tmp_path) == ["weights.pth"]


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SMML_CACHE", str(tmp_path / "by-variable"))
    assert cache_folder(tmp_path / "by-argument") == tmp_path / "by-argument"
    assert cache_folder() == tmp_path / "by-variable"
    monkeypatch.delenv("SMML_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(download.sys, "platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "smml"


def test_the_table_of_official_files():
    assert {name: file.size for name, file in download.OFFICIAL.items()} == {
        "vit_b": 375042383,
        "vit_l": 1249524607,
        "vit_h": 2564550879,
    }
    # The digits in the names are of another hash (MD5), so a slip in these would only show after 375 MB.
    assert {name: file.sha256[:8] for name, file in download.OFFICIAL.items()} == {
        "vit_b": "ec2df627",
        "vit_l": "3adcc431",
        "vit_h": "a7bf3b02",
    }
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in download.OFFICIAL.values())
