# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a small network on a device against the CPU: whole images, windows, scales."""

from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.deploy.tf32 import tf32
from paddleseg_deeplab.tools.doctor.device import using
from paddleseg_deeplab.tools.doctor.rows import failed, passed
from paddleseg_deeplab.tools.doctor.training import Samples, SmallNet

# Of mIoU. Sums in another order may turn a pixel whose two best scores are equal.
LIMIT = 1e-4
_WAYS = {
    "whole images": {},
    "windows": {"is_slide": True, "crop_size": [24, 24], "stride": [16, 16]},
    "scales and flips": {"aug_eval": True, "scales": [0.75, 1.0], "flip_horizontal": True},
}


class _Validation(Samples):
    mode = "val"

    def __getitem__(self, key):
        sample = super().__getitem__(key)
        return {**sample, "trans_info": [], "im_path": f"sample {key}"}


def _score(device, settings):
    with using(device), tf32(False):
        how = {"print_detail": False, "progress": False, "batch_size": 2}
        return evaluate(SmallNet(), _Validation(), **how, **settings).miou


def _row(way):
    def check(device):
        name = f"evaluation, {way}"
        expected, found = _score("cpu", _WAYS[way]), _score(device, _WAYS[way])
        gap = abs(found - expected)
        detail = f"mIoU {found:.6f}, {gap:.1e} from the CPU's (limit {LIMIT:g}, TF32 off)"
        return passed(name, detail) if gap <= LIMIT else failed(name, detail)

    return check


ROWS = tuple(_row(way) for way in _WAYS)
