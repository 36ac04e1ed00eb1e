# SPDX-License-Identifier: Apache-2.0
"""Sampling: how often an epoch holds each image, in which order, and what a run repeats of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.core.training.data.batches import SampleStream, training_batches
from paddleseg_deeplab.core.training.data.epochs import Sampler
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.datasets.sampling import (
    capped_rates,
    class_balanced,
    class_shares,
    repeat_hard,
    weighted,
)
from paddleseg_deeplab.transforms import RandomPaddingCrop
from paddleseg_deeplab.utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLESEG_DEEPLAB_HOME", str(tmp_path / "home"))


class Counted:
    """A training set of which only the labels' pixels are given: one row of counts an image."""

    def __init__(self, rows, names=None):
        self.rows = np.asarray(rows)
        self.num_classes = self.rows.shape[1]
        self.class_names = names
        self.file_list = [[f"{i}.png", f"{i}_label.png"] for i in range(len(self.rows))]

    def __len__(self):
        return len(self.rows)

    def load_label(self, index):
        row = self.rows[index]
        return np.repeat(np.arange(len(row)), row).astype(np.uint8)[None]


# -- the order ------------------------------------------------------------------------------------


def test_rates_of_one_are_the_plain_shuffle():
    plain, ours = SampleStream(17, 3), SampleStream(17, 3, sampler=Sampler(np.ones(17)))
    assert [ours.key(p) for p in range(60)] == [plain.key(p) for p in range(60)]


def test_whole_rates_are_kept_exactly_in_every_epoch():
    rates = np.array([1, 3, 0, 2, 1])
    sampler = Sampler(rates)
    assert (sampler.length, sampler.most) == (7, 3)
    orders = set()
    for number in range(20):
        indices, numbers = sampler.epoch(0, number)
        np.testing.assert_array_equal(np.bincount(indices, minlength=5), rates)
        orders.add(tuple(indices))
        # Repeats of an image get numbers, and so augmentations, that occur in no other epoch.
        assert set(numbers) <= set(range(3 * number, 3 * number + 3))
        assert len(set(zip(indices, numbers))) == 7
    assert len(orders) > 15


RATES = st.lists(st.floats(0, 5), min_size=1, max_size=30).filter(lambda r: sum(r) > 0.1)


@settings(max_examples=150, deadline=None)
@given(RATES, st.integers(0, 2**31), st.integers(0, 10**6))
def test_an_epoch_holds_floor_or_ceil_of_each_rate(weights, seed, number):
    rates = np.array(weights) * (max(1, round(sum(weights))) / sum(weights))
    sampler = Sampler(rates)
    indices, numbers = sampler.epoch(seed, number)
    counts = np.bincount(indices, minlength=len(rates))
    assert len(indices) == sampler.length == round(rates.sum())
    # 1e-9: rates so near to a whole number are taken for it.
    assert (counts >= np.floor(rates + 1e-9)).all()
    assert (counts <= np.ceil(rates - 1e-9)).all()
    assert counts.max() <= sampler.most
    assert len(set(zip(indices.tolist(), numbers.tolist()))) == len(indices)
    ordered, _ = sampler.epoch(seed, number, shuffle=False)
    assert (np.diff(ordered) >= 0).all()


def test_the_average_over_epochs_is_the_rate():
    rates = np.array([0.1, 0.5, 0.9, 1.25, 2.75, 0.5])
    sampler = Sampler(rates)
    epochs = 4000
    mean = sum(np.bincount(sampler.epoch(1, e)[0], minlength=6) for e in range(epochs)) / epochs
    # Each count is a whole part and a coin: five standard deviations of the mean of 4000 coins.
    np.testing.assert_allclose(mean, rates, atol=5 * 0.5 / np.sqrt(epochs))


@pytest.mark.parametrize("rates", [[1, 2, 0, 1], [0.5, 1.25, 2.25, 1.0, 0.0]])
def test_position_alone_decides(rates):
    def stream():
        return SampleStream(len(rates), 5, sampler=Sampler(rates))

    keys = list(stream().batches(3, 0, 20))
    for start in (0, 1, 4, 13, 20):
        assert list(stream().batches(3, start, 20)) == keys[start:]
    flat = [key for batch in keys for key in batch]
    backwards = stream()
    assert [backwards.key(p) for p in range(59, -1, -1)] == flat[::-1]
    assert [SampleStream(1, 6, sampler=Sampler(rates)).key(p) for p in range(60)] != flat
    # Two ranks from a position on: their batches together are one process's of twice the size.
    halves = [list(stream().batches(3, 0, 4, rank=r, ranks=2, origin=7)) for r in (0, 1)]
    both = [key for pair in zip(*halves) for batch in pair for key in batch]
    assert both == [stream().key(p) for p in range(7, 31)]


def test_workers_and_start_change_nothing_and_repeats_are_augmented_apart():
    dataset = Shapes([RandomPaddingCrop((16, 16))], image_size=(32, 24), num_samples=3)
    sampler = Sampler([1, 3, 0], 3)

    def read(start, num_workers):
        how = {"num_workers": num_workers, "image_sampler": sampler}
        batches = training_batches(dataset, 2, range(start, 6), seed=1, **how)
        return [(keys, images.numpy()) for keys, images, _ in batches]

    whole = read(0, 0)
    for start, num_workers in ((0, 2), (3, 0), (4, 2)):
        part = read(start, num_workers)
        assert [keys for keys, _ in part] == [keys for keys, _ in whole[start:]]
        for (_, one), (_, other) in zip(part, whole[start:]):
            np.testing.assert_array_equal(one, other)
    seen = {key: image for keys, images in whole for key, image in zip(keys, images)}
    assert len(seen) == 12
    repeats = [image.tobytes() for (index, _), image in seen.items() if index == 1]
    assert len(repeats) == 9
    assert len(set(repeats)) > 5  # nine crops at one of 17 * 9 places each


@pytest.mark.parametrize(
    "rates", [[], [[1.0]], [-1, 2], [np.nan, 1], [np.inf], [0, 0], [0.5, 0.7], [0.3]]
)
def test_rates_that_are_none(rates):
    with pytest.raises(ValueError, match="rates must"):
        Sampler(rates)
    with pytest.raises(ValueError, match="should have 3 numbers"):
        Sampler([1, 1], 3)


def test_the_digest_tells_rates_apart():
    assert Sampler([1, 2]).digest == Sampler(np.array([1.0, 2.0 + 1e-12])).digest
    assert Sampler([1, 2]).digest != Sampler([2, 1]).digest


# -- the rates ------------------------------------------------------------------------------------


def test_one_class_an_image_is_seen_as_often_as_any_other():
    """Closed form: 6, 3 and 1 images of three classes, each class a third of the draws."""
    rows = [[8, 0, 0]] * 6 + [[0, 8, 0]] * 3 + [[0, 0, 8]]
    for by in ("pixels", "images"):
        sampling = class_balanced(1.0, 100, by=by)(Counted(rows))
        np.testing.assert_allclose(
            sampling.rates, [10 / 3 / 6] * 6 + [10 / 3 / 3] * 3 + [10 / 3], rtol=1e-12
        )
        images, pixels = class_shares(sampling.rates, np.array(rows))
        np.testing.assert_allclose(images, [1 / 3] * 3, rtol=1e-12)
        np.testing.assert_allclose(pixels, [1 / 3] * 3, rtol=1e-12)
    assert "% of the pixels" in sampling.summary


def test_weights_against_a_loop():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 9, (20, 5)) * (rng.random((20, 5)) < 0.6)
    rows[:, 3] = 0  # a class that does not occur
    rows[0] = [1, 1, 0, 0, 1]
    for by in ("pixels", "images"):
        share = rows if by == "pixels" else (rows > 0).astype(int)
        weights = []
        for row in share:
            total = sum(row[k] / share[:, k].sum() for k in range(5) if share[:, k].sum())
            weights.append(total**0.5)
        expected = np.array(weights) * (20 / sum(weights))
        got = class_balanced(0.5, 50, by=by)(Counted(rows)).rates
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_power_zero_is_the_plain_shuffle():
    rates = class_balanced(power=0)(Counted([[1, 0], [5, 5], [0, 3]])).rates
    plain, ours = SampleStream(3, 0), SampleStream(3, 0, sampler=Sampler(rates))
    assert [ours.key(p) for p in range(20)] == [plain.key(p) for p in range(20)]


def test_max_repeat_is_kept_and_the_rest_shared_out():
    rows = [[100, 1]] + [[100, 0]] * 9
    rates = class_balanced(1.0, 2.5)(Counted(rows)).rates
    np.testing.assert_allclose(rates, [2.5] + [7.5 / 9] * 9, rtol=1e-12)
    assert class_balanced(1.0, 1)(Counted(rows)).rates.tolist() == pytest.approx([1] * 10)


def test_images_without_a_labelled_pixel_are_not_drawn():
    sampling = class_balanced()(Counted([[4, 0], [0, 0], [0, 4]]))
    np.testing.assert_allclose(sampling.rates, [1.5, 0, 1.5])
    assert "1 are never drawn" in sampling.summary


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=40).filter(any),
    st.one_of(st.integers(1, 6), st.floats(1, 6)),
)
def test_capped_rates(weights, cap):
    rates, weights = capped_rates(weights, len(weights), cap), np.array(weights)
    free = (weights > 0) & (rates < cap * (1 - 1e-12))
    assert (rates <= cap).all()
    assert (rates[weights == 0] == 0).all()
    assert rates.sum() == pytest.approx(min(len(weights), int(cap * np.count_nonzero(weights))))
    if free.any():  # in proportion, and nothing is capped that would stay below the cap
        scale = rates[free] / weights[free]
        np.testing.assert_allclose(scale, scale[0], rtol=1e-9)
        capped = (weights > 0) & ~free
        assert (weights[capped] * scale[0] >= cap * (1 - 1e-9)).all()
    Sampler(rates)  # whole in sum


def test_hard_images_are_repeated_as_in_the_paper():
    names = ["background", "bicycle", "Dining Table", "cat"]
    rows = [[9, 0, 0, 0], [9, 1, 0, 0], [9, 0, 0, 4], [9, 2, 3, 0], [9, 0, 5, 0]]
    data = Counted(rows, names)
    for classes in (["bicycle", "diningtable"], [1, 2], ["BICYCLE", "dining_table", 1]):
        assert repeat_hard(classes, 3)(data).rates.tolist() == [1, 3, 1, 3, 3]
    sampling = repeat_hard([1])(data)
    assert sampling.rates.tolist() == [1, 2, 1, 2, 1]
    assert "7 draws from 5 images" in sampling.summary
    # bicycle: 2 of 5 images before, 4 of 7 draws after
    [line] = [line for line in sampling.summary.splitlines() if " bicycle " in line]
    assert "40.00 ->  57.14" in line


def test_the_paper_s_classes_are_pascal_voc_s():
    from paddleseg_deeplab.datasets.class_names import PASCAL_VOC

    rows = np.eye(21, dtype=int)
    rates = repeat_hard()(Counted(rows, PASCAL_VOC)).rates
    assert [PASCAL_VOC[i] for i in np.flatnonzero(rates == 2)] == [
        *("bicycle", "chair", "diningtable", "pottedplant", "sofa")
    ]


def test_weights_of_one_s_own(tmp_path):
    path = tmp_path / "weights.txt"
    path.write_text("# mine\n1\n\n3e0\r\n0\n", encoding="utf-8")
    data = Counted([[1, 1]] * 3)
    assert weighted(str(path))(data).rates.tolist() == pytest.approx([0.75, 2.25, 0])
    data.dataset_root = str(tmp_path)
    assert weighted("weights.txt")(data).rates.sum() == pytest.approx(3)
    path.write_text("1e308\n1e308\n1e308\n", encoding="utf-8")
    assert weighted(str(path))(data).rates.tolist() == pytest.approx([1, 1, 1])


# -- errors ---------------------------------------------------------------------------------------

DATA = Counted([[4, 0], [4, 2]], ["road", "cyclist"])


@pytest.mark.parametrize(
    ("kind", "parameters", "words"),
    [
        ("class_balanced", {"power": 1.5}, ["power", "0 to 1", "1.5"]),
        ("class_balanced", {"power": True}, ["power", "True"]),
        ("class_balanced", {"power": "half"}, ["power", "'half'"]),
        ("class_balanced", {"max_repeat": 0.5}, ["max_repeat", "at least 1", "0.5"]),
        ("class_balanced", {"max_repeat": float("nan")}, ["max_repeat", "nan"]),
        ("class_balanced", {"by": "pixel"}, ["by", "'pixel'", "Did you mean 'pixels'?"]),
        ("repeat_hard", {"classes": "cyclist"}, ["classes", "list", "'cyclist'"]),
        ("repeat_hard", {"classes": []}, ["classes", "list"]),
        ("repeat_hard", {"classes": ["cylist"]}, ["'cylist'", "Did you mean 'cyclist'?"]),
        ("repeat_hard", {"classes": [2]}, ["no class 2", "0 to 1"]),
        ("repeat_hard", {"classes": [True]}, ["no class True"]),
        ("repeat_hard", {}, ["no class 'bicycle'"]),
        ("repeat_hard", {"classes": [1], "times": 0}, ["times", "from 1 on"]),
        ("repeat_hard", {"classes": [1], "times": 1.5}, ["times", "integer", "1.5"]),
        ("weighted", {"path": 3}, ["path", "3"]),
        ("weighted", {"path": "none.txt"}, ["no file", "none.txt"]),
        ("weighted", {"path": "1"}, ["1 weights", "2 images"]),
        ("weighted", {"path": "1\n-1"}, [":2", "'-1'"]),
        ("weighted", {"path": "1\nnan"}, [":2", "'nan'"]),
        ("weighted", {"path": "1\ninf"}, [":2", "'inf'"]),
        ("weighted", {"path": "1 2\n3"}, [":1", "'1 2'"]),
        ("weighted", {"path": "0\n0"}, ["all weights are 0"]),
        ("weighted", {"path": b"1\n\xff\xfe"}, ["cannot read"]),
    ],
)
def test_what_is_wrong_is_told(kind, parameters, words, tmp_path):
    content = parameters.get("path", "")
    if kind == "weighted" and content not in (3, "none.txt"):
        path = tmp_path / "weights"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        parameters = {"path": str(path)}
    with pytest.raises(UserError) as info:
        registry.SAMPLERS[kind](**parameters)(DATA)
    for word in words:
        assert word in str(info.value)


def test_sets_that_cannot_be_sampled():
    with pytest.raises(UserError, match="no labelled pixel"):
        class_balanced()(Counted([[0, 0]]))
    with pytest.raises(UserError, match="no image of the training set holds cyclist"):
        repeat_hard(["cyclist"])(Counted([[4, 0]], ["road", "cyclist"]))
    with pytest.raises(UserError, match="list has no load_label"):
        class_balanced()([])


CONFIG = """
batch_size: 2
iters: 4
train_dataset:
  {type: Shapes, image_size: [32, 24], num_samples: 6, num_classes: 4, transforms: []}
"""


def built(tmp_path, text, *opts):
    path = tmp_path / "config.yml"
    path.write_text(CONFIG + text, encoding="utf-8")
    return SegBuilder(Config(path, opts=list(opts)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampler: class_balanced", ["sampler: should be dict"]),
        ("sampler: {power: 1}", ["sampler: needs a `type`"]),
        ("sampelr: {type: shuffle}", ["sampelr", "Did you mean 'sampler'?"]),
        ("sampler: {type: class_balance}", ["sampler.type", "Did you mean 'class_balanced'?"]),
        ("sampler: {type: class_balanced, pover: 1}", ["sampler.pover", "Did you mean 'power'?"]),
        ("sampler: {type: shuffle, power: 1}", ["sampler.power", "no such parameter"]),
        ("sampler: {type: weighted}", ["sampler: weighted needs path"]),
        ("sampler: {type: repeat_hard, times: many}", ["sampler (repeat_hard): times", "'many'"]),
    ],
)
def test_the_config_is_checked_before_data_are_opened(tmp_path, text, words):
    with pytest.raises(UserError) as info:
        built(tmp_path, text)
    for word in (*words, "config.yml"):
        assert word in str(info.value)


def test_the_builder_gives_the_rates(tmp_path):
    assert built(tmp_path, "").sampler is None
    assert built(tmp_path, "sampler: {type: shuffle}").sampler is None
    sampling = built(tmp_path, "", "sampler.type=repeat_hard", "sampler.classes=[star]").sampler
    assert set(sampling.rates) <= {1.0, 2.0}
    builder = built(tmp_path, "sampler: {type: repeat_hard, classes: [stra]}")
    with pytest.raises(UserError, match=r"config.yml: sampler: .*Did you mean 'star'\?"):
        _ = builder.sampler


def test_every_sampler_is_told():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for name, part in registry.SAMPLERS.components_dict.items():
        if part.__module__.startswith("paddleseg_deeplab."):
            assert f"`{name}`" in text
