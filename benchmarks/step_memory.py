# SPDX-License-Identifier: Apache-2.0
"""Compares the estimate of `inspect_model --memory` with what training steps on a CPU take.

  python benchmarks/step_memory.py
  python benchmarks/step_memory.py --only ResNet50_vd --size 256 256

Each network runs two steps in a process of its own, after two on small images. "counted" is the
peak of Paddle's count of its allocations, "resident" the process's largest resident memory less
what it had before; the ratios are to the estimate. PADDLESEG_DEEPLAB_ONEDNN=0 measures Paddle's own
operators, whose convolutions unfold the map for each product, which no GPU does.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# name: (model, backbone, settings of the backbone, settings of the model, batch)
_V3P = "DeepLabV3P"
NETWORKS = {
    "V3+ ResNet50_vd, stride 8": (_V3P, "ResNet50_vd", {"output_stride": 8}, {}, 2),
    "V3+ ResNet18_vd, stride 16": (_V3P, "ResNet18_vd", {"output_stride": 16}, {}, 4),
    "V3+ Xception65, stride 16": (
        *(_V3P, "Xception65_deeplab", {"output_stride": 16}),
        *({"backbone_indices": [0, 1]}, 2),
    ),
    "V3+ MobileNetV2, stride 16": (_V3P, "MobileNetV2", {"output_stride": 16}, {}, 4),
    "V3 ResNet50, stride 8": ("DeepLabV3", "ResNet50", {"output_stride": 8}, {}, 2),
    "V2 ResNet50, three scales": (
        *("DeepLabV2", "ResNet50", {"output_stride": 8}),
        *({"scales": [1.0, 0.75, 0.5], "freeze_bn": False}, 2),
    ),
    "V1 VGG16": ("DeepLabV1", "VGG16_LargeFOV", {}, {}, 4),
}


def config_of(name):
    """A config's content for one of `NETWORKS`."""
    kind, backbone, backbone_settings, settings, batch = NETWORKS[name]
    outputs = 1 + len(settings.get("scales", ()))
    return {
        "batch_size": batch,
        "iters": 2,
        "train_dataset": {"type": "Shapes", "image_size": [256, 256], "transforms": []},
        "model": {
            "type": kind,
            "num_classes": 3,
            "backbone": {"type": backbone, **backbone_settings},
            **settings,
        },
        "optimizer": {"type": "SGD", "momentum": 0.9},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.01},
        "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1] * outputs},
    }


def resident():
    """Bytes of this process in memory now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure(path, size):
    """Prints the figures of one network as JSON; runs in a process of its own."""
    import paddle

    from paddleseg_deeplab.cvlibs import Config, SegBuilder
    from paddleseg_deeplab.tools.doctor.memory import peak_of_step
    from paddleseg_deeplab.tools.inspect_model.memory import TrainingMemory, moments_of

    paddle.set_device("cpu")
    config = Config(path)
    batch = config.batch_size
    # What a first step loads and keeps for good: code, threads, MKL's and oneDNN's own memory.
    small = Config(path, batch_size=2)
    peak_of_step(lambda: SegBuilder(small), 2, (65, 65), "cpu")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    counted = peak_of_step(lambda: SegBuilder(config), batch, size, "cpu")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    builder = SegBuilder(config)
    builder.model.train()
    moments = moments_of(builder.optimizer)
    memory = TrainingMemory(builder.model, size, builder.loss, moments=moments, on_cpu=True)
    estimate = memory.estimate(batch)
    row = {
        "batch": batch,
        "estimate": estimate.peak["fp32"],
        "counted": counted,
        "resident": largest,
        "activations": estimate.parts["activations"]["fp32"],
    }
    print(json.dumps(row))


def figures(name, size, folder):
    """`measure` in a process of its own."""
    import yaml

    path = Path(folder) / "network.yml"
    path.write_text(yaml.safe_dump(config_of(name)), encoding="utf-8")
    environment = dict(os.environ)
    # glibc keeps freed arrays of up to 32 MiB for later ones, which would be counted as taken.
    environment["MALLOC_MMAP_THRESHOLD_"] = environment["MALLOC_TRIM_THRESHOLD_"] = "131072"
    command = [sys.executable, __file__, "--child", str(path), "--size", *map(str, size[::-1])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=[256, 256], metavar=("W", "H"))
    parser.add_argument("--only", help="networks whose name holds this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = (args.size[1], args.size[0])
    if args.child:
        return measure(args.child, size)
    import tempfile

    print(f"Images of {size[1]}x{size[0]}, fp32; GiB and ratios to the estimate.\n")
    print("| network | batch | estimate | of it maps | counted | resident |")
    print("|---|---|---|---|---|---|")
    for name in NETWORKS:
        if args.only and args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = figures(name, size, folder)
        ratios = (f"{row[key] / row['estimate']:.2f}" for key in ("counted", "resident"))
        sizes = (f"{row[key] / 2**30:.2f}" for key in ("estimate", "activations"))
        print(f"| {name} | {row['batch']} | {' | '.join([*sizes, *ratios])} |", flush=True)
    return None


if __name__ == "__main__":
    main()
