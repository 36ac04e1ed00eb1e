# SPDX-License-Identifier: Apache-2.0
"""The device that Paddle computes on, by the name that a flag gives."""

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.installed import require_paddle


def select_device(name=None):
    """Makes ``name`` Paddle's device and returns the name in use.

    Args:
        name (str, optional): "cpu", "gpu", "gpu:N" or another device of the installed Paddle; the
            best present by default.

    Raises:
        UserError: The device is not there. It is never changed silently.
    """
    require_paddle()
    import paddle

    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if name is None:
        name = "gpu" if gpus else "cpu"
    if name.split(":")[0] == "gpu":
        if not paddle.device.is_compiled_with_cuda():
            raise UserError(
                "--device gpu: the installed Paddle is a CPU build. Install paddlepaddle-gpu, or "
                "use --device cpu."
            )
        number = name.partition(":")[2] or "0"
        if not number.isdigit() or int(number) >= gpus:
            raise UserError(f"--device {name}: Paddle sees {gpus} GPU(s). Use one of them or cpu.")
    try:
        paddle.device.set_device(name)
        return str(paddle.get_device())
    except (ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"--device {name} is not available in the installed Paddle.") from error
