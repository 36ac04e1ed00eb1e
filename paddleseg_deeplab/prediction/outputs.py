# SPDX-License-Identifier: Apache-2.0
"""Which images to predict, how their results are called, and writing them. No Paddle here.

``predict.py`` and ``deploy/python/infer.py`` both stand on this file, so their results lie under
the same names. PaddleSeg names a result after the image's base name alone, so ``day/1.jpg`` and
``night/1.jpg`` (or ``1.jpg`` and ``1.png``) overwrite each other; here no two results share a name.
"""

import glob
import os
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from paddleseg_deeplab.transforms.reading.values import mark_void
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import DiskError, UserError
from paddleseg_deeplab.utils.files import written
from paddleseg_deeplab.utils.files.folders import (
    ARRAY_EXTENSION,
    IMAGE_EXTENSIONS,
    UNREAD_EXTENSIONS,
    LeftOut,
    is_hidden,
    walk,
)
from paddleseg_deeplab.utils.logger import logger

# Between an image and its mask in a list; a blank comes last, as names may hold some.
LIST_SEPARATORS = ("\t", ",", ";", "|")
_LIST_EXTENSIONS = (".txt", ".lst", ".csv", ".tsv")

# What can be written of each image -> the sub folder it goes to and its extension. The first two
# folders carry the names that PaddleSeg's predict.py gives them.
PICTURES = {
    "overlay": ("added_prediction", ".png"),
    "palette": ("pseudo_color_prediction", ".png"),
    "raw": ("raw_prediction", ".png"),
    "prob": ("probability", ".npy"),
}
# `annotations.py` makes these, and what is written once for a whole run.
SHAPES = {
    "labelme": ("labelme", ".json"),
    "labelme_polygons": ("labelme_polygons", ".json"),
}
RUN_OUTPUTS = {"coco": "coco.json", "areas": "areas.csv"}
OUTPUTS = {**PICTURES, **SHAPES}


def collect_images(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], exclude: str | None = None
) -> tuple[list[str], str]:
    """Lists the images that ``path`` stands for.

    Args:
        path (str | os.PathLike | Sequence[str]): An image; a folder, searched recursively for
            the extensions in ``IMAGE_EXTENSIONS`` or, where it has none, for ``.npy``; a text file
            with one image a line, or an image and its mask with any separator that the lists of
            a dataset may have (relative paths start at the text file's folder, else at the
            current one); a glob pattern (``**`` allowed); or a sequence of all these.
        exclude (str | None): A folder that is skipped while searching, such as the one that
            results are written to.

    Returns:
        tuple[list[str], str]: Paths, sorted except where a list gives the order, without
        duplicates, and the folder that their result names are relative to. Files named in a list
        or a sequence need not exist: they are reported when they are read.

    Raises:
        UserError: nothing there, no image in it, or a file that is neither image nor list.
    """
    if isinstance(path, (str, os.PathLike)):
        return _images_of(os.fspath(path), exclude)
    paths: list[str] = []
    for each in (written.meant(os.fspath(p)) for p in path):
        several = os.path.isdir(each) or _is_list(each)
        several |= glob.has_magic(each) and not os.path.isfile(each)
        paths += _images_of(each, exclude)[0] if several else [each]
    paths = list(dict.fromkeys(paths))
    return paths, common_root(paths)


def _images_of(path, exclude):
    path = written.meant(path)
    if os.path.isdir(path):
        paths, root = _search_folder(path, exclude), path
    elif os.path.isfile(path):
        if path.lower().endswith((*IMAGE_EXTENSIONS, ARRAY_EXTENSION)):
            return [path], os.path.dirname(path)
        paths = _read_list(path)
        root = common_root(paths) if paths else ""
    elif glob.has_magic(path):
        found = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        root = _glob_root(path)
        paths = [p for p in found if not any(map(is_hidden, _below(p, root)[:-1]))]
        paths = _images_among(paths)
    else:
        raise UserError(f"{path}: there is no such image, folder or list file.{written.hint(path)}")
    if not paths:
        known = " ".join(e[1:] for e in IMAGE_EXTENSIONS)
        raise UserError(f"{path}: no images there (extensions looked for: {known}).")
    return paths, root


def _is_list(path):
    return os.path.isfile(path) and path.lower().endswith(_LIST_EXTENSIONS)


def _below(path, root):
    return os.path.relpath(path, root or os.curdir).split(os.sep)


def _search_folder(folder, exclude):
    skip = os.path.realpath(exclude) if exclude else None
    # A folder given as its own results folder is searched all the same: its sub folders of
    # results are what has to be left out then.
    skipped = {skip} if skip else set()
    if skip == os.path.realpath(folder):
        skipped = {os.path.join(skip, sub) for sub, _ in OUTPUTS.values()}
    left_out = LeftOut()
    found = walk(folder, (*IMAGE_EXTENSIONS, ARRAY_EXTENSION), skipped, left_out)
    left_out.tell(folder)
    return _images_among([os.path.join(folder, *name.split("/")) for name in found])


def _images_among(paths):
    """The pictures, or where there is none the arrays (images of other channels than 1, 3, 4)."""
    pictures = [p for p in paths if p.lower().endswith(IMAGE_EXTENSIONS)]
    return pictures or [p for p in paths if p.lower().endswith(ARRAY_EXTENSION)]


def _read_list(path):
    ending = os.path.splitext(path)[1].lower()
    if ending in UNREAD_EXTENSIONS:
        raise UserError(f"{path}: pictures of the kind {ending} are not read. Convert it to PNG.")
    try:
        lines = [line.strip() for line in written.read_text(path).splitlines()]
    except UserError as error:
        raise UserError(
            f"{path}: neither an image (by its extension) nor a text file that lists images. "
            f"As a list: {error}"
        ) from error
    base = os.path.dirname(path)
    paths = [_find_listed(line, base) for line in lines if line and not line.startswith("#")]
    if paths and not any(map(os.path.isfile, paths)):
        raise UserError(
            f"{path}: none of the {len(paths)} images that it lists is there, such as "
            f"{paths[0]!r}.{written.hint(paths[0])}"
        )
    return list(dict.fromkeys(paths))


def _find_listed(line, base):
    """The image that a line names: the whole line (it may hold blanks), or its first field.

    The separator is the first of `LIST_SEPARATORS` after which an image is there.
    """
    fields = [line, *(line.split(s)[0].strip() for s in LIST_SEPARATORS if s in line)]
    words = line.split()
    fields += [" ".join(words[:count]) for count in range(len(words) - 1, 0, -1)]
    places = [os.path.join(root, name) for name in fields for root in (base, "")]
    for place in places:
        if os.path.isfile(place):
            return place
    for name in fields:
        for root in (base, ""):
            found = written.find(name, root)
            if found is not None:
                return found[0]
    return os.path.join(base, fields[1] if len(fields) > 1 else line)


def common_root(paths: list[str]) -> str:
    """The deepest folder that holds all of ``paths``; empty when there is none (other drives).

    Raises:
        UserError: There are no paths.
    """
    if not paths:
        raise UserError("No image was given; name at least one.")
    try:
        return os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in paths])
    except ValueError:
        return ""


def _glob_root(pattern):
    fixed = []
    for part in os.path.dirname(pattern).split(os.sep):
        if glob.has_magic(part):
            break
        fixed.append(part)
    return os.sep.join(fixed) or (os.sep if pattern.startswith(os.sep) else "")


def output_names(paths: Sequence[str], root: str = "") -> list[str]:
    """Result names for ``paths``: unique, relative to ``root``, without extension.

    The folders below ``root`` are kept. Where images differ by their extension alone, each gets
    it appended (``a.jpg`` and ``a.png`` give ``a_jpg`` and ``a_png``); if even that is taken, a
    number follows. Upper and lower case count as equal, as they do on some file systems.

    Args:
        paths (Sequence[str]): Image paths.
        root (str): Folder that `collect_images` returned with them.

    Returns:
        list[str]: One name per path, with ``os.sep`` between folders, never leading outside.
    """
    base = os.path.abspath(root or os.curdir)
    stems, extensions = [], []
    for path in paths:
        full = os.path.abspath(path)
        try:
            relative = os.path.relpath(full, base)
        except ValueError:  # another drive
            relative = os.path.basename(full)
        parts = [p for p in relative.split(os.sep) if p not in (os.pardir, os.curdir, "")]
        stem, extension = os.path.splitext(os.path.join(*parts))
        stems.append(stem)
        extensions.append(extension[1:])
    count: dict[str, int] = {}
    for stem in stems:
        count[stem.casefold()] = count.get(stem.casefold(), 0) + 1
    # Names that clash with nobody are given first: an image keeps its plain name where it can.
    taken = {stem.casefold() for stem in stems if count[stem.casefold()] == 1}
    names = []
    for stem, extension in zip(stems, extensions):
        name = stem
        if count[stem.casefold()] > 1:
            name = _free_name(f"{stem}_{extension}".rstrip("_"), taken)
            taken.add(name.casefold())
        names.append(name)
    return names


def _free_name(name, taken):
    candidate, number = name, 2
    while candidate.casefold() in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def parse_outputs(text: str | Iterable[str]) -> tuple[str, ...]:
    """Turns ``"overlay,palette"`` (or a list of such words) into a tuple of known kinds."""
    words = text.replace(",", " ").split() if isinstance(text, str) else list(text)
    known = (*OUTPUTS, *RUN_OUTPUTS)
    for word in words:
        if word not in known:
            raise UserError(f"--outputs knows {', '.join(known)}, not {word!r}.")
    if not words:
        raise UserError(f"--outputs is empty; choose from {', '.join(known)}.")
    return tuple(dict.fromkeys(words))


def check_save_dir(path: str | os.PathLike[str], flag: str = "--save_dir") -> None:
    """Fails before the work, not after it, where results cannot be written; makes nothing.

    Args:
        path (str): The folder, which need not exist.
        flag (str): What gave it, for the message.

    Raises:
        UserError: It or a folder above it is a file, or nothing may be written there.
    """
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise UserError(f"{flag} {path}: {there} is a file; give a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {there} cannot be written; give another folder.")


def write_outputs(
    save_dir: str,
    name: str,
    *,
    image: np.ndarray,
    labels: np.ndarray,
    palette: np.ndarray,
    probabilities: np.ndarray | None = None,
    outputs: Iterable[str] = ("overlay", "palette"),
    nodata: np.ndarray | None = None,
) -> dict[str, str]:
    """Writes the results of one image.

    Args:
        save_dir (str): Folder of all results; sub folders are made as needed.
        name (str): Name from `output_names`.
        image (np.ndarray): The original picture, [H, W, C], RGB order, values 0..255.
        labels (np.ndarray): Predicted classes, integers [H, W].
        palette (np.ndarray): uint8 [num_classes, 3] RGB.
        probabilities (np.ndarray | None): float [C, H, W]; needed for ``"prob"`` only.
        outputs (Sequence[str]): Keys of ``PICTURES``.
        nodata (np.ndarray | None): bool [H, W], pixels without data: their labels are written as
            void, 255. Probabilities stay as they are.

    Returns:
        dict[str, str]: kind -> path written.
    """
    written = {}
    labels = mark_void(labels, nodata)
    for kind in outputs:
        folder, extension = PICTURES[kind]
        path = os.path.join(save_dir, folder, name + extension)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "overlay":
            visualize.save_image(path, visualize.overlay(image, labels, palette))
        elif kind == "palette":
            visualize.palette_png(path, labels, palette)
        elif kind == "raw":
            write_ids(path, labels)
        else:
            if probabilities is None:
                raise ValueError("The output 'prob' needs probabilities [C, H, W]; got None.")
            np.save(path, np.asarray(probabilities, np.float32))
        written[kind] = path
    return written


def disk_error(save_dir: str, error: OSError) -> DiskError:
    """The error to raise where a file of the results cannot be written, nor could any other."""
    reason = error.strerror or str(error)
    return DiskError(
        f"{save_dir}: {reason}. Nothing more can be written there; what is written stays. Make "
        "room or give another --save_dir, and run it again."
    )


def write_ids(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Writes integer labels [H, W] as a grey PNG: 8 bit, or 16 where a class is above 255.

    Raises:
        OSError: the file could not be written.
    """
    labels = np.asarray(labels)
    dtype = np.uint8 if labels.size == 0 or labels.max() <= 255 else np.uint16
    done, data = cv2.imencode(".png", labels.astype(dtype))
    if not done:
        raise OSError(f"{path}: OpenCV could not encode labels of shape {labels.shape}.")
    # cv2.imwrite neither raises nor takes every file name on every system; a plain file does.
    with open(path, "wb") as f:
        f.write(data.tobytes())


def report_failures(
    failures: Sequence[tuple[str, str]], total: int, save_dir: str, *, left_out: int = 0
) -> int:
    """Says at the end of a run what was done and which images were not.

    Args:
        failures (Sequence[tuple[str, str]]): Path and reason of each image left out.
        total (int): Images asked for.
        save_dir (str): Where the results lie.
        left_out (int): So many failures are left out, since the caller names them.

    Returns:
        int: Exit status: 0, or 2 where an image is missing from the results.
    """
    logger.info("%d of %d images done, results in %s", total - len(failures), total, save_dir)
    for path, reason in failures[left_out:]:
        logger.error("not done: %s", reason if path in reason else f"{path}: {reason}")
    return 2 if failures else 0
