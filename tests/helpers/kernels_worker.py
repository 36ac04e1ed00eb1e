# SPDX-License-Identifier: Apache-2.0
"""python kernels_worker.py OUT.npz: what the package computes with the kernels that it has."""

import sys
import tempfile
from pathlib import Path

import numpy as np

import paddleseg_deeplab
from paddleseg_deeplab import kernels
from paddleseg_deeplab.transforms.reading.files import read_image, read_label
from paddleseg_deeplab.transforms.reading.source import open_image

SIZE = 64


def networks():
    from paddleseg_deeplab import models

    yield "V1 VGG16", models.DeepLabV1(5, models.VGG16_LargeFOV(fov_channels=32))
    yield "V2 ResNet18_vd", models.DeepLabV2(5, models.ResNet18_vd(output_stride=8))
    yield "V3 ResNet18_vd", models.DeepLabV3(5, models.ResNet18_vd(output_stride=16))
    yield "V3P ResNet18_vd", models.DeepLabV3P(5, models.ResNet18_vd(output_stride=16))
    yield "V3P MobileNetV2", models.DeepLabV3P(5, models.MobileNetV2_x0_25())


def logits(found):
    import paddle

    from paddleseg_deeplab.models.forward import infer_logits

    paddle.seed(1)
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE), np.float32))
    for name, model in networks():
        model.eval()
        with paddle.no_grad():
            found[f"logits of {name}"] = infer_logits(model, x).numpy()


def labels(rng):
    import paddle

    label = rng.integers(0, 5, (4, SIZE, SIZE))
    label[:, :5] = 255
    return paddle.to_tensor(label)


def losses(found):
    import paddle

    from paddleseg_deeplab import models

    rng = np.random.default_rng(0)
    y = paddle.to_tensor(rng.standard_normal((4, 5, SIZE, SIZE), np.float32), stop_gradient=False)
    label = labels(rng)
    for loss in (models.CrossEntropyLoss(), models.LovaszSoftmaxLoss(), models.FocalLoss()):
        name = type(loss).__name__
        value = loss(y, label)
        (found[f"gradient of {name}"],) = (g.numpy() for g in paddle.grad(value, [y]))
        found[f"loss {name}"] = value.numpy()


def step(found):
    """One step of V3+."""
    import paddle

    from paddleseg_deeplab import models

    paddle.seed(2)
    model = models.DeepLabV3P(5, models.ResNet18_vd(output_stride=16), aspp_dropout=0.0)
    model.train()
    rng = np.random.default_rng(0)
    x = paddle.to_tensor(rng.standard_normal((4, 3, SIZE, SIZE), np.float32))
    models.CrossEntropyLoss()(model(x)[0], labels(rng)).backward()
    for name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            found[f"step by {name}"] = parameter.grad.numpy()
    for name, tensor in model.state_dict().items():
        if name.endswith(("_mean", "_variance")):
            found[f"statistics {name}"] = tensor.numpy()


def pictures(found):
    import cv2

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        image, label = str(Path(folder) / "image.png"), str(Path(folder) / "label.png")
        cv2.imwrite(image, rng.integers(0, 256, (50, 40, 3), dtype=np.uint8))
        cv2.imwrite(label, rng.integers(0, 5, (50, 40), dtype=np.uint8))
        found["picture"] = read_image(image)
        found["picture's part"] = open_image(image).window(3, 5, (10, 20))
        found["label"] = read_label(label)


if __name__ == "__main__":
    results = {}
    pictures(results)
    assert "paddle" not in sys.modules, "reading pictures has imported Paddle"
    logits(results)
    losses(results)
    step(results)
    results["package"] = paddleseg_deeplab.__file__
    results["ways"] = [name for name in kernels._WAYS if kernels.has(name)]
    np.savez(sys.argv[1], **results)
