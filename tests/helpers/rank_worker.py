# SPDX-License-Identifier: Apache-2.0
"""What `test_distributed.py` runs on each rank, and alone; results go to ``<out>/<rank>.json``."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import paddleseg_deeplab  # noqa: F401  (before Paddle)

# isort: split
import paddle
from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import predict as predict_command
from paddleseg_deeplab.cli import val as val_command
from paddleseg_deeplab.core import train as train_run
from paddleseg_deeplab.core.ranks import join
from paddleseg_deeplab.core.training.settings import TrainSettings
from paddleseg_deeplab.core.training.watch.monitor import TrainMonitor
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.models import CrossEntropyLoss, DiceLoss, MixedLoss
from paddleseg_deeplab.utils.errors import UserError

CLASSES = 3


class VoidSet:
    """Random images whose share of void pixels runs from none to nearly all.

    Args:
        fault (str, optional): What reading the sample 5 does from its second time on.
    """

    num_classes, img_channels, ignore_index, mode = CLASSES, 3, 255, "train"
    takes_epoch = True

    def __init__(self, size=10, fault=None):
        self.size = size
        self.fault = fault

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        index, _ = key if isinstance(key, tuple) else (key, 0)
        rng = np.random.default_rng(index)
        image = rng.standard_normal((3, 16, 12)).astype("float32")
        label = rng.integers(0, CLASSES, (16, 12))
        label[rng.random((16, 12)) < index / self.size] = 255
        if index == 5 and self.fault == "user":
            raise UserError("image_5.png is broken.")
        if index == 5 and self.fault == "bug":
            raise KeyError("what")
        if index == 5 and self.fault == "nan":
            image[:] = 3e38  # the network makes inf of it, and the loss nan
        if index == 5 and self.fault == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return {"img": image, "label": label, "im_path": f"image_{index}", "trans_info": []}


@registry.MODELS.add_component
class SmallNet(nn.Layer):
    """Frozen norm (unless told otherwise), a frozen layer, a layer that no output depends on, two
    outputs in training."""

    def __init__(self, num_classes=CLASSES, data_format="NCHW", real_norm=False):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Conv2D(3, 8, 3, padding=1)
        # Its statistics would differ between ranks on a CPU, where each sees its own images.
        self.norm = nn.BatchNorm2D(8, use_global_stats=None if real_norm else True)
        self.fixed = nn.Conv2D(8, 8, 1)
        for parameter in self.fixed.parameters():
            parameter.stop_gradient = True
        self.unused = nn.Conv2D(8, 8, 1)
        self.main = nn.Conv2D(8, num_classes, 1)
        self.auxiliary = nn.Conv2D(8, num_classes, 1)

    def forward(self, x):
        y = nn.functional.relu(self.fixed(self.norm(self.body(x))))
        return [self.main(y), self.auxiliary(y)] if self.training else [self.main(y)]


def run(save_dir, batch_size, dataset=None, real_norm=False, **settings):
    """Trains `SmallNet`; returns the loss and its parts of each iteration."""
    paddle.seed(7)
    model = SmallNet(real_norm=real_norm)
    rate = paddle.optimizer.lr.PolynomialDecay(0.1, 40)
    optimizer = paddle.optimizer.Momentum(
        rate, 0.9, parameters=model.parameters(), weight_decay=1e-3
    )
    mixed = MixedLoss([CrossEntropyLoss(weight=[1.0, 2.0, 0.5]), DiceLoss()], [0.8, 0.2])
    losses = {"types": [mixed, CrossEntropyLoss()], "coef": [1.0, 0.4]}
    seen, after_iteration = [], TrainMonitor.after_iteration

    def keep(self, report):
        seen.append([report.loss, *report.parts.values()])
        after_iteration(self, report)

    TrainMonitor.after_iteration = keep  # a watcher of one's own is the first rank's alone
    try:
        train_run(
            model,
            VoidSet() if dataset is None else dataset,
            optimizer=optimizer,
            losses=losses,
            save_dir=str(save_dir),
            batch_size=batch_size,
            **settings,
        )
    finally:
        TrainMonitor.after_iteration = after_iteration
    return seen, {name: value.numpy() for name, value in model.state_dict().items()}


def caught(action):
    """Class, text and silence of what a call raises."""
    try:
        action()
    except BaseException as error:
        return [type(error).__name__, str(error), bool(getattr(error, "silent", False))]
    return None


def main(out, config, photos):
    """The checks of one launch."""
    out = Path(out)
    paddle.set_device("cpu")
    ranks = join()
    found = {"rank": ranks.rank, "size": ranks.size}
    found["plain"], state = run(out / "plain", 2, iters=20, save_interval=8)
    twice = TrainSettings(accumulation_steps=2)
    found["accumulated"], _ = run(out / "accumulated", 1, iters=20, settings=twice)
    found["weights"] = {name: value.tolist() for name, value in state.items()}
    found["early"], _ = run(
        *(out / "early", 1),
        iters=20,
        save_interval=1,
        val_dataset=VoidSet(5),
        use_ema=True,
        early_stop_intervals=2,
    )
    builder = SegBuilder(Config(config, opts=["model.real_norm=True"]))
    run(
        *(out / "normed", 2, builder.train_dataset, True),
        iters=6,
        save_interval=2,
        val_dataset=builder.val_dataset,
        use_ema=False,
    )
    for fault in ("user", "bug", "nan", "signal"):
        # The other rank's set is in order.
        data = VoidSet(fault=fault if ranks.rank == 1 else None)
        folder = out / fault
        found[fault] = caught(lambda f=folder, d=data: run(f, 2, d, iters=20, shuffle=False))
    arguments = ["--config", config, "--device", "cpu"]
    weights = str(out / "plain" / "iter_20")
    report = ["--model_path", weights, "--save_dir", str(out / "val")]
    found["val"] = val_command.main([*arguments, *report])
    pictures = ["--model_path", weights, "--save_dir", str(out / "pictures")]
    found["predict"] = predict_command.main([*arguments, *pictures, "--image_path", photos])
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
