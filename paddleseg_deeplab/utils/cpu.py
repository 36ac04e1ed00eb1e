# SPDX-License-Identifier: Apache-2.0
"""Prepares the process for Paddle on a CPU; must run before Paddle is imported.

Two defaults cost most of the speed (measured with Paddle 3.3.1, ratios in docs/performance.md):
Paddle computes on one thread unless told otherwise, and its bundled MKL takes a generic code path
on AMD processors. Both are read from the environment when Paddle is loaded, so they are set here
from ``paddleseg_deeplab/__init__.py``. What the user has set is never changed.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Mapping

from paddleseg_deeplab.utils.logger import logger

_report: list[str] = []
_OFF, _ON = ("0", "false", "no", "off"), ("", "1", "true", "yes", "on")
# Of malloc.h: M_MMAP_MAX, no array in a mapping of its own; M_TRIM_THRESHOLD, the top of the heap
# stays; M_TOP_PAD, it grows in steps of 64 MiB.
_MALLOC_OPTIONS = ((-4, 0), (-1, 2**31 - 1), (-2, 1 << 26))


def _usable_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return f.read()
    except OSError:
        return ""


def processor_name() -> str:
    """The processor as the system names it, such as "AMD EPYC 9B14"; "" where it does not."""
    names = [line for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def positive_number(text: str) -> int | None:
    """The whole number above 0 that a variable of the environment holds; None where it is none."""
    return int(text) if text.isdecimal() and int(text) > 0 else None


def wanted_environment(cores: int, cpuinfo: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that suit this processor.

    Args:
        cores (int): Processors this process may use.
        cpuinfo (str): Text of ``/proc/cpuinfo``; empty where there is none.
        environment (dict[str, str]): What is set already. A thread count for OpenMP serves the
            others too.

    Returns:
        dict[str, str]: name to value.
    """
    # OpenMP allows a list, one number for each level of nesting; Paddle takes a number only.
    threads = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    threads = str(positive_number(threads) or cores)
    # Which one counts depends on the machine: with Paddle 3.3.1 an AMD processor followed
    # FLAGS_paddle_num_threads, an Intel processor MKL_NUM_THREADS only. OMP_NUM_THREADS would do on
    # both, but Paddle prints two lines of warnings at each import when it is above 1.
    wanted = {"MKL_NUM_THREADS": threads, "FLAGS_paddle_num_threads": threads}
    if "AuthenticAMD" in cpuinfo:
        # 7 selects MKL's AVX-512 path, 5 its AVX2 path.
        flags = cpuinfo.split("flags", 1)[-1].split("\n", 1)[0].split()
        if "avx512f" in flags:
            wanted["MKL_DEBUG_CPU_TYPE"] = "7"
        elif "avx2" in flags:
            wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    return wanted


def prepare_environment() -> None:
    """Sets what is missing and remembers what it did for :func:`environment_report`."""
    if _report:
        return
    pixels = os.environ.get("PADDLESEG_DEEPLAB_MAX_PIXELS", "").strip() or "178956970"
    if pixels.isdecimal():  # see transforms.reading.limit; OpenCV reads it when it is loaded
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", pixels)
    late = "paddle" in sys.modules
    wanted = wanted_environment(_usable_cores(), _cpuinfo(), os.environ)
    for name, value in wanted.items():
        if name in os.environ:
            _report.append(f"{name}={os.environ[name]} (set before)")
        else:
            os.environ[name] = value
            _report.append(f"{name}={value} (set here)")
    if late:
        _report.append("but Paddle was imported first, so they may have no effect")


def thread_count() -> int:
    """Threads that this process's own parallel work may use: what Paddle was told to use."""
    threads = os.environ.get("FLAGS_paddle_num_threads", "")  # noqa: SIM112 (Paddle's spelling)
    return positive_number(threads) or _usable_cores()


def switched_off(name: str) -> bool:
    """Whether an environment variable of this package switches something off.

    It does with 0, false, no or off. What is neither that nor 1, true, yes or on is told in a
    warning, and changes nothing.
    """
    value = os.environ.get(name, "").strip()
    if value.lower() in _OFF:
        return True
    if value.lower() not in _ON:
        logger.warning(
            f"The environment variable {name} is {value!r}, which means nothing here: set it to 0 "
            "to switch off, or remove it. It stays on."
        )
    return False


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next large array.

    glibc gives large arrays back to the system and takes them again, each time as fresh pages that
    the system fills with zeros first: in a training step on a CPU that took longer than batch norm.
    The peak of memory stays what it was; between the peaks less is given back. For programs that
    work in a loop, such as training. The environment variable `PADDLESEG_DEEPLAB_KEEP_MEMORY` set
    to 0 switches it off; a system without glibc is left alone.

    Returns:
        bool: whether it was done.
    """
    if switched_off("PADDLESEG_DEEPLAB_KEEP_MEMORY") or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    done = [mallopt(option, value) for option, value in _MALLOC_OPTIONS]
    return all(done)


def environment_report() -> str:
    """One line for the training log: what was set, and what was respected."""
    return "CPU environment: " + ", ".join(_report)
