# SPDX-License-Identifier: Apache-2.0
"""Downloads against a server on this machine: resuming, checks, bad archives, being offline."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile

import pytest

from paddleseg_deeplab.utils import archive, download
from paddleseg_deeplab.utils.errors import UserError

BODY = bytes(range(256)) * 900


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {"/w/model.bin": BODY}
        self.cuts = []  # bytes after which the next answers break off
        self.statuses = []  # statuses of the next answers
        self.ranges = True
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.statuses:
            return self.send_error(server.statuses.pop(0))
        body = server.files.get(self.path.split("?")[0])
        if body is None:
            return self.send_error(404)
        tag = '"' + hashlib.md5(body).hexdigest() + '"'
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", tag) == tag:
            start, status = int(wanted[len("bytes=") : -1]), 206
            if start >= len(body):
                return self.send_error(416)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[start:end])


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_WAIT", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PADDLESEG_DEEPLAB_HOME", str(tmp_path / "home"))
    with _Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def leftovers(path):
    """Names beside a file, without it and its lock."""
    folder, name = os.path.split(path)
    return sorted(set(os.listdir(folder)) - {name, name + ".lock"})


def test_downloads_once_and_keeps_folders_apart(server, tmp_path):
    server.files["/v/model.bin"] = b"other"
    path = download.fetch(server.url + "/w/model.bin")
    assert read(path) == BODY
    assert path.startswith(str(tmp_path / "home"))
    assert read(download.fetch(server.url + "/v/model.bin")) == b"other"
    assert download.fetch(server.url + "/w/model.bin", size=len(BODY)) == path
    assert len(server.asked) == 2
    assert leftovers(path) == []
    other = download.fetch(server.url + "/w/model.bin", cache_dir=str(tmp_path / "here"))
    assert other.startswith(str(tmp_path / "here"))
    assert download.cache_path("http://a/b?v=1") != download.cache_path("http://a/b?v=2")


def test_a_broken_connection_is_resumed_with_ranges(server):
    server.cuts = [50_000, 100_000]
    path = download.fetch(server.url + "/w/model.bin", sha256=hashlib.sha256(BODY).hexdigest())
    assert read(path) == BODY
    assert server.asked == [None, "bytes=50000-", "bytes=150000-"]
    assert leftovers(path) == []


def test_an_earlier_process_s_part_is_resumed(server):
    path = download.cache_path(server.url + "/w/model.bin")
    os.makedirs(os.path.dirname(path))
    with open(path + ".part", "wb") as file:
        file.write(BODY[:1000])
    assert (
        read(download.fetch(server.url + "/w/model.bin", md5=hashlib.md5(BODY).hexdigest())) == BODY
    )
    assert server.asked == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(server):
    server.ranges = False
    server.cuts = [50_000]
    assert read(download.fetch(server.url + "/w/model.bin")) == BODY


def test_a_file_that_changed_meanwhile_starts_over(server):
    path = download.cache_path(server.url + "/w/model.bin")
    os.makedirs(os.path.dirname(path))
    for suffix, content in ((".part", b"x" * 500), (".part.tag", b'"old"')):
        with open(path + suffix, "wb") as file:
            file.write(content)
    assert read(download.fetch(server.url + "/w/model.bin")) == BODY


@pytest.mark.parametrize("length", [1000, len(BODY), len(BODY) + 10])
def test_a_part_of_another_file_is_replaced(server, length):
    path = download.cache_path(server.url + "/w/model.bin")
    os.makedirs(os.path.dirname(path))
    with open(path + ".part", "wb") as file:
        file.write(b"x" * length)
    digest = hashlib.sha256(BODY).hexdigest()
    assert read(download.fetch(server.url + "/w/model.bin", sha256=digest)) == BODY


def test_truncated_for_good_and_wrong_content_are_refused(server):
    url = server.url + "/w/model.bin"
    server.cuts = [10] * 20
    with pytest.raises(UserError, match="the connection ended after") as caught:
        download.fetch(url)
    path = download.cache_path(url)
    assert url in str(caught.value)
    assert path in str(caught.value)
    assert not os.path.exists(path)
    server.cuts = []
    for kwargs, text in (({"sha256": "0" * 64}, "sha256"), ({"size": 5}, "instead of 5")):
        with pytest.raises(UserError, match=text):
            download.fetch(url, **kwargs)
        assert not os.path.exists(path)
        assert leftovers(path) == []


def test_a_wrong_file_in_the_cache_is_replaced(server):
    path = download.cache_path(server.url + "/w/model.bin")
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"half")
    assert read(download.fetch(server.url + "/w/model.bin", size=len(BODY))) == BODY


def test_statuses(server):
    server.statuses = [503, 429]
    assert read(download.fetch(server.url + "/w/model.bin")) == BODY
    before = len(server.asked)
    with pytest.raises(UserError, match="404"):
        download.fetch(server.url + "/none.bin")
    assert len(server.asked) == before + 1  # asking again would not help


def test_offline_says_where_to_put_the_file(server):
    url = "http://127.0.0.1:9/weights/model.pdparams"  # nothing listens there
    with pytest.raises(UserError, match="Cannot download") as caught:
        download.fetch(url)
    path = download.cache_path(url)
    assert url in str(caught.value)
    assert path in str(caught.value)
    with open(path, "wb") as file:
        file.write(b"by hand")
    assert read(download.fetch(url)) == b"by hand"


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hosts", "ftp://a/b", "model.bin", "http://", "http://a/", "http://a/b/../c"],
)
def test_addresses_that_are_refused(url):
    with pytest.raises(UserError):
        download.cache_path(url)


def test_an_unwritable_cache_is_a_user_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot store"):
        download.fetch(server.url + "/w/model.bin", cache_dir=str(tmp_path / "file"))


def test_two_at_once_download_once(server):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(download.fetch(server.url + "/w/model.bin")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert read(found[0]) == BODY
    assert len(server.asked) == 1


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            out.writestr(info, content)
    return buffer.getvalue()


def make_tar(members, how="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=how) as out:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd"
            out.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD_ARCHIVES = {
    "/d/set.zip": make_zip([("set/", b"", 0o40755), ("set/a/b.txt", b"hi", 0o100644)]),
    "/d/set2.tar": make_tar([("./set/a/b.txt", b"hi", tarfile.REGTYPE)], "w"),
    "/d/set3.tar.gz": make_tar([("set", b"", tarfile.DIRTYPE), ("set/a/b.txt", b"hi", b"0")]),
    "/d/set4.tgz": make_tar([("set/a/b.txt", b"hi", tarfile.REGTYPE)]),
}


@pytest.mark.parametrize("path", list(GOOD_ARCHIVES))
def test_archives_become_folders(server, path):
    server.files.update(GOOD_ARCHIVES)
    folder = download.fetch(server.url + path)
    assert os.path.basename(folder) == path.split("/")[-1].split(".")[0]
    assert read(os.path.join(folder, "set", "a", "b.txt")) == b"hi"
    assert download.fetch(server.url + path) == folder
    assert len(server.asked) == 1
    # The archive is gone, nothing half-made is left.
    assert leftovers(folder) == [path.split("/")[-1] + ".lock"]
    assert read(download.fetch(server.url + path, extract=False)) == GOOD_ARCHIVES[path]


REG, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
BAD_ARCHIVES = {
    "parent.tar.gz": (make_tar([("a/../../evil", b"x", REG)]), "outside"),
    "absolute.tar.gz": (make_tar([("/tmp/evil", b"x", REG)]), "outside"),
    "symlink.tar.gz": (make_tar([("link", b"", LINK), ("link/x", b"x", REG)]), "link"),
    "hardlink.tar.gz": (make_tar([("hard", b"", HARD)]), "link"),
    "device.tar.gz": (make_tar([("null", b"", tarfile.CHRTYPE)]), "device"),
    "fifo.tar": (make_tar([("pipe", b"", tarfile.FIFOTYPE)], "w"), "device"),
    "parent.zip": (make_zip([("../evil", b"x", 0)]), "outside"),
    "backslash.zip": (make_zip([("a\\..\\..\\evil", b"x", 0)]), "outside"),
    "drive.zip": (make_zip([("C:/evil", b"x", 0)]), "outside"),
    "absolute.zip": (make_zip([("/evil", b"x", 0)]), "outside"),
    "symlink.zip": (make_zip([("link", b"/etc/passwd", 0o120777)]), "link"),
    "broken.zip": (b"PK no archive", "not a whole archive"),
    "broken.tar.gz": (GOOD_ARCHIVES["/d/set3.tar.gz"][:40], "not a whole archive"),
    "text.tar": (b"hello" * 300, "not a whole archive"),
    "bomb.zip": (make_zip([("a", bytes(60_000), 0), ("b", bytes(60_000), 0)]), "more than 100000"),
    "many.zip": (make_zip([(str(k), b"", 0) for k in range(9)]), "more than 8 members"),
}


@pytest.mark.parametrize("name", list(BAD_ARCHIVES))
def test_bad_archives_leave_nothing_behind(tmp_path, name):
    content, text = BAD_ARCHIVES[name]
    source = tmp_path / "in" / name
    source.parent.mkdir()
    source.write_bytes(content)
    target = tmp_path / "in" / "out"
    with pytest.raises(UserError, match=text) as caught:
        archive.extract_archive(str(source), str(target), max_bytes=100_000, max_members=8)
    assert name in str(caught.value)
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == [name]


@pytest.mark.parametrize(
    ("path", "stem"),
    [("a/b.tar.gz", "a/b"), ("a/b.ZIP", "a/b"), ("b.tgz", "b"), ("model.pdparams", None),
     ("a/.zip", None), ("x.gz", None)],
)  # fmt: skip
def test_archive_stem(path, stem):
    assert archive.archive_stem(path) == stem
