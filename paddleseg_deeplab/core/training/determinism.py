# SPDX-License-Identifier: Apache-2.0
"""What makes a run repeat itself: seeds, and the switches of a GPU."""

import os
import random

import numpy as np
import paddle

from paddleseg_deeplab.utils.logger import logger

# Paddle's: convolutions by cuDNN's repeatable algorithms, chosen without timing them; gradients of
# gathered rows added in a fixed order.
GPU_FLAGS = {
    "FLAGS_cudnn_deterministic": True,
    "FLAGS_cudnn_exhaustive_search": False,
    "FLAGS_embedding_deterministic": 1,
}
# Read by NVIDIA's libraries when they start: cuBLAS repeats its sums with a fixed workspace (cuBLAS
# guide, "Results reproducibility"), and NCCL with one way to go round the ranks.
GPU_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}
# What no switch makes repeatable (paddle_quirks: unordered_gpu_sums).
ATOMIC = (
    "the gradient of the bilinear resize, and with --data_format NHWC that of a depthwise "
    "convolution's weights"
)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and Paddle; data order and augmentation have generators of their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)


def make_deterministic(on_gpu: bool | None = None) -> dict[str, int | str]:
    """Sets the switches; call it before anything has run on the device.

    What the user has set in the environment is kept. What no switch reaches (`ATOMIC`) is logged,
    not refused: every network here resizes, so that refusing would leave nothing to train. On a
    CPU there is nothing to set: a run repeats itself there bit for bit as long as the numbers of
    ranks and of math threads stay.

    Args:
        on_gpu (bool, optional): Whether the run is on a GPU. Default: whether Paddle is a GPU
            build.

    Returns:
        dict: What was set, by name.
    """
    if on_gpu is None:
        on_gpu = paddle.device.is_compiled_with_cuda()
    if not on_gpu:
        logger.info(
            "--deterministic: nothing to set on a CPU. Runs with the same --seed are equal bit for "
            "bit there as long as the number of processes and of math threads "
            "(FLAGS_paddle_num_threads, MKL_NUM_THREADS) stays the same."
        )
        return {}
    for name, value in GPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    paddle.set_flags(GPU_FLAGS)
    done: dict[str, int | str] = {**GPU_FLAGS}
    done |= {name: os.environ[name] for name in GPU_ENVIRONMENT}
    logger.info("--deterministic: %s", ", ".join(f"{k}={v}" for k, v in done.items()))
    logger.warning(
        "--deterministic: %s add in no fixed order in Paddle's GPU kernels, for which there is no "
        "switch: last digits may still differ between runs.",
        ATOMIC,
    )
    return done
