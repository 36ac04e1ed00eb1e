# SPDX-License-Identifier: Apache-2.0
"""Recipes are found by their names, in any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

from paddleseg_deeplab.cli.main import main
from paddleseg_deeplab.cvlibs import Config
from paddleseg_deeplab.cvlibs.recipes import find_config, recipes
from paddleseg_deeplab.utils.errors import UserError

CAMVID = "camvid/deeplabv3p_resnet18_os16_256x256.yml"
FILES = sorted((ROOT / "configs").rglob("*.yml"))
WHOLE = [path for path in FILES if path.parent.name != "_base_"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_all_whole_configs_are_recipes():
    assert {p.resolve() for p in recipes().values()} == set(WHOLE)
    assert len({path.name for path in WHOLE}) == len(WHOLE)  # so that a file name is enough


@pytest.mark.parametrize("name", [CAMVID, CAMVID.partition("/")[2], f"configs/{CAMVID}"])
def test_a_recipe_is_found_by_its_name(name):
    assert Config(name).dic == Config(ROOT / "configs" / CAMVID).dic


def test_a_file_comes_before_a_recipe(tmp_path):
    mine = tmp_path / "quickstart.yml"
    mine.write_text("_base_: camvid/deeplabv3p_resnet18_os16_256x256.yml\niters: 7\n")
    config = Config("quickstart.yml")
    assert config.path == "quickstart.yml"
    assert config.dic == {**Config(CAMVID).dic, "iters": 7}


def test_a_name_that_is_nothing_gets_the_nearest_one():
    with pytest.raises(UserError, match=r"no\.yml, and no recipe .*`paddleseg-deeplab recipes`"):
        find_config("no.yml")
    with pytest.raises(UserError, match=r"Did you mean 'quickstart\.yml'\?"):
        find_config("quikstart.yml")


def test_the_list_holds_what_was_asked_for(capsys):
    assert main(["recipes", "VOC", "vgg16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [p.name for p in WHOLE if "voc" in str(p) and "vgg16" in p.name]
    assert len(names) == len(lines) - 3 > 1
    for name, line in zip(sorted(names), lines[1:]):
        assert line.startswith(f"pascal_voc12/{name} ")
        assert line.split()[2:4] == ["VGG16_LargeFOV", "PascalVOC"]
    assert f"{len(names)} recipes" in lines[-1]


@pytest.mark.slow
def test_the_wheel_is_the_product(tmp_path):
    """Built, unpacked, and used from an empty folder, with the repository out of sight."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    packed = {n for n in names if n.startswith("paddleseg_deeplab/recipes/")}
    assert packed == {
        f"paddleseg_deeplab/recipes/{p.relative_to(ROOT / 'configs').as_posix()}" for p in FILES
    }
    assert "paddleseg_deeplab/py.typed" in names
    assert not any(name.startswith(("tests", "configs", "benchmarks")) for name in names)
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import paddleseg_deeplab as p;"
        "print(p.__file__); from paddleseg_deeplab.cli.main import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", code, str(tmp_path / "site")),
            *("check_dataset", "--config", "quickstart.yml"),
            *("--opts", "train_dataset.num_samples=4", "val_dataset.num_samples=2"),
        ],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(tmp_path)
