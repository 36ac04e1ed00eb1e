# SPDX-License-Identifier: Apache-2.0
"""Names, order and defaults of the transforms' parameters, and what is refused."""

import inspect

import pytest

import paddleseg_deeplab.transforms as T


def _without_hints(component):
    signature = inspect.signature(component)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))[1:-1]


def test_signatures_are_paddlesegs():
    expected = {
        "Compose": "transforms, to_rgb=True, img_channels=3, *, nodata=None",
        "Resize": "target_size=(512, 512), keep_ratio=False, size_divisor=None, interp='LINEAR'",
        "ResizeByLong": "long_size",
        "ResizeByShort": "short_size, max_size=10000000000.0",
        "LimitLong": "max_long=None, min_long=None",
        "ResizeRangeScaling": "min_value=400, max_value=600",
        "ResizeStepScaling": "min_scale_factor=0.75, max_scale_factor=1.25, scale_step_size=0.25",
        "RandomPaddingCrop": "crop_size=(512, 512), im_padding_value=127.5, "
        "label_padding_value=255, category_max_ratio=1.0, ignore_index=255, loop_times=10",
        "RandomCenterCrop": "retain_ratio=(0.5, 0.5)",
        "Padding": "target_size, im_padding_value=127.5, label_padding_value=255",
        "PaddingByAspectRatio": "aspect_ratio=1, im_padding_value=127.5, label_padding_value=255",
        "PaddingByDivisor": "size_divisor=16, label_padding_value=255",
        "ScalePadding": "target_size=(512, 512), im_padding_value=127.5, label_padding_value=255",
        "RandomHorizontalFlip": "prob=0.5",
        "RandomVerticalFlip": "prob=0.1",
        "RandomRotation": "max_rotation=15, im_padding_value=127.5, label_padding_value=255",
        "RandomScaleAspect": "min_scale=0.5, aspect_ratio=0.33",
        "RandomAffine": "size=(224, 224), translation_offset=0, max_rotation=15, "
        "min_scale_factor=0.75, max_scale_factor=1.25, im_padding_value=128, "
        "label_padding_value=255",
        "RandomBlur": "prob=0.1, blur_type='gaussian'",
        "RandomNoise": "prob=0.5, max_sigma=10.0",
        "RandomDistort": "brightness_range=0.5, brightness_prob=0.5, contrast_range=0.5, "
        "contrast_prob=0.5, saturation_range=0.5, saturation_prob=0.5, hue_range=18, "
        "hue_prob=0.5, sharpness_range=0.5, sharpness_prob=0",
        "Normalize": "mean=(0.5,), std=(0.5,)",
    }
    found = {name: _without_hints(getattr(T, name)) for name in expected}
    assert found == expected


BAD = [
    ("Resize", {"target_size": 512}, TypeError, r"\(width, height\)"),
    ("Resize", {"target_size": (512,)}, ValueError, "2 elements"),
    ("Resize", {"target_size": (512, 0)}, ValueError, "positive"),
    ("Resize", {"target_size": (512, 1.5)}, TypeError, "integer"),
    ("Resize", {"interp": "linear"}, ValueError, "LINEAR"),
    ("Resize", {"size_divisor": 1.5}, TypeError, "size_divisor"),
    ("Resize", {"size_divisor": 0}, ValueError, "size_divisor"),
    ("ResizeByLong", {"long_size": "512"}, TypeError, "long_size"),
    ("ResizeByLong", {"long_size": -1}, ValueError, "long_size"),
    ("ResizeByShort", {"short_size": []}, ValueError, "empty"),
    ("ResizeByShort", {"short_size": [1, 2.5]}, TypeError, "short_size"),
    ("ResizeByShort", {"short_size": 5, "max_size": 0}, ValueError, "max_size"),
    ("LimitLong", {"max_long": 10.0}, TypeError, "max_long"),
    ("LimitLong", {"max_long": 10, "min_long": 20}, ValueError, "20"),
    ("ResizeRangeScaling", {"min_value": 9, "max_value": 8}, ValueError, "min_value"),
    ("ResizeRangeScaling", {"min_value": 0}, ValueError, "min_value"),
    ("ResizeStepScaling", {"min_scale_factor": 2.0}, ValueError, "min_scale_factor"),
    ("ResizeStepScaling", {"min_scale_factor": 0}, ValueError, "greater than 0"),
    ("ResizeStepScaling", {"scale_step_size": -0.1}, ValueError, "scale_step_size"),
    ("RandomPaddingCrop", {"crop_size": 512}, TypeError, "crop_size"),
    ("RandomPaddingCrop", {"crop_size": (1, 2, 3)}, ValueError, "crop_size"),
    ("RandomPaddingCrop", {"category_max_ratio": 0}, ValueError, "category_max_ratio"),
    ("RandomPaddingCrop", {"loop_times": 0}, ValueError, "loop_times"),
    ("RandomPaddingCrop", {"label_padding_value": 1.5}, TypeError, "label_padding_value"),
    ("RandomPaddingCrop", {"im_padding_value": "a"}, TypeError, "im_padding_value"),
    ("RandomCenterCrop", {"retain_ratio": 0.5}, TypeError, "retain_ratio"),
    ("RandomCenterCrop", {"retain_ratio": (0.5,)}, ValueError, "2 elements"),
    ("RandomCenterCrop", {"retain_ratio": (0.5, 1.5)}, ValueError, r"\[0, 1\]"),
    ("Padding", {"target_size": 5}, TypeError, "target_size"),
    ("Padding", {"target_size": (5, -5)}, ValueError, "positive"),
    ("PaddingByAspectRatio", {"aspect_ratio": 0}, ValueError, "aspect_ratio"),
    ("PaddingByDivisor", {"size_divisor": 0}, ValueError, "positive"),
    ("PaddingByDivisor", {"size_divisor": 1.5}, TypeError, "size_divisor"),
    ("PaddingByDivisor", {"size_divisor": True}, TypeError, "size_divisor"),
    ("PaddingByDivisor", {"label_padding_value": 0.5}, TypeError, "label_padding_value"),
    ("ScalePadding", {"target_size": [1]}, ValueError, "target_size"),
    ("RandomHorizontalFlip", {"prob": 1.1}, ValueError, "prob"),
    ("RandomHorizontalFlip", {"prob": "0.5"}, TypeError, "prob"),
    ("RandomVerticalFlip", {"prob": True}, TypeError, "prob"),
    ("RandomRotation", {"max_rotation": -1}, ValueError, "max_rotation"),
    ("RandomRotation", {"max_rotation": float("nan")}, ValueError, "finite"),
    ("RandomScaleAspect", {"min_scale": 2}, ValueError, "min_scale"),
    ("RandomScaleAspect", {"aspect_ratio": -1}, ValueError, "aspect_ratio"),
    ("RandomAffine", {"size": 224}, TypeError, "size"),
    ("RandomAffine", {"translation_offset": -1}, ValueError, "translation_offset"),
    ("RandomAffine", {"min_scale_factor": 3}, ValueError, "max_scale_factor"),
    ("RandomBlur", {"prob": -0.1}, ValueError, "prob"),
    ("RandomBlur", {"blur_type": "box"}, ValueError, "median"),
    ("RandomNoise", {"max_sigma": -1}, ValueError, "max_sigma"),
    ("RandomDistort", {"hue_prob": 2}, ValueError, "hue_prob"),
    ("RandomDistort", {"contrast_range": -0.4}, ValueError, "contrast_range"),
    ("Normalize", {"mean": 0.5}, TypeError, "mean"),
    ("Normalize", {"mean": [[0.5]]}, TypeError, "mean"),
    ("Normalize", {"std": []}, ValueError, "empty"),
    ("Normalize", {"std": [0.2, 0.0, 0.1]}, ValueError, "0"),
    ("Normalize", {"mean": ["a"]}, TypeError, "mean"),
    ("Compose", {"transforms": None}, TypeError, "list"),
    ("Compose", {"transforms": [1]}, TypeError, "callable"),
    ("Compose", {"transforms": [], "img_channels": 0}, ValueError, "img_channels"),
]


@pytest.mark.parametrize(("name", "kwargs", "error", "text"), BAD)
def test_bad_parameters(name, kwargs, error, text):
    with pytest.raises(error, match=text) as caught:
        getattr(T, name)(**kwargs)
    assert name in str(caught.value)
