# SPDX-License-Identifier: Apache-2.0
"""A network that gives NaN or infinite values is an error that names the image, wherever it runs.
In evaluation it ends the run, since the figure is of the whole set; in prediction it costs the
image alone.

Without that the best class of NaN is class 0, and figures and masks look right.
"""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core import infer
from paddleseg_deeplab.core.predict import predict, report
from paddleseg_deeplab.core.train import train
from paddleseg_deeplab.core.val import evaluate
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.deploy import inferer
from paddleseg_deeplab.models import CrossEntropyLoss
from paddleseg_deeplab.prediction.scores import check_finite
from paddleseg_deeplab.transforms import Compose, Normalize
from paddleseg_deeplab.utils import visualize
from paddleseg_deeplab.utils.errors import NonFiniteLoss, UserError


class Diverged(nn.Layer):
    """Fine in training; in evaluation one logit of each bright image (or of all) is not finite."""

    data_format, num_classes = "NCHW", 3

    def __init__(self, value=float("nan"), above=-1e9):
        super().__init__()
        self.value, self.above = value, above
        self.conv = nn.Conv2D(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        if not self.training:
            bad = (x.mean(axis=[1, 2, 3], keepdim=True) > self.above).astype("float32")
            # 0 * value would be NaN for every image.
            y[:, 1:2, 3:4, 4:5] = paddle.where(
                bad > 0, paddle.full_like(bad, self.value), paddle.zeros_like(bad)
            )
        return [y]


def shapes(mode):
    return Shapes(
        transforms=[Normalize()],
        mode=mode,
        num_classes=3,
        image_size=[24, 16],
        num_samples=3,
    )


VALUES = (float("nan"), float("inf"), -float("inf"))
WAYS = (
    {},
    {"is_slide": True, "crop_size": [16, 16], "stride": [8, 8]},
    {"aug_eval": True, "flip_horizontal": True},
    {"crf": lambda probabilities, image: probabilities},
    {"losses": {"types": [CrossEntropyLoss()], "coef": [1]}},
)


@pytest.mark.parametrize("value", VALUES[:2])
@pytest.mark.parametrize("settings", WAYS, ids=lambda s: " ".join(s) or "plain")
def test_evaluation(settings, value):
    with pytest.raises(UserError, match=r"shapes_val_000000\.png: .*NaN or infinite") as error:
        evaluate(Diverged(value), shapes("val"), print_detail=False, progress=False, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", VALUES)
def test_prediction(tmp_path, value):
    """The one image that does it is named, though it is not the first of its batch; the others
    are done, as any image that cannot be used leaves them."""
    for name, level in (("a", 10), ("b", 250), ("c", 10)):
        image = np.full((16, 24, 3), level, np.uint8)
        visualize.save_image(str(tmp_path / f"{name}.png"), image)
    images = [str(tmp_path / f"{name}.png") for name in "abc"]
    result = predict(
        *(Diverged(value, above=0.0), None, Compose([Normalize()]), images),
        save_dir=str(tmp_path / "out"),
        batch_size=3,
        progress=False,
    )
    assert list(result.written) == [images[0], images[2]]
    [(path, reason)] = result.failed
    assert path == images[1]
    assert "NaN or infinite" in reason
    with pytest.raises(UserError, match=r"1 of 3 images.*b\.png: .*NaN or infinite"):
        report(result, 3, str(tmp_path / "out"))


def test_evaluation_in_training_keeps_the_checkpoint(tmp_path):
    model = Diverged()
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    with pytest.raises(
        NonFiniteLoss, match=r"evaluation of iteration 2: shapes_val_000000\.png: .*rate"
    ):
        train(
            *(model, shapes("train"), shapes("val"), optimizer, str(tmp_path)),
            iters=2,
            batch_size=1,
            losses={"types": [CrossEntropyLoss()], "coef": [1]},
        )
    assert (tmp_path / "iter_2" / "model.pdparams").is_file()


@pytest.mark.parametrize("value", VALUES)
def test_scores(value):
    """Every value on device and host; sums that overflow are not infinite scores."""
    scores = np.zeros((2, 3, 4, 4), np.float32)
    check_finite(scores)
    check_finite(np.full_like(scores, 3e38))
    check_finite(paddle.full([2, 3, 4, 4], 3e38))
    scores[1, 2, 3, 0] = value
    for given in (scores, paddle.to_tensor(scores)):
        with pytest.raises(UserError, match="image 1 of the batch"):
            check_finite(given)
        with pytest.raises(UserError, match=r"second\.png"):
            infer.labels_and_scores(given, [], names=["first.png", "second.png"])


@pytest.mark.parametrize("value", VALUES)
def test_deployment(value):
    output = np.zeros((3, 4, 4), np.float32)
    output[2, 1, 1] = value

    class Inferer(inferer.Inferer):
        batch_size = 2

        def __init__(self):
            pass

        def prepare(self, path):
            return {"img": np.full((3, 4, 4), path == "b.png", np.float32), "trans_info": []}

        def infer(self, batch, *_):
            scores = [output if img.any() else np.zeros_like(output) for img in batch]
            return None, np.stack(scores)

        def finish(self, *_):
            return None, None

    failures = []
    done = list(inferer.results(Inferer(), ["a.png", "b.png", "c.png"], failures, False))
    assert [sample["im_path"] for sample, *_ in done] == ["a.png", "c.png"]
    [(path, reason)] = failures
    assert path == "b.png"
    assert "NaN or infinite" in reason
