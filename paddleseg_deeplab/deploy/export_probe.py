# SPDX-License-Identifier: Apache-2.0
"""Finds out whether the Paddle at hand runs a PIR model with oneDNN.

Paddle 3.2.2 does; 3.3.0 and 3.3.1 stop at a bilinear resize. Since a version may also crash or
compute something else, a tiny network is exported, run on batches of two sizes (kernels are built
for each) and compared in a child process: ``python -m paddleseg_deeplab.deploy.export_probe`` exits
with 0 where all is well.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_TIMEOUT_S = 120
_SHAPES = ((2, 3, 33, 29), (1, 3, 48, 40))
_MAX_DIFFERENCE = 1e-4  # of a tiny network's logits, of order 1


@functools.cache
def best_cpu_format():
    """The Paddle format that is best on a CPU, and why.

    Returns:
        tuple[str, str]: "pir" or "legacy", and a reason to log.
    """
    import paddle

    home = str(Path(__file__).resolve().parents[2])  # for a checkout that is not installed
    # FLAGS_enable_pir_api: the child has to see PIR even where the user has switched it off.
    env = {
        **os.environ,
        "FLAGS_enable_pir_api": "1",
        "PYTHONPATH": os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH")) if p),
    }
    try:
        child = subprocess.run(
            [sys.executable, "-m", "paddleseg_deeplab.deploy.export_probe"],
            env=env,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        works = child.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if works:
        return "pir", f"Paddle {paddle.__version__} runs it with oneDNN"
    return "legacy", f"Paddle {paddle.__version__} does not run PIR with oneDNN, the faster way"


def probe():
    """Exports and runs a tiny network; returns the greatest difference, NaN where one is NaN.

    Raises:
        Exception: whatever Paddle raises where it cannot.
    """
    import numpy as np
    import paddle
    import paddle.nn.functional as F
    from paddle import nn

    from paddleseg_deeplab.deploy.deploy_yaml import DeployInfo
    from paddleseg_deeplab.deploy.paddle_runtime import PaddleRuntime
    from paddleseg_deeplab.deploy.settings import RuntimeSettings

    class Tiny(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 8, 3, stride=2, padding=2, dilation=2)
            self.norm = nn.BatchNorm2D(8)
            self.head = nn.Conv2D(8, 3, 1)

        def forward(self, x):
            y = self.head(F.relu(self.norm(self.conv(x))))
            return F.interpolate(y, paddle.shape(x)[2:], mode="bilinear")

    paddle.set_device("cpu")
    model = Tiny()
    model.eval()
    spec = [paddle.static.InputSpec([None, 3, None, None], "float32", name="x")]
    with tempfile.TemporaryDirectory() as folder:
        static = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
        paddle.jit.save(static, os.path.join(folder, "model"))
        info = DeployInfo(format="pir", input_shape=[None, 3, None, None], folder=folder)
        runtime = PaddleRuntime(info, RuntimeSettings(mkldnn=True))
        differences = []
        for shape in _SHAPES:
            image = np.random.default_rng(0).standard_normal(shape, np.float32)
            expected = model(paddle.to_tensor(image)).numpy()
            differences.append(np.abs(runtime.run(image) - expected).max())
    return float(np.max(differences))


if __name__ == "__main__":
    sys.exit(0 if probe() <= _MAX_DIFFERENCE else 1)
