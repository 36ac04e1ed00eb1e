# SPDX-License-Identifier: Apache-2.0
"""Lists of train, val and test from a folder of images and one of masks."""

import dataclasses
import os
from collections.abc import Sequence

from paddleseg_deeplab.tools.prepare_dataset import lists
from paddleseg_deeplab.tools.prepare_dataset.jobs import Options, Outcome, find_files, inner
from paddleseg_deeplab.tools.prepare_dataset.whole_set import UNLABELLED
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.files.folders import IMAGE_EXTENSIONS
from paddleseg_deeplab.utils.files.written import same

_SUFFIXES = (*IMAGE_EXTENSIONS, ".npy")


def _by_stem(files, suffix, flag):
    """{path without suffix and ending: path} of those that have the suffix.

    Raises:
        UserError: Two files that differ in their ending only.
    """
    found = {}
    for path in files:
        stem = same(os.path.splitext(path)[0])
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


@dataclasses.dataclass(frozen=True)
class Pairing:
    """How images and masks in two folders are put together.

    Attributes:
        image_suffix, mask_suffix (str): What names end with before the ending, such as "_mask".
        unlabelled (str): What becomes of images without a mask: "background", "skip", or None,
            which names them as failures.
    """

    image_suffix: str = ""
    mask_suffix: str = ""
    unlabelled: str | None = None

    def find(
        self, images: str, masks: str, outcome: Outcome, but: Sequence[str] = ()
    ) -> tuple[list[tuple[str, str]], list[str], list[str]]:
        """Pairs of two folders; files without a partner become failures.

        Args:
            images, masks (str): The folders.
            outcome (Outcome): Gets the failures.
            but (Sequence[str]): Folders that are left out.

        Returns:
            tuple: (image, mask) of each pair and the images that shall be background, relative to
            their folders; sentences about images without a mask.

        Raises:
            UserError: No files, no pairs, or two that one name stands for.
        """
        by_image, by_mask = self._files(images, masks, but)
        alone = [by_image[name] for name in sorted(by_image.keys() - by_mask.keys())]
        for name in alone if self.unlabelled is None else ():
            outcome.failures.append((os.path.join(images, name), "has no mask"))
        for name in sorted(by_mask.keys() - by_image.keys()):
            outcome.failures.append((os.path.join(masks, by_mask[name]), "has no image"))
        notes = []
        if alone and self.unlabelled is not None:
            notes = [f"{len(alone)} images without a mask: {UNLABELLED[self.unlabelled]}"]
        pairs = [(by_image[name], by_mask[name]) for name in sorted(by_image) if name in by_mask]
        return pairs, alone if self.unlabelled == "background" else [], notes

    def _files(self, images, masks, but):
        """{name without suffix and ending: path} of images and of masks."""
        image_files = find_files(images, "--images", _SUFFIXES, [*but, *inner(masks, images)])
        mask_files = find_files(masks, "--masks", _SUFFIXES, [*but, *inner(images, masks)])
        if os.path.realpath(images) == os.path.realpath(masks):
            if not self.mask_suffix:
                raise UserError(
                    f"--images and --masks are both {images}: give --mask_suffix to tell them "
                    "apart."
                )
            chosen = set(_by_stem(mask_files, self.mask_suffix, "--masks").values())
            image_files = [path for path in image_files if path not in chosen]
        folders = (("--images", images, image_files), ("--masks", masks, mask_files))
        for flag, folder, files in folders:
            if not files:
                raise UserError(f"{flag} {folder}: no image files in it.")
        by_image = _by_stem(image_files, self.image_suffix, "--images")
        by_mask = _by_stem(mask_files, self.mask_suffix, "--masks")
        if not by_image.keys() & by_mask.keys():
            raise UserError(
                f"None of {len(by_image)} images in {images} has one of {len(by_mask)} masks in "
                f"{masks}." + _hint(by_image, mask_files)
            )
        return by_image, by_mask


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
    pairs, _, _ = Pairing(image_suffix, mask_suffix).find(images, masks, outcome)
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
