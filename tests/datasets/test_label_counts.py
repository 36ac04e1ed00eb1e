# SPDX-License-Identifier: Apache-2.0
"""Counting the classes of labels: right, once, and again when something changed."""

import json
import os

import numpy as np
import pytest

from paddleseg_deeplab.datasets import BaseDataset, Dataset, Shapes
from paddleseg_deeplab.datasets.label_counts import label_counts
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.visualize import save_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLESEG_DEEPLAB_HOME", str(tmp_path / "home"))


def file_set(root, labels):
    root.mkdir(exist_ok=True)
    for i, label in enumerate(labels):
        save_image(str(root / f"{i}.png"), np.zeros((*label.shape, 3), np.uint8))
        save_image(str(root / f"{i}_label.png"), label)
    lines = "".join(f"{i}.png {i}_label.png\n" for i in range(len(labels)))
    (root / "train.txt").write_text(lines, encoding="utf-8")
    return Dataset("train", str(root), [], num_classes=3, train_path="train.txt")


def remembered(tmp_path):
    return sorted((tmp_path / "home" / "label_counts").glob("*"))


def test_counts_are_remembered_until_something_changes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = [rng.choice(np.array([0, 1, 2, 255], np.uint8), (6, 5)) for _ in range(4)]
    data = file_set(tmp_path / "data", labels)
    expected = [[np.count_nonzero(label == k) for k in range(3)] for label in labels]
    assert label_counts(data, cache=False).tolist() == expected
    assert not remembered(tmp_path)
    assert label_counts(data, num_workers=1).tolist() == expected
    [kept] = remembered(tmp_path)

    def refuse(*_):
        raise AssertionError("a label was read")

    with monkeypatch.context() as patch:
        patch.setattr(BaseDataset, "load_label", refuse)
        assert label_counts(data).tolist() == expected
    for damage in ("", "{", '{"counts": 3}', '{"counts": [[9, 1]]}', json.dumps({"counts": [[]]})):
        kept.write_text(damage, encoding="utf-8")
        assert label_counts(data).tolist() == expected
    # Another label file of the same size: its time tells.
    save_image(str(tmp_path / "data" / "0_label.png"), labels[1])
    status = os.stat(tmp_path / "data" / "0_label.png")
    os.utime(tmp_path / "data" / "0_label.png", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert label_counts(data).tolist() == [expected[1], *expected[1:]]
    assert len(remembered(tmp_path)) == 2


def test_counts_of_embedded_and_of_foreign_sets(tmp_path):
    small = {"image_size": (32, 24), "num_samples": 4, "num_classes": 3}
    one, other = Shapes(**small), Shapes(**small, seed=1)
    counts = label_counts(one)
    assert counts.sum(axis=1).tolist() == [32 * 24] * 4
    assert (label_counts(other) != counts).any()
    assert len(remembered(tmp_path)) == 2

    class Own(Shapes):
        def load_label(self, index):
            return np.zeros((2, 2), np.uint8)

    class OwnClasses(Shapes):
        def _to_classes(self, label, path):
            return label

    assert label_counts(Own(**small)).tolist() == [[4, 0, 0]] * 4
    label_counts(OwnClasses(**small, difficulty=0))
    assert len(remembered(tmp_path)) == 2  # code of one's own may change


def test_a_broken_label_is_named_and_nothing_is_kept(tmp_path):
    data = file_set(tmp_path / "data", [np.zeros((4, 4), np.uint8), np.full((4, 4), 7, np.uint8)])
    with pytest.raises(UserError, match=r"1_label.png holds values that are no class: 7"):
        label_counts(data)
    data.file_list[1][1] = None
    with pytest.raises(UserError, match=r"1.png has no label"):
        label_counts(data)
    assert not remembered(tmp_path)


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PADDLESEG_DEEPLAB_HOME", str(tmp_path / "file"))
    data = file_set(tmp_path / "data", [np.zeros((4, 4), np.uint8)])
    assert label_counts(data).tolist() == [[16, 0, 0]]
    assert "not kept for the next run" in caplog.text
