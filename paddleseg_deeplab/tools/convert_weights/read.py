# SPDX-License-Identifier: Apache-2.0
"""Tables of tensors from the files of other frameworks, as NumPy arrays. Runs nobody's code."""

import os

import numpy as np

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.weights.safetensors import read_safetensors, readable

# Keys under which training scripts keep the state_dict beside other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net")


_MAX_NPZ = 16 << 30  # bytes unpacked


_TORCH_MISSING = (
    "Reading {file} needs torch, which is not installed. Install it (pip install torch; the CPU "
    "build will do), or save the weights where torch is: "
    "safetensors.torch.save_file(state_dict, 'weights.safetensors'), and give that file."
)


def read_tensors(file: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads a file of named tensors.

    Args:
        file (str): ``.pth``, ``.pt`` or ``.bin`` (torch, imported now, ``weights_only``),
            ``.safetensors``, ``.npz`` or ``.pdparams``.

    Returns:
        tuple[dict[str, np.ndarray], list[str]]: the tensors, floating ones as float32, and
        sentences about what was unwrapped to get at them.

    Raises:
        UserError: the file is missing, broken, of an unknown kind, holds something other than
            tensors or numbers that are not finite, or needs a package that is not installed.
    """
    file = os.fspath(file)
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in _READERS:
        raise UserError(
            f"{file}: weights are read from {', '.join(_READERS)}, not from {suffix or 'a file'!r}"
            f"{'' if suffix else ' without a suffix'}."
        )
    if not os.path.isfile(file):
        raise UserError(f"There are no weights at {file}: no such file.")
    tensors, notes = _READERS[suffix](file)
    if not tensors:
        raise UserError(f"{file} holds no tensor.")
    tensors = {name: _plain(value, name, file) for name, value in tensors.items()}
    from paddleseg_deeplab.utils.weights.load import check_finite_weights

    check_finite_weights(tensors, f"The weights in {file}")
    return tensors, notes


def _read_torch(file):
    try:
        import torch
    except ImportError as e:
        raise UserError(_TORCH_MISSING.format(file=file)) from e
    import pickle

    with readable(file, "torch"):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as e:
            raise UserError(
                f"{file} holds more than tensors, or is damaged. Only tensors are loaded from a "
                "pickle (weights_only), since the rest may run any code. If you trust the file, "
                "save its tensors alone where it came from: torch.save(model.state_dict(), ...)."
            ) from e
    state, notes = _unwrapped(content, file)
    return {name: _from_torch(value) for name, value in state.items()}, notes


def _from_torch(value):
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def _unwrapped(content, file):
    """The table of tensors in what was pickled."""
    notes = []
    while isinstance(content, dict) and not all(map(_is_tensor, content.values())):
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), dict)), None)
        if key is None:
            break
        others = [str(k) for k in content if k != key]
        notes.append(
            f"took the tensors under {key!r}" + (f", left {', '.join(others)}" if others else "")
        )
        content = content[key]
    if not isinstance(content, dict) or not all(map(_is_tensor, content.values())):
        strange = type(content).__name__
        if isinstance(content, dict):
            strange = ", ".join(str(k) for k, v in content.items() if not _is_tensor(v))
        raise UserError(
            f"{file} is no table of tensors by name (found: {strange}); save model.state_dict()."
        )
    return {str(name): value for name, value in content.items()}, notes


def _is_tensor(value):
    return hasattr(value, "detach") and hasattr(value, "shape")


def _read_safetensors(file):
    return read_safetensors(file), []


def _read_npz(file):
    with readable(file, ".npz"), np.load(file, allow_pickle=False) as archive:
        unpacked = sum(member.file_size for member in archive.zip.infolist())
        if unpacked > _MAX_NPZ:
            raise ValueError(f"it unpacks to {unpacked} bytes")
        return {name: archive[name] for name in archive.files}, []


def _read_paddle(file):
    from paddleseg_deeplab.utils.weights.load import read_weights

    def array(value):
        is_array = isinstance(value, np.ndarray)
        return (
            value if is_array else (value.astype("float32") if _is_float(value) else value).numpy()
        )

    return {name: array(value) for name, value in read_weights(file).items()}, []


def _is_float(tensor):
    return "float" in str(tensor.dtype)


def _plain(value, name, file):
    """As float32 where it is floating."""
    kind = getattr(value, "dtype", type(value).__name__)
    if getattr(kind, "kind", None) not in tuple("fiub"):
        raise UserError(f"{file}: {name} holds {kind}, not numbers.")
    if value.dtype.kind != "f":
        return value
    with np.errstate(over="ignore"):  # `read_tensors` tells of it
        return value.astype(np.float32, copy=False)


_READERS = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pdparams": _read_paddle,
}
