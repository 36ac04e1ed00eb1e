# SPDX-License-Identifier: Apache-2.0
"""Tables, units, the processor's name: what is printed, without the package that is measured."""

import os
import platform
from pathlib import Path


def seconds_text(value):
    """Three digits with a unit; "-" for None."""
    if value is None:
        return "-"
    scale, unit = (1.0, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "us")
    return f"{value * scale:.3g} {unit}" if value * scale < 1000 else f"{value * scale:.0f} {unit}"


def bytes_text(value):
    return "-" if value is None else f"{value / 2**20:.1f} MiB"


def markdown(head, lines):
    """A padded Markdown table of texts; columns from the third on that hold only "-" are left out.

    Args:
        head (list[str]): Of the columns.
        lines (list[list[str]]): One text for each column.
    """
    kept = [i for i in range(len(head)) if i < 2 or any(line[i] != "-" for line in lines)]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in kept]
    texts = [
        "| " + " | ".join(line[i].ljust(w) for i, w in zip(kept, widths)) for line in [head, *lines]
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([texts[0] + " |", rule, *(text + " |" for text in texts[1:])])


def processor():
    """The name of this machine's processor."""
    names = []
    if os.path.exists("/proc/cpuinfo"):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":", 1)[1].strip() for line in text.split("\n") if "model name" in line]
    return names[0] if names else platform.processor()


def load():
    """The load averages of 1, 5 and 15 minutes, or None."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
