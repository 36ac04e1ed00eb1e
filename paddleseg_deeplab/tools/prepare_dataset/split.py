# SPDX-License-Identifier: Apache-2.0
"""Lists of train, val and test from a folder of images and one of masks."""

import os

from paddleseg_deeplab.tools.prepare_dataset import lists
from paddleseg_deeplab.tools.prepare_dataset.jobs import Options, Outcome, find_files
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files.folders import IMAGE_EXTENSIONS

_SUFFIXES = (*IMAGE_EXTENSIONS, ".npy")


def _by_stem(files, suffix, flag):
    """{path without suffix and ending: path} of those that have the suffix.

    Raises:
        UserError: Two files that differ in their ending only.
    """
    found = {}
    for path in files:
        stem = os.path.splitext(path)[0]
        if stem.endswith(suffix):
            other = found.setdefault(stem[: len(stem) - len(suffix)], path)
            if other is not path:
                raise UserError(f"{flag}: {other} and {path} differ in their ending only.")
    return found


def _hint(images, masks):
    """A suffix that would make pairs, for the message."""
    stems = {os.path.splitext(path)[0] for path in masks}
    for image in sorted(images)[:20]:
        longer = [stem[len(image) :] for stem in stems if stem.startswith(image) and stem != image]
        if longer:
            return f" Is it --mask_suffix {min(longer, key=len)}?"
    return " A pair has the same path in both folders, up to the ending and the suffixes."


def find_pairs(
    images: str, masks: str, image_suffix: str, mask_suffix: str, outcome: Outcome
) -> list[tuple[str, str]]:
    """(image, mask) of each pair, relative to their folders; the others become failures.

    Raises:
        UserError: No files, no pairs, or two that one name stands for.
    """
    image_files = find_files(images, "--images", _SUFFIXES)
    mask_files = find_files(masks, "--masks", _SUFFIXES)
    if os.path.realpath(images) == os.path.realpath(masks):
        if not mask_suffix:
            raise UserError(
                f"--images and --masks are both {images}: give --mask_suffix to tell them apart."
            )
        chosen = set(_by_stem(mask_files, mask_suffix, "--masks").values())
        image_files = [path for path in image_files if path not in chosen]
    for flag, folder, files in (("--images", images, image_files), ("--masks", masks, mask_files)):
        if not files:
            raise UserError(f"{flag} {folder}: no image files in it.")
    by_image = _by_stem(image_files, image_suffix, "--images")
    by_mask = _by_stem(mask_files, mask_suffix, "--masks")
    if not by_image.keys() & by_mask.keys():
        raise UserError(
            f"None of {len(by_image)} images in {images} has one of {len(by_mask)} masks in "
            f"{masks}." + _hint(by_image, mask_files)
        )
    for here, there, folder, lacks in (
        (by_image, by_mask, images, "no mask"),
        (by_mask, by_image, masks, "no image"),
    ):
        for name in sorted(here.keys() - there.keys()):
            outcome.failures.append((os.path.join(folder, here[name]), f"has {lacks}"))
    return [(by_image[name], by_mask[name]) for name in sorted(by_image) if name in by_mask]


def prepare_split(
    images: str,
    masks: str,
    save_dir: str | None = None,
    *,
    image_suffix: str = "",
    mask_suffix: str = "",
    deal: lists.Deal,
    options: Options,
) -> Outcome:
    """Writes train.txt and, for shares above 0, val.txt and test.txt.

    Args:
        images, masks (str): Folders; pairs have the same path inside them.
        save_dir (str): Where the lists go and what their paths start from; None takes the folder
            that holds both.
        image_suffix, mask_suffix (str): What names end with before the ending, such as "_mask".
        deal (Deal): How pairs are dealt out.
        options (Options): How to work.

    Returns:
        Outcome: Files without a partner are its failures.

    Raises:
        UserError: No pairs, or a list that exists.
    """
    outcome = Outcome()
    pairs = find_pairs(images, masks, image_suffix, mask_suffix, outcome)
    root = save_dir or os.path.commonpath([os.path.abspath(images), os.path.abspath(masks)])
    masks_of = dict(pairs)
    sets = deal.sets(masks_of)
    rows = {
        f"{name}.txt": [
            (
                lists.relative(os.path.join(images, image), root),
                lists.relative(os.path.join(masks, masks_of[image]), root),
            )
            for image in members
        ]
        for name, members in sets.items()
    }
    texts, separator = lists.list_text(rows, options.separator)
    lists.check_lists(texts, root, options.overwrite, whole=True)
    lists.write_lists(texts, root, options, outcome)
    counts = ", ".join(f"{len(members)} {name}" for name, members in sets.items())
    outcome.notes.append(f"{len(pairs)} pairs: {counts}")
    outcome.notes.append(lists.advice(root, texts, separator))
    return outcome
