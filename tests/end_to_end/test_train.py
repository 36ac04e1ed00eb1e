# SPDX-License-Identifier: Apache-2.0
"""`train.py` from flags to files: resuming, averaging, stopping, and its manners."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from places import ROOT
from small_runs import (  # noqa: F401
    CONFIG,
    DropoutNet,
    arrays,
    assert_same,
    config,
    registered,
    run,
)

from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.progress import read_progress


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--use_ema", "--do_eval", "--num_workers", 2, "--seed", 5],
        ["--data_format", "NHWC", "--do_eval", "--opts", "accumulation_steps=2"],
    ],
    ids=["plain", "ema", "nhwc-accumulation"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, flags):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(config, whole, "--save_interval", 3, *flags) == 0
    # The seed is the checkpoint's; so it is not given again.
    again = [flag for flag in flags if flag not in ("--seed", 5)]
    assert run(config, parts, "--resume_model", whole / "iter_3", *again) == 0
    names = ["model.pdparams", "model.pdopt", *(["ema.pdparams"] if "--use_ema" in flags else [])]
    for name in names:
        assert_same(whole / "iter_6", parts / "iter_6", name)
    one, other = (json.loads((d / "iter_6" / "progress.json").read_text()) for d in (whole, parts))
    assert one == other
    one, other = (vars(read_progress(d / "iter_6")) for d in (whole, parts))
    assert one == other
    assert one["iteration"] == 6
    if "--do_eval" in flags:
        assert one["best_iteration"] in (3, 6)
        assert one["seed"] == (5 if "--seed" in flags else 0)
        assert_same(whole, parts, "best_model/model.pdparams")


def test_the_seed_decides(config, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(config, tmp_path / name, "--iters", 2, "--seed", seed) == 0
    assert_same(tmp_path / "a" / "iter_2", tmp_path / "b" / "iter_2", "model.pdparams")
    one, other = (arrays(tmp_path / n / "iter_2" / "model.pdparams") for n in "ac")
    assert any((value != other[key]).any() for key, value in one.items())


def test_best_model_is_the_average_where_there_is_one(config, tmp_path):
    out = tmp_path / "out"
    assert run(config, out, "--iters", 2, "--do_eval", "--use_ema") == 0
    best = arrays(out / "best_model" / "model.pdparams")
    average = arrays(out / "iter_2" / "ema.pdparams", skip=("updates", "decay"))
    own = arrays(out / "iter_2" / "model.pdparams")
    assert any((best[key] != own[key]).any() for key in best)
    for key, value in best.items():
        np.testing.assert_array_equal(value, average[f"/average{key}"])


def test_what_is_left_in_save_dir(config, tmp_path):
    out = tmp_path / "out"
    flags = ["--save_interval", 2, "--keep_checkpoint_max", 2, "--do_eval", "--use_vdl"]
    assert run(config, out, *flags) == 0
    files = {p.name for p in out.iterdir() if not p.name.startswith("vdlrecords.")}
    assert files == {"best_model", "config.yml", "iter_4", "iter_6", "train.log"}
    assert len(list(out.glob("vdlrecords.*.log"))) == 1
    log = (out / "train.log").read_text(encoding="utf-8")
    for i in range(1, 7):
        assert f"iter: {i}/6, loss: " in log
    words = [
        "CrossEntropyLoss: ",
        "LovaszSoftmaxLoss: ",
        "lr: 0.05,",
        "batch_cost: ",
        "step_cost: ",
        "reader_cost: ",
        "ips: ",
        "memory: ",
        "ETA 00:00:00",
    ]
    for word in [*words, "device cpu", "CPU environment", "mIoU", "batch_size: 2", "Saved "]:
        assert word in log, word
    assert "\r" not in log  # no progress bar
    # The kept config is the whole recipe: it trains again, as the same.
    kept = yaml.safe_load((out / "config.yml").read_text(encoding="utf-8"))
    assert kept["model"] == {"type": "DropoutNet", "data_format": "NCHW", "num_classes": 3}
    assert run(out / "config.yml", tmp_path / "again") == 0
    assert_same(out / "iter_6", tmp_path / "again" / "iter_6", "model.pdparams")
    assert (tmp_path / "again" / "config.yml").read_text() == (out / "config.yml").read_text()


def test_a_terminal_gets_a_progress_bar(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(config, tmp_path / "out", "--iters", 2) == 0
    shown = capsys.readouterr().err
    assert "2/2" in shown.split("\r")[-1]
    assert "loss=" in shown
    assert "\r" not in (tmp_path / "out" / "train.log").read_text(encoding="utf-8")


def test_flags_win_over_the_config_and_are_kept(config, tmp_path):
    out = tmp_path / "out"
    flags = ["--iters", 1, "--batch_size", 3, "--learning_rate", 0.25]
    assert run(config, out, *flags, "--opts", "optimizer.momentum=0.5") == 0
    kept = yaml.safe_load((out / "config.yml").read_text(encoding="utf-8"))
    assert (kept["iters"], kept["batch_size"]) == (1, 3)
    assert kept["lr_scheduler"]["learning_rate"] == 0.25
    assert kept["optimizer"]["momentum"] == 0.5


def test_early_stop(config, tmp_path):
    out = tmp_path / "out"
    flags = ["--do_eval", "--save_interval", 1, "--early_stop_intervals", 2, "--iters", 50]
    # Nothing is learned, and statistics alone seldom gain for long.
    opts = ["--opts", "lr_scheduler.learning_rate=0", "model.type=DropoutNet"]
    assert run(config, out, *flags, *opts) == 0
    progress = read_progress(checkpoint.checkpoints(out)[-1])
    assert progress.iteration == progress.best_iteration + 2 < 50
    assert "Early stop" in (out / "train.log").read_text(encoding="utf-8")


def test_evaluation_refines_where_the_config_says_so(config, tmp_path, monkeypatch):
    from paddleseg_deeplab.postprocess.dense_crf import DenseCRF

    seen = []
    call = DenseCRF.__call__
    monkeypatch.setattr(
        DenseCRF, "__call__", lambda self, *a: seen.append(self.iterations) or call(self, *a)
    )
    opts = "test_config.crf={'iterations': 2}"
    assert run(config, tmp_path / "out", "--iters", 1, "--do_eval", "--opts", opts) == 0
    assert seen == [2, 2]  # the validation set's two images


def test_a_finished_run_is_left_alone(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(config, out, "--iters", 2) == 0
    assert run(config, out, "--iters", 2, "--resume_model", out / "iter_2") == 0
    assert "done already" in capsys.readouterr().err


def test_non_finite_loss_stops_and_names_the_files(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(config, out, "--learning_rate", 1e30) == 1
    text = capsys.readouterr().err
    # The first update breaks the weights, the second iteration sees it.
    assert "stopped at iteration 2" in text
    assert "shapes_train_00000" in text
    assert "Lower the learning rate" in text
    assert "Traceback" not in text
    assert not list(out.glob("iter_*"))
    assert "stopped at iteration 2" in (out / "train.log").read_text(encoding="utf-8")


def test_an_earlier_run_is_not_mixed_with_a_new_one(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(config, out, "--iters", 2, "--do_eval", "--use_vdl") == 0
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert run(config, out, "--iters", 1) == 2
    text = capsys.readouterr().err
    assert "--overwrite" in text
    assert f"--resume_model {out / 'iter_2'}" in text
    assert (out / "iter_2").is_dir()
    assert run(config, out, "--iters", 1, "--overwrite") == 0
    assert {p.name for p in out.iterdir()} == {"config.yml", "iter_1", "notes.txt", "train.log"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--iters", 0], ["--iters", "at least 1", "0"]),
        (["--seed", -1], ["--seed", "-1"]),
        (["--early_stop_intervals", 2], ["--do_eval"]),
        (["--iters", "many"], ["--iters", "many", "--help"]),
        (["--wrong_flag"], ["--wrong_flag", "--help"]),
        (["--device", "gpu:99"], ["gpu"]),
        (["--device", "abacus"], ["abacus"]),
        (["--precision", "fp16"], ["fp16", "CPU"]),
        (["--resume_model", "nowhere"], ["nowhere", "model.pdparams"]),
        (["--opts", "model.tpye=X"], ["model.tpye", "data_format"]),
        (["--opts", "batch_size=0"], ["batch_size", "0"]),
        (["--opts", "test_config.crf={'xy': 5}"], ["test_config.crf.xy", "bilateral_xy"]),
        (["--opts", "train_dataset.transforms=[{'type':'Normalize'}]", "batch_size=two"], ["two"]),
        (["--config", "missing.yml"], ["missing.yml"]),
        (["--save_dir", __file__], ["--save_dir", "is a file"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(config, tmp_path, capsys, flags, words):
    try:
        status = run(config, tmp_path / "out", *flags)
    except SystemExit as leaving:  # argparse's own way
        status = leaving.code
    text = capsys.readouterr().err
    assert status == 2
    lines = [line for line in text.splitlines() if " [INFO] " not in line]
    # The log may show the resolved config before.
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in text
    for word in words:
        assert word in lines[-1]


def test_debug_shows_where_an_error_came_from(config, tmp_path, capsys):
    assert run(config, tmp_path / "out", "--precision", "bf16", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def child(code, *flags, **settings):
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **settings,
    )


@pytest.mark.parametrize(
    ("module", "argv", "word"),
    [("train", "['--help']", "--resume_model"), ("main", "['--help']", "quickstart")],
)
def test_help_needs_no_paddle(module, argv, word):
    code = (
        f"import sys\nfrom paddleseg_deeplab.cli import {module}\n"
        f"try:\n    status = {module}.main({argv})\n"
        "except SystemExit as leaving:\n    status = leaving.code\n"
        "heavy = {'paddle', 'visualdl', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else status)\n"
    )
    done = child(code)
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_missing_paddle_is_one_sentence(config):
    code = (
        "import sys\nsys.modules['paddle'] = None\nfrom paddleseg_deeplab.cli import train\n"
        f"sys.exit(train.main(['--config', {str(config)!r}]))\n"
    )
    done = child(code)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "pip install 'paddlepaddle>=3.0'" in line
    assert "https://www.paddlepaddle.org.cn/en/install/quick" in line
    assert line.count(". ") == 0


def test_the_real_command_is_quiet_on_stderr(config, tmp_path):
    """As a process of its own: nothing but the log, none of Paddle's own warnings."""
    content = yaml.safe_load(CONFIG)
    content["model"] = {
        "type": "DeepLabV3P",
        "backbone": {"type": "ResNet18_vd", "output_stride": 16},
        "aspp_ratios": [1, 2, 3, 4],
        "aspp_out_channels": 8,
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    flags = ["--config", str(config), "--save_dir", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags, "--iters", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "\r" not in done.stderr
    assert "iter: 1/1" in done.stderr
    assert done.stdout == ""
