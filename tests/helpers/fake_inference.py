# SPDX-License-Identifier: Apache-2.0
"""Paddle Inference as a stand-in that notes the calls."""

from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
from paddleseg_deeplab.deploy.paddle_runtime import make_config
from paddleseg_deeplab.deploy.settings import RuntimeSettings, check_settings

FREE = [None, 3, None, None]


class FakeConfig:
    """Records calls; has the methods of Paddle 3.3, less the ones named in ``lacks``."""

    lacks = ()

    def __init__(self, model, params):
        self.calls = {"Config": ((model, params), {})}

    def __getattr__(self, name):
        if name.startswith("_") or name in self.lacks:
            raise AttributeError(name)

        def record(*args, **kwargs):
            self.calls[name] = (args, kwargs)

        return record


class FakeHandle:
    def __init__(self, owner):
        self.owner = owner

    def reshape(self, shape):
        self.owner.shape = tuple(shape)

    def copy_from_cpu(self, batch):
        self.owner.batch = batch

    def copy_to_cpu(self):
        return self.owner.batch


class FakePredictor:
    """Gives its input back; its run number ``breaks_at`` (and later ones) with oneDNN fails."""

    breaks_at = None

    def __init__(self, config):
        self.config = config
        self.runs = 0

    def get_input_names(self):
        return ["x"]

    get_output_names = get_input_names

    def get_input_handle(self, name):
        return FakeHandle(self)

    get_output_handle = get_input_handle

    def run(self):
        self.runs += 1
        if self.batch.max() > 9:
            raise RuntimeError("out of memory")
        with_onednn = "enable_onednn" in self.config.calls
        if self.breaks_at and self.runs >= self.breaks_at and with_onednn:
            raise NotImplementedError("ArrayAttribute<DoubleAttribute>")


class FakeInference:
    """Stands for the module paddle.inference."""

    class PrecisionType:
        Float32, Half, Int8 = "Float32", "Half", "Int8"

    def __init__(self, breaks_at=None, lacks=(), tensorrt=((8, 6, 1), (8, 6, 1))):
        self.tensorrt = tensorrt  # compiled with, found
        self.Config = type("Config", (FakeConfig,), {"lacks": lacks})
        self.predictor = type("P", (FakePredictor,), {"breaks_at": breaks_at})
        self.made = []

    def get_trt_compile_version(self):
        return self.tensorrt[0]

    def get_trt_runtime_version(self):
        if self.tensorrt[1] is None:
            raise RuntimeError("(NotFound) TensorRT is needed, but its library is not found.")
        return self.tensorrt[1]

    def create_predictor(self, config):
        self.made.append(config)
        return self.predictor(config)


def calls_of(form="legacy", shape=None, onednn=True, lacks=(), **settings):
    info = DeployInfo(form, shape or FREE, folder="f")
    settings = RuntimeSettings(**settings)
    check_settings(settings, info)
    return make_config(info, settings, FakeInference(lacks=lacks), mkldnn=onednn).calls
