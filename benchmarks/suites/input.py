# SPDX-License-Identifier: Apache-2.0
"""The training input pipeline on one core: image and label file to what a batch needs.

Decode, random scale 0.5 to 2, random crop 1024x512, flip, distort, normalise: the transforms of
configs/_base_/cityscapes.yml. The samples are drawn beforehand, and albumentations gets the very
same scales, corners, flips and factors, so that both do the same work and can be compared.

albumentations brings its own OpenCV, so it needs an environment of its own: set
ALBUMENTATIONS_PYTHON to that environment's Python. It runs in a child process and measures there.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from harness import Missing, Row, Seconds, Unequal, assert_close, compare, take_turns, timed
from works.input import transforms
from works.pictures import CLASSES, make_files

import paddleseg_deeplab.transforms as T
from paddleseg_deeplab import kernels
from paddleseg_deeplab.datasets import Dataset

VARIABLE = "ALBUMENTATIONS_PYTHON"
PEER, PLAIN = "albumentations", "same transforms one by one"
SCRIPT = Path(__file__).resolve().parents[1] / "albumentations_peer.py"
# (height, width) of the files and of the crop, number of samples.
FULL = ((1024, 2048), (512, 1024), 21)
SMALL = ((64, 128), (32, 64), 3)
# All in grey levels of 255, set beforehand. The same transforms on the whole image: see
# transforms/resize_crop.py. albumentations rounds to 8 bits: the resize by half a level, each of
# the three factors (at most 1.4) by another, and its tables cut off up to one: within
# ((0.5 * 1.4 + 1) * 1.4 + 1) * 1.4 + 1 = 5.7, taken as 6. Its hue has steps of 2 degrees, rounded
# once and cut off once: 3 degrees are 3 / 60 of 255, 12.75, which later factors raise: 36.
PLAIN_TOLERANCE = 1 / 8
TOLERANCE, HUE_TOLERANCE = 6.0, 36.0
MEAN_TOLERANCE = 2.0  # of all pixels of a sample
# Labels: of two pixels that are equally near, ours takes the first and OpenCV the second, so pixels
# along edges differ; in a small image many lie there.
LABEL_SHARE = 0.03


def make_dataset(folder, name, crop):
    """A training set of one sample; epochs give it other random numbers."""
    (folder / "list.txt").write_text(f"{name} label.png\n", encoding="utf-8")
    return Dataset(
        mode="train",
        dataset_root=str(folder),
        transforms=transforms(crop),
        num_classes=CLASSES,
        train_path=str(folder / "list.txt"),
    )


def draw(size, crop, epoch):
    """What the transforms draw for that epoch: a dict that JSON can hold."""
    resize, cut, _, distort, _ = transforms(crop)
    rng = np.random.default_rng([0, epoch, 0])
    scaled = resize.draw(size, rng)
    corner = cut.draw(scaled, rng)
    flip = bool(rng.random() < 0.5)
    amounts = []
    for name in rng.permutation(["brightness", "contrast", "sharpness", "saturation", "hue"]):
        if rng.random() < getattr(distort, f"{name}_prob"):
            extent = getattr(distort, f"{name}_range")
            amount = float(rng.uniform(-extent, extent))
            amounts.append((str(name), amount / 256 if name == "hue" else 1 + amount))
    return {"scale": scaled[0] / size[0], "corner": corner, "flip": flip, "distort": amounts}


def ours(dataset, count):
    """For `compare`: makes the samples, returns `Seconds` for one; first time with all of them."""
    calls = []

    def run():
        calls.append(1)
        made, total = [], 0.0
        for epoch in range(count):
            seconds, out = timed(lambda epoch=epoch: dataset[0, epoch])
            total += seconds
            if len(calls) == 1:  # later they are freed one by one, as the peer's are
                made.append((out["img"], out["label"]))
        return Seconds(total / count, made)

    return run


class OneByOne(T.Compose):
    """Makes the whole image first, resizes and then crops it; the rest is the same."""

    def read(self, data):
        return super().read(data)


class Peer:
    """albumentations' process. Calling it returns `Seconds` for one sample of an image file."""

    def __init__(self, python, folder, count):
        self._folder, self._count = folder, count
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._child = subprocess.Popen(
            [python, str(SCRIPT), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.version = self._answer()

    def _answer(self):
        try:
            return json.loads(self._child.stdout.readline())
        except ValueError as error:
            self._child.wait()
            self._log.seek(0)
            raise RuntimeError(f"albumentations' process failed:\n{self._log.read()}") from error

    def work(self, name):
        """For `compare`: the first call also hands out the samples."""
        calls = []

        def run():
            calls.append(1)
            first = len(calls) == 1
            print(name, "keep" if first else "", file=self._child.stdin, flush=True)
            seconds = self._answer() / self._count
            return Seconds(seconds, self._kept() if first else None)

        return run

    def _kept(self):
        names = [("peer_image", i) for i in range(self._count)]
        images = [np.load(self._folder / f"{name}_{i}.npy") for name, i in names]
        labels = [np.load(self._folder / f"peer_label_{i}.npy") for i in range(self._count)]
        return list(zip(images, labels))

    def close(self):
        self._child.communicate()
        self._log.close()


def start_peer(folder, count):
    """A `Peer`, or `Missing`."""
    python = os.environ.get(VARIABLE, "").strip() or sys.executable
    try:
        found = subprocess.run(
            [python, "-c", "import albumentations"], capture_output=True, check=False
        )
    except OSError as error:
        return Missing(f"{VARIABLE}={python}: {error.strerror or error}")
    if found.returncode:
        return Missing(f"no albumentations; set {VARIABLE} to the Python of an environment with it")
    return Peer(python, folder, count)


def checker(samples):
    """Compares our samples with a peer's; what is allowed is written at the top."""

    def check(mine, theirs, name):
        for i, (sample, (img, label), (img2, label2)) in enumerate(zip(samples, mine, theirs)):
            what = f"sample {i} {sample}, {name}"
            levels = 127.5 * (np.asarray(img, np.float64) - img2)
            if name == PLAIN:
                assert_close(f"label of {what}", label, label2, 0)
                assert_close(f"image of {what}", levels, 0 * levels, PLAIN_TOLERANCE)
                continue
            hue = any(step == "hue" for step, _ in sample["distort"])
            assert_close(
                f"image of {what}", levels, 0 * levels, HUE_TOLERANCE if hue else TOLERANCE
            )
            mean, share = float(np.abs(levels).mean()), float((label != label2).mean())
            if not (mean <= MEAN_TOLERANCE and label.shape == label2.shape):
                raise Unequal(f"image of {what}: {mean:.3g} levels off on average.")
            if not share <= LABEL_SHARE:
                raise Unequal(f"label of {what}: {share:.3g} of the pixels differ.")

    return check


def decoding(folder, name):
    """A function that only decodes the two files, whole, with OpenCV."""

    def run():
        cv2.imread(str(folder / name))
        cv2.imread(str(folder / "label.png"), cv2.IMREAD_UNCHANGED)

    return run


def rows(options):
    size, crop, count = SMALL if options.small else FULL
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    peer = None
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_files(folder, size)
            samples = [draw(size, crop, epoch) for epoch in range(count)]
            job = {"label": "label.png", "crop": crop, "samples": samples}
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            peer = start_peer(folder, count)
            yield from measured(options, folder, peer, samples, (size, crop))
    finally:
        if isinstance(peer, Peer):
            peer.close()
        cv2.setNumThreads(threads)


def measured(options, folder, peer, samples, sizes):
    (size, crop), count = sizes, len(samples)
    check, text = checker(samples), f"{size[0]}x{size[1]} to {crop[0]}x{crop[1]}"
    for name in ("image.png", "image.jpg"):
        kind = name[-3:].upper()
        seconds = take_turns({"": decoding(folder, name)}, options.runs)[""]
        decoded = float(np.median(seconds))
        note = "per image, one core"
        yield Row(f"decode {kind} and label alone", ours=decoded, our_seconds=seconds, note=note)
        if kind == "PNG":
            by = "isal" if kernels.reads_png_fast() else "zlib, isal is missing"
            note += f", decompressed by {by}"
        dataset = make_dataset(folder, name, crop)
        whole = make_dataset(folder, name, crop)
        whole.transforms = OneByOne(transforms(crop))
        found = peer if isinstance(peer, Missing) else peer.work(name)
        yield from compare(
            f"{kind} and label to sample, {text}",
            ours(dataset, count),
            {PEER: found, PLAIN: ours(whole, count)},
            check,
            options,
            goals={PEER: "1.5"},
            floor=decoded,
            note=f"{note}; floor: OpenCV decodes both files whole",
        )
    dataset = make_dataset(folder, "image.npy", crop)
    yield from compare(
        f".npy and label to sample, {text}", ours(dataset, count), {}, check, options, note=note
    )
