"""A server that sends its visitors to other places, or keeps them waiting."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diracnets import web
from diracnets.download import Checksum, download, fetch
from diracnets.errors import FileError
from diracnets.web import read_url

ANY = Checksum("md5", "0" * 32)


@contextmanager
def serving(answer):
    """The URL of a server whose answers a function of the handler gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            try:
                answer(self)
            except OSError:  # the other side has heard enough
                self.close_connection = True

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(web, "_PAUSE", 0.0)
    monkeypatch.setattr(web, "_LONGEST_PAUSE", 0.01)


def says(status, content=b"", **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x", "//[", "http://", "http://a..b/", ""],
)
def test_no_server_sends_us_to_a_file_or_to_nowhere(tmp_path, location):
    with serving(says(302, Location=location)) as url:
        for act in (
            lambda: read_url(f"{url}/a", 10**6),
            lambda: download(f"{url}/a", tmp_path / "new" / "a", ANY, 10**6),
        ):
            with pytest.raises(FileError, match=r"^cannot (read|download) http"):
                act()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "/etc/passwd"])
def test_what_is_no_web_address_is_not_asked(tmp_path, url):
    with pytest.raises(FileError, match="no http or https URL"):
        read_url(url, 10**6)
    with pytest.raises(FileError, match="no http or https URL"):
        fetch(url, tmp_path / "a", largest=10**6)


def test_redirections_are_followed_but_never_from_https_to_http_and_not_in_circles():
    hops = iter("bcdef")

    def answer(handler):
        if handler.path == "/f":
            says(200, b"here")(handler)
        else:
            says(301 if handler.path == "/a" else 307, Location=f"/{next(hops)}", Content_Length="0")(handler)

    with serving(answer) as url:
        assert read_url(f"{url}/a", 100) == b"here"
    with serving(says(308, Location="/a")) as url, pytest.raises(FileError, match="more than 5 times"):
        read_url(f"{url}/a", 100)
    assert web._moved("https://a/b", "/c") == "https://a/c"
    assert web._moved("http://a/b", "https://c/d e") == "https://c/d%20e"
    with pytest.raises(FileError, match=r"sends us on to http://a/b, which is not https$"):
        web._moved("https://a/b", "http://a/b")


def test_the_body_of_a_redirection_is_not_read():
    def answer(handler):
        if handler.path == "/b":
            says(200, b"here")(handler)
            return
        says(302, Location="/b")(handler)
        while True:
            handler.wfile.write(b"x" * 65536)

    with serving(answer) as url:
        assert read_url(f"{url}/a", 100) == b"here"


@pytest.mark.parametrize("length", ["10000000000000", None])
def test_no_more_is_taken_than_may_be(tmp_path, length):
    sent = []

    def endless(handler):
        says(200, **({"Content_Length": length} if length else {}))(handler)
        while True:
            handler.wfile.write(b"x" * 65536)
            sent.append(65536)

    with serving(endless) as url:
        for act in (
            lambda: read_url(f"{url}/a", 10**6),
            lambda: fetch(f"{url}/a", tmp_path / "a", largest=10**6),
            lambda: fetch(f"{url}/a", tmp_path / "a", largest=1, size=10**6),
            lambda: download(f"{url}/a", tmp_path / "a", ANY, 10**6),
        ):
            with pytest.raises(FileError, match="gives more than 1,000,000 bytes"):
                act()
        if length:
            with pytest.raises(FileError, match=r"gives 10,000,000,000,000 bytes, but .* has room for"):
                fetch(f"{url}/a", tmp_path / "a", largest=1 << 60)
    assert list(tmp_path.iterdir()) == []
    assert sum(sent) < 10**8


@pytest.mark.parametrize("headers", [{"Content_Length": "²"}, {"Content_Length": "9" * 5000}, {"ETag": "W/x\x80"}])
def test_odd_headers(tmp_path, headers):
    with serving(says(200, b"here", **headers)) as url:
        assert read_url(f"{url}/a", 100) == b"here"
        fetch(f"{url}/a", tmp_path / "a", largest=100)
    assert (tmp_path / "a").read_bytes() == b"here"
    with serving(says(503, Retry_After="²")) as url, pytest.raises(FileError, match="answers 503"):
        read_url(f"{url}/a", 100)


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "_PATIENCE", 0.1)

    def dribble(handler):
        says(200, Content_Length="1000")(handler)
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    with serving(dribble) as url:
        with pytest.raises(FileError, match="fewer than 100 bytes a second"):
            read_url(f"{url}/a", 10**6)
        with pytest.raises(FileError, match="fewer than 100 bytes a second"):
            download(f"{url}/a", tmp_path / "a", ANY, 10**6)


def test_without_version_or_hash_a_broken_download_is_begun_anew(tmp_path):
    """What is left could be of another file: here the server has a new one each time, and tells nobody."""
    asked = []

    def answer(handler):
        asked.append(handler.headers.get("Range"))
        letter = b"abc"[len(asked) - 1 : len(asked)]
        says(200, letter * (10 if len(asked) < 3 else 1000), Content_Length="1000")(handler)

    with serving(answer) as url:
        fetch(f"{url}/a", tmp_path / "a", largest=10**6)
    assert (tmp_path / "a").read_bytes() == b"c" * 1000
    assert asked == [None] * 3


def test_an_answer_that_there_is_no_more_does_not_make_a_part_a_whole(tmp_path):
    def answer(handler):
        if handler.headers.get("Range"):
            says(416, Content_Length="0")(handler)
        else:
            says(200, b"x" * 10, Content_Length="1000", ETag='"1"')(handler)

    with serving(answer) as url, pytest.raises(FileError, match=r"broke after 10 of 1,000|answers 416"):
        fetch(f"{url}/a", tmp_path / "a", largest=10**6)
    assert not (tmp_path / "a").exists()
