# SPDX-License-Identifier: Apache-2.0
"""The device that Paddle computes on, by the name that a flag gives."""

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.installed import require_paddle


def gpu_count() -> int | None:
    """GPUs that the installed Paddle sees; None for a CPU build, which can see none."""
    require_paddle()
    import paddle

    return paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else None


def select_device(name: str | None = None) -> str:
    """Makes ``name`` Paddle's device and returns the name in use.

    Args:
        name (str, optional): "cpu", "gpu", "gpu:N" or another device of the installed Paddle; the
            best present by default.

    Raises:
        UserError: The device is not there. It is never changed silently.
    """
    gpus = gpu_count()
    if name is None:
        name = "gpu" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if kind == "gpu":
        if gpus is None:
            raise UserError(
                "--device gpu: the installed Paddle is a CPU build. Install paddlepaddle-gpu, or "
                "use --device cpu."
            )
        if not (number or "0").isdecimal() or int(number or 0) >= gpus:
            raise UserError(f"--device {name}: Paddle sees {gpus} GPU(s). Use one of them or cpu.")
    import paddle

    try:
        paddle.device.set_device(name)
        return str(paddle.get_device())
    except (ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"--device {name} is not available in the installed Paddle.") from error
