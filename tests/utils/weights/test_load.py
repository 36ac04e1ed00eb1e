# SPDX-License-Identifier: Apache-2.0
"""What loads, what is refused, and what the refusal says."""

import logging

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.models import DeepLabV3, ResNet18_vd
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.weights.load import (
    load_entire_model,
    load_pretrained_model,
    load_weights,
)


class _Net(nn.Layer):
    def __init__(self, classes=2, channels=3):
        super().__init__()
        self.conv1_1 = nn.Sequential(("_conv", nn.Conv2D(channels, 4, 3, bias_attr=False)))
        self.norm = nn.BatchNorm2D(4)
        self.cls = nn.Conv2D(4, classes, 1)


def _state(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def _same(net, other):
    a, b = _state(net), _state(other)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture
def saved(tmp_path):
    """(network, path of its weights)."""
    net = _Net()
    path = tmp_path / "model.pdparams"
    paddle.save(net.state_dict(), str(path))
    return net, str(path)


def test_loads_everything_and_reports(saved, caplog):
    net, path = saved
    other = _Net()
    assert not _same(net, other)
    with caplog.at_level(logging.INFO, logger="paddleseg_deeplab"):
        report = load_weights(other, path)
    assert _same(net, other)
    assert set(report.loaded) == set(_state(net))
    assert (report.missing, report.unexpected, report.wrong_shape) == ([], [], [])
    assert f"{len(report.loaded)} tensors loaded, 0 missing" in caplog.text
    assert path in caplog.text


@pytest.mark.parametrize("name", ["model.pdparams", "other.pdparams", "deeper/weights.pdparams"])
def test_loads_from_a_folder(tmp_path, name):
    net = _Net()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    paddle.save(net.state_dict(), str(tmp_path / name))
    other = _Net()
    load_weights(other, str(tmp_path))
    assert _same(net, other)


def test_loads_from_an_address(saved, monkeypatch, tmp_path):
    """The downloader returns a file, or the folder of an archive."""
    from paddleseg_deeplab.utils import download

    net, path = saved
    for local in (path, str(tmp_path)):
        monkeypatch.setattr(download, "fetch", lambda url, local=local: local)
        other = _Net()
        load_weights(other, "https://example.com/weights.tar.gz")
        assert _same(net, other)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_converts_the_dtype(tmp_path, dtype):
    """bfloat16 keeps 8 bits of a number, float16 11: relative error 2^-8 at most."""
    net, other = _Net(), _Net()
    path = str(tmp_path / "w.pdparams")
    paddle.save({k: v.astype(dtype) for k, v in net.state_dict().items()}, path)
    load_weights(other, path)
    for name, value in _state(net).items():
        got = _state(other)[name]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, value, rtol=2**-8, atol=1e-6)


def test_loads_numpy_arrays(tmp_path):
    net, other = _Net(), _Net()
    paddle.save(_state(net), str(tmp_path / "w.pdparams"))
    load_weights(other, str(tmp_path / "w.pdparams"))
    assert _same(net, other)


def _without(state, *names):
    return {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: _without(s, "cls.bias"), "missing cls.bias"),
        (lambda s: {**s, "extra": s["cls.bias"]}, "unexpected extra"),
        (lambda s: {**s, "cls.bias": s["cls.bias"][:1]}, r"cls.bias \[1\] \(here \[2\]\)"),
        (lambda s: {f"x.{k}": v for k, v in s.items()}, "0 tensors loaded"),
    ],
)
def test_strict_refuses_and_changes_nothing(tmp_path, change, text):
    path = str(tmp_path / "w.pdparams")
    paddle.save(change(_state(_Net())), path)
    net = _Net()
    before = _state(net)
    with pytest.raises(UserError, match=text) as error:
        load_weights(net, path, what="model Net")
    assert path in str(error.value)
    assert "model Net" in str(error.value)
    assert all(np.array_equal(v, before[k]) for k, v in _state(net).items())


@pytest.mark.parametrize("skip", ["cls.*", ("cls.weight", "cls.bias")])
def test_skip_leaves_out_what_is_named(saved, skip):
    net, path = saved
    other = _Net(classes=7)
    report = load_weights(other, path, skip=skip)
    assert sorted(report.skipped) == ["cls.bias", "cls.weight"]
    np.testing.assert_array_equal(other.norm.weight.numpy(), net.norm.weight.numpy())
    assert other.cls.weight.shape[0] == 7


def test_not_strict_loads_what_fits(saved, caplog):
    _, path = saved
    with caplog.at_level(logging.WARNING, logger="paddleseg_deeplab"):
        report = load_weights(_Net(classes=7), path, strict=False)
    assert [w[0] for w in report.wrong_shape] == ["cls.weight", "cls.bias"]
    assert len(report.loaded) == 5
    assert "cls.weight" in caplog.text


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_loaded_is_an_error(saved, strict):
    _, path = saved
    with pytest.raises(UserError, match="0 tensors loaded"):
        load_weights(nn.Linear(2, 2), path, strict=strict)
    with pytest.raises(UserError, match="0 tensors loaded"):
        load_weights(_Net(), path, strict=strict, skip="*")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"not a pickle at all", "cannot be read"),
        (b"\x80\x04", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_broken_files_are_named(saved, tmp_path, content, text):
    _, path = saved
    if content is None:  # truncated
        with open(path, "rb") as f:
            content = f.read()[:-200]
    broken = tmp_path / "broken.pdparams"
    broken.write_bytes(content)
    with pytest.raises(UserError, match=text) as error:
        load_weights(_Net(), str(broken))
    assert str(broken) in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"lr": 0.1}])
def test_other_content_is_refused(tmp_path, content):
    path = str(tmp_path / "w.pdparams")
    paddle.save(content, path)
    with pytest.raises(UserError, match="no table of tensors"):
        load_weights(_Net(), path)


def test_missing_places(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_weights(_Net(), str(tmp_path / "none.pdparams"))
    with pytest.raises(UserError, match="holds none"):
        load_weights(_Net(), str(tmp_path))
    for name in ("a", "b"):
        paddle.save(_state(_Net()), str(tmp_path / f"{name}.pdparams"))
    with pytest.raises(UserError, match="holds 2"):
        load_weights(_Net(), str(tmp_path))


def test_none_changes_nothing():
    assert load_entire_model(_Net(), None) is None
    assert load_pretrained_model(_Net(), None) is None


def test_backbone_ignores_the_imagenet_classifier(tmp_path):
    backbone = ResNet18_vd()
    path = str(tmp_path / "r18.pdparams")
    out = {"out.weight": paddle.zeros([512, 1000]), "out.bias": paddle.zeros([1000])}
    paddle.save({**backbone.state_dict(), **out}, path)
    other = ResNet18_vd(output_stride=16, pretrained=path)
    assert _same(backbone, other)
    with pytest.raises(UserError, match=r"in_channels is 4.*pretrained_skip: \[conv1_1"):
        ResNet18_vd(in_channels=4, pretrained=path)
    four = ResNet18_vd(in_channels=4, pretrained=path, pretrained_skip=["conv1_1._conv.weight"])
    np.testing.assert_array_equal(
        four.bb_0_0.conv0._conv.weight.numpy(), backbone.bb_0_0.conv0._conv.weight.numpy()
    )


def test_whole_model(tmp_path):
    def build(classes=3, backbone=None, **kwargs):
        return DeepLabV3(classes, ResNet18_vd(pretrained=backbone), aspp_out_channels=8, **kwargs)

    model = build()
    path = str(tmp_path / "model.pdparams")
    paddle.save(model.state_dict(), path)
    assert _same(model, build(pretrained=path))
    with pytest.raises(UserError, match="num_classes"):
        build(4, pretrained=path)
    build(4, pretrained=path, pretrained_skip=["head.cls.*"])
    with pytest.raises(UserError, match="as the model's pretrained"):
        build(backbone=path)
    paddle.save(model.backbone.state_dict(), path)
    with pytest.raises(UserError, match="as the backbone's pretrained"):
        build(pretrained=path)


def test_paddleseg_xception_is_refused_with_the_reason(tmp_path):
    path = str(tmp_path / "model.pdparams")
    names = ["backbone._conv1._conv.weight", "backbone._exit_flow_1._short._conv.weight"]
    paddle.save({name: paddle.zeros([1]) for name in names}, path)
    with pytest.raises(UserError, match="128-channel"):
        load_entire_model(_Net(), path)
