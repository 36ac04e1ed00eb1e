# SPDX-License-Identifier: Apache-2.0
"""Whether the batches of reading processes fit into the shared memory they pass through.

Where it is full, the system ends a reading process with SIGBUS in the middle of a run. Docker gives
a container 64 MB of it.
"""

import os
import shutil
from pathlib import Path

from paddleseg_deeplab.utils.cpu import positive_number
from paddleseg_deeplab.utils.errors import UserError

FOLDER = "/dev/shm"
# Paddle's `DataLoader` lets each reading process make so many batches ahead (`prefetch_factor`);
# they lie in files there from when they are made until they are used ...
_AHEAD = 2
# ... and one more with the network. Measured: 1, 2 and 4 processes hold 3, 5 and 9 batches.
_IN_USE = 1
_MB = 10**6


def needed_bytes(batch_bytes: int, num_workers: int, processes: int = 1) -> int:
    """What lies in shared memory at most.

    Args:
        batch_bytes (int): Of a batch's images and labels, as reading processes pass them on.
        num_workers (int): Reading processes of each training process; 0 use no shared memory.
        processes (int): That train on this machine.
    """
    if num_workers < 1:
        return 0
    return processes * (_AHEAD * num_workers + _IN_USE) * batch_bytes


def processes_here() -> int:
    """How many processes the launcher started on this machine; 1 without it."""
    return positive_number(os.environ.get("PADDLE_LOCAL_SIZE", "")) or 1


def check_shared_memory(
    batch_bytes: int, num_workers: int, processes: int | None = None, folder: str = FOLDER
) -> None:
    """Refuses a run whose reading processes would be ended for want of shared memory.

    Args:
        batch_bytes, num_workers, processes: As `needed_bytes`; processes by `processes_here`.
        folder (str): Where the system keeps it; without such a folder nothing is checked.

    Raises:
        UserError: There is less free than is needed.
    """
    processes = processes_here() if processes is None else processes
    need = needed_bytes(batch_bytes, num_workers, processes)
    if not need or not Path(folder).is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free >= need:
        return
    batches = _AHEAD * num_workers + _IN_USE
    ranks = f" in each of {processes} training processes" if processes > 1 else ""
    most = (free // (processes * batch_bytes) - _IN_USE) // _AHEAD
    fewer = f"--num_workers {most} or " if most > 0 else ""
    raise UserError(
        f"{folder} has {free / _MB:.0f} MB free, and --num_workers {num_workers} needs "
        f"{need / _MB:.0f} MB there: {batches} batches of {batch_bytes / _MB:.1f} MB{ranks}. Start "
        f"the container with more (docker run --shm-size={_round_size(need)}), or use {fewer}"
        "--num_workers 0."
    )


def _round_size(need):
    """A power of two of MiB with room for what others put there, as Docker takes sizes."""
    size = 64 << 20
    while size < 2 * need:
        size *= 2
    return f"{size >> 30}g" if size >= 1 << 30 else f"{size >> 20}m"
