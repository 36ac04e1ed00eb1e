# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

from setuptools import find_packages, setup

_HERE = Path(__file__).parent
_VERSION = re.search(
    r'^__version__ = "(.+)"', (_HERE / "paddleseg_deeplab/__init__.py").read_text(), re.M
)[1]

# opencv-python-headless and opencv-contrib-python provide the same module; who has one of them
# installs this package with --no-deps.
_BASE = [
    # Decompresses PNG files; zlib does so, slowly, where it has no wheel.
    'isal>=1.5; platform_machine in "x86_64 AMD64 aarch64 arm64"',
    "numpy>=1.21",
    "opencv-python>=4.6",
    # Reads palette PNGs as indices, which OpenCV cannot; why 10.3, says SECURITY.md.
    "Pillow>=10.3",
    "pyyaml>=6.0",
    "safetensors>=0.4",
    "tqdm>=4.60",
    "visualdl>=2.5.3",
]
# paddle2onnx 2.x has no wheel for Python 3.13 (seen with 2.1.0); the ONNX tests are skipped there.
_ONNX = ['paddle2onnx>=2.0; python_version < "3.13"', "onnx>=1.14", "onnxruntime>=1.16"]
_CRF = ["scipy>=1.9"]  # sparse matrices for the dense CRF
_OPENVINO = ["openvino>=2024.0"]  # runs networks on CPUs, in bf16 too
# Peers that benchmarks/run.py measures beside this package; torch in its build for CPUs will do.
# pydensecrf2 is not among them: it needs a compiler.
_BENCH = [
    *(*_ONNX, *_CRF, *_OPENVINO),
    *("scikit-learn>=1.3", "torch>=2.0", "torchmetrics>=1.0"),
]
_CPU = ["paddlepaddle>=3.0"]

setup(
    name="paddleseg-deeplab",
    version=_VERSION,
    description="DeepLab V1, V2, V3 and V3+ semantic segmentation on PaddlePaddle",
    long_description=(_HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["paddleseg_deeplab", "paddleseg_deeplab.*"]),
    # Paddle is never a base requirement: the CPU and the GPU package provide the same module, and
    # a second one beside the first breaks it.
    install_requires=_BASE,
    extras_require={
        "cpu": _CPU,
        "gpu": ["paddlepaddle-gpu>=3.0"],
        "onnx": _ONNX,
        "crf": _CRF,
        "openvino": _OPENVINO,
        "bench": _BENCH,
        "test": [
            *(*_ONNX, *_CRF, *_OPENVINO),
            *("hypothesis>=6", "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6"),
        ],
    },
    entry_points={"console_scripts": ["paddleseg-deeplab=paddleseg_deeplab.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
    ],
)
