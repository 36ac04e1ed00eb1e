# SPDX-License-Identifier: Apache-2.0
"""The atrous property of backbones: do features at output stride 8 contain those at 16?

  python benchmarks/atrous_property.py --backbones ResNet50 Xception65_deeplab ResNet50_vd

With the same weights in evaluation, every second pixel of the dense feature should equal the
strided network's. Prints the largest difference over the largest value, and the root mean square
of the difference over that of the value. Unless --model_path gives trained ones, the weights are
random, and batch norm's statistics those of the picture, so that every layer has values of order
one. For ResNet_vd, which does not have the property, two changes to the block that lost its stride
are tried: the pooled shortcut, and the rate of its 3x3 convolution.
"""

import argparse

# First, so that the CPU environment is prepared before Paddle is imported.
import paddleseg_deeplab.models  # noqa: F401  isort: skip
import numpy as np
import paddle
import paddle.nn.functional as F

from paddleseg_deeplab import registry
from paddleseg_deeplab.datasets import Shapes
from paddleseg_deeplab.models.layers import batch_norms
from paddleseg_deeplab.transforms import Normalize
from paddleseg_deeplab.utils.weights.load import read_weights

# name on the command line: (registered name, settings)
VARIANTS = {
    "ResNet50": ("ResNet50", {"stride_in": "3x3"}),
    "ResNet50-1x1": ("ResNet50", {"stride_in": "1x1"}),
    "ResNet101": ("ResNet101", {"stride_in": "3x3"}),
    "ResNet101-1x1": ("ResNet101", {"stride_in": "1x1"}),
}
DEFAULT = ("ResNet50", "ResNet50-1x1", "Xception41_deeplab", "Xception65_deeplab")
DEFAULT += ("Xception71_deeplab", "MobileNetV2", "VGG16_LargeFOV", "ResNet18_vd", "ResNet50_vd")


def picture(size):
    """A scene, float32 [1, 3, size, size], normalised."""
    scenes = Shapes([Normalize()], num_samples=1, image_size=(size, size), mode="val")
    return paddle.to_tensor(scenes[0]["img"][None])


def build(name, stride):
    registered, settings = VARIANTS.get(name, (name, {}))
    return registry.BACKBONES[registered](output_stride=stride, **settings)


def take_statistics(backbone, image):
    """Sets batch norm's running statistics to the image's own."""
    backbone.train()
    for norm in batch_norms(backbone):
        norm._momentum = 0.0
    with paddle.no_grad():
        backbone(image)
    backbone.eval()


def features(backbone, image, state):
    backbone.set_state_dict(state)
    backbone.eval()
    with paddle.no_grad():
        return backbone(image)


def difference(dense, coarse):
    """(largest, root mean square) difference of the last feature's shared pixels, relative."""
    step = -(-dense.shape[2] // coarse.shape[2])
    assert step > 1, "the output strides are the same"
    ours, theirs = dense[:, :, ::step, ::step].numpy(), coarse.numpy()
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    gap = ours.astype(np.float64) - theirs
    return np.abs(gap).max() / np.abs(theirs).max(), np.sqrt((gap**2).mean() / (theirs**2).mean())


# -- ResNet_vd ---------------------------------------------------------------------------------


def first_dilated(dense, coarse):
    """The dense network's first block of the stage that strides in the coarse one only."""
    stage = next(
        s for s, pair in enumerate(zip(dense.feat_strides, coarse.feat_strides)) if len({*pair}) > 1
    )
    return getattr(dense, f"bb_{stage}_0")


def pool_shortcut(block):
    """Averages 2x2 before the shortcut's convolution, as the strided block does, at stride 1."""

    def forward(x, plain=block.short.forward):
        # Zeros after the last row and column do not count, as in the strided pool's ceil mode.
        return plain(F.avg_pool2d(x, 2, stride=1, padding=[0, 1, 0, 1], exclusive=True))

    block.short.forward = forward


def keep_rate(block):
    """Rate 1 in the convolution that would have the stride, as the strided block's input has."""
    conv = block.conv1._conv if hasattr(block, "conv2") else block.conv0._conv
    conv._dilation = [1, 1]
    conv._padding = conv._updated_padding = [1, 1]


AMENDMENTS = {
    "shortcut pooled": (pool_shortcut,),
    "first block at rate 1": (keep_rate,),
    "both": (pool_shortcut, keep_rate),
}


def rows_of(name, image, strides, model_path=None):
    """(what, largest, root mean square) of one backbone."""
    dense_stride, coarse_stride = strides
    coarse = build(name, coarse_stride)
    if model_path is None:
        take_statistics(coarse, image)
        state = coarse.state_dict()
    else:
        trained = read_weights(model_path).items()
        state = {k[len("backbone.") :]: v for k, v in trained if k.startswith("backbone.")}
        assert state.keys() == coarse.state_dict().keys(), f"{model_path} is not of {name}"
    expected = features(coarse, image, state)[-1]
    changes = {"as it is": (), **(AMENDMENTS if name.endswith("_vd") else {})}
    for what, amendments in changes.items():
        dense = build(name, dense_stride)
        for amend in amendments:
            amend(first_dilated(dense, coarse))
        yield (what, *difference(features(dense, image, state)[-1], expected))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=DEFAULT, metavar="NAME")
    parser.add_argument("--size", type=int, default=513, help="of the square image, in pixels")
    parser.add_argument(
        "--strides", type=int, nargs=2, default=[8, 16], metavar=("DENSE", "COARSE")
    )
    parser.add_argument("--model_path", help="weights of a trained model on the one backbone given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    paddle.set_device("cpu")
    paddle.seed(args.seed)
    image = picture(args.size)
    print(f"{args.size}x{args.size}, output strides {args.strides[0]} and {args.strides[1]}")
    print(f"{'backbone':<22}{'':<24}{'largest':>10}{'rms':>10}")
    for name in args.backbones:
        for what, largest, rms in rows_of(name, image, args.strides, args.model_path):
            print(f"{name:<22}{what:<24}{largest:>10.1e}{rms:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
