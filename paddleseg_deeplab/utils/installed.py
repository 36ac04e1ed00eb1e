# SPDX-License-Identifier: Apache-2.0
"""Says in one line what is wrong with an installed package: missing, too old, doubled or broken.

`guard_imports` puts a finder before Python's own, which looks on when one of the packages below is
imported for the first time, in whichever file that stands. Paddle's version is read from its
metadata before anything of it runs: an old Paddle beside NumPy 2 ends in a segmentation fault.
"""

import contextlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path

from paddleseg_deeplab.utils.errors import PackageError

# Module: what installs it. Paddle is told of by itself; extras are imported by `import_extra`.
_DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "numpy": "numpy",
    "PIL": "Pillow",
    "tqdm": "tqdm",
    "visualdl": "visualdl",
    "yaml": "pyyaml",
}
_LEAST = 3  # Paddle's first release that counts here; NumPy 2 and the exported formats need it
_GUIDE = "https://www.paddlepaddle.org.cn/en/install/quick"
_INSTALL = (
    f"for a CPU run pip install 'paddlepaddle>={_LEAST}.0', for a GPU the command for "
    f"paddlepaddle-gpu that the installation guide {_GUIDE} gives (without the guide's index "
    "address pip brings 2.6.2)"
)
_PADDLE_MISSING = f"PaddlePaddle is not installed: {_INSTALL}."
# What a loader's message holds and what helps; the first that fits counts.
_CURES = {
    "cv2": (
        (
            r"lib\S+\.so\S*: cannot open shared object",
            "Either run pip uninstall -y opencv-python opencv-contrib-python, then pip install "
            "opencv-python-headless, which needs no such library; or install the system's: apt-get "
            "install libgl1 libglib2.0-0.",
        ),
    ),
    "paddle": (
        (
            r"libgomp",
            "Install the system's library: apt-get install libgomp1.",
        ),
        (
            r"lib(cu|nv|nccl)\S*\.so",
            "A GPU build needs NVIDIA's driver and CUDA libraries (in Docker: --gpus all). Without "
            "a GPU run pip uninstall -y paddlepaddle-gpu, then pip install "
            f"'paddlepaddle>={_LEAST}.0'.",
        ),
        (
            r"GLIBC|CXXABI",
            "The system's C libraries are older than this build of Paddle: use a newer system or "
            f"container, or another build of {_GUIDE}.",
        ),
    ),
}
_HAS_PADDLE = "\npaddle/__init__.py,"  # a line of a RECORD
_REASON_LENGTH = 300  # characters; NumPy's messages fill a page


class _Guard:
    """A finder that finds as the others do and has the import told in one line where it fails."""

    def find_spec(self, name, path=None, target=None):
        if name not in _DISTRIBUTIONS and name != "paddle":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find and find(name, path, target)
            if spec:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """Stands for another loader until the module is executed."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        if self._loader is None:  # a folder of that name without code
            raise explain(ModuleNotFoundError(name=spec.name))
        with _told(spec):  # a module in C is loaded here
            return self._loader.create_module(spec)

    def exec_module(self, module):
        spec = module.__spec__
        module.__loader__ = spec.loader = self._loader
        if spec.name == "paddle":
            fault = _paddle_fault(spec)
            if fault:
                raise PackageError(fault)
        if spec.name == "cv2":
            importlib.import_module("numpy")  # without it OpenCV prints three lines to stdout
        with _told(spec):
            self._loader.exec_module(module)


class _Held:
    """A stream that keeps what is written until it is released; loggers may hold on to it."""

    def __init__(self, stream):
        self._stream = stream
        self._texts = []

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        if self._texts is None:
            return self._stream.write(text)
        self._texts.append(text)
        return len(text)

    def release(self):
        texts, self._texts = self._texts, None
        if texts:
            self._stream.write("".join(texts))


@contextlib.contextmanager
def _told(spec):
    # OpenCV, NumPy and Paddle print lines of their own before they fail.
    held = _Held(sys.stderr or io.StringIO())
    try:
        with contextlib.redirect_stderr(held):
            yield
    except PackageError:
        raise
    except Exception as error:  # OpenCV and Paddle raise many kinds
        raise explain(error) or _broken(spec.name, error) from error
    except BaseException:
        held.release()
        raise
    held.release()


def guard_imports() -> None:
    """Has the first import of Paddle, OpenCV, NumPy and the like raise `PackageError` if it fails.

    Where a package is missing Python's own ModuleNotFoundError is raised; see `explain`.
    """
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def require_paddle() -> None:
    """Raises `PackageError`, with the commands that help, where Paddle is missing or not right."""
    fault: str | None = _PADDLE_MISSING
    if sys.modules.get("paddle"):
        spec = sys.modules["paddle"].__spec__
        fault = _paddle_fault(spec) if spec else None
    elif _is_there("paddle"):
        spec = importlib.util.find_spec("paddle")
        fault = _paddle_fault(spec) if spec and spec.origin else _PADDLE_MISSING
    if fault:
        raise PackageError(fault)


def explain(error: BaseException) -> PackageError | None:
    """What an error at an import says to the person at the keyboard.

    Args:
        error (Exception): Any.

    Returns:
        PackageError or None: None where it is about something else.
    """
    if isinstance(error, PackageError):
        return error
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name == "paddle":
        return PackageError(_PADDLE_MISSING)
    if name not in _DISTRIBUTIONS:
        return None
    missing = [d for m, d in _DISTRIBUTIONS.items() if m == name or not _is_there(m)]
    headless = " (opencv-python-headless does as well)" if "opencv-python" in missing else ""
    return PackageError(
        f"{sys.executable} lacks {', '.join(missing)}: run {_pip(*missing)}{headless}."
    )


def _pip(*names):
    return f"pip install {' '.join(names)}"


def _is_there(name):
    with contextlib.suppress(ValueError):  # a module made by hand has no spec
        return importlib.util.find_spec(name) is not None
    return True


def _broken(name, error):
    """The line for a package that is there and cannot be imported."""
    while error.__cause__ is not None:  # NumPy wraps the reason in a page of advice
        error = error.__cause__
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if len(reason) > _REASON_LENGTH:
        reason = reason[:_REASON_LENGTH] + " ..."
    cures = (cure for pattern, cure in _CURES.get(name, ()) if re.search(pattern, reason))
    if name == "paddle":
        what, usual = "Paddle", f"Install it anew: {_INSTALL}."
    else:
        what = _DISTRIBUTIONS[name]
        usual = f"Install it anew: pip install --upgrade --force-reinstall {what}."
    return PackageError(
        f"{what} is installed but cannot be imported: {reason}. {next(cures, usual)}"
    )


# -- Paddle's metadata ----------------------------------------------------------------------------


def _paddle_fault(spec):
    """What is wrong with the Paddle that would be imported, by its metadata; None if nothing.

    Its version counts by its first number, so a release candidate and a nightly build of 3.0 pass.
    A build without a version (0.0.0, or no number) and one without metadata are taken as they are.
    """
    found = _paddles(_folder(spec))
    named = " and ".join(f"{name} {version}" for name, version in found)
    removal = f"pip uninstall -y {' '.join(dict.fromkeys(name for name, _ in found))}"
    if len(found) > 1:
        return (
            f"Several Paddles are installed over each other, {named}; one is allowed. Remove them "
            f"with {removal}, then install one: {_INSTALL}."
        )
    if any(_is_old(version) for _, version in found):
        return (
            f"The installed Paddle is {named}; it should be {_LEAST}.0 or newer. Remove it with "
            f"{removal}, then install another: {_INSTALL}."
        )
    return None


def _is_old(version):
    release = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)", version)
    numbers = [int(part) for part in release[1].split(".")] if release else []
    return any(numbers) and numbers[0] < _LEAST


def _folder(spec):
    """The folder on sys.path in which a package lies."""
    places = list(spec.submodule_search_locations or ())
    return os.path.realpath(places[0] if places else spec.origin or "")


def _paddles(package):
    """(name, version) of each installed distribution of the module `paddle`.

    Those beside the module that is imported count, and those without a module of their own; what
    another folder holds as a whole is out of play, since Python does not get to it. A name counts
    in the first folder that has it, as in importlib.metadata.
    """
    found, names = [], set()
    for folder in dict.fromkeys(os.path.realpath(entry or ".") for entry in sys.path):
        try:
            entries = sorted(os.listdir(folder))
        except OSError:  # a zip file, or nothing
            continue
        own = os.path.realpath(os.path.join(folder, "paddle"))
        if own != package and os.path.isfile(os.path.join(own, "__init__.py")):
            continue
        here = [
            _distribution(Path(folder, entry))
            for entry in entries
            if "paddle" in entry.lower()
            and entry.endswith((".dist-info", ".egg-info"))
            and not entry.startswith("~")  # what pip leaves of an uninstallation cut short
        ]
        here = [item for item in here if item and item[0] not in names]
        found += here
        names.update(name for name, _ in here)
    return found


def _distribution(folder):
    """(name, version) of a metadata folder, or None unless it provides the module `paddle`."""
    text = _read(folder / "METADATA") or _read(folder / "PKG-INFO") or _read(folder)
    fields = {key: re.search(rf"^{key}: *(\S+)", text, re.M) for key in ("Name", "Version")}
    if not all(fields.values()):
        return None
    name = re.sub(r"[-_.]+", "-", fields["Name"][1]).lower()
    modules = _read(folder / "top_level.txt").split()
    if modules:
        ours = "paddle" in modules
    else:
        files = "\n" + _read(folder / "RECORD")
        ours = name == "paddlepaddle" or name.startswith("paddlepaddle-") or _HAS_PADDLE in files
    return (name, fields["Version"][1]) if ours else None


def _read(path):
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
