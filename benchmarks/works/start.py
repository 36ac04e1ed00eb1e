# SPDX-License-Identifier: Apache-2.0
"""How long commands take from their start, each in a new process."""

import subprocess
import sys

from works.networks import CLASSES, files, settings, write_config
from works.pictures import write_set


def repeat(lap, *arguments):
    while True:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{arguments} ended with status {done.returncode}:\n{done.stderr}")
        lap(dict)


def usage(lap, folder, small):
    repeat(lap, "train.py", "--help")


def imports(lap, folder, small):
    repeat(lap, "-c", "import paddleseg_deeplab.models, paddleseg_deeplab.datasets")


def one_iteration(lap, folder, small):
    write_set(folder, 2, (64, 64), CLASSES)
    write_config(folder / "config.yml", settings(True), files(folder), iters=1, batch_size=2)
    given = ("--config", folder / "config.yml", "--save_dir", folder / "run", "--overwrite")
    repeat(lap, "train.py", *given)


ROWS = {
    "train.py --help": usage,
    "import of models and datasets": imports,
    "train.py, one iteration of 2x64x64": one_iteration,
}
