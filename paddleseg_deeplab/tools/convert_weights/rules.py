# SPDX-License-Identifier: Apache-2.0
"""How other frameworks name their tensors: one table of rows for each source.

A row is (pattern of the whole source name, name here). In the name here ``{s}`` is the pattern's
group s, ``{s-1}`` that number less one, and ``{bn}`` batch norm's part in Paddle's words. Names
here are a whole model's, ``backbone....`` or ``head....``. The first row that fits decides.
"""

import re
from collections.abc import Iterable

_BN = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}
_B = r"(?:backbone\.)?"  # a backbone's file has its names without it
_ASPP = "head.aspp.aspp_blocks"
_POOL = "head.aspp.global_avg_pool.1"


def _unit(conv, norm, here):
    """Rows of a convolution without bias and its batch norm, a `ConvBN` here."""
    return [
        (rf"{conv}\.weight", f"{here}._conv.weight"),
        (rf"{norm}\.(?P<bn>{'|'.join(_BN)})", here + "._batch_norm.{bn}"),
    ]


def _sequence(parent, here, conv=0):
    """Rows of a convolution and its batch norm, numbered one after the other in a sequence."""
    return _unit(rf"{parent}\.{conv}", rf"{parent}\.{conv + 1}", here)


def _plain(name, here):
    """Rows of a convolution with a bias."""
    return [(rf"{name}\.(?P<p>weight|bias)", here + ".{p}")]


_BLOCK = r"layer(?P<s>[1-4])\.(?P<b>\d+)"
_INVERTED = rf"{_B}features\.(?P<i>[2-9]|1[0-7])\.conv"
# Where torchvision's vgg16 has its convolutions, and what the paper calls them.
_VGG16 = dict(
    zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (f"conv{n}_{i}" for n, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, count + 1)),
    )
)
_TORCHVISION = [
    # resnet50, resnet101, resnet152
    *_unit(f"{_B}conv1", f"{_B}bn1", "backbone.conv1"),
    *_unit(
        rf"{_B}{_BLOCK}\.conv(?P<c>[1-3])",
        rf"{_B}{_BLOCK}\.bn(?P<c>[1-3])",
        "backbone.layer{s}.{b}.conv{c}",
    ),
    *_sequence(rf"{_B}{_BLOCK}\.downsample", "backbone.layer{s}.{b}.downsample"),
    # deeplabv3_resnet50, deeplabv3_resnet101; the branches are concatenated in the same order
    *_sequence(r"classifier\.0\.convs\.(?P<n>[0-3])", _ASPP + ".{n}"),
    *_sequence(r"classifier\.0\.convs\.4", _POOL, conv=1),
    *_sequence(r"classifier\.0\.project", "head.aspp.conv_bn_relu"),
    *_sequence("classifier", "head.conv", conv=1),
    *_plain(r"classifier\.4", "head.cls"),
    *_sequence("aux_classifier", "head.aux.conv"),
    *_plain(r"aux_classifier\.4", "head.aux.cls"),
    # mobilenet_v2; its first block has no expansion
    *_sequence(rf"{_B}features\.0", "backbone.stem"),
    *_sequence(rf"{_B}features\.1\.conv\.0", "backbone.blocks.0.depthwise"),
    *_sequence(rf"{_B}features\.1\.conv", "backbone.blocks.0.project", conv=1),
    *_sequence(rf"{_INVERTED}\.0", "backbone.blocks.{i-1}.expand"),
    *_sequence(rf"{_INVERTED}\.1", "backbone.blocks.{i-1}.depthwise"),
    *_sequence(_INVERTED, "backbone.blocks.{i-1}.project", conv=2),
    # vgg16; its layers of 4096 fit only an fc6 of 7x7 and 4096 channels
    *(
        row
        for n, name in _VGG16.items()
        for row in _plain(rf"{_B}features\.{n}", f"backbone.{name}")
    ),
    *_plain(r"classifier\.0", "backbone.fc6"),
    *_plain(r"classifier\.3", "backbone.fc7"),
]

_CAFFE_UNITS = {
    "reduce": "conv1",
    "conv3x3": "conv2",
    "increase": "conv3",
    "shortcut": "downsample",
}
_CAFFE_BLOCK = r"layer(?P<s>[2-5])\.block(?P<b>\d+)"
_KAZUTO1011 = [
    *_unit(r"layer1\.conv1\.conv", r"layer1\.conv1\.bn", "backbone.conv1"),
    *(
        row
        for theirs, ours in _CAFFE_UNITS.items()
        for row in _unit(
            rf"{_CAFFE_BLOCK}\.{theirs}\.conv",
            rf"{_CAFFE_BLOCK}\.{theirs}\.bn",
            "backbone.layer{s-1}.{b-1}." + ours,
        )
    ),
    *_plain("fc", "head.cls"),  # V1
    *_plain(r"aspp\.c(?P<n>\d)", "head.aspp.{n}"),  # V2
    # V3; the branches are concatenated in the same order
    *_unit(r"aspp\.stages\.c(?P<n>\d)\.conv", r"aspp\.stages\.c(?P<n>\d)\.bn", _ASPP + ".{n}"),
    *_unit(r"aspp\.stages\.imagepool\.conv\.conv", r"aspp\.stages\.imagepool\.conv\.bn", _POOL),
    *_unit(r"fc1\.conv", r"fc1\.bn", "head.aspp.conv_bn_relu"),
    *_plain("fc2", "head.cls"),
]

# As they are. A backbone that has other names here tells PaddleSeg's by `paddleseg_name`.
_PADDLESEG = [
    (r"(?P<name>(?:backbone|head)\..+)", "{name}"),
    (r"(?P<name>.+)", "backbone.{name}"),
]

RULES = {"torchvision": _TORCHVISION, "kazuto1011": _KAZUTO1011, "paddleseg": _PADDLESEG}
SOURCES = tuple(RULES)
PARTS = ("model", "backbone")  # of a network, that are converted

# Taken off where every name has them, outermost first; as often as they are there.
PREFIXES = {
    "torchvision": {"module.": "DataParallel's"},
    "kazuto1011": {
        "module.": "DataParallel's",
        "base.": "the multi-scale network's",
        "scale.": "the multi-scale network's, as it was called earlier",
    },
    "paddleseg": {},
}

_COUNTER = (
    r".*\bnum_batches_tracked",
    "torch's counter of training steps, which Paddle's batch norm does without",
)
# (pattern of a source name, why it has no place here), for names that no row brings to one.
DROPPED = {
    "torchvision": [
        _COUNTER,
        (rf"{_B}fc\.(weight|bias)", "the ImageNet classifier"),
        (r"classifier\.1\.(weight|bias)", "the ImageNet classifier (mobilenet_v2)"),
        (
            rf"{_B}features\.18\..*",
            "the last 1x1 convolution to 1280 channels, which DeepLab leaves out (mobilenet_v2)",
        ),
        (
            r"classifier\.[036]\.(weight|bias)",
            "the ImageNet classifier (vgg16); its first two layers fit fc6 and fc7 only where "
            "those have 4096 channels and fc6 a 7x7 kernel",
        ),
    ],
    "kazuto1011": [_COUNTER],
    "paddleseg": [(rf"{_B}(out|fc)\.(weight|bias)", "the ImageNet classifier")],
}

_CASCADE = "the cascade's further stages, which the source does not have"
_AUXILIARY = "the auxiliary head, which the file does not have; model.aux=False builds none"
_EXTRA_STAGES = [(f"backbone.layer{n}.*", _CASCADE) for n in (5, 6, 7)]
# (names here, why the source does not have them). Such a group may be missing as a whole, not in
# part: a file that holds some of its tensors has lost the others.
ABSENT = {
    "torchvision": [
        *_EXTRA_STAGES,
        ("backbone.fc6.*", "which ImageNet's vgg16 has in another shape"),
        ("backbone.fc7.*", "which ImageNet's vgg16 has in another shape"),
        ("backbone.fusion.*", "the multi-scale features' convolutions, which vgg16 does not have"),
        ("head.aux.*", _AUXILIARY),
    ],
    "kazuto1011": [*_EXTRA_STAGES, ("head.aux.*", _AUXILIARY)],
    "paddleseg": [("head.aux.*", _AUXILIARY)],
}

# Names here that a network may be built without.
OPTIONAL = [("head.aux.*", "the auxiliary head, which the config's model is built without")]
# Classifiers here, whose first axis is the classes.
CLASSIFIER = re.compile(r"head\.(cls|aux\.cls|aspp\.\d|decoder\.conv)\.(weight|bias)")


class _Groups(dict):
    """A match's groups, with ``{s-1}`` and ``{bn}``, for `str.format_map`."""

    def __missing__(self, key):
        return str(int(self[key[: -len("-1")]]) - 1)


_COMPILED = {
    source: [(re.compile(pattern), here) for pattern, here in rows]
    for source, rows in RULES.items()
}


def rename(name: str, source: str) -> str | None:
    """The name here of a source's tensor, ``backbone....`` or ``head....``; None without a row."""
    for pattern, here in _COMPILED[source]:
        match = pattern.fullmatch(name)
        if match:
            groups = _Groups(match.groupdict())
            if "bn" in groups:
                groups["bn"] = _BN[groups["bn"]]
            return here.format_map(groups)
    return None


def reason_to_drop(name: str, source: str) -> str | None:
    """Why a source's tensor has no place here, or None."""
    found = (why for pattern, why in DROPPED[source] if re.fullmatch(pattern, name))
    return next(found, None)


def without_prefixes(names: Iterable[str], source: str) -> tuple[dict[str, str], list[str]]:
    """({name: name without prefixes}, sentences on what was taken off)."""
    short, notes = {name: name for name in names}, []
    for prefix, whose in PREFIXES[source].items():
        while short and all(name.startswith(prefix) for name in short.values()):
            short = {name: part[len(prefix) :] for name, part in short.items()}
            notes.append(f"took {whose} prefix {prefix!r} off every name")
    return short, notes
