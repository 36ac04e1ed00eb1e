# SPDX-License-Identifier: Apache-2.0
"""`check_dataset`: each kind of fault found, named and counted; sound sets pass; the reports."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from faulty_sets import (
    FAULTS,
    PASTE,
    SOUND,
    Folder,
    H,
    W,
    image_missing,
    label,
    masks,
    picture,
    run,
    stray_values,
)
from PIL import Image

from paddleseg_deeplab.cli.main import run_verb
from paddleseg_deeplab.datasets import CamVid, Cityscapes, Shapes
from paddleseg_deeplab.tools.check_dataset import findings
from paddleseg_deeplab.tools.check_dataset.charts import draw_aspects, draw_classes, draw_sizes
from paddleseg_deeplab.tools.check_dataset.check import check_datasets
from paddleseg_deeplab.utils.class_weights import class_weights_from_counts
from paddleseg_deeplab.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return Folder(tmp_path / "data")


def test_a_sound_set_is_clean(folder):
    status, report, text = run(folder)
    assert status == 0 == report["exit_status"]
    assert report["findings"] == []
    assert report["counts"] == {"error": 0, "warning": 0, "hint": 0}
    train_set = report["sets"]["train"]
    stripe = 6 * (H - 1) * W // 3
    assert train_set["class_pixels"] == [stripe] * 3
    assert train_set["class_images"] == [6] * 3
    assert (train_set["void_pixels"], train_set["unknown_pixels"]) == (6 * W, 0)
    assert train_set["class_weights"] == [1.0, 1.0, 1.0]
    assert train_set["images_by_size"] == [[W, H, 6]]
    assert train_set["images_by_mode"] == {"RGB": 6}
    assert (train_set["samples"], train_set["checked"], train_set["labelled"]) == (6, 6, 6)
    assert "0 errors, 0 warnings, 0 hints." in text
    assert "## Errors" not in text
    for name in ("sizes.png", "aspect_ratios.png", "classes.png"):
        assert f"({name})" in text
        assert cv2.imread(str(folder.root.parent / "report" / name)) is not None


@pytest.mark.parametrize(
    "change",
    SOUND,
)
def test_sound_in_other_ways(folder, change):
    change(folder)
    status, report, _ = run(folder)
    assert status == 0
    assert report["findings"] == []


@pytest.mark.parametrize(
    ("change", "expected", "first", "detail"),
    FAULTS,
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_each_fault_is_found_and_counted(folder, change, expected, first, detail):
    change(folder)
    kinds = [(item.split()[0], item.split(" ", 1)[1]) for item in expected.split(", ")]
    expected = {(kind, rest.rsplit(" ", 1)[0]): int(rest.split()[-1]) for kind, rest in kinds}
    status, report, text = run(folder)
    found = {(f["kind"], f["set"]): f["count"] for f in report["findings"]}
    assert {key: found.get(key, 0) for key in {**expected, **found}} == expected
    levels = {findings.KINDS[kind].level for (kind, _), count in expected.items() if count}
    assert status == report["exit_status"] == int("error" in levels)
    top = report["findings"][0]
    assert top["files"][0]["path"].endswith(first)
    assert detail in top["files"][0]["detail"]
    assert top["advice"]
    assert top["title"] in text
    assert top["files"][0]["path"] in text
    paste = PASTE.get(change)
    assert top["paste"][:1] == ([paste] if paste else [])
    if paste:
        assert f"```yaml\n{paste}\n```" in text


@pytest.mark.parametrize("ignore_index", [255, 254])
def test_what_is_to_paste_makes_the_set_sound(folder, ignore_index):
    masks(folder)
    folder.settings["ignore_index"] = ignore_index
    _, report, _ = run(folder)
    folder.settings.update(yaml.safe_load(report["findings"][0]["paste"][0]))
    status, report, _ = run(folder)
    assert status == 0
    assert report["findings"] == []
    assert report["sets"]["train"]["class_pixels"] == [6 * (H * W - 8 * (H - 1)), 6 * 8 * (H - 1)]


def test_values_say_which_where_and_how_many(folder):
    stray_values(folder)
    _, report, text = run(folder)
    first = str(folder.root / "train4_l.png")
    assert report["findings"][0]["values"] == [
        {"value": 77, "pixels": 2, "files": 1, "first_file": first},
        {"value": 200, "pixels": 5, "files": 1, "first_file": first},
    ]
    assert f"| 200 | 5 | 1 | `{first}` |" in text
    assert report["sets"]["train"]["unknown_pixels"] == 7


@pytest.mark.parametrize(
    ("values", "num_classes", "ignore", "label_map", "common", "lines"),
    [
        ({0, 255}, 2, 255, None, True, ["label_map: {0: 0, 255: 1}"]),
        ({0, 255}, 2, 9, None, True, ["label_map: {0: 0, 255: 1}"]),
        ({0, 255}, 3, 255, None, True, []),  # which of the two it was cannot be told
        # From one on, and every other number.
        ({1, 2, 3}, 3, 255, None, True, ["label_map: {1: 0, 2: 1, 3: 2}", "num_classes: 4"]),
        ({0, 100, 200, 255}, 3, 255, None, True, ["label_map: {0: 0, 100: 1, 200: 2}"]),
        ({0, 128, 255}, 3, 255, None, True, ["label_map: {0: 0, 128: 1, 255: 2}"]),
        ({0, 1, 2, 3, 255}, 2, 255, None, True, ["num_classes: 4"]),
        ({0, 1, 9}, 2, 255, None, False, ["label_map: {0: 0, 1: 1, 9: 255}"]),
        ({0, 1, 5}, 2, 255, {0: 0, 1: 1}, True, ["label_map: {0: 0, 1: 1, 5: 255}"]),
        (set(range(200)), 2, 255, None, True, []),
    ],
)
def test_suggestions(values, num_classes, ignore, label_map, common, lines):
    found = findings.suggest(values, num_classes, ignore, label_map, common=common)
    assert found[: len(lines)] == lines
    for line in found:  # each is YAML that a dataset takes
        [(key, value)] = yaml.safe_load(line).items()
        assert key in ("label_map", "num_classes")
        assert value


def test_files_without_a_partner(tmp_path):
    for mode in ("train", "val"):
        for k in range(3):
            for kind, name, array in (
                ("leftImg8bit", "leftImg8bit", picture([k, len(mode)])),
                ("gtFine", "gtFine_labelTrainIds", label(tuple(range(19)), (H, 38))),
            ):
                path = tmp_path / kind / mode / "c" / f"c_{k}_{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                size = cv2.resize(array, (38, H), interpolation=cv2.INTER_NEAREST)
                cv2.imwrite(str(path), size)
    (tmp_path / "gtFine/train/c/c_1_gtFine_labelTrainIds.png").unlink()
    cfg = {
        f"{mode}_dataset": {"type": "Cityscapes", "mode": mode, "dataset_root": str(tmp_path)}
        for mode in ("train", "val")
    }
    (tmp_path / "c.yml").write_text(yaml.safe_dump(cfg))
    out = tmp_path / "out"
    flags = ["--config", str(tmp_path / "c.yml"), "--save_dir", str(out)]
    assert run_verb("check_dataset", flags) == 1
    [found] = json.loads((out / "report.json").read_text())["findings"]
    assert (found["kind"], found["count"]) == ("unpaired", 1)
    assert found["files"][0]["path"].endswith("c_1_leftImg8bit.png")
    # Outside the check such a set is refused as before.
    with pytest.raises(UserError, match="lack a label"):
        Cityscapes([], str(tmp_path), "train")


def test_max_samples(folder):
    stray_values(folder)
    image_missing(folder)
    status, report, text = run(folder, "--max_samples", "2")
    # All files are asked for, two pairs read: the first and the last.
    assert {f["kind"] for f in report["findings"]} >= {"image_missing"}
    assert report["sets"]["train"]["checked"] == 2
    assert report["max_samples"] == 2
    assert status == 1
    assert "At most 2 pairs" in text


def test_weights_are_those_of_auto(folder):
    for k in range(6):
        folder.label(f"train{k}_l.png", label((0, 0, 1, 2)))
    _, report, text = run(folder)
    train_set = report["sets"]["train"]
    expected = class_weights_from_counts(train_set["class_pixels"])
    assert train_set["class_weights"] == pytest.approx(expected, rel=1e-3)  # four digits are kept
    assert f"weight: [{', '.join(f'{w:g}' for w in train_set['class_weights'])}]" in text
    from paddleseg_deeplab.models.losses import class_weights_from_counts as old_place

    assert old_place is class_weights_from_counts


def test_many_files_are_cut_to_ten_in_the_text(folder):
    folder.lists["train"] += [f"gone{k}.png train0_l.png" for k in range(25)]
    _, report, text = run(folder)
    [found] = report["findings"]
    assert found["count"] == 25 == len(found["files"])
    assert text.count("- `") == 10
    assert "- ... 15 more" in text


def test_embedded_shapes(tmp_path):
    size = {"image_size": [48, 32], "num_classes": 4, "num_samples": 12}
    cfg = {f"{m}_dataset": {"type": "Shapes", "mode": m, **size} for m in ("train", "val")}
    (tmp_path / "c.yml").write_text(yaml.safe_dump(cfg))
    out = tmp_path / "out"
    assert (
        run_verb("check_dataset", ["--config", str(tmp_path / "c.yml"), "--save_dir", str(out)])
        == 0
    )
    report = json.loads((out / "report.json").read_text())
    assert report["findings"] == []
    scenes = Shapes([], "train", **size)
    counts = sum(np.bincount(scenes.load_label(i).ravel(), minlength=4) for i in range(12))
    assert report["sets"]["train"]["class_pixels"] == counts.tolist()


def test_images_without_labels(folder):
    dic = yaml.safe_load(Path(folder.config()).read_text())
    test_list = folder.root / "test.txt"
    test_list.write_text("val0.png\nval1.png\n")
    dic["val_dataset"] = {**dic["train_dataset"], "mode": "test", "test_path": "test.txt"}
    path = folder.root / "c.yml"
    path.write_text(yaml.safe_dump(dic))
    out = folder.root / "out"
    assert run_verb("check_dataset", ["--config", str(path), "--save_dir", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["findings"] == []
    assert report["sets"]["val"]["labelled"] == 0
    assert report["sets"]["val"]["class_weights"] is None


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        ({"type": "Dataste"}, [], "Dataset"),
        ({"num_clases": 3}, [], "Did you mean 'num_classes'"),
        ({"dataset_root": "nowhere"}, [], "there is no folder nowhere"),
        ({"train_path": "nowhere.txt"}, [], "nowhere.txt is no file"),
        ({"num_classes": None}, [], "num_classes"),
        ({}, ["--num_workers", "-1"], "--num_workers should be at least 0"),
        ({}, ["--max_samples", "0"], "--max_samples should be at least 1"),
        ({}, ["--opts", "nonsense"], "key=value"),
    ],
)
def test_mistakes_of_the_user(folder, capsys, change, flags, words):
    dic = yaml.safe_load(Path(folder.config()).read_text())
    dic["train_dataset"].update(change)
    path = folder.root / "c.yml"
    path.write_text(yaml.safe_dump(dic))
    out = folder.root / "out"
    assert run_verb("check_dataset", ["--config", str(path), "--save_dir", str(out), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert words in said[0]
    assert not out.exists()


def test_more_mistakes_of_the_user(folder, tmp_path, capsys):
    config = folder.config()
    assert (
        run_verb(
            "check_dataset", ["--config", config, "--save_dir", str(tmp_path / "data/train0.png")]
        )
        == 2
    )
    assert "is a file" in capsys.readouterr().err
    (tmp_path / "c.yml").write_text("iters: 3\n")
    assert run_verb("check_dataset", ["--config", str(tmp_path / "c.yml")]) == 2
    assert "nothing to check" in capsys.readouterr().err
    dic = yaml.safe_load(Path(config).read_text())
    del dic["train_dataset"]["num_classes"]
    (tmp_path / "c.yml").write_text(yaml.safe_dump(dic))
    assert run_verb("check_dataset", ["--config", str(tmp_path / "c.yml")]) == 2
    assert "Dataset needs num_classes" in capsys.readouterr().err


def test_one_set_alone(folder):
    dic = yaml.safe_load(Path(folder.config()).read_text())
    del dic["train_dataset"]
    (folder.root / "c.yml").write_text(yaml.safe_dump(dic))
    out = folder.root / "out"
    flags = ["--config", str(folder.root / "c.yml"), "--save_dir", str(out)]
    assert run_verb("check_dataset", flags) == 0
    assert list(json.loads((out / "report.json").read_text())["sets"]) == ["val"]


def test_no_paddle_is_needed(folder):
    code = (
        "import sys; sys.modules['paddle'] = None\n"
        "from paddleseg_deeplab.cli.main import main\n"
        "sys.exit(main(['check_dataset', *sys.argv[1:]]))"
    )
    flags = ["--config", folder.config(), "--save_dir", str(folder.root / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------- pictures


def test_pictures_of_many_sizes_and_names():
    rng = np.random.default_rng(0)
    many = Counter({tuple(rng.integers(20, 4000, 2).tolist()): int(k) + 1 for k in range(60)})
    for sets in ({"train": many, "val": Counter({(1, 3000): 2})}, {"val": Counter({(9, 9): 1})}):
        for drawn in (draw_sizes(sets, (512, 512)), draw_sizes(sets), draw_aspects(sets)):
            assert drawn.dtype == np.uint8
            assert drawn.shape[2] == 3
            assert drawn.shape[0] < 900
            assert drawn.shape[1] < 1400
            assert (drawn != 255).any()
    names = ["sky", "dach (\u00e4)", "x" * 80]
    drawn = draw_classes(names, {"train": np.array([10, 0, 1]), "val": np.array([0, 0, 5])})
    assert drawn.shape[1] < 1000
    assert (drawn != 255).any()


def test_a_catalog_set_is_told_to_convert(tmp_path):
    """CamVid takes no label_map, so none is printed for it."""
    for mode in ("train", "val"):
        cv2.imwrite(str(tmp_path / f"{mode}.png"), picture(len(mode)))
        Image.fromarray(label((0, 1, 40))).save(tmp_path / f"{mode}_l.png")
        (tmp_path / f"{mode}.txt").write_text(f"{mode}.png {mode}_l.png\n")
    result = check_datasets({"train": CamVid([], str(tmp_path), "train")}, num_workers=0)
    [found] = [f for f in result.findings if f.kind == "label_values"]
    assert found.paste == []
    assert "CamVid takes no such settings" in found.advice
