# SPDX-License-Identifier: Apache-2.0
"""Latency of one forward pass on a CPU: the trained network, and its exports.

  python benchmarks/export_latency.py --config configs/deeplabv3p_resnet50_os8.yml --size 512 512

Prints the median of --runs runs in milliseconds. The runs of all paths take turns, so that a busy
moment of the machine hits all of them. Weights do not matter; ONNX is left out without its extra.
"""

import argparse
import tempfile
import time

# First, so that the CPU environment is prepared before Paddle is imported.
from paddleseg_deeplab.utils.cpu import environment_report  # isort: skip
import numpy as np
import paddle

from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.deploy.export import export
from paddleseg_deeplab.deploy.runtimes import open_runtime
from paddleseg_deeplab.deploy.settings import RuntimeSettings
from paddleseg_deeplab.models.forward import infer_logits
from paddleseg_deeplab.utils.errors import UserError

PATHS = (("pir", False), ("legacy", False), ("legacy", True), ("onnx", None))


def runners(model, picture, folder):
    """Name -> function that runs one batch."""
    batch = picture[None]

    def trained():
        with paddle.no_grad():
            return infer_logits(model, paddle.to_tensor(batch)).numpy()

    found = {"trained network": trained}
    for form, mkldnn in PATHS:
        try:
            info = export(model, f"{folder}/{form}", sample=picture, format=form, output_op="none")
        except UserError as error:
            print(f"{form}: {error}")
            continue
        runtime = open_runtime(info, RuntimeSettings(mkldnn=mkldnn))
        name = form if mkldnn is None else f"{form}, oneDNN {'on' if mkldnn else 'off'}"
        found[name] = lambda r=runtime: r.run(batch)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/deeplabv3p_resnet50_os8.yml")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    paddle.set_device("cpu")
    model = SegBuilder(Config(args.config)).model
    model.eval()
    picture = np.random.default_rng(0).standard_normal((3, *args.size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        found = runners(model, picture, folder)
        times = {name: [] for name in found}
        for run in range(args.runs + 1):
            for name, function in found.items():
                start = time.perf_counter()
                function()
                if run:  # the first one builds kernels
                    times[name].append(time.perf_counter() - start)
    print(f"Paddle {paddle.__version__}. {environment_report()}")
    for name, seconds in times.items():
        print(f"{name:<20}{1e3 * float(np.median(seconds)):8.0f} ms")


if __name__ == "__main__":
    main()
