# SPDX-License-Identifier: Apache-2.0
"""What `test_memory.py` runs on each rank: the last one's network runs out of memory."""

import json
import sys
from pathlib import Path

import paddleseg_deeplab  # noqa: F401  (before Paddle)

# isort: split
import paddle
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import predict as predict_command
from paddleseg_deeplab.cli import val as val_command
from paddleseg_deeplab.core import ranks

TEXT = (
    "ResourceExhaustedError: \n\nOut of memory error on GPU 1. Cannot allocate 1.500000GB memory "
    "on GPU 1, 22.0GB memory has been allocated and available memory is only 512.000000MB.\n\n"
    "Please check whether there is any other process using GPU 1.\n"
)


@registry.MODELS.add_component
class HungryOnOne(nn.Layer):
    """On rank 1 it takes no image of more than 300 pixels."""

    def __init__(self, num_classes=3):
        super().__init__()
        paddle.seed(1)
        self.num_classes = num_classes
        self.conv = nn.Conv2D(3, num_classes, 1)

    def forward(self, x):
        if ranks.join().rank == 1 and x.shape[2] * x.shape[3] > 300:
            raise MemoryError(TEXT)
        return [self.conv(x)]


def main(out, config, photos):
    """Exit status of each command, on this rank."""
    out = Path(out)
    paddle.set_device("cpu")
    rank = ranks.join().rank
    weights = str(out / f"weights_{rank}.pdparams")
    paddle.save(HungryOnOne().state_dict(), weights)
    flags = ["--config", config, "--device", "cpu", "--model_path", weights]
    window = ["--slide_above", "1", "--crop_size", "16", "12"]
    found = {}
    for name, more in (("whole", []), ("windows", window)):
        folder = str(out / f"{name}")
        found[f"val {name}"] = val_command.main([*flags, "--save_dir", folder, *more])
        pictures = ["--image_path", photos, "--save_dir", folder]
        found[f"predict {name}"] = predict_command.main([*flags, *pictures, *more])
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
