# SPDX-License-Identifier: Apache-2.0
"""Pictures of labels: palettes, overlays, side-by-side sheets, confusion matrices. No Paddle.

Colours are RGB, uint8, everywhere in this file; only `save_image` knows that OpenCV wants BGR.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.metrics import check_class_names
from paddleseg_deeplab.utils.pictures.drawing import blank, put_text, text_width

# Labels outside the palette, void (255) first of all, in the colour that Pascal VOC gives it.
VOID_COLOR = (224, 224, 192)
_INK = (20, 20, 20)


def voc_palette(num_classes: int) -> np.ndarray:
    """The colour table of the PASCAL VOC devkit: uint8 [num_classes, 3], RGB.

    Bit 3k, 3k + 1 and 3k + 2 of a class number go to bit 7 - k of red, green and blue.
    """
    numbers = np.arange(num_classes)
    table = np.zeros((num_classes, 3), np.uint8)
    for k in range(8):
        for channel in range(3):
            bit = (numbers >> (3 * k + channel)) & 1
            table[:, channel] |= (bit << (7 - k)).astype(np.uint8)
    return table


def default_palette(num_classes: int, custom_color: Sequence[int] | None = None) -> np.ndarray:
    """PaddleSeg's colours: `voc_palette` from its second entry on, so class 0 is dark red.

    Args:
        num_classes (int): Number of colours, 1 to 256.
        custom_color (list[int], optional): R, G, B, R, G, B, ... for the first classes.

    Returns:
        np.ndarray: uint8 [num_classes, 3].

    Raises:
        UserError: `custom_color` is no list of whole colours in 0..255.
    """
    palette = voc_palette(num_classes + 1)[1:]
    if custom_color is not None and len(custom_color):
        colors = np.asarray(custom_color).reshape(-1)
        if colors.size % 3 or colors.min() < 0 or colors.max() > 255:
            raise UserError(
                f"custom_color takes three numbers in 0..255 a class, got {list(custom_color)}."
            )
        colors = colors.reshape(-1, 3)[:num_classes]
        palette[: len(colors)] = colors
    return palette


def get_color_map_list(num_classes: int, custom_color: Sequence[int] | None = None) -> list[int]:
    """PaddleSeg's call: the colours of `default_palette` as one flat list of int."""
    return default_palette(num_classes, custom_color).reshape(-1).tolist()


def _full_palette(palette):
    """Any palette as uint8 [256, 3], void's colour where it has none."""
    palette = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)[:256]
    full = np.empty((256, 3), dtype=np.uint8)
    full[:] = VOID_COLOR
    full[: len(palette)] = palette
    return full


def _byte_labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(f"Labels are integers [H, W], got {labels.dtype} {labels.shape}.")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"Labels should lie in 0..255, got {labels.min()}..{labels.max()}.")
    return labels.astype(np.uint8)


def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Paints a label map.

    Args:
        labels (np.ndarray): Integers 0..255 [H, W].
        palette (np.ndarray): RGB 0..255 [K, 3]; labels from K on get `VOID_COLOR`.

    Returns:
        np.ndarray: RGB uint8 [H, W, 3].
    """
    return _full_palette(palette)[_byte_labels(labels)]


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Makes an image of any channels and range displayable.

    Args:
        image (np.ndarray): [H, W] or [H, W, C]. uint8 or numbers in 0..255 are shown as they are,
            other ranges are stretched; a constant image outside 0..255 is black, and so is NaN.
            One or two channels show the first as grey, more than three the first three.

    Returns:
        np.ndarray: RGB uint8 [H, W, 3].
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if not image.size or (image.min() >= 0 and image.max() <= 255):  # never so with NaN
        return np.rint(image).astype(np.uint8)
    image = image.astype(np.float64)  # float32 has no room for the span of its own extremes
    known = np.abs(image) < 1e300
    low, high = (float(f(image[known])) for f in (np.min, np.max)) if known.any() else (0.0, 0.0)
    if low < 0 or high > 255:
        image = (image - low) * (255.0 / (high - low) if high > low else 0.0)
    image = np.nan_to_num(image, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def overlay(
    image_rgb: np.ndarray, labels: np.ndarray, palette: np.ndarray, weight: float = 0.6
) -> np.ndarray:
    """Blends the painted labels over the image.

    Args:
        image_rgb (np.ndarray): [H, W, C], see `to_rgb`.
        labels (np.ndarray): Integers 0..255 [H, W].
        palette (np.ndarray): RGB [K, 3].
        weight (float): Share of the image, 0..1; the labels have the rest. Default 0.6.

    Returns:
        np.ndarray: RGB uint8 [H, W, 3].
    """
    image = to_rgb(image_rgb)
    if image.shape[:2] != np.shape(labels):
        raise ValueError(f"Image {image.shape[:2]} and labels {np.shape(labels)} differ in size.")
    return cv2.addWeighted(image, weight, colorize(labels, palette), 1.0 - weight, 0)


def palette_png(path: str | Path, labels: np.ndarray, palette: np.ndarray) -> None:
    """Writes labels as an indexed PNG: its pixels are class numbers, its palette the colours.

    Args:
        path (str): File to write; missing folders are made.
        labels (np.ndarray): Integers 0..255 [H, W].
        palette (np.ndarray): RGB [K, 3].
    """
    from PIL import Image  # only for indexed PNGs, which OpenCV does not write

    picture = Image.fromarray(_byte_labels(labels))
    picture.putpalette(_full_palette(palette).tobytes())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(str(path), format="PNG")


def save_image(path: str | Path, rgb: np.ndarray) -> None:
    """Writes a picture in the format of the file's suffix; missing folders are made.

    OpenCV's own writer returns False where a folder is missing, and cannot write some names on
    Windows: here every failure raises.

    Args:
        path (str): File with a suffix such as .png or .jpg.
        rgb (np.ndarray): uint8 RGB [H, W, 3], or uint8 or uint16 [H, W].

    Raises:
        UserError: The suffix is no picture format that can hold the array.
        OSError: The file cannot be written.
    """
    path = Path(path)
    rgb = np.asarray(rgb)
    bgr = rgb if rgb.ndim == 2 else np.ascontiguousarray(rgb[..., ::-1])
    try:
        done, data = cv2.imencode(path.suffix or ".", bgr)
    except cv2.error:
        done = False
    if not done:
        raise UserError(
            f"{path}: cannot write {rgb.dtype} {rgb.shape} in the format {path.suffix!r}; "
            "use .png or .jpg."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _shown_name(index, name):
    """The text to draw: OpenCV 4's font has ASCII only, so other names show their number."""
    name = str(name)
    return name if name.isascii() and name.isprintable() and name else f"class {index}"


def _put(canvas, text, x, y, scale=0.45, color=_INK):
    put_text(canvas, text, x, y, scale, color)


def legend(palette: np.ndarray, class_names: Sequence[str], width: int = 480) -> np.ndarray:
    """Colour patches with class names, in as many rows as the width needs.

    Args:
        palette (np.ndarray): RGB [K, 3].
        class_names (list[str]): K names; names outside ASCII are shown as ``class <number>``.
        width (int): Width in pixels.

    Returns:
        np.ndarray: RGB uint8 [h, width, 3].
    """
    names = [_shown_name(i, name) for i, name in enumerate(class_names)]
    places, x, y = [], 8, 6
    for name in names:
        needed = 22 + text_width(name, 0.45) + 14
        if x > 8 and x + needed > width:
            x, y = 8, y + 22
        places.append((x, y))
        x += needed
    canvas = blank(y + 24, width)
    colors = _full_palette(palette)
    for i, (name, (x, y)) in enumerate(zip(names, places)):
        canvas[y : y + 14, x : x + 16] = colors[i]
        cv2.rectangle(canvas, (x, y), (x + 16, y + 14), _INK, 1)
        _put(canvas, name, x + 22, y + 12)
    return canvas


def side_by_side(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    palette: np.ndarray,
    class_names: Sequence[str],
) -> np.ndarray:
    """One picture: image, truth and prediction with titles, and a legend below.

    Args:
        image (np.ndarray): [H, W, C], see `to_rgb`.
        truth (np.ndarray, optional): Integers 0..255 [H, W]; None leaves the panel out.
        prediction (np.ndarray): Integers 0..255 [H, W].
        palette (np.ndarray): RGB [K, 3].
        class_names (list[str]): K names.

    Returns:
        np.ndarray: RGB uint8, panels at the image's size.
    """
    panels = [("image", to_rgb(image))]
    if truth is not None:
        panels.append(("truth", colorize(truth, palette)))
    panels.append(("prediction", colorize(prediction, palette)))
    height, width = panels[0][1].shape[:2]
    for title, panel in panels:
        if panel.shape[:2] != (height, width):
            raise ValueError(f"The {title} {panel.shape[:2]} and the image {height, width} differ.")
    gap, head = 6, 24
    step = max(width, 90) + gap  # room for the title over a narrow image
    canvas = blank(head + height + gap, step * len(panels) + gap)
    for i, (title, panel) in enumerate(panels):
        x = gap + i * step
        _put(canvas, title, x, 17, 0.5)
        canvas[head : head + height, x : x + width] = panel
    return np.concatenate([canvas, legend(palette, class_names, canvas.shape[1])])


def _shade(share):
    """White to dark blue for 0..1."""
    return tuple(round(255 + (end - 255) * float(share)) for end in (8, 48, 107))


def confusion_matrix_picture(matrix: np.ndarray, class_names: Sequence[str] | None) -> np.ndarray:
    """Draws a confusion matrix, each row in per cent of the true pixels of its class.

    Rows are the truth and columns the prediction. Up to 40 classes the cells hold their values;
    with more they are colour alone. A row without true pixels is grey.

    Args:
        matrix (np.ndarray): Counts [K, K], truth by prediction.
        class_names (list[str]): K names.

    Returns:
        np.ndarray: RGB uint8.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    k = len(matrix)
    names = [_shown_name(i, n) for i, n in enumerate(check_class_names(class_names, k))]
    rows = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, rows, out=np.zeros_like(matrix), where=rows > 0)
    cell = 40 if k <= 40 else 12
    scale = 0.42 if k <= 40 else 0.3
    margin = max(text_width(name, scale) for name in names) + 16
    left, top = margin + 24, margin + 44
    canvas = blank(top + k * cell + 12, max(left + k * cell + 12, 360))
    for i in range(k):
        for j in range(k):
            y, x = top + i * cell, left + j * cell
            empty = rows[i, 0] == 0
            canvas[y : y + cell - 1, x : x + cell - 1] = (
                (225, 225, 225) if empty else _shade(share[i, j])
            )
            if k <= 40 and not empty and share[i, j] >= 0.0005:
                percent = 100 * share[i, j]
                text = f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"
                color = (255, 255, 255) if share[i, j] > 0.5 else _INK
                _put(canvas, text, x + (cell - text_width(text, 0.38)) // 2, y + 24, 0.38, color)
    baseline = cell / 2 + 4
    for i, name in enumerate(names):
        _put(canvas, name, left - 8 - text_width(name, scale), top + i * cell + baseline, scale)
    # Column names are drawn lying on a strip that is then turned a quarter.
    strip = blank(k * cell, margin)
    for i, name in enumerate(names):
        _put(strip, name, 8, i * cell + baseline, scale)
    turned = cv2.rotate(strip, cv2.ROTATE_90_COUNTERCLOCKWISE)
    canvas[top - margin : top, left : left + k * cell] = turned
    _put(canvas, "Confusion matrix, % of the true pixels of a class", 8, 18, 0.45)
    _put(canvas, "columns: prediction, rows: truth", 8, 36, 0.38)
    return canvas
