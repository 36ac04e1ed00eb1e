# SPDX-License-Identifier: Apache-2.0
"""The peer of suites/input.py: albumentations in a Python of its own, with one thread.

  python albumentations_peer.py FOLDER

Run by the suite, not by hand: FOLDER holds job.json, the files and the parameters of every sample.
For each line on standard input it makes all samples from one image file, and answers with the
seconds: "NAME keep" also writes them to FOLDER. Imports nothing of this project.
"""

import json
import os
import sys
import time

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its version

import albumentations as A
import cv2
import numpy as np

_NEUTRAL = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}


def chain(sample, crop):
    """The transforms of one sample with its parameters, as albumentations takes them."""
    (height, width), (top, left) = crop, sample["corner"]
    factor = sample["scale"] - 1
    steps = [
        # The one nearest of OpenCV's that keeps a mask in place under its image.
        A.RandomScale((factor, factor), mask_interpolation=cv2.INTER_NEAREST_EXACT, p=1),
        A.Crop(left, top, left + width, top + height, p=1),
    ]
    if sample["flip"]:
        steps.append(A.HorizontalFlip(p=1))
    for name, amount in sample["distort"]:
        steps.append(A.ColorJitter(**{**_NEUTRAL, name: (amount, amount)}, p=1))
    steps.append(A.Normalize((0.5,) * 3, (0.5,) * 3, p=1))
    return A.Compose(steps)


def make(image_path, label_path, transform):
    """From files to what a batch needs: float32 [3, h, w] and int64 [h, w]."""
    image = cv2.cvtColor(cv2.imread(image_path), cv2.COLOR_BGR2RGB)
    label = cv2.imread(label_path, cv2.IMREAD_UNCHANGED)
    out = transform(image=image, mask=label)
    return np.ascontiguousarray(out["image"].transpose(2, 0, 1)), out["mask"].astype(np.int64)


def main():
    cv2.setNumThreads(1)
    folder = sys.argv[1]
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        job = json.load(file)
    chains = [chain(sample, job["crop"]) for sample in job["samples"]]
    label_path = os.path.join(folder, job["label"])
    print(json.dumps(A.__version__), flush=True)
    for line in sys.stdin:
        name, *keep = line.split()
        seconds = 0.0
        for i, transform in enumerate(chains):
            start = time.perf_counter()
            image, label = make(os.path.join(folder, name), label_path, transform)
            seconds += time.perf_counter() - start
            if keep:
                np.save(os.path.join(folder, f"peer_image_{i}.npy"), image)
                np.save(os.path.join(folder, f"peer_label_{i}.npy"), label)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
