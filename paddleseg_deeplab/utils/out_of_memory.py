# SPDX-License-Identifier: Apache-2.0
"""Out of memory as one line: what ran out, on which batch, and the settings that help.

Paddle has no exception of its own for it. Seen in 3.3.1 and in reports of earlier releases:
`MemoryError` from its allocators ("Out of memory error on GPU 0. Cannot allocate ...", on a CPU
"Fail to alloc memory of N size"), RuntimeError or SystemError with the same text, and OSError from
CUDA and its libraries ("CUDA error(2), out of memory", CUDNN_STATUS_ALLOC_FAILED). No Paddle is
imported before it is needed.
"""

import contextlib
import errno
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from paddleseg_deeplab.utils.errors import UserError

_WORDS = re.compile(
    r"ResourceExhausted|out of memory|cudaErrorMemoryAllocation|STATUS_ALLOC_FAILED|bad_?alloc"
    # OpenCV, ONNX Runtime and OpenVINO
    r"|-4:Insufficient memory|fail(ed)? to alloc(ate)? (memory|\d+ bytes)",
    re.IGNORECASE,
)
_SIZE = r"([\d.]+) ?([kKMGTP]?i?)B\b"
_DEVICE = re.compile(r"Out of memory error on (\w+)[ :](\d+)")
_FREE = re.compile(f"available memory is only {_SIZE}")
_NEEDED = re.compile(f"(?:Cannot|Unable to) allocate {_SIZE}")
_NEEDED_BYTES = re.compile(r"(?:alloc memory of (\d+) size|allocate (\d+) bytes)")
_ON_GPU = re.compile("CUDA|CUDNN|CUBLAS|GPU", re.IGNORECASE)
_UNITS = {
    "": 1,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
    "P": 2**50,
}  # Paddle's MB is 2**20 bytes

CHECKPOINT_KEPT = "The last checkpoint is kept: --resume_model auto goes on from it."


class OutOfMemory(UserError):
    """A device or the machine has too little memory for what was asked."""


def _chain(error):
    """The error and those that it was raised from."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__
    return seen


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it was raised from, says that memory ran out.

    Args:
        error (BaseException): Of Paddle, NumPy, OpenCV, another runtime, or Python.
    """
    return any(_says_so(one) for one in _chain(error))


def _says_so(error):
    if isinstance(error, (MemoryError, OutOfMemory)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM  # of a file or a fork; its text may hold any file name
    # A message of ours may quote a file name, too.
    ours = isinstance(error, UserError) or not isinstance(error, Exception)
    return not ours and _WORDS.search(str(error)) is not None


def _bytes_of(pattern, text):
    found = pattern.search(text)
    if found is None:
        return None
    return float(found[1]) * _UNITS[found[2][:1].upper()]


def _shown(size):
    for prefix in "PTGMK":
        if size >= _UNITS[prefix]:
            return f"{size / _UNITS[prefix]:.1f} {prefix}iB"
    return f"{size:.0f} bytes"


def _what_ran_out(error):
    """Place, bytes asked for and bytes free; the last two may be None."""
    said = [one for one in _chain(error) if _says_so(one)]
    text = " ".join(str(one) for one in said)
    device = _DEVICE.search(text)
    if device:
        place = f"{device[1]} {device[2]}"
    else:
        place = "the GPU" if _ON_GPU.search(text) else "the CPU's side (RAM)"
    needed = _bytes_of(_NEEDED, text)
    if needed is None and (plain := _NEEDED_BYTES.search(text)):
        needed = float(plain[1] or plain[2])
    return place, needed, _bytes_of(_FREE, text)


def _on_cpu():
    paddle = sys.modules.get("paddle")
    return paddle is None or paddle.get_device() == "cpu"


def training_settings(batch_size: int, precision: str = "fp32") -> list[str]:
    """The settings that make a training step take less memory.

    Args:
        batch_size (int): Images in one forward pass of one process.
        precision (str): "fp32", "fp16" or "bf16".

    Returns:
        list[str]: What applies here, what helps most first.
    """
    out = []
    if batch_size > 1:
        out.append(
            f"batch_size {batch_size // 2} with {-(-batch_size // (batch_size // 2))} times the "
            "accumulation_steps"
        )
    if precision == "fp32" and not _on_cpu():
        out.append("--precision fp16 or bf16")
    out.append("smaller crops in train_dataset.transforms")
    if _on_cpu():
        out.append("fewer --num_workers")
    return out


# Where it is not the network that took it.
HOST_SETTINGS = ("batch_size 1", "num_workers 0", "no CRF, where there is one")


def evaluation_settings(
    batch_size: int,
    precision: str = "fp32",
    window: Sequence[int] | None = None,
    scale: float = 1.0,
) -> list[str]:
    """The settings that make evaluation and prediction take less memory.

    Args:
        batch_size (int): Images that went through the network together.
        precision (str): "fp32", "fp16" or "bf16".
        window (Sequence[int], optional): (width, height) of the sliding window that was used.
        scale (float): The largest of the scales.

    Returns:
        list[str]: What applies here, what helps most first.
    """
    if window:
        out = [f"a crop_size smaller than {window[0]} x {window[1]}"]
    else:
        windows = "slide_above 1 (of the training crop), or is_slide with crop_size and stride"
        out = [f"windows: {windows}"]
    if scale > 1:
        out.append(f"scales below {scale:g}")
    if batch_size > 1:
        out.append("a smaller batch_size")
    if _on_cpu():
        out.append("num_workers 0")
    elif precision == "fp32":
        out.append("precision fp16")
    return out


def explain(
    error: BaseException,
    *,
    what: str,
    image_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    settings: Sequence[str] = (),
    note: str = "",
) -> OutOfMemory:
    """The exception to show in place of one that says that memory ran out.

    Args:
        error (BaseException): For which `is_out_of_memory` is True.
        what (str): What was being done, such as "training"; follows "while".
        image_size (Sequence[int], optional): (width, height) of the network's input.
        batch_size (int, optional): Images in the batch.
        precision (str, optional): "fp32", "fp16" or "bf16".
        settings (Sequence[str]): Those that help, as of `training_settings`.
        note (str): A sentence for the end, such as `CHECKPOINT_KEPT`.

    Returns:
        OutOfMemory: Its text is one line. `error` itself where it is one already.
    """
    for one in _chain(error):
        if isinstance(one, OutOfMemory):
            return one
    place, needed, free = _what_ran_out(error)
    figures = [] if needed is None else [f"{_shown(needed)} more asked for"]
    figures += [] if free is None else [f"{_shown(free)} free"]
    text = f"Out of memory on {place} while {what}"
    text += f" ({', '.join(figures)})" if figures else ""
    if image_size is not None:
        images = "1 image" if batch_size in (None, 1) else f"{batch_size} images"
        text += f": {images} of {image_size[0]} x {image_size[1]} pixels (width x height)"
        text += f" in {precision}" if precision else ""
    text += "."
    if settings:
        text += f" What helps: {'; '.join(settings)}."
    return OutOfMemory(" ".join(f"{text} {note}".split()))


@contextlib.contextmanager
def explained(**facts: Any) -> Iterator[None]:
    """Raises `OutOfMemory` in place of what says inside that memory ran out.

    What the failed work held is let go, and the device's cache is emptied, so that the process can
    go on with something smaller. Every other exception passes.

    Args:
        **facts: Keyword arguments of `explain`.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raised = explain(error, **facts)
        if raised in _chain(error):
            raise
        release(error)
        raise raised from error


def release(error: BaseException | None = None) -> None:
    """Gives memory that no tensor uses back to the device, and what an exception holds before.

    Args:
        error (BaseException, optional): Its traceback's frames, which are no longer running, lose
            their local variables: a forward pass's activations among them.
    """
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    paddle = sys.modules.get("paddle")
    if paddle is None or not paddle.device.is_compiled_with_cuda():
        return
    # After a failed allocation Paddle raises CUDA's error once more here (its issue 43211).
    with contextlib.suppress(OSError, RuntimeError):
        paddle.device.cuda.empty_cache()
