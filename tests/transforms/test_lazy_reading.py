# SPDX-License-Identifier: Apache-2.0
"""Images that are read in parts: who gets whole ones, and files with a part missing."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab.datasets import Dataset
from paddleseg_deeplab.transforms.reading import source
from paddleseg_deeplab.transforms.reading.files import read_image
from paddleseg_deeplab.utils.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


class _Reads(T.Compose):
    def read(self, data):
        out = super().read(data)
        return {**out, "img": out["img"] + 1}


class _Applies(T.Compose):
    def apply(self, data):
        return super().apply({**data, "img": data["img"] + 1})


class _Calls(T.Compose):
    def __call__(self, data):
        out = super().__call__(data)
        return {**out, "img": out["img"] + 1}


@pytest.mark.parametrize("kind", [_Reads, _Applies, _Calls])
def test_a_compose_with_its_own_reading_gets_arrays(kind, tmp_path):
    steps = [T.ResizeStepScaling(1, 1), T.RandomPaddingCrop((30, 20))]
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    Image.fromarray(IMAGE[:, :, 0] % 3).save(tmp_path / "label.png")
    (tmp_path / "list.txt").write_text("image.png label.png\n", encoding="utf-8")
    settings = {"dataset_root": str(tmp_path), "train_path": str(tmp_path / "list.txt")}
    out = Dataset("train", transforms=kind(steps), num_classes=3, **settings)[0]
    np.testing.assert_array_equal(out["img"], IMAGE.transpose(2, 0, 1) + 1.0)
    out = kind(steps)({"img": str(tmp_path / "image.png")})
    np.testing.assert_array_equal(out["img"], IMAGE.transpose(2, 0, 1) + 1.0)


class _ReadsLittle(T.Compose):
    """Its `read` returns what it makes, and not what it was given."""

    def read(self, data):
        made = super().read({key: data[key] for key in ("img", "label")})
        return {"img": made["img"], "label": made["label"], "trans_info": []}


def test_what_a_compose_s_own_reading_leaves_out_is_kept(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    Image.fromarray(IMAGE[:, :, 0] % 3).save(tmp_path / "label.png")
    (tmp_path / "list.txt").write_text("image.png label.png\n", encoding="utf-8")
    settings = {"dataset_root": str(tmp_path), "train_path": str(tmp_path / "list.txt")}
    compose = _ReadsLittle([T.RandomHorizontalFlip(1)])
    out = Dataset("train", transforms=compose, num_classes=3, **settings)[0]
    np.testing.assert_array_equal(out["img"], IMAGE.transpose(2, 0, 1)[:, :, ::-1])
    np.testing.assert_array_equal(out["label"], IMAGE[:, ::-1, 0] % 3)


def chunk(name, content):
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def test_a_stream_that_was_written_too_short_gives_the_rows_it_has(tmp_path):
    path = tmp_path / "image.png"
    rows = b"".join(b"\0" + row.tobytes() for row in IMAGE[:12])
    header = struct.pack(">IIBBBBB", 30, 20, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))
    opened = source.open_image(path)
    np.testing.assert_array_equal(opened.window(5, 0, (7, 30)), IMAGE[5:12])
    for damaged in (lambda: opened.window(5, 0, (8, 30)), opened.whole, lambda: read_image(path)):
        with pytest.raises(UserError, match=r"image\.png"):
            damaged()
