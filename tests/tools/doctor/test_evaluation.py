# SPDX-License-Identifier: Apache-2.0
"""The doctor's evaluation rows: they pass here, and fail when the device computes otherwise."""

import pytest

from paddleseg_deeplab.tools.doctor import evaluation


@pytest.mark.parametrize("row", evaluation.ROWS)
def test_rows_pass_and_fail(row, monkeypatch):
    found = row("cpu")
    assert found.status == "PASS", found
    assert "mIoU 0." in found.detail
    # The second evaluation, the device's, gives each pixel the class of its neighbour.
    plain, calls = evaluation.evaluate, []

    def other(model, dataset, **how):
        calls.append(1)
        if len(calls) == 2:
            forward = model.forward
            model.forward = lambda x: [forward(x)[0].roll(1, axis=3)]
        return plain(model, dataset, **how)

    monkeypatch.setattr(evaluation, "evaluate", other)
    assert row("cpu").status == "FAIL"
