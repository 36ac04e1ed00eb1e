# SPDX-License-Identifier: Apache-2.0
"""Configs, exported folders, archives and images from anybody: one error, and nothing else done."""

import gzip
import io
import os
import re
import struct
import tarfile
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_deeplab.cvlibs import manager
from paddleseg_deeplab.cvlibs.config import parse_opts, read_yaml
from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.tools.check_dataset.files import Unreadable, decode_image, decode_label
from paddleseg_deeplab.tools.convert_weights.read import read_tensors
from paddleseg_deeplab.transforms.reading import limit as image_limit
from paddleseg_deeplab.transforms.reading.files import read_image, read_label
from paddleseg_deeplab.utils import archive
from paddleseg_deeplab.utils.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -------------------------------------------------------------------------------------------- YAML

_LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
_MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}]}}\n" for k in range(1, 12)
)
BAD_YAML = {
    "apply": "a: !!python/object/apply:os.system ['touch marker']",
    "new": "a: !!python/object/new:os.system ['touch marker']",
    "name": "a: !!python/name:os.system",
    "module": "a: !!python/module:os",
    "object": "a: !!python/object:builtins.eval {}",
    "tuple": "a: !!python/tuple [1]",
    "own tag": "a: !system touch marker",
    "document tag": "--- !!python/object/apply:os.system\n['touch marker']",
    "laughs": _LAUGHS,
    "merges": _MERGES,
    "itself": "a: &a [*a]",
    "itself in a map": "a: &a {b: *a}",
    "deep": "a: " + "[" * 5000,
    "deep maps": "{a: " * 5000,
    "long": "a: " + "x" * (1 << 20),
    "bad bool": "a: !!bool x",
    "bad time": "a: !!timestamp x",
    "bad number": "a: !!int ''",
    "long number": "a: " + "1" * 5000,
    "no UTF-8": b"a: \xff\xfe",
    "zero byte": b"a: \0",
}


@pytest.mark.parametrize("name", list(BAD_YAML))
def test_bad_yaml(folder, name):
    text = BAD_YAML[name]
    content = text if isinstance(text, bytes) else text.encode()
    for file, read in (("mine.yml", read_yaml), ("deploy.yaml", deploy_yaml.read)):
        path = folder / file
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        path.unlink()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["apply", "itself", "bad bool", "bad time", "own tag"])
def test_options_stay_text(folder, name):
    value = BAD_YAML[name].partition(": ")[2]
    assert parse_opts([f"a={value}"]) == [(["a"], value)]
    assert os.listdir(folder) == []


def test_plain_aliases_are_fine(folder):
    (folder / "a.yml").write_text("a: &a [1, 2]\nb: *a\nc: [*a, *a]\n")
    assert read_yaml(folder / "a.yml") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}


NAMES = ["os.system", "subprocess.Popen", "builtins.eval", "__import__", "eval", "os", "../evil"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "registry", ["MODELS", "BACKBONES", "DATASETS", "TRANSFORMS", "LOSSES", "OPTIMIZERS"]
)
def test_a_config_names_registered_components_only(registry, name):
    with pytest.raises((UserError, KeyError, ValueError), match=re.escape(name)):
        getattr(manager, registry)[name]


DEPLOY = "Deploy: {{model: {}, params: model.pdiparams, transforms: []{}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        DEPLOY.format("../model.json", ""),
        DEPLOY.format("/etc/passwd", ""),
        DEPLOY.format("'C:\\model.json'", ""),
        DEPLOY.format("[model.json]", ""),
        DEPLOY.format("model.json", "").replace("model.pdiparams", "../../evil"),
        DEPLOY.format("model.json", ", input_shape: words"),
        DEPLOY.format("model.json", ", input_shape: [1, 3, x, y]"),
        DEPLOY.format("model.json", "") + "DeepLab: [1]\n",
        DEPLOY.format("model.json", "") + "DeepLab: {palette: [[300, 0, words]]}\n",
    ],
)
def test_bad_deploy_yaml(folder, text):
    (folder / "in").mkdir()
    for name in ("model.json", "model.pdiparams"):
        (folder / name).touch()
        (folder / "in" / name).touch()
    (folder / "in" / "deploy.yaml").write_text(text)
    with pytest.raises(UserError, match=r"deploy\.yaml"):
        deploy_yaml.read(folder / "in")


# ---------------------------------------------------------------------------------------- archives


def _tar(*members, how="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=how, format=tarfile.GNU_FORMAT) as out:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "../../evil"
            out.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zip(*members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return buffer.getvalue()


def _long_header(kind, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(min(size, 4 << 20)), 1)


_NOISE = np.random.default_rng(0).bytes(5000)
BAD_ARCHIVES = {
    "attributes.tar.gz": (_long_header(tarfile.XHDTYPE, 8 << 29), "header of 4294967296 bytes"),
    "global.tar.gz": (_long_header(tarfile.XGLTYPE, 2 << 20), "header of 2097152 bytes"),
    "name.tar.gz": (_long_header(tarfile.GNUTYPE_LONGNAME, 2 << 20), "header of 2097152 bytes"),
    "sparse.tar": (_tar(("a", tarfile.GNUTYPE_SPARSE, b"")), "sparse"),
    "contiguous device.tar": (_tar(("a", tarfile.BLKTYPE, b"")), "device"),
    "symlink then file.tar": (
        _tar(("a", tarfile.SYMTYPE, b""), ("a/evil", tarfile.REGTYPE, b"x")),
        "link",
    ),
    "good then evil.tar": (
        _tar(("good", tarfile.REGTYPE, b"x"), ("../evil", tarfile.REGTYPE, b"x")),
        "outside",
    ),
    "file and folder.tar": (
        _tar(("a", tarfile.REGTYPE, b"x"), ("a/b", tarfile.REGTYPE, b"x")),
        "not a whole archive",
    ),
    "folder and file.zip": (_zip(("a/b", b"x"), ("a", b"x")), "not a whole archive"),
    "zeros.zip": (_zip(("a", bytes(1 << 20)), method=zipfile.ZIP_DEFLATED), "more than 100000"),
    "zeros.tar.gz": (_tar(("a", tarfile.REGTYPE, bytes(1 << 20)), how="w:gz"), "more than 100000"),
    "zeros.tar.xz": (_tar(("a", tarfile.REGTYPE, bytes(1 << 20)), how="w:xz"), "more than 100000"),
    "many.tar": (_tar(*((str(k), tarfile.REGTYPE, b"") for k in range(9))), "more than 8 members"),
    "lzma.tar.xz": (_tar(("a", tarfile.REGTYPE, _NOISE), how="w:xz")[:2000], "not a whole"),
    "bz2.tar.bz2": (_tar(("a", tarfile.REGTYPE, b"x" * 999), how="w:bz2")[:-30], "not a whole"),
    "zero byte.zip": (_zip(("abcd", b"x")).replace(b"abcd", b"../e"), "outside"),
    "method.zip": (_zip(("a", b"x")).replace(b"\x00\x00\x00\x00", b"\x00\x00\x63\x00", 1), None),
    "pickle.tar": (b"\x80\x04cposix\nsystem\n" * 99, "not a whole archive"),
}


@pytest.mark.parametrize("name", list(BAD_ARCHIVES))
def test_bad_archives(folder, name):
    content, text = BAD_ARCHIVES[name]
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(content)
    try:
        archive.extract_archive(f"in/{name}", "in/out", max_bytes=100_000, max_members=8)
        assert text is None
        os.remove("in/out/a")
        os.rmdir("in/out")
    except UserError as error:
        told = str(error)
        assert f"in/{name}" in told, told
        assert text is None or text in told, told
    assert os.listdir(folder) == ["in"]
    assert os.listdir(folder / "in") == [name]


def test_damaged_archives_raise_nothing_else(folder):
    rng = np.random.default_rng(1)
    members = [(f"a/{k}", tarfile.REGTYPE, bytes([k]) * 700) for k in range(3)]
    sources = {"x.tar" + s: _tar(*members, how=f"w:{s[1:]}") for s in ("", ".gz", ".xz", ".bz2")}
    sources["x.zip"] = _zip(*((n, c) for n, _, c in members), method=zipfile.ZIP_DEFLATED)
    for name, content in sources.items():
        for k in range(60):
            changed = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                changed[place] = rng.integers(256)
            (folder / name).write_bytes(bytes(changed[: None if k % 2 else rng.integers(1, 2000)]))
            try:
                archive.extract_archive(name, f"{name}.{k}", max_bytes=100_000, max_members=8)
            except UserError as error:
                assert name in str(error)  # noqa: PT017 (it may also succeed)
                assert not os.path.exists(f"{name}.{k}")


def test_npz_bombs(folder, monkeypatch):
    from paddleseg_deeplab.tools.convert_weights import read

    np.savez_compressed("w.npz", w=np.zeros(100_000))
    monkeypatch.setattr(read, "_MAX_NPZ", 100_000)
    with pytest.raises(UserError, match=r"w\.npz .*unpacks to"):
        read_tensors("w.npz")


# ------------------------------------------------------------------------------------------ images


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, extra=b""):
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + head + extra + body + _chunk(b"IEND", b"")


def _resized(form, at, layout, width=60_000, height=60_000):
    """A small image of a format whose header is changed to declare a large one."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, form)
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\xc0") if form == "JPEG" else 0
    struct.pack_into(layout, content, start + at, width, height)
    return bytes(content)


def _tiff():
    entries = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (279, 9)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)


BOMBS = {
    "png": _png(60_000, 60_000),
    "wide.png": _png(2**31 - 1, 1),
    "jpg": _resized("JPEG", 5, ">HH"),
    "bmp": _resized("BMP", 18, "<ii"),
    "gif": _resized("GIF", 6, "<HH"),
    "pgm": b"P5 60000 60000 255\n" + bytes(99),
    "tiff": _tiff(),
    "tga": b"\0\0\3" + bytes(9) + struct.pack("<HH", 60_000, 60_000) + b"\x08\0" + bytes(99),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_image_bombs_are_refused_by_their_header(folder, name, monkeypatch):
    path = folder / f"bomb.{name}"
    path.write_bytes(BOMBS[name])

    Image.init()  # loading Pillow's plugins decodes a picture

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(Image.Image, "load", never)
    for read in (read_image, read_label):
        with pytest.raises(UserError, match=r"178956970.*DEEPLAB_MAX_PIXELS") as caught:
            read(path)
        assert str(path) in str(caught.value)
    for decode in (lambda c: decode_image(c, 3), decode_label):
        with pytest.raises(Unreadable, match=r"DEEPLAB_MAX_PIXELS|ends|marker"):
            decode(BOMBS[name])
    assert os.listdir(folder) == [path.name]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp"])
def test_the_limit_is_a_setting(folder, suffix, monkeypatch):
    path = folder / f"image.{suffix}"
    Image.new("L", (40, 30), 7).save(path)
    for limit, fits in (("1200", True), ("1199", False), ("", True), ("500000000", True)):
        monkeypatch.setenv(image_limit.VARIABLE, limit)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        for read in (read_image, read_label):
            if fits:
                assert read(path).shape[:2] == (30, 40)
                continue
            with pytest.raises(UserError, match="40 x 30 pixels, above the limit of 1199"):
                read(path)
    for wrong in ("many", "0", "-5", "1e9"):
        monkeypatch.setenv(image_limit.VARIABLE, wrong)
        with pytest.raises(UserError, match="PADDLESEG_DEEPLAB_MAX_PIXELS"):
            read_image(path)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_bombs_in_a_png_chunk(folder, kind):
    """Kilobytes that unpack to hundreds of MB beside the picture: an error, or left aside."""
    zeros = zlib.compress(bytes(200 << 20), 1)
    head = b"x\0\1\0\0\0" if kind == b"iTXt" else b"x\0\0"
    (folder / "a.png").write_bytes(_png(30, 30, _chunk(kind, head + zeros)))
    for read in (read_image, read_label):
        try:
            assert read("a.png").shape[:2] == (30, 30)
        except UserError as error:
            assert "a.png" in str(error)  # noqa: PT017 (it may also succeed)


def test_formats_that_start_programs_are_not_read(folder):
    """Pillow would hand PostScript to Ghostscript."""
    (folder / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    for read in (read_image, read_label):
        with pytest.raises(UserError, match=r"a\.png"):
            read("a.png")


def _npy(header, data=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


BAD_ARRAYS = {
    "declared": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10**6, 10**6)}"),
    "large": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 3)}", b"a"),
    "objects": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cposix\nsystem\n"),
    "code": _npy("__import__('os').system('touch marker')"),
    "a zip": _zip(("a.npy", b"x")),
    "a pickle": b"\x80\x02cposix\nsystem\nU\x0ctouch marker\x85R.",
    "empty": b"",
}


@pytest.mark.parametrize("name", list(BAD_ARRAYS))
def test_bad_arrays(folder, name):
    (folder / "a.npy").write_bytes(BAD_ARRAYS[name])
    for read in (read_image, read_label):
        with pytest.raises(UserError, match=r"a\.npy"):
            read("a.npy")
    assert os.listdir(folder) == ["a.npy"]
