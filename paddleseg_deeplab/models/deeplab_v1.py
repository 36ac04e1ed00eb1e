# SPDX-License-Identifier: Apache-2.0
"""DeepLabV1: "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs"
(arXiv 1412.7062).

A classification network made dense (section 3.1), one 1x1 classifier, bilinear upsampling; the
fully connected CRF (section 4.2) is `paddleseg_deeplab.postprocess.dense_crf.DenseCRF`.
"""

from collections.abc import Sequence
from pathlib import Path

from paddle import nn

from paddleseg_deeplab import registry
from paddleseg_deeplab.models.segmenter import ClassifierHead, Segmenter, check_parts


@registry.MODELS.add_component
class DeepLabV1(Segmenter):
    """DeepLabV1 (DeepLab-LargeFOV on VGG16_LargeFOV; on a dilated ResNet its successors' baseline).

    Args:
        num_classes (int): Number of classes.
        backbone (nn.Layer): See `paddleseg_deeplab.models.backbones`; of output stride 8 as
            published.
        backbone_indices (Sequence[int]): One index: which feature is classified; the last one.
        align_corners (bool): Of the bilinear resize of the logits.
        pretrained (str): Path or URL of weights for the whole model; loading is strict.
        data_format (str): "NCHW" or "NHWC", for input and logits.
        logits_size (str): "input", or "stride" as published, in training, see `Segmenter`.
        freeze_bn, bn_momentum, bn_epsilon: See `Segmenter.set_batch_norms`.
        pretrained_skip (Sequence[str]): Names (or patterns with ``*``) of tensors that are not
            taken from ``pretrained``, such as ``"head.cls.*"`` for another number of classes.

    Raises:
        ValueError, TypeError: parts and numbers that do not fit; the text says what is allowed.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        backbone_indices: Sequence[int] = (-1,),
        align_corners: bool = False,
        pretrained: str | Path | None = None,
        *,
        data_format: str = "NCHW",
        logits_size: str = "input",
        freeze_bn: bool = False,
        bn_momentum: float | None = None,
        bn_epsilon: float | None = None,
        pretrained_skip: Sequence[str] = (),
    ) -> None:
        channels = check_parts(
            num_classes, backbone, backbone_indices, ["classifier's input"], data_format
        )
        head = ClassifierHead(num_classes, backbone_indices[0], channels[0], data_format)
        super().__init__(num_classes, backbone, head, align_corners, data_format, logits_size)
        self.set_batch_norms(freeze_bn, bn_momentum, bn_epsilon)
        self.load(pretrained, pretrained_skip)
