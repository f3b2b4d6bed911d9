import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diracnets.download import Checksum, download
from diracnets.errors import FileError, UsageError

CONTENT = bytes(range(256)) * 4000
LARGEST = 1 << 21
MD5 = Checksum("md5", hashlib.md5(CONTENT).hexdigest())


class Server:
    """Serves CONTENT on 127.0.0.1, as its attributes say, and notes the ranges it was asked for."""

    def __init__(self):
        self.content, self.ranges, self.understands_ranges = CONTENT, [], True
        self.break_after = []  # bytes after which each answer breaks off, one an answer
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                if self.path != "/set.tar.gz":
                    self.send_error(404)
                    return
                start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and outer.understands_ranges else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.content) - 1}/{len(outer.content)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.break_after.pop(0)] if outer.break_after else body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/set.tar.gz"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_file_arrives_whole(server, tmp_path, capsys):
    download(server.url, tmp_path / "new" / "set.tar.gz", MD5, LARGEST)
    assert (tmp_path / "new" / "set.tar.gz").read_bytes() == CONTENT
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["set.tar.gz"]
    assert f"downloading {server.url}" in capsys.readouterr().err


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.break_after = [300_000, 100_000]
    download(server.url, tmp_path / "set.tar.gz", MD5, LARGEST)
    assert (tmp_path / "set.tar.gz").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=400000-"]


def test_a_later_call_goes_on(server, tmp_path):
    server.break_after = [1000] * 4
    with pytest.raises(
        FileError, match=r"broke after 4,000 of 1,024,000 bytes \(4,000 bytes kept\); try again to go on"
    ):
        download(server.url, tmp_path / "set.tar.gz", MD5, LARGEST)
    assert not (tmp_path / "set.tar.gz").exists()
    download(server.url, tmp_path / "set.tar.gz", MD5, LARGEST)
    assert server.ranges[-1] == "bytes=4000-"
    assert (tmp_path / "set.tar.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("start", [b"something else", CONTENT, CONTENT + b"more", CONTENT[:5000]])
@pytest.mark.parametrize("understands_ranges", [True, False])
def test_whatever_an_earlier_call_left(server, tmp_path, start, understands_ranges):
    server.understands_ranges = understands_ranges
    (tmp_path / "set.tar.gz.part").write_bytes(start)
    download(server.url, tmp_path / "set.tar.gz", MD5, LARGEST)
    assert (tmp_path / "set.tar.gz").read_bytes() == CONTENT


def test_damage_is_noticed_and_nothing_is_left(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(FileError, match=f"is damaged .md5 [0-9a-f]+, not {MD5.digits}"):
        download(server.url, tmp_path / "set.tar.gz", MD5, LARGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_page_and_a_missing_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr("diracnets.web._PAUSE", 0.01)
    with pytest.raises(FileError, match=r"cannot download .*other: the server answers 404"):
        download(server.url.replace("set.tar.gz", "other"), tmp_path / "x", MD5, LARGEST)
    with pytest.raises(FileError, match=rf"cannot download http.*bring the file to {tmp_path}/x yourself"):
        download("http://127.0.0.1:9/x", tmp_path / "x", MD5, LARGEST)


def test_a_folder_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write .*file/x: [^;]*$"):
        download(server.url, tmp_path / "file" / "x", MD5, LARGEST)
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "file"))  # as where the home folder cannot be written to
    with pytest.raises(FileError, match=r"file/x: .*; DIRACNETS_HOME chooses another folder$"):
        download(server.url, tmp_path / "file" / "x", MD5, LARGEST)


@pytest.mark.parametrize(("digits", "published"), [(8, True), (64, True), (9, False)])
def test_a_hash_of_which_only_the_first_digits_are_known(server, tmp_path, digits, published):
    known = hashlib.sha256(CONTENT).hexdigest()[:digits]
    checksum = Checksum("sha256", known if published else known[:-1] + ("0" if known[-1] != "0" else "1"))
    if published:
        download(server.url, tmp_path / "net.pth", checksum, LARGEST)
        assert (tmp_path / "net.pth").read_bytes() == CONTENT
    else:
        with pytest.raises(FileError, match=f"damaged .sha256 [0-9a-f]{{64}}, not {checksum.digits}"):
            download(server.url, tmp_path / "net.pth", checksum, LARGEST)


@pytest.mark.parametrize("digits", ["", "0", "0123456", "0" * 65, "X" * 64, "0123456\n", None, 12345678])
def test_a_hash_that_tells_nothing_is_refused(digits):
    with pytest.raises(UsageError, match="is no sha256: give 8 to 64 digits"):
        Checksum("sha256", digits)
