# SPDX-License-Identifier: Apache-2.0
"""The dense CRF: closed forms, properties, an exact filter beside the lattice, and refusals.

That it equals pydensecrf is shown in tests/parity/test_pydensecrf.py.
"""

import copy
import pickle
import sys

import numpy as np
import pytest

pytest.importorskip("scipy")
from paddleseg_deeplab.postprocess import dense_crf, lattice_filter
from paddleseg_deeplab.postprocess.dense_crf import DenseCRF, LatticeCache
from paddleseg_deeplab.postprocess.permutohedral import Lattice
from paddleseg_deeplab.utils.errors import UserError

# float32 sums of some hundred terms near 1, ten times over.
CLOSE = {"rtol": 0, "atol": 2e-5}


def softmax(logits):
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def probabilities(classes=4, size=(19, 23), seed=0):
    rng = np.random.default_rng(seed)
    return softmax(3 * rng.standard_normal((classes, *size))).astype(np.float32)


def photo(size=(19, 23), channels=3):
    """A smooth background, a bright square and some noise: uint8 [H, W, C]."""
    rng = np.random.default_rng(1)
    height, width = size
    image = (
        np.linspace(30, 90, height)[:, None, None]
        + np.arange(channels) * 20
        + np.zeros(width)[None, :, None]
    )
    image[height // 4 : -height // 4 or None, width // 3 : -width // 3 or None] += 100
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("iterations", [0, 3])
def test_without_weights_stays_at_the_clipped_and_normalised_probabilities(iterations):
    given = probabilities()
    given[:, 2, 3] = [1, 0, 0, 0]
    weights = {"bilateral_weight": 0, "gaussian_weight": 0} if iterations else {}
    q = DenseCRF(iterations, **weights)(given, photo())
    clipped = np.maximum(given, 1e-5)
    np.testing.assert_allclose(q, clipped / clipped.sum(0), **CLOSE)
    assert q[1, 2, 3] == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_one_pixel(channels):
    """One pixel's normalised kernels are exactly 1, its own message is kept."""
    given = np.array([0.2, 0.5, 0.3], np.float32).reshape(3, 1, 1)
    expected = given[:, 0, 0].astype(np.float64)
    for _ in range(4):
        expected = softmax(np.log(given[:, 0, 0]) + (1.5 + 2.5) * expected)
    q = DenseCRF(4, bilateral_weight=1.5, gaussian_weight=2.5)(given, photo((1, 1), channels))
    np.testing.assert_allclose(q[:, 0, 0], expected, **CLOSE)


def test_uniform_probabilities_stay_uniform():
    q = DenseCRF()(np.full((4, 19, 23), 0.25, np.float32), photo())
    np.testing.assert_allclose(q, 0.25, **CLOSE)


def test_one_class_is_certain():
    np.testing.assert_array_equal(DenseCRF()(probabilities(1), photo()), 1)


# --------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("size", [(1, 1), (1, 31), (31, 1), (2, 2), (19, 23), (16, 16)])
def test_result(size):
    given, image = probabilities(5, size), photo(size)
    kept = given.copy(), image.copy()
    q = DenseCRF(2)(given, image)
    assert q.dtype == np.float32
    assert q.shape == given.shape
    assert q.flags.c_contiguous
    np.testing.assert_allclose(q.sum(0), 1, **CLOSE)
    assert (q >= 0).all()
    np.testing.assert_array_equal(given, kept[0])
    np.testing.assert_array_equal(image, kept[1])


def test_permuted_classes_permute_the_result():
    order = [2, 0, 3, 1]
    crf = DenseCRF(5)
    expected = crf(probabilities(), photo())[order]
    np.testing.assert_allclose(crf(probabilities()[order], photo()), expected, **CLOSE)


def test_a_shuffled_matrix_goes_with_its_classes():
    rng = np.random.default_rng(0)
    costs, order = rng.uniform(0, 1, (4, 4)), [2, 0, 3, 1]
    expected = DenseCRF(5, compatibility=costs)(probabilities(), photo())[order]
    shuffled = DenseCRF(5, compatibility=costs[order][:, order])
    np.testing.assert_allclose(shuffled(probabilities()[order], photo()), expected, **CLOSE)


@pytest.mark.parametrize("costs", [1 - np.eye(4), -np.eye(4)])
def test_potts_as_a_matrix(costs):
    expected = DenseCRF(5)(probabilities(), photo())
    q = DenseCRF(5, compatibility=costs.tolist())(probabilities(), photo())
    np.testing.assert_allclose(q, expected, **CLOSE)


def test_only_the_symmetric_part_of_a_matrix_counts():
    upper = np.triu(np.ones((4, 4)), 1) * 2
    q = DenseCRF(5, compatibility=upper)(probabilities(), photo())
    np.testing.assert_allclose(q, DenseCRF(5)(probabilities(), photo()), **CLOSE)


def test_it_smooths_and_keeps_edges():
    """Noisy probabilities of a two-colour image come out as the two regions."""
    image = np.full((24, 24, 3), 40, np.uint8)
    image[:, 11:] = 180
    truth = (np.arange(24) >= 11)[None] * np.ones((24, 1), int)
    rng = np.random.default_rng(0)
    scores = np.where(truth == np.arange(2)[:, None, None], 1.0, 0.0)
    given = softmax(scores + rng.normal(0, 1, scores.shape))
    assert (given.argmax(0) != truth).mean() > 0.2
    assert (DenseCRF()(given, image).argmax(0) == truth).all()


def test_images_of_other_types_and_channels():
    crf, given, image = DenseCRF(3), probabilities(), photo()
    expected = crf(given, image)
    # Dark images are no images in 0..1: uint8 never is, nor is one without any light.
    black = crf(given, np.zeros_like(image))
    np.testing.assert_array_equal(crf(given, np.zeros(image.shape)), black)
    assert crf(given, np.ones_like(image)).shape == given.shape
    for kind in (np.float32, np.float64):
        np.testing.assert_array_equal(crf(given, image.astype(kind)), expected)
    np.testing.assert_array_equal(crf(given, np.asfortranarray(image)), expected)
    grey = image[..., 0]
    np.testing.assert_array_equal(crf(given, grey), crf(given, grey[..., None]))
    np.testing.assert_allclose(crf(given.astype(np.float64), image), expected, **CLOSE)
    # Channels count alike; the lattice itself is not the same when they change places.
    assert np.abs(crf(given, image[..., ::-1]) - expected).mean() < 0.02
    assert crf(given, photo(channels=8)).shape == given.shape


def test_threads_and_order_of_calls_do_not_matter():
    size = (150, 160)  # more than one block
    given, image = probabilities(8, size), photo(size)
    crf = DenseCRF(2, threads=3)
    expected = DenseCRF(2, threads=1)(given, image)
    np.testing.assert_array_equal(crf(given, image), expected)
    crf(given[:, :40], image[:40])
    np.testing.assert_array_equal(crf(given, image), expected)


@pytest.mark.parametrize("compatibility", [None, -np.eye(4)])
def test_huge_weights_do_not_overflow(compatibility):
    crf = DenseCRF(3, bilateral_weight=4000, compatibility=compatibility)
    q = crf(probabilities(), photo())
    np.testing.assert_allclose(q.sum(0), 1, **CLOSE)


def test_public_and_private_products_agree(monkeypatch):
    expected = DenseCRF(5)(probabilities(), photo())
    monkeypatch.setattr(dense_crf, "_VALUES_AT_ONCE", 100)
    np.testing.assert_array_equal(DenseCRF(5)(probabilities(), photo()), expected)
    monkeypatch.setitem(sys.modules, "scipy.sparse._sparsetools", None)
    assert lattice_filter._products()[0] is lattice_filter._public_matvecs
    np.testing.assert_allclose(DenseCRF(5)(probabilities(), photo()), expected, **CLOSE)


# --------------------------------------------------------------------------------- beside the exact


def exact_q(given, image, iterations, settings):
    """Mean field with the Gaussian kernels themselves, O(N^2), in float64."""
    classes, height, width = given.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    colours = image.reshape(height * width, -1).astype(np.float64)
    total = 0
    for weight, features in (
        (settings["bilateral_weight"], np.c_[x / 67, y / 67, colours / settings["bilateral_rgb"]]),
        (settings["gaussian_weight"], np.c_[x, y] / settings["gaussian_xy"]),
    ):
        squares = (features**2).sum(1)
        kernel = np.exp(-0.5 * (squares[:, None] + squares - 2 * features @ features.T))
        root = np.sqrt(kernel.sum(1))
        total = total + weight * kernel / root / root[:, None]
    unary = np.log(np.clip(given, 1e-5, 1)).reshape(classes, -1)
    q = softmax(unary)
    for _ in range(iterations):
        q = softmax(unary + q @ total)
    return q.reshape(given.shape)


@pytest.mark.parametrize(
    ("iterations", "rgb", "xy"), [(1, 3, 1), (5, 3, 1), (10, 3, 1), (10, 10, 3)]
)
def test_near_the_exact_mean_field(iterations, rgb, xy):
    """What the lattice itself costs: its blur is a Gaussian's only roughly.

    Measured here: mean |dQ| 0.005 to 0.008, the same class in 98.8 to 99.4 % of the pixels. The
    probabilities that both start from are 0.11 to 0.17 away and agree in 81 to 89 %.
    """
    size = (32, 32)
    settings = {"bilateral_weight": 4, "bilateral_rgb": rgb, "gaussian_weight": 3}
    settings["gaussian_xy"] = xy
    rng = np.random.default_rng(3)
    truth = (np.indices(size).sum(0) // 12) % 3
    scores = 2.0 * (truth == np.arange(3)[:, None, None]) + rng.normal(0, 1.2, (3, *size))
    given, image = softmax(scores).astype(np.float32), photo(size)
    q = DenseCRF(iterations, **settings)(given, image)
    expected = exact_q(given, image, iterations, settings)
    assert np.abs(q - expected).mean() < 0.02
    assert (q.argmax(0) == expected.argmax(0)).mean() > 0.97


def test_shared_lattices(monkeypatch):
    made = []
    monkeypatch.setattr(dense_crf, "Lattice", lambda *a: made.append(1) or Lattice(*a))
    given, image, lattices = probabilities(), photo(), LatticeCache(2)

    def both(**settings):
        ours = DenseCRF(2, **settings, lattices=lattices)(given, image)
        count = len(made)
        np.testing.assert_array_equal(ours, DenseCRF(2, **settings)(given, image))
        return count

    start = both(bilateral_weight=3)
    assert both(bilateral_weight=5, gaussian_weight=1) == start + 2  # the plain one's alone
    assert both(bilateral_rgb=4) == start + 5
    image = image[::-1]
    assert both(bilateral_rgb=4) == start + 8


def test_it_can_be_copied_and_pickled():
    given, image = probabilities(), photo()
    crf = DenseCRF(2, bilateral_weight=3, threads=1)
    expected = crf(given, image)
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
        np.testing.assert_array_equal(other(given, image), expected)


def test_a_narrow_gaussian_on_a_tall_image():
    """Neighbours are ten deviations away: each pixel hears itself alone."""
    given, size = probabilities(2, (2200, 8)), (2200, 8)
    settings = {"gaussian_xy": 0.1, "gaussian_weight": 2, "bilateral_weight": 0, "threads": 1}
    q = expected = DenseCRF(0)(given, photo(size))
    for _ in range(2):
        expected = softmax(np.log(q) + 2 * expected)
    np.testing.assert_allclose(DenseCRF(2, **settings)(given, photo(size)), expected, **CLOSE)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"iterations": -1}, "iterations"),
        ({"iterations": 2.5}, "iterations"),
        ({"iterations": True}, "iterations"),
        ({"bilateral_weight": -1}, "bilateral_weight"),
        ({"bilateral_weight": "much"}, "bilateral_weight"),
        ({"bilateral_xy": 0}, "bilateral_xy"),
        ({"bilateral_rgb": float("nan")}, "bilateral_rgb"),
        ({"gaussian_weight": None}, "gaussian_weight"),
        ({"gaussian_xy": -3}, "gaussian_xy"),
        ({"gaussian_xy": float("inf")}, "gaussian_xy"),
        ({"compatibility": [[1, 2, 3]]}, "compatibility"),
        ({"compatibility": [[0, 1], [1]]}, "compatibility"),
        ({"compatibility": "potts"}, "compatibility"),
        ({"compatibility": [[0, float("nan")], [1, 0]]}, "compatibility"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_settings(settings, named):
    with pytest.raises(UserError, match=named):
        DenseCRF(**settings)


def test_settings_that_do_not_fit_the_image():
    with pytest.raises(UserError, match="2 classes, the network 4"):
        DenseCRF(compatibility=np.eye(2))(probabilities(), photo())
    with pytest.raises(UserError, match="gaussian_xy is too small"):
        DenseCRF(gaussian_xy=1e-4)(probabilities(), photo())
    with pytest.raises(UserError, match="bilateral_xy or bilateral_rgb is too small"):
        DenseCRF(bilateral_rgb=1e-3)(probabilities(), photo())


def _with_nan(array):
    array = array.astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("given", "image", "named"),
    [
        (probabilities()[0], photo(), r"\[K, H, W\]"),
        (probabilities()[:0], photo(), r"\[K, H, W\]"),
        (np.ones((4, 19, 23), int), photo(), "float"),
        (_with_nan(probabilities()), photo(), "probabilities hold NaN"),
        (probabilities(), _with_nan(photo()), "image hold NaN"),
        (probabilities(), photo()[:-1], r"\(18, 23\).*\(19, 23\)"),
        (probabilities(), photo().transpose(2, 0, 1), "one size"),
        (probabilities(), photo()[..., :0], r"\[H, W, C\]"),
        (probabilities(), photo().astype(np.int64), "uint8"),
        (probabilities(), photo()[None], r"\[H, W, C\]"),
        (probabilities(), photo().astype(np.float32) / 255, "float32 .*multiply it by 255"),
        (probabilities(), np.ones((19, 23)), "multiply it by 255"),
    ],
)
def test_bad_arrays(given, image, named):
    with pytest.raises(ValueError, match=named):
        DenseCRF()(given, image)


def test_scipy_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(UserError, match=r"needs scipy .*paddleseg-deeplab\[crf\]"):
        DenseCRF()


def test_parameters_are_the_settings():
    crf = DenseCRF(bilateral_xy=50)
    assert [name for name in DenseCRF.PARAMETERS if not hasattr(crf, name)] == []
    assert "bilateral_xy=50.0" in repr(crf)
