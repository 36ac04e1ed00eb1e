# SPDX-License-Identifier: Apache-2.0
"""The dense CRF beside pydensecrf, which works on one thread; see dense_crf.py."""

import dense_crf
from harness import assert_close, compare, peer

from paddleseg_deeplab.utils.cpu import thread_count

PEER = "pydensecrf"


def check(mine, theirs, name):
    assert_close(f"Q, {name}", mine, theirs, dense_crf.TOLERANCE)


def rows(options):
    size, classes, iterations = ((32, 48), 3, 2) if options.small else ((512, 512), 21, 10)
    data = dense_crf.make_probabilities(classes, size), dense_crf.load_image(None, size)

    def make_peer():
        run = dense_crf.pydensecrf(iterations)
        return lambda: run(*data)

    for threads in sorted({1, thread_count()}):
        run = dense_crf.ours(iterations, threads)
        yield from compare(
            f"{size[0]}x{size[1]}, {classes} classes, {iterations} iterations, ours on {threads}",
            lambda run=run: run(*data),
            {PEER: peer(make_peer)},
            check,
            options,
            goals={PEER: "2"},
            note="pydensecrf works on one thread",
        )
