# SPDX-License-Identifier: Apache-2.0
"""The measured peak of a training step against the estimate, as one row."""

import paddle
import pytest

from paddleseg_deeplab.tools.doctor import memory
from paddleseg_deeplab.utils.errors import UserError

QUICK = "configs/quickstart.yml"


@pytest.mark.slow
@pytest.mark.parametrize(
    "opts",
    [
        ["model.backbone.type=ResNet18_vd"],
        ["model.backbone.type=MobileNetV2"],
        ["model={'type': 'DeepLabV3', 'backbone': {'type': 'ResNet18_vd', 'output_stride': 8}}"],
    ],
)
def test_the_peak_of_a_real_step(opts):
    """Within the 20 % that the row allows; Paddle's count of its allocations does not depend on
    what else runs on the machine."""
    loss = ["loss={'types': [{'type': 'CrossEntropyLoss'}]}"]
    row = memory.check_memory("cpu", QUICK, batch_size=4, size=(128, 128), opts=[*opts, *loss])
    assert row.status == "PASS", row
    assert "4 images of 128x128 in fp32 on cpu" in row.detail


def test_the_row_fails_where_they_differ(monkeypatch):
    monkeypatch.setattr(memory, "peak_of_step", lambda *_, **__: 2**40)
    row = memory.check_memory("cpu", QUICK, batch_size=1, size=(64, 64))
    assert row.status == "FAIL"
    assert "1024.00 GiB measured" in row.detail


def test_a_device_that_is_not_there_is_skipped():
    if paddle.is_compiled_with_cuda():
        pytest.skip("this Paddle has a GPU's kernels")
    row = memory.check_memory("gpu", QUICK)
    assert (row.status, row.name) == ("SKIP", memory.NAME)


def test_a_config_that_does_not_tell_the_size_is_a_clear_error():
    with pytest.raises(UserError, match=r"quickstart\.yml: .* do not tell the size"):
        memory.check_memory("cpu", QUICK, opts=["train_dataset.image_size=null"])
