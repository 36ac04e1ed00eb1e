# SPDX-License-Identifier: Apache-2.0
"""The lattices used last: settings that differ in weights or iterations alone share them."""

import threading
from collections import OrderedDict


class LatticeCache:
    """Keeps the lattices used last; several threads may use one. A copy starts without any.

    A lattice of d dimensions takes 8 (d + 1) bytes a pixel and 12 (d + 1) to 20 (d + 1) a lattice
    point: some 20 MB for an image of 512x512 and its colours.

    Args:
        most (int): How many are kept, at least 1.
    """

    def __init__(self, most):
        self._most, self._lock, self._kept = most, threading.Lock(), OrderedDict()

    def __reduce__(self):
        # A lock cannot be copied; lattices can be made again.
        return type(self), (self._most,)

    def get(self, key, make):
        """What ``make()`` returned for this key (hashable), made anew if it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()  # without the lock: others need not wait
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value
