# SPDX-License-Identifier: Apache-2.0
"""The dense CRF beside pydensecrf, which works on one thread; see dense_crf.py.

The work grows with the lattice's points, so with the image's noise. The embedded scene has 1.9 a
pixel; photographs of streets (CamVid, 480x360) have 0.25 to 0.9, and so has the scene as a lens
blurs it: 0.45.
"""

import cv2
import dense_crf
from harness import assert_close, compare, peer

from paddleseg_deeplab.utils.cpu import thread_count

PEER = "pydensecrf"
BLURS = {"as smooth as a photograph": 1.0, "noisy": 0.0}  # sigma in pixels


def check(mine, theirs, name):
    assert_close(f"Q, {name}", mine, theirs, dense_crf.TOLERANCE)


def rows(options):
    size, classes, iterations = ((32, 48), 3, 2) if options.small else ((512, 512), 21, 10)
    probabilities = dense_crf.make_probabilities(classes, size)

    for kind, sigma in BLURS.items():
        image = dense_crf.load_image(None, size)
        if sigma:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        data = probabilities, image

        def make_peer(data=data):
            run = dense_crf.pydensecrf(iterations)
            return lambda: run(*data)

        for threads in sorted({1, thread_count()}):
            run = dense_crf.ours(iterations, threads)
            yield from compare(
                f"{size[0]}x{size[1]}, {classes} classes, {iterations} iterations, {kind}, "
                f"ours on {threads}",
                lambda run=run, data=data: run(*data),
                {PEER: peer(make_peer)},
                check,
                options,
                goals={PEER: "2"},
                note="pydensecrf works on one thread",
            )
