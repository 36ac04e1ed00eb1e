# SPDX-License-Identifier: Apache-2.0
"""The dense CRF beside pydensecrf: seconds from probabilities and image to Q, lattices included.

  python benchmarks/dense_crf.py --size 512 512 --classes 21 --iterations 10

First both results are compared, 1e-3 apart at most. Then all take turns, --runs times, so that a
busy moment of the machine hits all of them; the ratios are medians of the ratios of the turns, of
wall time and of the processors' time, which a busy machine changes less.
Without pydensecrf (pip install cython setuptools wheel, then pydensecrf2) its row says so. It works
on one thread; this package on as many as --threads names. The image is a made-up scene of the
embedded dataset, or --image.
"""

import argparse
import time

import cv2
import numpy as np
from works.crf import make_probabilities

from paddleseg_deeplab.datasets.shapes import Shapes
from paddleseg_deeplab.postprocess.dense_crf import DenseCRF
from paddleseg_deeplab.utils.cpu import thread_count

TOLERANCE = 1e-3


def load_image(path, size):
    """uint8 RGB [H, W, 3]."""
    height, width = size
    if path is None:
        # Made at this very size: an enlarged one would be smoother, and faster.
        scene = Shapes(transforms=[], mode="val", image_size=(width, height), num_samples=1)[0]
        return np.ascontiguousarray(scene["img"].transpose(1, 2, 0).round().astype(np.uint8))
    image = cv2.imread(path)
    if image is None:
        raise SystemExit(f"--image {path}: OpenCV cannot read it.")
    return np.ascontiguousarray(cv2.resize(image, (width, height))[..., ::-1])


def ours(iterations, threads):
    """A new `DenseCRF` at each call: the Gaussian's lattice is not kept from the run before."""
    return lambda p, image: DenseCRF(iterations, threads=threads)(p, image)


def pydensecrf(iterations):
    """The peer with the same settings; ImportError where it is missing."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    def run(probabilities, image):
        classes, height, width = probabilities.shape
        crf = DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(unary_from_softmax(probabilities))
        crf.addPairwiseGaussian(sxy=1, compat=3)
        crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
        return np.array(crf.inference(iterations)).reshape(probabilities.shape)

    return run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, thread_count()}))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", help="a photograph instead of the scene; resized")
    args = parser.parse_args()
    data = make_probabilities(args.classes, args.size), load_image(args.image, args.size)
    found = {f"ours, {n} thread(s)": ours(args.iterations, n) for n in args.threads}
    try:
        found["pydensecrf"] = pydensecrf(args.iterations)
    except ImportError as error:
        print(f"pydensecrf          not installed ({error}): no ratio")
    results = [function(*data) for function in found.values()]  # the first calls also warm up
    error = max(float(np.abs(q - results[-1]).max()) for q in results)
    print(f"largest difference  {error:.1e}")
    if error > TOLERANCE:
        raise SystemExit(f"The results differ by more than {TOLERANCE}: nothing is timed.")
    times = {name: [] for name in found}
    for _ in range(args.runs):
        for name, function in found.items():
            start = time.perf_counter(), time.process_time()
            function(*data)
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    peer = np.array(times.get("pydensecrf", [(np.nan, np.nan)] * args.runs))
    print(f"{'':<20}   median  pydensecrf's time / its time    the same of CPU time")
    for name, seconds in times.items():
        wall, cpu = np.median(peer / np.array(seconds), 0)
        print(f"{name:<20}{np.median(seconds, 0)[0]:8.2f}s {wall:13.2f} {cpu:29.2f}")


if __name__ == "__main__":
    main()
