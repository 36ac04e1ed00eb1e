# SPDX-License-Identifier: Apache-2.0
"""Writes dense_crf.npz: Q of pydensecrf after 1, 5 and 10 mean field iterations.

To make it again, in an environment of its own (pydensecrf2 is compiled on installation)::

    pip install cython setuptools wheel numpy opencv-python-headless pydensecrf2
    python tests/parity/make_dense_crf.py --images CamVid/val

``--images`` is a folder of photographs; the first ones by name are used, small. Those of the file
are from CamVid's validation split. The images are kept in the file; probabilities follow from a
seed by `blobs`. Of Q every `STEP`-th pixel is kept, in units of 1 / 65535.
"""

import argparse
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "dense_crf.npz"
ITERATIONS = (1, 5, 10)
STEP = 5  # shares no factor with the image widths, so that all columns are met

# A full matrix whose two triangles differ, since pydensecrf uses their mean; the last class is
# near the first, and classes may also attract another (negative cost).
COSTS = (
    (0.0, 1.0, 1.2, 0.8, 0.3),
    (1.0, 0.0, 0.5, 1.0, 1.0),
    (0.8, 0.7, 0.0, 1.5, 1.0),
    (1.0, 1.0, 1.1, -0.2, 1.0),
    (0.1, 1.0, 1.0, 0.9, 0.1),
)

# name: (image, (height, width), classes, settings of DenseCRF). The images are "photo N", "noise",
# "black" or "grey N", a photograph's mean of channels.
CASES = {
    "photo": ("photo 0", (48, 64), 5, {}),
    "photo_odd": ("photo 1", (47, 61), 5, {}),
    "photo_paper": (
        "photo 2",
        (41, 53),
        6,
        {"bilateral_weight": 5, "bilateral_xy": 50, "bilateral_rgb": 4, "gaussian_xy": 3},
    ),
    "photo_matrix": ("photo 3", (48, 64), 5, {"compatibility": COSTS}),
    "two_classes": ("photo 4", (37, 43), 2, {}),
    "grey": ("grey 0", (33, 47), 4, {}),
    "noise": ("noise", (33, 41), 3, {}),
    "noise_matrix": ("noise", (29, 31), 5, {"compatibility": COSTS, "bilateral_rgb": 20}),
    "black": ("black", (13, 17), 4, {}),
    "bilateral": ("photo 0", (31, 37), 4, {"gaussian_weight": 0, "bilateral_rgb": 10.5}),
    "narrow": ("photo 1", (31, 37), 4, {"bilateral_xy": 3.3, "bilateral_rgb": 1.5}),
    "gaussian": ("photo 2", (31, 37), 4, {"bilateral_weight": 0, "gaussian_xy": 2.5}),
    "line": ("photo 3", (1, 67), 3, {}),
}


def blobs(classes, size, seed=0):
    """Probabilities as of a network, in soft blobs: float32 [K, H, W]."""
    rng = np.random.Generator(np.random.PCG64(seed + 1000 * classes + size[0]))
    coarse = rng.standard_normal((classes, 6, 6))
    # Bilinear, by one matrix for each axis.
    rows, columns = (np.linspace(0, 5, n)[:, None] - np.arange(6) for n in size)
    rows, columns = (np.maximum(0, 1 - np.abs(distance)) for distance in (rows, columns))
    logits = 4 * np.einsum("hi,kij,wj->khw", rows, coarse, columns)
    logits += 0.5 * rng.standard_normal(logits.shape)
    exponentials = np.exp(logits - logits.max(0))
    return (exponentials / exponentials.sum(0)).astype(np.float32)


def picture(kind, size, photos):
    """The image of a case: uint8 [H, W, 3], or [H, W] where it is grey."""
    name, _, number = kind.partition(" ")
    if name in ("photo", "grey"):
        import cv2

        photo = cv2.imread(str(photos[int(number)]))[..., ::-1]
        photo = cv2.resize(photo, (96, 72), interpolation=cv2.INTER_AREA)
        photo = np.ascontiguousarray(photo[: size[0], : size[1]])
        return photo if name == "photo" else photo.mean(2).astype(np.uint8)
    rng = np.random.Generator(np.random.PCG64(5))
    return rng.integers(0, 256 if name == "noise" else 1, (*size, 3), dtype=np.uint8)


def peer(probabilities, image, iterations, settings):
    """Q of pydensecrf, float32 [K, H, W], for `DenseCRF`'s settings."""
    import pydensecrf.densecrf as pydensecrf
    from pydensecrf.utils import unary_from_softmax

    values = {"bilateral_weight": 4, "bilateral_xy": 67, "bilateral_rgb": 3}
    values.update({"gaussian_weight": 3, "gaussian_xy": 1, "compatibility": None}, **settings)
    classes, height, width = probabilities.shape

    def compat(weight):
        if values["compatibility"] is None:
            return weight
        return np.ascontiguousarray(weight * np.array(values["compatibility"]), np.float32)

    crf = pydensecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    if values["gaussian_weight"]:
        crf.addPairwiseGaussian(values["gaussian_xy"], compat(values["gaussian_weight"]))
    weight, rgb = values["bilateral_weight"], values["bilateral_rgb"]
    if weight and image.ndim == 3:
        crf.addPairwiseBilateral(values["bilateral_xy"], rgb, image, compat(weight))
    elif weight:
        y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32(values["bilateral_xy"])
        features = np.stack([x, y, image.astype(np.float32) / np.float32(rgb)])
        crf.addPairwiseEnergy(features.reshape(3, -1), compat(weight))
    return np.array(crf.inference(iterations), np.float32).reshape(probabilities.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    photos = sorted(p for p in parser.parse_args().images.iterdir() if p.suffix in (".png", ".jpg"))
    photos = photos[:: max(1, len(photos) // 5)]
    arrays = {}
    for name, (kind, size, classes, settings) in CASES.items():
        image = picture(kind, size, photos)
        arrays[f"{name}/image"] = image
        for iterations in ITERATIONS:
            q = peer(blobs(classes, size), image, iterations, settings)
            kept = q.reshape(classes, -1)[:, ::STEP]
            arrays[f"{name}/{iterations}"] = np.rint(kept * 65535).astype(np.uint16)
            changed = (q.argmax(0) != blobs(classes, size).argmax(0)).mean()
            print(f"{name}, {iterations} iterations: {changed:.1%} of the pixels change class")
    np.savez_compressed(FILE, **arrays)
    print(FILE, FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
