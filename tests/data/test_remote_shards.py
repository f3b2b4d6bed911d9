"""Shards on a server that does everything a server may do."""

import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from diracnets.data.check import check
from diracnets.data.load import load_data
from diracnets.data.pack import pack
from diracnets.data.shard_cache import ShardCache, cache_limit
from diracnets.data.shard_list import Stated
from diracnets.download import Checksum, fetch
from diracnets.errors import FileError, UsageError
from diracnets.files import locked
from diracnets.web import read_url

wds = pytest.importorskip("webdataset", reason='needs pip install "diracnets[shards]"')


class Server:
    """Serves `files` on 127.0.0.1 with an ETag, as its attributes say, and counts what it was asked for."""

    def __init__(self):
        self.files, self.asked, self.versions = {}, Counter(), {}
        self.ranges, self.names_versions = True, True
        self.faults = []  # of the next answers: a status, bytes after which to break off, or a function to call first
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                outer.asked[name] += 1
                fault = outer.faults.pop(0) if outer.faults and name.endswith(".tar") else None
                if callable(fault):
                    fault = fault()
                if name not in outer.files or (fault or 0) >= 10**9:
                    self.send_error(404 if name not in outer.files else fault - 10**9)
                    return
                content, etag = outer.files[name], f'"{outer.versions.get(name, 1)}"'
                wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
                again = self.headers.get("If-Range") in (None, etag)
                start = int(wanted[1]) if wanted and outer.ranges and again else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                if outer.names_versions:
                    self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][:fault] if fault else content[start:])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def fail(self, *faults):
        """Statuses (as 503) or numbers of bytes to break off after, by size."""
        self.faults = [fault if callable(fault) else fault + 10**9 * (400 <= fault < 600) for fault in faults]

    def serve(self, folder):
        self.files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("diracnets.web._PAUSE", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def packed(make_folder, tmp_path):
    pack(
        make_folder(*(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(30))), tmp_path / "p", shard_images=6
    )
    return tmp_path / "p"


def load(where, **options):
    return load_data("shards", data_dir=where, image_size=8, **{"workers": 0, **options})


def pixels(images, **options):
    return torch.cat([batch for batch, _, _ in images.batches(8, **options)])


@pytest.mark.parametrize("braces", [False, True])
def test_a_server_gives_what_the_disk_gives(packed, server, braces, cache):
    server.serve(packed)
    where = f"{server.url}/train-{{000000..000007}}.tar::{server.url}/val-{{000000..000001}}.tar"
    remote, local = load(where if braces else f"{server.url}/"), load(packed)
    assert not any(name.endswith(".tar") for name in server.asked)  # their indices are enough
    assert remote.classes == ("cat", "dog")
    assert pixels(remote.train, epoch=1, seed=2).equal(pixels(local.train, epoch=1, seed=2))
    assert pixels(remote.val).equal(pixels(local.val))
    assert pixels(remote.train, epoch=2).equal(pixels(local.train, epoch=2))
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}
    assert len(list((cache / "shards").glob("*.tar"))) == 10


def test_shards_without_a_list_are_brought_once_and_looked_into(packed, server):
    for file in [*packed.glob("*.json")]:
        file.unlink()
    (packed / "classnames.txt").write_text("cat\ndog\n")
    server.serve(packed)
    where = f"{server.url}/train-{{000000..000007}}.tar"
    remote, local = load(where), load(packed / "train-*.tar")
    assert remote.classes == local.classes == ("cat", "dog")
    assert pixels(remote.train, epoch=1, seed=2).equal(pixels(local.train, epoch=1, seed=2))
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}
    with pytest.raises(FileError, match=r"there is no http.*_info\.json to list the shards"):
        load(f"{server.url}/")
    with pytest.raises(FileError, match="answers 404"):
        load(f"{server.url}/train-{{000007..000009}}.tar")


def test_a_page_in_place_of_what_is_not_there_is_no_list(packed, server):
    for file in packed.glob("*.json"):
        file.unlink()
    server.serve(packed)
    page = b"<!doctype html><title>not found</title>"
    server.files |= dict.fromkeys(("_info.json", "classes.txt", "classnames.txt"), page)
    assert load(f"{server.url}/train-{{000000..000003}}.tar").classes == ("0", "1")


def changed(server, name, content):
    def change():
        server.files[name], server.versions[name] = content, 2

    return change


OLD, NEW = (np.random.default_rng(seed).bytes(700_000) for seed in (0, 1))


@pytest.mark.parametrize(
    ("faults", "ranges", "names_versions", "requests"),
    [
        ([], True, True, 1),
        ([300_000, 100_000], True, True, 3),
        ([300_000], False, True, 2),
        ([300_000], True, False, 2),
        ([503, 429, 300_000, 500], True, True, 5),
    ],
)
def test_a_file_arrives_whatever_the_server_does(server, tmp_path, faults, ranges, names_versions, requests):
    server.files["a.tar"], server.ranges, server.names_versions = OLD, ranges, names_versions
    server.fail(*faults)
    version = fetch(f"{server.url}/a.tar", tmp_path / "a.tar", largest=10**6, size=len(OLD))
    assert (tmp_path / "a.tar").read_bytes() == OLD
    assert version == ('"1"' if names_versions else None)
    assert server.asked["a.tar"] == requests
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("content", [NEW, NEW[:500_000]])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_meanwhile_is_begun_again(server, tmp_path, content, ranges):
    server.files["a.tar"], server.ranges = OLD, ranges
    server.fail(300_000, changed(server, "a.tar", content))
    assert fetch(f"{server.url}/a.tar", tmp_path / "a.tar", largest=10**6) == '"2"'
    assert (tmp_path / "a.tar").read_bytes() == content


def test_what_is_not_what_was_listed_is_refused(server, tmp_path, monkeypatch):
    server.files["a.tar"] = OLD
    wrong = Checksum("sha256", "0" * 64)
    for options, message in [
        ({"size": 600_000}, "more than 600,000 bytes"),
        ({"size": 800_000}, "700,000 bytes, not 800,000"),
        ({"checksum": wrong}, "damaged or has changed"),
    ]:
        with pytest.raises(FileError, match=message):
            fetch(f"{server.url}/a.tar", tmp_path / "a.tar", largest=10**6, **options)
    with pytest.raises(FileError, match="more than 1,000 bytes"):
        read_url(f"{server.url}/a.tar", 1000)
    monkeypatch.setattr("diracnets.web._LONGEST_PAUSE", 0.01)
    server.fail(*[503] * 10)
    with pytest.raises(FileError, match="answers 503"):
        fetch(f"{server.url}/a.tar", tmp_path / "a.tar", largest=10**6)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_changes_on_the_server_is_not_mixed_up(packed, server, cache):
    for file in packed.glob("*.json"):
        file.unlink()
    server.serve(packed)
    where = f"{server.url}/train-{{000000..000003}}.tar"
    data = load(where)
    name = "train-000002.tar"
    changed(server, name, server.files["train-000005.tar"])()
    pixels(data.train)  # of the copies
    for file in (cache / "shards").glob(f"*{name}"):
        file.unlink()
    with pytest.raises(FileError, match=rf"{name} has changed since it was indexed \(\"2\" is not \"1\"\)"):
        list(load(where).train.batches(8))
    pixels(load(where).train)  # indexed anew


def _bring(folder, url, limit, numbers, out):
    cache = ShardCache(folder, limit)
    for number in numbers:
        with cache.open(f"{url}/{number}.tar", Stated()) as file:
            out.put(file.read() == OLD)


def test_copies_are_bounded_and_shared_by_processes(server, tmp_path):
    for number in range(6):
        server.files[f"{number}.tar"] = OLD
    read = multiprocessing.get_context("fork").Queue()
    tasks = [
        multiprocessing.get_context("fork").Process(
            target=_bring, args=(tmp_path, server.url, 3 * len(OLD), range(6), read)
        )
        for _ in range(3)
    ]
    for task in tasks:
        task.start()
    assert all(read.get(timeout=60) for _ in range(18))
    for task in tasks:
        task.join()
    copies = list(tmp_path.glob("*.tar"))
    assert sum(file.stat().st_size for file in copies) <= 3 * len(OLD)
    assert all(file.read_bytes() == OLD for file in copies)
    assert not list(tmp_path.glob("*.part"))
    cache = ShardCache(tmp_path, len(OLD))
    for number in (0, 1):
        cache.open(f"{server.url}/{number}.tar", Stated()).close()
    assert [file.name[-5:] for file in tmp_path.glob("*.tar")] == ["1.tar"]


def test_a_small_cache_brings_shards_again(packed, server, monkeypatch):
    server.serve(packed)
    monkeypatch.setenv("DIRACNETS_CACHE_GB", str(30_000 / 1e9))
    data = load(f"{server.url}/", workers=2)
    assert any("do not fit into DIRACNETS_CACHE_GB" in line for line in data.notes)
    assert pixels(data.train, epoch=1).equal(pixels(load(packed).train, epoch=1))
    monkeypatch.setenv("DIRACNETS_CACHE_GB", "much")
    with pytest.raises(UsageError, match="DIRACNETS_CACHE_GB is 'much'"):
        cache_limit()


def test_a_download_that_was_killed_is_not_taken_for_whole(server, tmp_path):
    server.files["0.tar"] = OLD
    cache = ShardCache(tmp_path, 10**9)
    cache.open(f"{server.url}/0.tar", Stated()).close()
    [file] = tmp_path.glob("*.tar")
    os.truncate(file, 1000)
    file.with_name(file.name + ".part").write_bytes(NEW[:2000])
    with ShardCache(tmp_path, 10**9).open(f"{server.url}/0.tar", Stated()) as copy:
        assert copy.read() == OLD


def test_what_a_killed_download_left_counts_and_goes(server, tmp_path):
    for number in range(2):
        server.files[f"{number}.tar"] = OLD
    left, under_way = tmp_path / "dead-7.tar.part", tmp_path / "busy-8.tar.part"
    for file in (left, under_way):
        file.write_bytes(OLD)
        os.utime(file, (1, 1))
    cache = ShardCache(tmp_path, 3 * len(OLD))
    with locked(tmp_path / "busy-8.lock"):
        for number in (0, 1):
            cache.open(f"{server.url}/{number}.tar", Stated()).close()
    assert not left.exists()
    assert under_way.exists()
    assert len(list(tmp_path.glob("*.tar"))) == 2


def test_the_next_shards_are_brought_ahead_and_no_more(make_folder, tmp_path, server):
    folder = make_folder(*(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(50)))
    pack(folder, tmp_path / "p", shard_images=4)
    server.serve(tmp_path / "p")
    data = load(f"{server.url}/")
    batches = data.train.batches(2, epoch=1)  # 80 images in 20 shards, in windows of 6 or 7
    next(batches)
    for _ in range(500):
        if sum(name.startswith("train") and name.endswith("tar") for name in server.asked) == 10:
            break
        time.sleep(0.01)
    brought = {name for name in server.asked if name.endswith("tar")}
    assert len(brought) in (9, 10)  # of the two images at hand, and eight more
    assert len(list(batches)) == 39
    assert not [thread for thread in threading.enumerate() if thread.name == "diracnets-ahead"]
    gone = data.train.batches(2, epoch=2)
    next(gone)
    gone.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "diracnets-ahead"]


def test_shards_on_a_server_that_breaks_off_are_looked_through(packed, server):
    server.serve(packed)
    server.fail(300, 503, 2000)
    checked = check(f"{server.url}/", workers=0)
    assert (checked.images, checked.findings) == (60, ())
    assert checked.counts == {"cat": {"train": 24, "val": 6}, "dog": {"train": 24, "val": 6}}


def test_a_shard_that_cannot_be_had_is_no_unreadable_image(packed, server):
    server.serve(packed)
    del server.files["val-000001.tar"]
    with pytest.raises(FileError, match=r"val-000001\.tar"):
        load(f"{server.url}/", skip_unreadable=0.9)
