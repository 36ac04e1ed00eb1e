# SPDX-License-Identifier: Apache-2.0
"""export.py, and infer.py from image files to mask files."""

import numpy as np
import paddle
from PIL import Image

from works.networks import CLASSES, build, command, files, settings, settle, write_config
from works.pictures import make_picture, write_set

COUNT = 8


def prepare(folder, small):
    """Images, weights and config; the arguments for export.py."""
    (folder / "images").mkdir()
    size = (48, 64) if small else (360, 480)
    write_set(folder / "images", 2 if small else COUNT, size, CLASSES)
    pictures = np.stack([make_picture(size, i) for i in range(2)])
    model = build(small)
    settle(model, pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    paddle.save(model.state_dict(), str(folder / "model.pdparams"))
    write_config(folder / "config.yml", settings(small), files(folder / "images"))
    given = ("--config", folder / "config.yml", "--model_path", folder / "model.pdparams")
    # "auto" tries formats out in a process of its own, for as long as the rest takes.
    return (*given, "--save_dir", folder / "exported", "--format", "legacy")


def export(lap, folder, small):
    arguments = prepare(folder, small)
    while True:
        command("export.py", *arguments)
        written = (folder / "exported").glob("*.pdiparams")
        lap(lambda written=written: {"bytes of parameters": sum(f.stat().st_size for f in written)})


def infer(lap, folder, small):
    command("export.py", *prepare(folder, small))
    masks = folder / "masks"
    given = ("--model_dir", folder / "exported", "--image_path", folder / "images" / "list.txt")

    def output():
        found = sorted(masks.rglob("*.png"))
        values = [np.asarray(Image.open(path)).astype(np.float64) for path in found]
        return {"files": len(found), "mean of the masks": np.mean([v.mean() for v in values])}

    while True:
        command("deploy/python/infer.py", *given, "--save_dir", masks, "--outputs", "palette")
        lap(output)


ROWS = {
    "export.py, ResNet18_vd stride 16, legacy": export,
    f"infer.py, {COUNT} images of 480x360 to masks": infer,
}
