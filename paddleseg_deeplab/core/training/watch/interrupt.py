# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT as a request to stop at the next good place."""

import contextlib
import os
import signal
import threading
import time
from typing import Any

from paddleseg_deeplab.core.dataset import AnyDataset

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WATCH_SECONDS = 1.0
_SAME = 2.0  # seconds in which a launcher's signals count as one


class Interrupted(KeyboardInterrupt):
    """A run stopped because a signal asked for it; everything was saved.

    Attributes:
        signal (int): The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number

    @property
    def status(self) -> int:
        """The exit status that shells use: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


class StopRequest:
    """Within its ``with`` block the first signal sets `signal`; a second one ends the process.

    In a thread other than the main one, where Python takes no handlers, nothing is changed.

    Attributes:
        signal (int | None): The signal that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def check(self) -> None:
        """Raises `Interrupted` where a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def take_on(self, number: int) -> None:
        """Counts the signal as come, here or at another process of the run; 0 is none."""
        if number and self.signal is None:
            self.signal = number
            self._at = time.monotonic()

    def _note(self, number, _frame):
        if os.getpid() != self._process:
            return  # a reading process on its way up has inherited this handler
        if self.signal is not None:
            if time.monotonic() - self._at < _SAME and "PADDLE_TRAINER_ID" in os.environ:
                return  # Paddle's launcher sends each of its processes SIGTERM three times
            os._exit(128 + number)
        self.take_on(number)
        name = signal.Signals(number).name
        # Not through the logger: its lock may be held at this moment.
        text = f"{name}: stopping after this step, with a checkpoint; once more stops at once.\n"
        with contextlib.suppress(OSError):  # where nobody listens
            os.write(2, text.encode())


class StoppableDataset:
    """A dataset whose reading raises `Interrupted` once a stop was asked for.

    Args:
        dataset: Any; its attributes show through.
        stop (StopRequest): Asked at every sample.

    Attributes:
        wrapped: The dataset itself.
    """

    thread_safe = draws_from_rng = True  # as far as `wrapped` is

    def __init__(self, dataset: AnyDataset, stop: StopRequest) -> None:
        self.wrapped = dataset
        self._stop = stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getitem__(self, key: int) -> dict[str, Any]:
        self._stop.check()
        return self.wrapped[key]

    def check_stop(self) -> None:
        """Raises `Interrupted` once a stop was asked for."""
        self._stop.check()


def stop_with_parent() -> None:
    """For a reading process: it ends when its parent says so, or is gone, and not before.

    A terminal's Ctrl-C, and many a scheduler's SIGTERM, go to all processes of a group. Readers
    that end by themselves would take the parent's data away in the middle of a step. Readers of
    a parent that was killed would wait for ever (Paddle 3.3.1 looks for it only between batches).
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tells_sender = hasattr(signal, "sigtimedwait")  # neither Windows nor macOS has it
    if tells_sender:
        # Threads inherit the mask; so SIGTERM waits for the one below.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def watch():
        while os.getppid() == parent:
            if not tells_sender:
                time.sleep(_WATCH_SECONDS)
                continue
            received = signal.sigtimedwait({signal.SIGTERM}, _WATCH_SECONDS)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
