# SPDX-License-Identifier: Apache-2.0
"""Two processes on the CPU, started by Paddle's launcher, against one."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rank_worker
from launching import CONFIG, finish, launcher, logs
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli import val as val_command
from paddleseg_deeplab.datasets import Shapes


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder of one launch of `rank_worker.py`, and what both ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "set.yml").write_text(CONFIG)
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "b.png", "c.png", "d.png"):
        cv2.imwrite(str(photos / name), rng.integers(0, 256, (20, 30, 3), np.uint8))
    (photos / "broken.png").write_bytes(b"no image")
    worker = Path(rank_worker.__file__)
    output = finish(launcher(folder, worker, folder, folder / "set.yml", photos), 120)
    files = [folder / "0.json", folder / "1.json"]
    assert all(file.is_file() for file in files), output[-4000:] + logs(folder)[1][-2000:]
    return folder, [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process on the batches of both: losses of 20 iterations, and the weights."""
    return rank_worker.run(tmp_path_factory.mktemp("alone"), 4, iters=20)


def test_two_ranks_follow_one_process(launched, alone):
    # 1e-5 is asked for; sums in another order leave a few units in the last place of float32.
    losses, weights = alone
    for found in launched[1]:
        assert found["size"] == 2
        np.testing.assert_allclose(found["plain"], losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["accumulated"], losses, rtol=0, atol=1e-5)
        for name, value in weights.items():
            np.testing.assert_allclose(found["weights"][name], value, rtol=0, atol=1e-5)
    # Bit for bit the same on both ranks.
    assert launched[1][0]["weights"] == launched[1][1]["weights"]


def test_the_layer_without_gradient_stays(alone, launched):
    rank_worker.paddle.seed(7)
    fresh = rank_worker.SmallNet().state_dict()
    for name in ("unused.weight", "fixed.weight"):
        np.testing.assert_array_equal(launched[1][0]["weights"][name], fresh[name].numpy())


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(launched, alone, tmp_path):
    folder, _ = launched
    checkpoint = str(folder / "plain" / "iter_8")
    rest, _ = rank_worker.run(tmp_path, 4, iters=20, resume_model=checkpoint)
    np.testing.assert_allclose(rest, alone[0][8:], rtol=0, atol=1e-5)
    # At another number of images an iteration, the data order still goes on after 8 * 4 images.
    seen, read = [], rank_worker.VoidSet.__getitem__

    class Noting(rank_worker.VoidSet):
        def __getitem__(self, key):
            seen.append(key[0])
            return read(self, key)

    settings = {"iters": 9, "shuffle": False, "resume_ignore_config": True}
    rank_worker.run(tmp_path / "b", 3, Noting(), resume_model=checkpoint, **settings)
    assert seen[:3] == [2, 3, 4]


@pytest.mark.slow
def test_a_seed_gives_the_same_run_for_any_number_of_workers(tmp_path):
    transforms = [
        {"type": "RandomPaddingCrop", "crop_size": [16, 12]},
        {"type": "RandomHorizontalFlip"},
        {"type": "RandomDistort", "brightness_range": 0.4},
        {"type": "Normalize"},
    ]
    made = [
        registry.TRANSFORMS[t["type"]](**{k: v for k, v in t.items() if k != "type"})
        for t in transforms
    ]
    data = Shapes(made, mode="train", num_classes=3, image_size=(24, 20), num_samples=5)
    (losses, weights), *others = [
        rank_worker.run(tmp_path / str(n), 2, data, iters=6, seed=5, num_workers=n)
        for n in (0, 1, 3, 0)
    ]
    for other_losses, other_weights in others:
        assert other_losses == losses
        for name, value in weights.items():
            np.testing.assert_array_equal(other_weights[name], value)
    assert rank_worker.run(tmp_path / "6", 2, data, iters=6, seed=6)[0] != losses


def test_early_stop_and_evaluation_are_the_same_on_all(launched):
    one, other = (found["early"] for found in launched[1])
    assert one == other
    assert len(one) < 20


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("user", "UserError", "process 1 of 2: image_5.png is broken."),
        ("bug", "RunStopped", "KeyError"),
        ("nan", "NonFiniteLoss", "sample 5"),
        ("signal", "Interrupted", "SIGTERM"),
    ],
)
def test_one_ranks_trouble_stops_all_with_one_message(launched, fault, kind, text):
    folder, (first, second) = launched
    assert first[fault][0] == kind
    assert text in first[fault][1]
    assert not first[fault][2]
    own = {"bug": "RuntimeError"}.get(fault, kind)  # the reader's, with the dataset's traceback
    assert second[fault][0] == own
    assert second[fault][2]
    # A signal leaves a checkpoint; of the rest nothing is written after the iteration before.
    assert bool(list((folder / fault).glob("iter_*"))) == (fault == "signal")


def test_only_the_first_rank_writes(launched):
    folder, _ = launched
    names = {p.name for p in (folder / "plain").iterdir()}
    assert {"iter_8", "iter_16", "iter_20"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert "[INFO]" not in logs(folder)[1].split("Evaluating")[-1]


def test_val_of_two_ranks_equals_one(launched, tmp_path):
    folder, results = launched
    assert [found["val"] for found in results] == [0, 0]
    weights = str(folder / "plain" / "iter_20")
    flags = ["--config", str(folder / "set.yml"), "--device", "cpu", "--model_path", weights]
    assert val_command.main([*flags, "--save_dir", str(tmp_path)]) == 0
    one, two = (json.loads((d / "metrics.json").read_text()) for d in (tmp_path, folder / "val"))
    assert one.pop("seconds") >= 0
    assert two.pop("seconds") >= 0
    assert one == two
    assert one["images"] == 7
    assert (tmp_path / "images.csv").read_text() == (folder / "val" / "images.csv").read_text()


def test_the_network_that_is_evaluated_is_the_one_that_is_saved(launched, tmp_path):
    """Batch norm with statistics of its own: each rank's differ until they are shared."""
    folder, _ = launched
    normed = folder / "normed"
    flags = ["--config", str(folder / "set.yml"), "--device", "cpu", "--opts"]
    flags += ["model.real_norm=True", "--model_path"]
    scores = {}
    for iteration in (2, 4, 6):
        out = tmp_path / str(iteration)
        weights = str(normed / f"iter_{iteration}")
        assert val_command.main([*flags, weights, "--save_dir", str(out)]) == 0
        scores[iteration] = json.loads((out / "metrics.json").read_text())["mIoU"]
    evaluations = [
        json.loads((normed / f"iter_{i}" / "evaluation.json").read_text()) for i in scores
    ]
    best = np.maximum.accumulate(list(scores.values()))
    # 1e-6 is asked for: float64 means of the same counts.
    np.testing.assert_allclose([e["best_miou"] for e in evaluations], best, rtol=0, atol=1e-6)
    assert scores[evaluations[-1]["best_iteration"]] == best[-1]
    assert val_command.main([*flags, str(normed / "best_model"), "--save_dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["mIoU"]
    assert found == pytest.approx(best[-1], abs=1e-6)


@pytest.mark.slow
def test_predict_shares_the_images(launched):
    folder, results = launched
    assert [found["predict"] for found in results] == [2, 2]
    made = {p.name for p in (folder / "pictures" / "pseudo_color_prediction").iterdir()}
    assert made == {"a_jpg.png", "a_png.png", "b.png", "c.png", "d.png"}
    console = "".join(logs(folder))
    assert console.count("1 of 6 images could not be done") == 1


def _train(folder, data=""):
    config = folder / "set.yml"
    text = CONFIG.replace("SmallNet}", "DeepLabV3P, backbone: {type: ResNet18_vd}}")
    config.write_text(text + data)
    flags = ["--config", config, "--save_dir", folder / "run", "--device", "cpu"]
    return [ROOT / "train.py", *flags, "--log_iters", "1", "--save_interval", "2"]


def _ranks_of(process):
    """Process numbers of a launcher's ranks, in order."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(int(pid) for pid in text.split())


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")


@pytest.fixture
def started():
    """Starts launchers, and ends those that a failed test has left."""
    processes = []

    def start(*arguments):
        processes.append(launcher(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def _wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.1)


@pytest.mark.slow
@needs_proc
def test_a_killed_rank_and_a_signal_to_the_launcher_end_the_run(tmp_path, started):
    process = started(tmp_path, *_train(tmp_path))
    run = tmp_path / "run"
    _wait_until((run / "iter_2").exists)
    os.kill(_ranks_of(process)[1], signal.SIGKILL)
    finish(process, 60)
    assert process.returncode != 0
    # It depends on the moment what the other one notices first, the barrier or the exchange.
    assert re.search("process 1 of 2 is gone|one of them is gone", logs(tmp_path)[0])
    assert "Traceback" not in logs(tmp_path)[0]
    # The launcher's SIGTERM reaches each rank several times; the run is saved all the same.
    shutil.rmtree(tmp_path / "log")
    process = started(tmp_path, *_train(tmp_path), "--resume_model", "auto")
    log = tmp_path / "log" / "workerlog.0"
    _wait_until(lambda: log.exists() and "[TRAIN]" in log.read_text())
    process.send_signal(signal.SIGTERM)
    finish(process, 60)
    first, second = logs(tmp_path)
    for text in ("Resumed from", "The run was stopped by SIGTERM", "Saved"):
        assert first.count(text) >= 1, first
        assert text not in second
    assert "Traceback" not in first + second
    assert all((p / "manifest.json").is_file() for p in run.glob("iter_*"))
