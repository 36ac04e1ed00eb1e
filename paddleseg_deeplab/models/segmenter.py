# SPDX-License-Identifier: Apache-2.0
"""What every DeepLab model does around its head: check the parts, run them, resize the logits."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import paddle
from paddle import Tensor, nn

from paddleseg_deeplab.models.layers import (
    DEFAULT_ASPP_RATIOS,
    Conv2D,
    channel_axis,
    check_aspp_ratios,
    check_counts,
    freeze_batch_norm,
    resize,
    set_batch_norm,
    spatial_size,
)
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.weights.load import load_entire_model

_LOGITS_SIZES = ("input", "stride")


class Segmenter(nn.Layer):
    """Backbone, head, and bilinear resize of the logits to the input's size.

    Args:
        num_classes (int): Channels of the logits.
        backbone (nn.Layer): Its `forward` returns a list of features.
        head (nn.Layer): Features to a list of logits, the main one first.
        align_corners (bool): Of every bilinear resize in the model.
        data_format (str): "NCHW" or "NHWC": layout of input and logits.
        logits_size (str): Size of the logits in training: "input", or "stride" for the logits'
            own grid (then labels have to be resized to it by nearest). Inference always gives
            the input's size.

    Raises:
        ValueError: an unknown logits_size.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        head: nn.Layer,
        align_corners: bool,
        data_format: str,
        logits_size: str,
    ) -> None:
        super().__init__()
        if logits_size not in _LOGITS_SIZES:
            raise ValueError(f"logits_size is {logits_size!r}; give one of {list(_LOGITS_SIZES)}.")
        self.num_classes = num_classes
        self.backbone = backbone
        self.head = head
        self.align_corners = align_corners
        self.data_format = data_format
        self.logits_size = logits_size
        self.freeze_bn = False

    def set_batch_norms(
        self, freeze_bn: bool, bn_momentum: float | None, bn_epsilon: float | None
    ) -> None:
        """Sets what all batch norms of backbone and head have in common.

        Args:
            freeze_bn (bool): Every batch norm uses its running statistics in training too and keeps
                them; its weight and bias are not trained (V3 paper, section 4.1, second phase).
            bn_momentum, bn_epsilon (float): See `layers.set_batch_norm`; None leaves what the
                backbone and the head have.

        Raises:
            ValueError: a number out of range.
        """
        set_batch_norm(self, bn_momentum, bn_epsilon)
        self.freeze_bn = bool(freeze_bn)
        if self.freeze_bn:
            freeze_batch_norm(self)

    def train(self) -> None:
        """Training mode, in which frozen batch norms stay as they are in evaluation."""
        super().train()
        if self.freeze_bn:
            freeze_batch_norm(self)

    def load(self, pretrained: str | Path | None, pretrained_skip: Sequence[str]) -> None:
        """Loads weights for the whole model from a path or URL; None leaves it as it is."""
        self.pretrained = pretrained
        load_entire_model(self, pretrained, skip=pretrained_skip)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Image to logits.

        Args:
            x (Tensor): float [N, C, H, W], normalised as in training ([N, H, W, C] for "NHWC").

        Returns:
            list[Tensor]: float [N, num_classes, H, W], unbounded, the main output first;
                [N, H, W, num_classes] for "NHWC".
        """
        return self.finish(self.head(self.features(x)), x)

    def features(self, x: Tensor) -> list[Tensor]:
        """The backbone's features, compared with what it declares of them.

        Raises:
            UserError: They are no list, or of other channels or strides; a wrong stride would
                change the rates that follow it without a word.
        """
        features = self.backbone(x)
        if paddle.in_dynamic_mode():  # a program that is traced has no sizes
            _check_features(self.backbone, features, x, self.data_format)
        return features

    def finish(self, logits: list[Tensor], x: Tensor) -> list[Tensor]:
        """Brings logits to the input's size, unless they train on their own grid.

        Args:
            logits (list[Tensor]): In the model's layout.
            x (Tensor): The model's input.

        Returns:
            list[Tensor]: What `forward` returns.
        """
        if self.training and self.logits_size == "stride":
            return logits
        size = spatial_size(x, self.data_format)
        return [resize(y, size, self.align_corners, self.data_format) for y in logits]


def _check_features(backbone, features, x, data_format):
    name, channels = type(backbone).__name__, backbone.feat_channels
    if channels is None:  # a network that has been thinned, to find its sizes
        return
    if not isinstance(features, (list, tuple)) or len(features) < len(channels):
        count = f"{len(features)}" if isinstance(features, (list, tuple)) else "no list of"
        raise UserError(
            f"The backbone {name} gives {count} features, and its feat_channels declares "
            f"{len(channels)}: give a list of so many tensors."
        )
    axis = channel_axis(data_format)
    found = [feature.shape[axis] for feature in features]
    if found[: len(channels)] != list(channels):
        raise UserError(
            f"The backbone {name} gives features of {found} channels, and its feat_channels says "
            f"{list(channels)}: declare what it gives."
        )
    height = spatial_size(x, data_format)[0]
    for stride, feature in zip(getattr(backbone, "feat_strides", None) or (), features):
        got = spatial_size(feature, data_format)[0]
        # Paddings differ, by less than two pixels.
        if abs(got - height / stride) >= 2:
            raise UserError(
                f"The backbone {name} gives a feature of height {got} for an input of height "
                f"{height}, and its feat_strides says stride {stride}: declare the stride it has."
            )


class ClassifierHead(nn.Layer):
    """One 1x1 classifier on one feature.

    Args:
        num_classes (int): Channels of the logits.
        index (int): Which of the backbone's features is read.
        in_channels (int): Its channels.
        data_format (str): "NCHW" or "NHWC".
    """

    def __init__(
        self, num_classes: int, index: int, in_channels: int, data_format: str = "NCHW"
    ) -> None:
        super().__init__()
        self.index = index
        self.cls = Conv2D(in_channels, num_classes, 1, data_format=data_format, keep_bias=True)

    def forward(self, feat_list: Sequence[Tensor]) -> list[Tensor]:
        """Features to [logits], at the size of the feature that is read."""
        return [self.cls(feat_list[self.index])]


def check_parts(
    num_classes: int,
    backbone: nn.Layer,
    backbone_indices: Sequence[int],
    roles: Sequence[str],
    data_format: str,
) -> list[int]:
    """Checks a backbone against what a head needs from it, before the head is built.

    Args:
        num_classes (int): Of the model.
        backbone (nn.Layer): Declares `feat_channels`, and should declare `feat_strides`.
        backbone_indices (Sequence[int]): Which features the head takes.
        roles (Sequence[str]): What the head does with each of them; names for messages, in order
            of falling resolution, which has to fall from each to the next.
        data_format (str): Of the model.

    Returns:
        list[int]: channels of the features that backbone_indices name.

    Raises:
        TypeError: the backbone does not declare its channels.
        ValueError: anything else that does not fit.
    """
    check_counts(num_classes=num_classes)
    channel_axis(data_format)  # refuses an unknown format
    name = type(backbone).__name__
    channels = getattr(backbone, "feat_channels", None)
    if channels is None:
        raise TypeError(
            f"The backbone {name} has no feat_channels; a backbone declares the list of its "
            "features' channels (and feat_strides, input pixels per feature pixel)."
        )
    theirs = getattr(backbone, "data_format", data_format)
    if theirs != data_format:
        raise ValueError(
            f"The backbone's data_format is {theirs!r}, the model's {data_format!r}; "
            "give both the same."
        )
    _check_indices(backbone_indices, roles, name, len(channels))
    strides = getattr(backbone, "feat_strides", None)
    if strides is not None:
        picked = [strides[i] for i in backbone_indices]
        if any(a >= b for a, b in itertools.pairwise(picked)):
            raise ValueError(
                f"backbone_indices is {tuple(backbone_indices)}, features of strides {picked}; "
                f"give features of rising strides in the order {', '.join(roles)}."
            )
    return [channels[i] for i in backbone_indices]


def _check_indices(indices, roles, name, count):
    is_list = isinstance(indices, (list, tuple)) and len(indices) == len(roles)
    if not is_list or not all(type(i) is int and -count <= i < count for i in indices):
        raise ValueError(
            f"backbone_indices is {indices!r}; give {len(roles)} integer(s) ({', '.join(roles)}) "
            f"from 0 to {count - 1}: {name} returns {count} features."
        )
    if len({i % count for i in indices}) < len(indices):
        raise ValueError(
            f"backbone_indices is {tuple(indices)}, one feature twice; give features of rising "
            f"strides in the order {', '.join(roles)}."
        )


def choose_aspp_ratios(
    aspp_ratios: Sequence[int] | None, backbone: nn.Layer, index: int
) -> Sequence[int]:
    """The rates to build ASPP with.

    Args:
        aspp_ratios (Sequence[int] | None): Used as given; None follows the stride of the feature
            that ASPP reads: 8 -> (1, 12, 24, 36), 16 -> (1, 6, 12, 18), 32 -> (1, 3, 6, 9).
            (PaddleSeg takes (1, 6, 12, 18) at every stride when they are left out.)
        backbone (nn.Layer): Declares `feat_strides`; not needed where rates are given.
        index (int): Which feature ASPP reads.

    Returns:
        Sequence[int]: the rates.

    Raises:
        ValueError: None, and no published rates for the stride, or the stride is unknown.
    """
    strides = getattr(backbone, "feat_strides", None)
    stride = None if strides is None else strides[index]
    if aspp_ratios is None:
        if stride not in DEFAULT_ASPP_RATIOS:
            raise ValueError(
                f"aspp_ratios is left out, but the output stride of {type(backbone).__name__} is "
                f"{stride or 'not declared (feat_strides)'}; give the rates, as they follow only "
                f"strides {sorted(DEFAULT_ASPP_RATIOS)}."
            )
        return DEFAULT_ASPP_RATIOS[stride]
    check_aspp_ratios(aspp_ratios)
    for other, rates in DEFAULT_ASPP_RATIOS.items():
        if stride in DEFAULT_ASPP_RATIOS and stride != other and list(aspp_ratios) == list(rates):
            logger.warning(
                "aspp_ratios %s are the published rates for output stride %d, but this backbone's "
                "is %d (published: %s); used as given. Leave aspp_ratios out (--opts "
                "model.aspp_ratios=null) and they follow the stride.",
                tuple(aspp_ratios),
                other,
                stride,
                DEFAULT_ASPP_RATIOS[stride],
            )
    return aspp_ratios
