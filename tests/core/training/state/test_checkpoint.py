# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a round trip, what is kept, and what is refused."""

import json
import types

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleseg_deeplab.core.training.state import checkpoint
from paddleseg_deeplab.core.training.state.folder import fault
from paddleseg_deeplab.core.training.state.progress import (
    Progress,
    iteration_of,
    read_progress,
    save_evaluation,
    warn_of_another_machine,
)
from paddleseg_deeplab.optimizers.ema import ModelEMA
from paddleseg_deeplab.utils.errors import NonFiniteLoss, UserError
from paddleseg_deeplab.utils.logger import logger
from paddleseg_deeplab.utils.weights.load import read_weights


def run(kind="Momentum", channels=4, ema=False):
    """A net, its step as far as `state` looks at it, and an average of the weights."""
    net = nn.Sequential(
        nn.Conv2D(3, channels, 3), nn.BatchNorm2D(channels), nn.Conv2D(channels, 2, 1)
    )
    scheduler = paddle.optimizer.lr.StepDecay(0.1, 2, 0.5)
    optimizer = getattr(paddle.optimizer, kind)(scheduler, parameters=net.parameters())
    step = types.SimpleNamespace(
        optimizer=optimizer, scaler=paddle.amp.GradScaler(enable=False), scheduler=scheduler
    )
    return net, step, ModelEMA(net, decay=0.9) if ema else None


def train(net, step, ema, seeds):
    for seed in seeds:
        x = np.random.default_rng(seed).standard_normal((2, 3, 6, 6)).astype("float32")
        net(paddle.to_tensor(x)).square().mean().backward()
        step.optimizer.step()
        step.optimizer.clear_grad()
        step.scheduler.step()
        if ema is not None:
            ema.update()


def arrays(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("kind", ["Momentum", "Adam", "AdamW", "SGD"])
def test_round_trip_goes_on_bit_for_bit(tmp_path, kind):
    net, step, ema = run(kind, ema=True)
    train(net, step, ema, range(3))
    progress = Progress(3, 0.5, 2, 1, 7)
    folder = checkpoint.save_checkpoint(tmp_path, net, step, progress, ema)
    assert folder == tmp_path / "iter_3"
    train(net, step, ema, range(3, 6))

    # In this process the second net's parameters have other names (conv2d_2, ...).
    net2, step2, ema2 = run(kind, ema=True)
    assert checkpoint.resume(folder, net2, step2, ema2) == progress
    assert step2.optimizer.get_lr() == pytest.approx(0.05)
    train(net2, step2, ema2, range(3, 6))
    assert_same(arrays(net), arrays(net2))
    average, average2 = ema.state_dict(), ema2.state_dict()
    assert average["updates"] == average2["updates"]
    assert_same(
        {k: v.numpy() for k, v in average["average"].items()},
        {k: v.numpy() for k, v in average2["average"].items()},
    )


# What Paddle asks for and does not use without a graph.
BLOCK = paddle.static.Program().global_block()


def half_precision():
    """A network and an optimizer as under O2, with master weights and velocities. (A CPU has no
    kernel for their update, but makes them.)"""
    net = nn.Sequential(nn.Conv2D(2, 3, 1), nn.BatchNorm2D(3), nn.Conv2D(3, 2, 1))
    for layer in (net[0], net[2]):
        layer.to(dtype="bfloat16")
    optimizer = paddle.optimizer.Momentum(parameters=net.parameters(), multi_precision=True)
    return net, optimizer, [p for p in net.parameters() if not p.stop_gradient]


def velocities(optimizer):
    return {name: v.numpy() for name, v in optimizer._accumulators["velocity"].items()}


def test_half_precision_is_saved_in_float32_and_resumed_with_its_velocities(tmp_path):
    net, optimizer, parameters = half_precision()
    optimizer._create_accumulators(BLOCK, parameters)
    rng = np.random.default_rng(0)
    tensors = [*optimizer._master_weights.values(), *optimizer._accumulators["velocity"].values()]
    for tensor in tensors:
        tensor.set_value(rng.standard_normal(tensor.shape).astype("float32"))
    step = types.SimpleNamespace(optimizer=optimizer, scaler=paddle.amp.GradScaler(enable=False))
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(3))

    # Nothing in between: what `state_dict` gives are the tensors themselves, as under fp32.
    assert net.state_dict()["0.weight"].dtype == paddle.bfloat16
    saved = read_weights(str(folder / "model.pdparams"))
    assert {t.dtype for t in saved.values()} == {paddle.float32}
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(saved[name].numpy(), tensor.astype("float32").numpy())
        assert saved[name].name == tensor.name

    # In this process the second network's parameters have other names.
    net2, optimizer2, parameters2 = half_precision()
    assert [p.name for p in parameters2] != [p.name for p in parameters]
    step2 = types.SimpleNamespace(optimizer=optimizer2, scaler=step.scaler)
    checkpoint.resume(folder, net2, step2)
    optimizer2._create_accumulators(BLOCK, parameters2)  # as Paddle does at the first update
    for one, other in zip(parameters, parameters2):
        np.testing.assert_array_equal(
            other.astype("float32").numpy(), one.astype("float32").numpy()
        )
    one, other = (list(velocities(o).values()) for o in (optimizer, optimizer2))
    assert len(one) == len(other) == len(parameters)
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)
    one, other = (list(o._master_weights.values()) for o in (optimizer, optimizer2))
    assert len(one) == len(other) == 4
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["weight", "statistic", "velocity", "average"])
def test_what_is_not_finite_is_neither_saved_nor_resumed(tmp_path, what, value, monkeypatch):
    net, step, ema = run(ema=True)
    train(net, step, ema, range(2))
    whole = checkpoint.save_checkpoint(tmp_path, net, step, Progress(2), ema)
    tensors = {
        "weight": net.state_dict()["0.weight"],
        "statistic": net.state_dict()["1._variance"],
        "velocity": next(v for k, v in step.optimizer.state_dict().items() if "velocity" in k),
        "average": ema.state_dict()["average"]["0.weight"],
    }
    broken = tensors[what].numpy()
    broken.reshape(-1)[0] = value
    tensors[what].set_value(broken)
    with pytest.raises(NonFiniteLoss, match=r"iter_3 is not saved: 1 of \d+ tensors.*\(1 of "):
        checkpoint.save_checkpoint(tmp_path, net, step, Progress(3), ema)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [whole.name]
    if what in ("weight", "statistic"):
        with pytest.raises(NonFiniteLoss, match="best_model is not saved"):
            checkpoint.save_best_model(net, tmp_path)
        assert not (tmp_path / "best_model").exists()
    # One that an earlier version has saved.
    monkeypatch.setattr(checkpoint, "_check_finite", lambda *_: None)
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(3), ema)
    net2, step2, ema2 = run(ema=True)
    with pytest.raises(UserError, match="not finite: 1 of"):
        checkpoint.resume(folder, net2, step2, ema2)


def test_another_machine_is_told_on_a_cpu(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    net, step, _ = run()
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(1))
    saved = read_progress(folder)
    assert saved.machine["FLAGS_paddle_num_threads"]
    assert saved.machine["Paddle"] == paddle.__version__
    warn_of_another_machine(saved)
    warn_of_another_machine(Progress(1))  # of an earlier version, which does not tell

    def warned():
        return {r.getMessage() for r in caplog.records if r.name == logger.name}

    assert not warned()
    monkeypatch.setenv("FLAGS_paddle_num_threads", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    warn_of_another_machine(saved)
    [text] = warned()
    before = saved.machine["FLAGS_paddle_num_threads"]
    assert f"FLAGS_paddle_num_threads {before} -> 7" in text
    assert "MKL_NUM_THREADS" in text
    assert "differ in the last digits" in text
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    warn_of_another_machine(saved)
    assert warned() == {text}


def test_names_that_begin_alike_stay_apart():
    net = nn.Sequential(*[nn.Conv2D(1, 1, 1) for _ in range(12)])
    optimizer = paddle.optimizer.Momentum(parameters=net.parameters())
    net(paddle.ones([1, 1, 2, 2])).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert checkpoint._renamed(saved, net.state_dict(), net).keys() == saved.keys()


def test_an_average_that_was_not_saved_starts_at_the_weights(tmp_path):
    net, step, _ = run()
    train(net, step, None, range(2))
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(2))
    net2, step2, ema2 = run(ema=True)
    checkpoint.resume(folder, net2, step2, ema2)
    average = ema2.state_dict()["average"]
    assert_same(arrays(net), {name: tensor.numpy() for name, tensor in average.items()})


def test_pruning_keeps_the_newest_by_number(tmp_path):
    net, step, _ = run()

    def save(iteration, keep):
        checkpoint.save_checkpoint(tmp_path, net, step, Progress(iteration), keep=keep)
        return [folder.name for folder in checkpoint.checkpoints(tmp_path)]

    (tmp_path / "iter_x").mkdir()
    (tmp_path / "iter_7").write_text("a file")
    for iteration in (2, 9, 10):
        names = save(iteration, 0)
    assert names == ["iter_2", "iter_9", "iter_10"]
    assert save(100, 2) == ["iter_10", "iter_100"]
    # A run resumed behind: what lies ahead is another run's and neither counts nor goes.
    assert save(20, 1) == ["iter_20", "iter_100"]
    assert save(100, 5) == ["iter_20", "iter_100"]
    assert (tmp_path / "iter_x").is_dir()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "number"),
    [("iter_10", 10), ("a/iter_0", 0), ("iter_", None), ("iter_1.tmp", None), ("best_model", None)],
)
def test_iteration_of(name, number):
    assert iteration_of(name) == number


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _cut(path):
    write(path, path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "model.pdparams").unlink(), ["model.pdparams", "iter_N"]),
        (lambda f: (f / "model.pdopt").unlink(), ["model.pdopt", "iter_N"]),
        (lambda f: _cut(f / "model.pdparams"), ["model.pdparams"]),
        (lambda f: _cut(f / "model.pdopt"), ["model.pdopt", "damaged"]),
        (lambda f: write(f / "progress.json", "{"), ["progress.json", "damaged"]),
        (lambda f: write(f / "progress.json", '{"epoch": 1}'), ["progress.json", "epoch"]),
        (lambda f: write(f / "progress.json", "[1]"), ["progress.json"]),
        (
            lambda f: write(f / "progress.json", json.dumps({"optimizer": "Adam"})),
            ["", "Adam", "Momentum"],
        ),
    ],
)
@pytest.mark.parametrize("checked", [True, False], ids=["manifest", "no-manifest"])
def test_damage_is_a_user_error(tmp_path, spoil, words, checked):
    net, step, _ = run()
    train(net, step, None, range(2))
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(2))
    spoil(folder)
    if checked:
        words = words[:1]  # the manifest finds every damage, and names the file
    else:
        (folder / "manifest.json").unlink()
    net2, step2, _ = run()
    with pytest.raises(UserError) as caught:
        checkpoint.resume(checkpoint.find_checkpoint(folder, tmp_path), net2, step2)
    for word in [*words, str(folder)]:
        assert word in str(caught.value)


def test_other_folders_are_refused(tmp_path):
    net, step, _ = run()
    checkpoint.save_checkpoint(tmp_path, net, step, Progress(2))
    with pytest.raises(UserError, match=r"such as .*iter_2"):
        checkpoint.resume(tmp_path, net, step)
    with pytest.raises(UserError, match=r"missing|no model\.pdparams"):
        checkpoint.resume(tmp_path / "nowhere", net, step)
    with pytest.raises(UserError, match="do not fit"):
        checkpoint.resume(tmp_path / "iter_2", *run(channels=5)[:2])


def test_a_paddleseg_checkpoint_has_its_iteration_in_the_name(tmp_path):
    net, step, _ = run()
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(40))
    for name in ("progress.json", "manifest.json"):
        (folder / name).unlink()
    assert checkpoint.resume(folder, net, step).iteration == 40
    other = folder.rename(tmp_path / "last")
    with pytest.raises(UserError, match=r"progress\.json"):
        checkpoint.resume(other, net, step)


def test_best_model_is_replaced_whole_and_carried_over(tmp_path):
    one, two = run()[0], run()[0]
    best = tmp_path / "a" / "best_model"
    for net in (one, two):
        checkpoint.save_best_model(net, tmp_path / "a")
        assert {p.name for p in best.iterdir()} == {"manifest.json", "model.pdparams"}
        assert fault(best) is None
    assert_same(
        {k: v.numpy() for k, v in paddle.load(str(best / "model.pdparams")).items()}, arrays(two)
    )
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["best_model"]
    checkpoint.carry_best_model(tmp_path / "a" / "iter_1", tmp_path / "b")
    copy = tmp_path / "b" / "best_model"
    for name in ("model.pdparams", "manifest.json"):
        assert (copy / name).read_bytes() == (best / name).read_bytes()
    checkpoint.carry_best_model(tmp_path / "none" / "iter_1", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    _cut(best / "model.pdparams")  # a damaged one is not passed on
    checkpoint.carry_best_model(tmp_path / "a" / "iter_1", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_checkpoint_that_a_signal_forced_leaves_with_the_next_regular_one(tmp_path):
    net, step, _ = run()

    def save(iteration, interrupted=False):
        progress = Progress(iteration, interrupted=interrupted)
        checkpoint.save_checkpoint(tmp_path, net, step, progress, keep=2)
        return [folder.name for folder in checkpoint.checkpoints(tmp_path)]

    assert [save(1), save(2)][-1] == ["iter_1", "iter_2"]
    assert save(3, interrupted=True) == ["iter_1", "iter_2", "iter_3"]
    assert save(4, interrupted=True) == ["iter_1", "iter_2", "iter_4"]
    assert save(5) == ["iter_2", "iter_5"]


def test_the_evaluation_s_outcome_is_part_of_the_progress(tmp_path):
    net, step, _ = run()
    progress = Progress(4, evaluation_due=True)
    folder = checkpoint.save_checkpoint(tmp_path, net, step, progress)
    assert read_progress(folder).evaluation_due
    progress.best_miou, progress.best_iteration, progress.evaluations_without_gain = 0.5, 4, 0
    save_evaluation(folder, progress)
    assert fault(folder) is None
    found = read_progress(folder)
    assert (found.best_miou, found.best_iteration, found.evaluation_due) == (0.5, 4, False)
    # Damaged, it counts as not made.
    text = (folder / "evaluation.json").read_text()
    for broken in ("{", "[]", text.replace("0.5", "0.9"), "{}"):
        write(folder / "evaluation.json", broken)
        assert read_progress(folder).evaluation_due


@pytest.mark.parametrize("kind", ["PolynomialDecay", "CosineAnnealingDecay", "StepDecay", "warmup"])
def test_a_longer_run_follows_its_own_schedule_from_the_first_iteration_on(tmp_path, kind):
    from paddleseg_deeplab.optimizers.lr import build_lr_scheduler

    def scheduler(iters):
        section = {"type": kind, "learning_rate": 0.1}
        if kind == "StepDecay":
            section["step_size"] = 3
        if kind == "warmup":
            section.update(type="PolynomialDecay", warmup_iters=3)
        return build_lr_scheduler(section, iters)

    def with_schedule(iters):
        net, step, _ = run()
        step.scheduler = scheduler(iters)
        step.optimizer = paddle.optimizer.Momentum(step.scheduler, parameters=net.parameters())
        return net, step

    net, step = with_schedule(6)
    train(net, step, None, range(6))
    folder = checkpoint.save_checkpoint(tmp_path, net, step, Progress(6))
    net, step = with_schedule(20)
    checkpoint.resume(folder, net, step)
    planned = scheduler(20)
    for _ in range(6):
        planned.step()
    for _ in range(14):
        assert step.optimizer.get_lr() == planned.get_lr()
        step.scheduler.step()
        planned.step()
