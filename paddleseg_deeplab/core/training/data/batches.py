# SPDX-License-Identifier: Apache-2.0
"""The training data as a function of the seed and the position alone."""

import atexit
import collections
import contextlib
import dataclasses
import gc
import json
import random
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from paddle import Tensor

from paddleseg_deeplab.core.dataset import AnyDataset
from paddleseg_deeplab.core.training.data.epochs import Sampler
from paddleseg_deeplab.core.training.watch.interrupt import stop_with_parent
from paddleseg_deeplab.transforms.declared import declares
from paddleseg_deeplab.transforms.reading.values import check_input
from paddleseg_deeplab.utils import out_of_memory
from paddleseg_deeplab.utils.errors import RunStopped, UserError

Key = tuple[int, int]  # (index, epoch) of a sample


class SampleStream:
    """An endless, shuffled stream of samples, epoch after epoch.

    Position ``p`` holds sample ``permutation(seed, p // n)[p % n]`` of epoch ``p // n``, so a run
    that starts again at any position goes on with the same samples. Batches run across the end of
    an epoch: no image is dropped, and a set smaller than a batch trains (PaddleSeg drops the rest
    of each epoch and waits for ever on such a set).

    Args:
        size (int): Samples in the set.
        seed (int): Of the shuffling.
        shuffle (bool): False keeps the set's order.
        sampler (Sampler, optional): Of ``size`` samples, some oftener than others; its ``length``
            takes the place of n, and its numbers that of the epoch in the keys.
    """

    def __init__(
        self, size: int, seed: int, shuffle: bool = True, sampler: Sampler | None = None
    ) -> None:
        self.size = size if sampler is None else sampler.length
        self.sampler = sampler
        self.seed = seed
        self.shuffle = shuffle
        self._epoch: int | None = None  # that the next two are of
        self._order = self._numbers = np.empty(0, np.int64)

    def key(self, position: int) -> Key:
        """``(index, epoch)`` of the sample at a position."""
        epoch, offset = divmod(position, self.size)
        if self.sampler is not None:
            if epoch != self._epoch:
                self._order, self._numbers = self.sampler.epoch(self.seed, epoch, self.shuffle)
                self._epoch = epoch
            return int(self._order[offset]), int(self._numbers[offset])
        if not self.shuffle:
            return offset, epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return int(self._order[offset]), epoch

    def batches(
        self,
        batch_size: int,
        start: int,
        stop: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        origin: int = 0,
    ) -> Iterator[list[Key]]:
        """Keys of a rank's batches number ``start`` to ``stop - 1``.

        The ranks' batches of one number lie side by side, from position ``origin`` on: together
        they are the batch that one process with ``ranks * batch_size`` would take.
        """
        for number in range(start, stop):
            first = origin + (number * ranks + rank) * batch_size
            yield [self.key(p) for p in range(first, first + batch_size)]


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the stream is this process's.

    Attributes:
        rank, ranks (int): This process and how many share the stream; a batch number then is one
            batch on each.
        origin (int): Position in the stream, in images, of batch 0.
    """

    rank: int = 0
    ranks: int = 1
    origin: int = 0


class _Batches:
    """The batch sampler that `paddle.io.DataLoader` wants: an iterable with a length."""

    def __init__(self, stream, batch_size, numbers, share):
        self.stream = stream
        self.batch_size = batch_size
        self.numbers = numbers
        self.share = share

    def __iter__(self):
        return self.stream.batches(
            self.batch_size,
            self.numbers.start,
            self.numbers.stop,
            rank=self.share.rank,
            ranks=self.share.ranks,
            origin=self.share.origin,
        )

    def __len__(self):
        return len(self.numbers)


class _Guarded:
    """Reads samples with their own randomness, and carries errors out of a worker as data.

    Paddle would lose an error's type on the way out of a worker process, and all of it on the way
    out of its reading thread.
    """

    def __init__(self, dataset, seed):
        self.dataset = dataset
        self.seed = seed
        # Datasets written for PaddleSeg take a plain index only.
        self.takes_epoch = getattr(dataset, "takes_epoch", False)
        self.draws_from_rng = declares(dataset, "draws_from_rng")
        self.thread_safe = declares(dataset, "thread_safe")

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        index, epoch = key
        if not self.draws_from_rng:
            # What is written for PaddleSeg draws from the global generators, whose state all
            # forked workers would share.
            state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]
            random.seed(int(state))
            np.random.seed(state)
        try:
            if self.takes_epoch:
                # The run's seed in the upper bits: a dataset's own seed may choose its content.
                sample = self.dataset[index, epoch + (self.seed << 32)]
            else:
                sample = self.dataset[index]
            check_input(sample["img"], sample_names(self.dataset, [key])[0])
            return sample
        except UserError as error:
            return {"error": str(error), "user": True}
        except Exception as error:
            name = sample_names(self.dataset, [key])[0]
            if out_of_memory.is_out_of_memory(error):
                last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                text = f"{name}: memory ran out while it was read or transformed ({last[0]}). "
                text += "Use smaller sizes in train_dataset.transforms, or fewer --num_workers."
                return {"error": text, "user": True}
            return {"error": f"{name} could not be read.\n{traceback.format_exc()}", "user": False}


def _error(text, user=True):
    """A batch that says what went wrong; as bytes, since batches hold arrays only."""
    content = json.dumps({"error": text, "user": user}).encode()
    return {"error": np.frombuffer(content, np.uint8).copy()}


def _collate(samples):
    """Stacks samples into ``img`` float32 [N, C, H, W] and ``label`` [N, H, W], of the smallest
    type of Paddle's that holds it: int64 is 40 % of what a batch sends to a device."""
    for sample in samples:
        if "error" in sample:
            return _error(sample["error"], sample["user"])
    images, labels, sizes = [], [], []
    for sample in samples:
        name = f"The sample {sample.get('im_path', '')}".rstrip()
        if sample.get("label") is None:
            return _error(f"{name} has no label; training needs one.")
        image, label = np.asarray(sample["img"]), np.asarray(sample["label"])
        label = label.reshape(label.shape[-2:])  # [H, W], from PaddleSeg's [1, H, W] too
        if image.shape[1:] != label.shape:
            return _error(f"{name} has an image of {image.shape} and a label of {label.shape}.")
        images.append(image)
        labels.append(label)
        sizes.append(f"{sample.get('im_path', 'image')} {image.shape}")
    if len({image.shape for image in images}) > 1:
        return _error(
            f"The images of a batch differ in size [channels, height, width]: {', '.join(sizes)}. "
            "Add RandomPaddingCrop or Resize to train_dataset.transforms, or set batch_size to 1."
        )
    return {
        "img": np.stack(images).astype(np.float32, copy=False),
        "label": _smallest(np.stack(labels)),
    }


def _smallest(label):
    if not label.size:
        return label.astype(np.int64)
    low, high = int(label.min()), int(label.max())
    kinds = (np.uint8, np.int16, np.int32)
    fits = (k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    return label.astype(next(fits, np.int64), copy=False)


class _Upload:
    """Moves batches that wait in pinned host memory, where Paddle's reader leaves them, to the GPU.

    The copy runs beside the program. What it reads from is held until the device has got that far:
    with losses read late the program may be several iterations ahead.

    Args:
        event (callable): Makes a `paddle.device.Event`.
    """

    def __init__(self, event=None):
        self._event = event or paddle.device.Event
        self._held = collections.deque()

    def __call__(self, tensors):
        """The tensors on the device; those that are not in pinned memory as they are."""
        while self._held and self._held[0][0].query():
            self._held.popleft()
        if not any(t.place.is_cuda_pinned_place() for t in tensors):
            return tensors
        moved = [t.cuda(blocking=False) for t in tensors]
        event = self._event()
        event.record()
        self._held.append((event, tensors))
        return moved


def _quiet_worker(_worker_id):
    import cv2

    stop_with_parent()
    # What the parent left for the garbage collector is not this process's to end: the queue of an
    # earlier reader would wait for threads that there are only in the parent, for ever.
    gc.freeze()
    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's threads would only compete


def _ending_workers(batches):
    """Passes batches on, and at their end ends the workers, or the reading thread. Signals do not
    (see `stop_with_parent`), and Python waits at its exit for every process it started."""
    workers = list(getattr(batches, "_workers", ()))

    def end():
        shut_down = getattr(batches, "_try_shutdown_all", None)
        with _deaf_to_ended_children():
            if shut_down is not None:
                shut_down(*([1] if workers else []))  # seconds to wait for them
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                    worker.join()

    atexit.register(end)  # for a reader that is left in the middle and still held by something
    try:
        yield from batches
    except SystemError as error:
        raise reader_failure(error, [w.exitcode for w in workers]) or error from error
    finally:
        atexit.unregister(end)
        end()


@contextlib.contextmanager
def _deaf_to_ended_children():
    """Without Paddle's handler of SIGCHLD, which would raise anew for each child that ends."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _read(guarded, sampler, num_workers, in_thread=None):
    """The batches that `_collate` makes, as Tensors on the device.

    Paddle's reader makes them ahead of use and, for a GPU, copies them through pinned memory on a
    stream of its own while the GPU computes. It reads in processes, or without any in a thread.
    A thread shares the global random states with the network and the loss: what a dataset draws
    from them would depend on timing, so one that may do so is read in turn. So is everything on a
    CPU, where the thread would only take a core from the network.

    Args:
        in_thread (bool, optional): Whether to read ahead without workers; by default, see above.
    """
    if in_thread is None:
        declared = guarded.thread_safe and guarded.draws_from_rng
        in_thread = paddle.get_device() != "cpu" and declared
    if num_workers or in_thread:
        gc.collect()  # see `_quiet_worker`: nothing is left over when processes are forked
        loader = paddle.io.DataLoader(
            guarded,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_collate,
            return_list=True,
            worker_init_fn=_quiet_worker,
        )
        return _ending_workers(iter(loader))
    return (
        {
            name: paddle.to_tensor(value)
            for name, value in _collate([guarded[k] for k in keys]).items()
        }
        for keys in sampler
    )


def reader_failure(
    error: BaseException, exit_codes: Sequence[int | None] = ()
) -> RunStopped | None:
    """A `RunStopped` in the place of what Paddle raises when a reading process is gone, else None.

    Paddle raises it from a signal handler, that is, at any point of this process's program.

    Args:
        error (BaseException): What came.
        exit_codes (Sequence[int | None]): Of the reading processes, as far as they are known.
    """
    text = str(error)
    # An OSError inside a PyLayer's backward (paddle_quirks: reader_ends_by_signal).
    by_signal = isinstance(error, (SystemError, OSError)) and "(Fatal) DataLoader process" in text
    # The queue of a reading thread that found its worker gone.
    by_queue = isinstance(error, SystemError) and "Blocking queue is killed" in text
    if not by_signal and not by_queue:
        return None
    number = next((-code for code in exit_codes if code is not None and code < 0), 0)
    if "Bus error" in text or number == getattr(signal, "SIGBUS", -1):
        why = (
            "it got a bus error: /dev/shm, through which it passes batches, is full. Make that "
            "larger (docker run --shm-size=8g)"
        )
    elif number or "killed by signal" in text:
        name = text.partition("killed by signal: ")[2].partition(".")[0]
        name = signal.Signals(number).name if number else name
        why = f"it was ended by a signal ({name}); if memory ran out, use fewer of them"
    else:
        why = "it ended by itself; if memory ran out, use fewer of them"
    return RunStopped(
        f"a process that reads training data (--num_workers) is gone: {why}, or --num_workers 0, "
        "which reads without such processes. Checkpoints are kept: --resume_model auto goes on."
    )


def sample_names(dataset: AnyDataset, keys: Sequence[Key]) -> list[str]:
    """What to call the samples of a batch in a message: image paths where there are files."""
    files = getattr(dataset, "file_list", None)
    return [str(files[i][0]) if files else f"sample {i}" for i, _ in keys]


def training_batches(
    dataset: AnyDataset,
    batch_size: int,
    numbers: range,
    *,
    seed: int,
    num_workers: int = 0,
    shuffle: bool = True,
    share: Share = Share(),
    image_sampler: Sampler | None = None,
) -> Iterator[tuple[list[Key], Tensor, Tensor]]:
    """Yields ``(keys, images, labels)`` for the batches of some numbers.

    Args:
        dataset: Gives dicts with ``img`` float32 [C, H, W] and ``label`` int64 [H, W] for an
            index; for ``(index, epoch)`` if its attribute ``takes_epoch`` is true, where epoch is
            a number that differs by epoch and by `seed`.
        batch_size (int): Images a batch.
        numbers (range): Of the batches, in steps of one.
        seed (int): Of the order and of the samples' randomness.
        num_workers (int): Processes that read ahead; 0 reads in this process, see `_read`.
        shuffle (bool): False keeps the set's order.
        share (Share): Which batches of these numbers are this process's.
        image_sampler (Sampler, optional): How often an epoch holds each image; once by default.

    Yields:
        tuple: ``keys`` list of (index, epoch); float32 [N, C, H, W]; int64 [N, H, W].

    Raises:
        UserError: A sample could not be read (the text is the dataset's), lacks a label, or the
            images of a batch differ in size.
        RunStopped: A reading process is gone.
        RuntimeError: Something else went wrong in the dataset; holds its traceback.
    """

    def sampler():
        stream = SampleStream(len(dataset), seed, shuffle, image_sampler)
        return _Batches(stream, batch_size, numbers, share)

    # One for the reader, which may run ahead, and one for here: each holds an epoch's order.
    keys, guarded, upload = sampler(), _Guarded(dataset, seed), _Upload()
    for batch_keys, batch in zip(keys, _read(guarded, sampler(), num_workers)):
        if "error" in batch:
            failure = json.loads(batch["error"].numpy().tobytes())
            raise (UserError if failure["user"] else RuntimeError)(failure["error"])
        images, labels = upload([batch["img"], batch["label"]])
        yield batch_keys, images, labels.astype("int64")
