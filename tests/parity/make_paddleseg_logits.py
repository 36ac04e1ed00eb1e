# SPDX-License-Identifier: Apache-2.0
"""Writes paddleseg_logits.npz and paddleseg_keys.json from PaddleSeg's own code.

They prove that a PaddleSeg checkpoint means the same here: the same names and shapes, and the
same logits for the same weights. To make them again::

    git clone https://github.com/PaddlePaddle/PaddleSeg   # develop branch
    python tests/parity/make_paddleseg_logits.py --paddleseg PaddleSeg

PaddleSeg's package does not import beside today's NumPy and OpenCV (its ``__init__`` files pull
in everything), so only the files of the networks are imported: the packages above them are
replaced by empty ones, and ``paddleseg.utils``, which downloads pretrained weights, by functions
that do nothing. Needs nothing but Paddle, NumPy and that source.

Weights and inputs come from `fill` and `image`, which depend on names, shapes and NumPy's PCG64
alone; the test fills this project's networks with the same functions.
"""

import argparse
import hashlib
import json
import sys
import types
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LOGITS_FILE = HERE / "paddleseg_logits.npz"
KEYS_FILE = HERE / "paddleseg_keys.json"

# name: (model, its arguments, backbone, its arguments). The names and shapes of these networks
# are written out in full.
NETWORKS = {
    "v3p_r18_os16": (
        "DeepLabV3P",
        {"num_classes": 21, "aspp_ratios": (1, 6, 12, 18)},
        "ResNet18_vd",
        {"output_stride": 16},
    ),
    "v3p_r50_os8": (
        "DeepLabV3P",
        {"num_classes": 19, "aspp_ratios": (1, 12, 24, 36)},
        "ResNet50_vd",
        {"output_stride": 8, "multi_grid": (1, 2, 4)},
    ),
    "v3_r50_os8": (
        "DeepLabV3",
        {"num_classes": 21, "aspp_ratios": (1, 12, 24, 36)},
        "ResNet50_vd",
        {"output_stride": 8, "multi_grid": (1, 2, 4)},
    ),
}
# The other depths: one size, names and shapes as digests.
DEEP_NETWORKS = {
    "v3p_r34_os16": ("DeepLabV3P", {"num_classes": 5}, "ResNet34_vd", {"output_stride": 16}),
    "v3p_r101_os8": (
        "DeepLabV3P",
        {"num_classes": 5, "aspp_ratios": (1, 12, 24, 36)},
        "ResNet101_vd",
        {"output_stride": 8, "multi_grid": (1, 2, 4)},
    ),
    "v3_r101_os16": ("DeepLabV3", {"num_classes": 5}, "ResNet101_vd", {"output_stride": 16}),
    "v3p_r152_os16": ("DeepLabV3P", {"num_classes": 5}, "ResNet152_vd", {"output_stride": 16}),
}
# Of these only a digest of the names and shapes is kept.
DEPTHS = (18, 34, 50, 101, 152)
# (height, width), align_corners, step. Every step-th pixel of the logits is kept: steps share no
# factor with the strides, so that all phases of the upsampling are among them. The large input is
# there because at 64 pixels the big rates reach beyond the map and only centre taps count.
CASES = (
    ((65, 49), False, 5),
    ((65, 49), True, 5),
    ((64, 64), False, 5),
    ((64, 64), True, 5),
    ((320, 305), False, 23),
)
DEEP_CASES = (((97, 81), False, 7),)


def fill(name, shape):
    """The value of one tensor of a network: float32, drawn from its name and shape alone.

    The scales keep activations near 1 through all layers: He's for convolutions, batch norm
    statistics near 0 and 1 but different in every channel, so that each of them matters.
    """
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name} {list(shape)}".encode())))
    if name.endswith("._variance"):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("_batch_norm.weight"):
        value = rng.uniform(0.5, 1.0, shape)
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    else:  # biases and batch norm's means
        value = rng.normal(0.0, 0.1, shape)
    return value.astype(np.float32)


def image(size):
    """Input of one (height, width): float32 [1, 3, H, W], normal."""
    rng = np.random.Generator(np.random.PCG64(size[0] * 1000 + size[1]))
    return rng.standard_normal((1, 3, *size)).astype(np.float32)


def case_name(network, size, align_corners):
    return f"{network}_{size[0]}x{size[1]}_{'corners' if align_corners else 'edges'}"


def signature(state):
    """[[name, shape], ...] of a state_dict, sorted by name."""
    return sorted([name, list(tensor.shape)] for name, tensor in state.items())


def digest(state):
    """[tensors, numbers in them, SHA-256 of the signature] of a state_dict."""
    names = signature(state)
    text = json.dumps(names, separators=(",", ":"))
    numbers = sum(int(np.prod(shape)) for _, shape in names)
    return [len(names), numbers, hashlib.sha256(text.encode()).hexdigest()]


def logits_of(model, size, align_corners, step):
    """The kept part of a filled model's logits in evaluation: float32 [1, C, h, w].

    Sets align_corners throughout the model, which changes no weight.
    """
    import paddle

    for layer in model.sublayers(include_self=True):
        if hasattr(layer, "align_corners"):
            layer.align_corners = align_corners
    model.eval()
    with paddle.no_grad():
        out = model(paddle.to_tensor(image(size)))[0].numpy()
    return out[:, :, ::step, ::step]


def fill_model(model):
    """Gives every tensor of a model, buffers too, its value from `fill`."""
    for name, tensor in model.state_dict().items():
        tensor.set_value(fill(name, tensor.shape))


def _import_paddleseg(root):
    """PaddleSeg's modules of models and of ResNet_vd, without the rest of the package."""

    def package(name, path=None):
        module = types.ModuleType(name)
        module.__path__ = [] if path is None else [str(path)]
        sys.modules[name] = module
        return module

    if not (root / "paddleseg" / "models" / "deeplab.py").is_file():
        raise SystemExit(f"{root} holds no paddleseg/models/deeplab.py; give PaddleSeg's source.")
    for name in ("paddleseg", "paddleseg.cvlibs", "paddleseg.models", "paddleseg.models.backbones"):
        package(name, root.joinpath(*name.split(".")))
    utils = package("paddleseg.utils")
    utils.utils = package("paddleseg.utils.utils")
    utils.utils.load_pretrained_model = lambda *args: None
    utils.utils.load_entire_model = lambda *args: None
    from paddleseg.models import deeplab
    from paddleseg.models.backbones import resnet_vd

    return deeplab, resnet_vd


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paddleseg", type=Path, required=True, help="PaddleSeg's source tree")
    deeplab, resnet_vd = _import_paddleseg(parser.parse_args().paddleseg.resolve())

    logits, keys = {}, {}
    for network, row in {**NETWORKS, **DEEP_NETWORKS}.items():
        model_name, model_args, backbone_name, backbone_args = row
        backbone = getattr(resnet_vd, backbone_name)(**backbone_args)
        model = getattr(deeplab, model_name)(backbone=backbone, **model_args)
        if network in NETWORKS:
            keys[network] = signature(model.state_dict())
        fill_model(model)
        for size, align_corners, step in CASES if network in NETWORKS else DEEP_CASES:
            name = case_name(network, size, align_corners)
            logits[name] = logits_of(model, size, align_corners, step)
            print(name, logits[name].shape, "standard deviation", logits[name].std())
    digests = {}
    for model_name in ("DeepLabV3P", "DeepLabV3"):
        for depth in DEPTHS:
            backbone = getattr(resnet_vd, f"ResNet{depth}_vd")()
            model = getattr(deeplab, model_name)(num_classes=19, backbone=backbone)
            digests[f"{model_name} ResNet{depth}_vd"] = digest(model.state_dict())
    np.savez_compressed(LOGITS_FILE, **logits)
    text = {"digests": digests, "networks": keys}
    KEYS_FILE.write_text(json.dumps(text, separators=(",", ":")).replace("]],", "]],\n") + "\n")


if __name__ == "__main__":
    main()
