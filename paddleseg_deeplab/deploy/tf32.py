# SPDX-License-Identifier: Apache-2.0
"""TF32 off, where float32 results of a GPU are compared.

From NVIDIA's Ampere on, cuDNN and cuBLAS round float32 inputs to 10 bits of mantissa unless told
otherwise. Two orders of the same sums, equal to seven digits in float32, then differ in the fourth.
"""

import contextlib
from collections.abc import Iterator

import paddle
from paddle.base import core

# Paddle has a switch for each library, and flags beside them from 3.3.1 on; which of the two a
# kernel reads depends on the version. A build without CUDA may lack any of them.
_LIBRARIES = ("cudnn", "cublas")


def without_tf32() -> contextlib.AbstractContextManager[None]:
    """`tf32` switched off."""
    return tf32(False)


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Convolutions and matrix products of this process compute in TF32 or in full float32 inside.

    An exported network has to be opened and run inside, as its kernels remember the setting of
    their first run. Afterwards everything is as before. On a CPU nothing changes, and where the
    environment says ``NVIDIA_TF32_OVERRIDE=0`` it stays off.
    """
    with contextlib.ExitStack() as stack:
        for library in _LIBRARIES:
            get = getattr(core, f"get_{library}_switch", None)
            put = getattr(core, f"set_{library}_switch", None)
            if get is not None and put is not None:
                stack.callback(put, bool(get()))
                put(on)
            flag = f"FLAGS_{library}_allow_tf32"
            try:
                before = paddle.get_flags([flag])
            except ValueError:  # unknown to this Paddle
                continue
            stack.callback(paddle.set_flags, before)
            paddle.set_flags({flag: on})
        yield
