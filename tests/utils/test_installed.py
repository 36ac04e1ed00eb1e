# SPDX-License-Identifier: Apache-2.0
"""A package that is missing, too old, doubled or broken is one line; stand-ins lie on sys.path."""

import ast
import os
import subprocess
import sys
from importlib.machinery import PathFinder

import numpy as np
import pytest
from places import ROOT

from paddleseg_deeplab.deploy import deploy_yaml
from paddleseg_deeplab.utils import installed

QUICKSTART = str(ROOT / "configs" / "quickstart.yml")
GUIDE = "https://www.paddlepaddle.org.cn/en/install/quick"
# Importing it would be a crash, as Paddle 2.6.2 beside NumPy 2.
CRASH = "import os; os._exit(139)\n"
SMALL_SET = """
train_dataset: {type: Shapes, num_samples: 4, image_size: [32, 32], transforms: []}
val_dataset: {type: Shapes, mode: val, num_samples: 4, image_size: [32, 32], transforms: []}
"""


def add_paddle(folder, *distributions, code=CRASH):
    """A module `paddle`, unless code is None, and metadata: "name version" or (name, files)."""
    if code is not None:
        (folder / "paddle").mkdir(parents=True, exist_ok=True)
        (folder / "paddle" / "__init__.py").write_text(code, encoding="utf-8")
    for item in distributions:
        text, files = (item, {}) if isinstance(item, str) else item
        name, version = text.split()
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 9.9\n"
        for file, content in {"METADATA": head, **files}.items():
            (info / file).write_text(content, encoding="utf-8")
    return folder


def run(arguments, *folders, cwd=None, launcher=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), str(ROOT)])}
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=cwd or ROOT, capture_output=True, text=True, timeout=120
    )


def one_line(done):
    """The line on stderr of a command that refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    return done.stderr


def fault(monkeypatch, folder, *more):
    """What the metadata says of the Paddle that the folders give."""
    monkeypatch.setattr(sys, "path", [str(folder), *map(str, more)])
    return installed._paddle_fault(PathFinder.find_spec("paddle", sys.path))


@pytest.mark.parametrize(
    "distribution",
    [
        *("paddlepaddle 2.6.2", "paddlepaddle-gpu 2.6.2", "paddlepaddle-gpu 2.6.2.post120"),
        *("paddlepaddle_gpu 2.5.0+cu118", "PaddlePaddle 1.8.5", "paddlepaddle-rocm 2.6.0rc1"),
        ("paddlepaddle-dcu 2.6.1", {"top_level.txt": "paddle\n"}),
        ("vendor-paddle 2.4", {"top_level.txt": "_foo\npaddle\n"}),
        ("paddle-of-us 2.4", {"RECORD": "paddle/__init__.py,sha256=x,1\na.py,,\n"}),
    ],
)
def test_too_old(tmp_path, monkeypatch, distribution):
    told = fault(monkeypatch, add_paddle(tmp_path, distribution))
    name, version = (distribution if isinstance(distribution, str) else distribution[0]).split()
    name = name.replace("_", "-").lower()
    for words in (f"{name} {version}", "3.0 or newer", f"pip uninstall -y {name},", GUIDE):
        assert words in told
    assert "pip install 'paddlepaddle>=3.0'" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "distributions",
    [
        (),  # a source tree
        *(["paddlepaddle 3.0.0"], ["paddlepaddle 3.0.0rc1"], ["paddlepaddle 3.0.0.dev20250101"]),
        *(["paddlepaddle-gpu 3.1.0+cu118"], ["paddlepaddle 10.0"], ["paddlepaddle 1!3.0"]),
        *(["paddlepaddle 0.0.0"], ["paddlepaddle-gpu 0.0.0+gitabc"], ["paddlepaddle develop"]),
        # Others of that name are not Paddle, and pip's leftovers are nothing.
        ["paddlepaddle 3.3.1", ("paddle2onnx 2.1.0", {"top_level.txt": "paddle2onnx\n"})],
        ["paddlepaddle 3.3.1", "paddleseg 2.8.0", "paddle-custom-npu 2.6.0"],
        ["paddlepaddle 3.3.1", ("paddlepaddle-hub 1.0", {"top_level.txt": "hub\n"})],
        ["paddlepaddle 3.3.1", "~addlepaddle 2.6.2"],
        ["paddlepaddle 3.3.1", ("paddlepaddle-gpu 2.6.2", {"METADATA": ""})],
    ],
)
def test_taken(tmp_path, monkeypatch, distributions):
    assert fault(monkeypatch, add_paddle(tmp_path, *distributions)) is None


@pytest.mark.parametrize(
    ("distributions", "removal"),
    [
        (["paddlepaddle 3.3.1", "paddlepaddle-gpu 3.3.1"], "paddlepaddle paddlepaddle-gpu"),
        (["paddlepaddle 3.3.1", "paddlepaddle-gpu 2.6.2"], "paddlepaddle paddlepaddle-gpu"),
        (["paddlepaddle 2.6.2", "paddlepaddle 3.3.1"], "paddlepaddle"),  # an update cut short
    ],
)
def test_two_over_each_other(tmp_path, monkeypatch, distributions, removal):
    told = fault(monkeypatch, add_paddle(tmp_path, *distributions))
    assert " and ".join(distributions) in told
    assert f"pip uninstall -y {removal}, then install one" in told
    assert "pip install 'paddlepaddle>=3.0'" in told
    assert GUIDE in told


def test_which_folder_counts(tmp_path, monkeypatch):
    new = add_paddle(tmp_path / "new", "paddlepaddle-gpu 3.3.1")
    old = add_paddle(tmp_path / "old", "paddlepaddle 2.6.2")
    source = add_paddle(tmp_path / "source")
    only_metadata = add_paddle(tmp_path / "orphan", "paddlepaddle 2.6.2", code=None)
    # A whole Paddle further on, of the system beneath an environment, is never reached.
    assert fault(monkeypatch, new, old) is None
    assert fault(monkeypatch, source, old) is None
    assert "paddlepaddle 2.6.2;" in fault(monkeypatch, old, new)
    # Metadata without its files; the same folder by two names counts once.
    assert "3.3.1 and paddlepaddle 2.6.2;" in fault(monkeypatch, new, only_metadata)
    (tmp_path / "again").symlink_to(new)
    assert fault(monkeypatch, new, tmp_path / "again", tmp_path / "none", __file__) is None


@pytest.fixture
def exported(tmp_path):
    info = deploy_yaml.DeployInfo("pir", [None, 3, None, None], num_classes=2)
    deploy_yaml.write(info, tmp_path / deploy_yaml.FILE_NAME)
    for name in deploy_yaml.MODEL_FILES["pir"]:
        (tmp_path / name).write_text("{}")
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 3), np.uint8))
    return tmp_path


COMMANDS = {
    "train": ["train.py", "--config", QUICKSTART, "--save_dir", "OUT"],
    "val": ["val.py", "--config", QUICKSTART, "--save_dir", "OUT"],
    "predict": [
        *("predict.py", "--config", QUICKSTART, "--model_path", "IN", "--image_path", "IN/a.npy"),
        *("--save_dir", "OUT"),
    ],
    "export": ["export.py", "--config", QUICKSTART, "--save_dir", "OUT"],
    "infer": ["deploy/python/infer.py", "--model_dir", "IN", "--image_path", "IN/a.npy"],
    "inspect_model": ["--config", QUICKSTART, "--save_dir", "OUT"],
    "convert_weights": [
        *("--config", QUICKSTART, "--source", "torchvision", "--input", "IN/a.npz"),
        *("--output", "OUT/w.pdparams"),
    ],
    "search_crf": ["--config", QUICKSTART, "--model_path", "IN", "--save_dir", "OUT"],
    "quickstart": ["--save_dir", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_an_old_paddle(command, exported, tmp_path):
    folder = add_paddle(tmp_path / "site", "paddlepaddle-gpu 2.6.2")
    arguments = [a.replace("IN", str(exported)) for a in COMMANDS[command]]
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    if not arguments[0].endswith(".py"):
        arguments = ["-m", "paddleseg_deeplab.cli.main", command, *arguments]
    told = one_line(run(arguments, folder))
    assert "paddlepaddle-gpu 2.6.2" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "statement",
    [
        *("import paddleseg_deeplab.core.val", "import paddleseg_deeplab.models"),
        *("from paddleseg_deeplab.core import train", "import paddleseg_deeplab, paddle.nn"),
        "from paddleseg_deeplab.cvlibs import SegBuilder",
        "import paddleseg_deeplab.utils.weights.load",
    ],
)
def test_python_gets_an_exception_of_the_same_text(statement, tmp_path):
    folder = add_paddle(tmp_path, "paddlepaddle 3.3.1", "paddlepaddle-gpu 2.6.2")
    code = f"try:\n    {statement}\nexcept ImportError as e:\n    print(type(e).__mro__[1:3], e)"
    done = run(["-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert "UserError" in done.stdout
    assert "Several Paddles are installed over each other" in done.stdout


def test_a_paddle_that_came_first_is_judged_too(tmp_path):
    folder = add_paddle(tmp_path, "paddlepaddle 2.6.2", code="")
    done = run(["-c", "import paddle, paddleseg_deeplab.models"], folder)
    assert "PackageError: The installed Paddle is paddlepaddle 2.6.2" in done.stderr


def test_looking_for_paddle_raises_nothing(tmp_path):
    """Other packages ask whether it is there, with importlib.util.find_spec."""
    folder = add_paddle(tmp_path, "paddlepaddle 2.6.2")
    code = (
        "import paddleseg_deeplab, importlib.util as u, importlib.resources, numpy, cv2\n"
        "print(u.find_spec('paddle').origin, u.find_spec('no_such_module'))\n"
        "print(type(numpy.__loader__).__name__, numpy.__spec__.loader is numpy.__loader__)\n"
        "import importlib; importlib.reload(numpy); importlib.reload(paddleseg_deeplab)\n"
        "import sys; print(sum(type(f).__name__ == '_Guard' for f in sys.meta_path))"
    )
    told = run(["-W", "ignore", "-c", code], folder).stdout.split("\n")
    assert told[0] == f"{tmp_path / 'paddle' / '__init__.py'} None"
    assert told[1:3] == ["SourceFileLoader True", "1"]


def test_what_needs_no_paddle_works_beside_a_bad_one(tmp_path):
    folder = add_paddle(tmp_path / "site", "paddlepaddle 2.6.2")
    (tmp_path / "c.yml").write_text(SMALL_SET)
    commands = [
        ["train.py", "--help"],
        ["deploy/python/infer.py", "--help"],
        ["-m", "paddleseg_deeplab.cli.main", "export", "--help"],
        [
            *("-m", "paddleseg_deeplab.cli.main", "check_dataset", "--config", tmp_path / "c.yml"),
            *("--save_dir", tmp_path / "report", "--num_workers", "0"),
        ],
    ]
    for command in commands:
        done = run(command, folder)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.json").is_file()


def test_onnxruntime_needs_no_paddle(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from onnx import TensorProto, helper

    shape = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_operatorsetid("", 13)]
    )
    onnx.save(model, str(tmp_path / "model.onnx"))
    info = deploy_yaml.DeployInfo("onnx", [None, 3, None, None], output_op="none", num_classes=3)
    deploy_yaml.write(info, tmp_path / deploy_yaml.FILE_NAME)
    np.save(tmp_path / "a.npy", np.zeros((32, 32, 3), np.uint8))
    folder = add_paddle(tmp_path / "site", "paddlepaddle 2.6.2")
    flags = ["--model_dir", tmp_path, "--image_path", tmp_path / "a.npy"]
    done = run(["deploy/python/infer.py", *flags, "--save_dir", tmp_path / "out"], folder)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("*.png"))


# Module, what its import does, words of the line.
GL = "libGL.so.1: cannot open shared object file: No such file or directory"
BROKEN = [
    ("cv2", f"raise ImportError('{GL}')", [GL, "opencv-python-headless", "apt-get install libgl1"]),
    (
        "cv2",
        f"raise ImportError('{GL.replace('libGL.so.1', 'libgthread-2.0.so.0')}')",
        ["libgthread-2.0.so.0", "pip uninstall -y opencv-python", "libglib2.0-0"],
    ),
    (
        "cv2",
        "import sys; print('A page of\\nNumPy', file=sys.stderr)\n"
        "raise AttributeError('_ARRAY_API not found')",
        ["_ARRAY_API not found", "pip install --upgrade --force-reinstall opencv-python."],
    ),
    ("numpy", "raise ImportError('ADVICE ' * 99) from OSError('no libblas')", ["no libblas"]),
    ("yaml", "raise SyntaxError('half\\na file')", ["pyyaml is installed but", "half a file"]),
    ("tqdm", "import no_such_part", ["tqdm is installed but", "no_such_part"]),
    ("PIL", "raise OSError()", ["Pillow is installed but cannot be imported: OSError."]),
]


@pytest.mark.parametrize(("module", "code", "words"), BROKEN)
def test_a_broken_package_is_one_line(module, code, words, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{module}.py").write_text(code, encoding="utf-8")
    (tmp_path / "c.yml").write_text(SMALL_SET)
    command = ["deploy/python/infer.py", "--model_dir", tmp_path, "--image_path", tmp_path]
    if module in ("yaml", "tqdm"):
        verb = ["-m", "paddleseg_deeplab.cli.main", "check_dataset"]
        command = [*verb, "--config", tmp_path / "c.yml"]
    told = one_line(run(command, tmp_path / "site"))
    for word in words:
        assert word in told
    done = run(["-c", f"import paddleseg_deeplab, {module}"], tmp_path / "site")
    assert "paddleseg_deeplab.utils.errors.PackageError: " in done.stderr


@pytest.mark.parametrize("command", ["train", "val", "predict", "export"])
def test_opencv_without_its_library_at_each_script(command, exported, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cv2.py").write_text(f"raise ImportError('{GL}')", encoding="utf-8")
    arguments = [a.replace("IN", str(exported)) for a in COMMANDS[command]]
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    assert GL in one_line(run(arguments, tmp_path / "site"))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            "libcuda.so.1: cannot open shared object file",
            ["--gpus all", "uninstall -y paddlepaddle-"],
        ),
        ("libcudnn.so.9: cannot open shared object file", ["NVIDIA's driver"]),
        ("libgomp.so.1: cannot open shared object file", ["apt-get install libgomp1."]),
        ("/lib/libm.so.6: version `GLIBC_2.34' not found", ["older than this build"]),
        ("numpy.core.multiarray failed to import", ["Install it anew", GUIDE]),
    ],
)
def test_a_paddle_that_cannot_be_imported(reason, words, tmp_path):
    code = "import sys; print('Error: Can not import', file=sys.stderr)\n"
    code += f"raise ImportError({reason!r})\n"
    folder = add_paddle(tmp_path / "site", "paddlepaddle-gpu 3.1.0", code=code)
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in COMMANDS["val"]]
    told = one_line(run(arguments, folder))
    for word in ("Paddle is installed but cannot be imported", reason, *words):
        assert word in told


@pytest.mark.parametrize("missing", [["cv2"], ["numpy", "yaml"], ["tqdm"], ["PIL"]])
def test_missing_packages_are_named_together(missing, tmp_path):
    (tmp_path / "c.yml").write_text(SMALL_SET)
    names = [installed._DISTRIBUTIONS[module] for module in missing]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from paddleseg_deeplab.cli.main import main\n"
        f"sys.exit(main(['check_dataset', '--config', {str(tmp_path / 'c.yml')!r}]))"
    )
    told = one_line(run(["-c", code]))
    assert f"lacks {', '.join(names)}: run pip install {' '.join(names)}" in told


@pytest.mark.parametrize("verb", ["train", "export", "search_crf", "prepare_dataset"])
def test_help_imports_no_package(verb):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['numpy', 'cv2', 'tqdm', 'PIL', 'paddle']))\n"
        f"from paddleseg_deeplab.cli.main import main; main(['{verb}', '--help'])"
    )
    if verb == "export":
        code = code.replace("'numpy', ", "")  # for the formats' names
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr
    assert "--debug" in done.stdout


def test_a_folder_named_paddle_is_no_paddle(tmp_path):
    """As in a checkout of Paddle's sources; only where no Paddle is on the path."""
    (tmp_path / "paddle").mkdir()
    code = (
        f"import sys; sys.path[:] = [{str(tmp_path)!r}, {str(ROOT)!r}] + "
        "[p for p in sys.path if 'site-packages' not in p]\n"
        "import paddleseg_deeplab\n"
        "from paddleseg_deeplab.utils.installed import require_paddle\n"
        "for use in (require_paddle, lambda: __import__('paddle')):\n"
        "    try:\n        use()\n    except ImportError as e:\n        print(e)\n"
    )
    lines = run(["-S", "-c", code]).stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("PaddlePaddle is not installed: for a CPU") for line in lines)


def test_an_old_python_is_told():
    """The file that says so stays within an old Python's words."""
    text = (ROOT / "paddleseg_deeplab" / "__init__.py").read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 7))
    code = "import sys; sys.version_info = (3, 9, 18); import paddleseg_deeplab"
    done = run(["-c", code])
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: paddleseg_deeplab needs Python 3.10 or newer; ")
    assert sys.executable in last


def test_the_floors_agree():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10"' in project
    assert 'target-version = "py310"' in project
    for page in ("README.md", "README_CN.md", "Makefile"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "Python 3.10" in text
        assert "3.9" not in text, page
    assert '"Pillow>=10.3"' in project
    assert "Pillow from 10.3 on" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
