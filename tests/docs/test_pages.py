# SPDX-License-Identifier: Apache-2.0
"""What the pages say, against the code: flags, names, links, examples, and both languages alike."""

import argparse
import importlib
import re

import cv2
import numpy as np
import pytest
import yaml
from places import ROOT

from paddleseg_deeplab import registry
from paddleseg_deeplab.cli.main import VERBS, add_arguments
from paddleseg_deeplab.cvlibs import Config, SegBuilder

README, CHINESE = "README.md", "README_CN.md"
PAGES = [README, CHINESE, "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
OTHERS_FLAGS = {
    # of Paddle's launcher
    *("--nproc_per_node", "--nnodes", "--master", "--devices", "--elastic_level"),
    "--help",
    "--logdir",  # of visualdl
    "--shm",  # the beginning of one of docker's
}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def flags_of(verb):
    parser = argparse.ArgumentParser()
    add_arguments(verb, parser)
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [each for one in action.choices.values() for each in one._actions]
    names = {name for action in actions for name in action.option_strings}
    return {name for name in names if name.startswith("--")} - {"--help"} | {"--debug"}


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page):
    known = set().union(OTHERS_FLAGS, *map(flags_of, VERBS))
    for script in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r'"(--[a-z_]+)"', script.read_text(encoding="utf-8")))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_]*", read(page))) <= known


def test_deployment_page_has_every_flag():
    shared = {"--config", "--opts", "--device", "--debug"}
    text = read("docs/deploy.md")
    for flag in sorted((flags_of("infer") | flags_of("export")) - shared):
        assert flag in text, flag


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", read(page)):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize(
    "kind", ["MODELS", "BACKBONES", "DATASETS", "TRANSFORMS", "LOSSES", "OPTIMIZERS"]
)
def test_every_part_is_told(kind):
    importlib.import_module("paddleseg_deeplab.cvlibs.builder")
    for name, part in getattr(registry, kind).components_dict.items():
        # Compose is no step of a config; others may be a test's own.
        if name == "Compose" or not part.__module__.startswith("paddleseg_deeplab."):
            continue
        for page in ("docs/config.md", README, CHINESE):
            assert f"`{name}`" in read(page), f"{name} in {page}"


def test_every_recipe_is_told():
    recipes = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "configs").rglob("*.yml")
        if "_base_" not in path.parts
    }
    for page in (README, CHINESE):
        assert set(re.findall(r"\]\((configs/[^)]+\.yml)\)", read(page))) == recipes


def blocks(page, language):
    """Code blocks without comments."""
    found = re.findall(rf"```{language}\n(.*?)```", read(page), re.DOTALL)
    return [re.sub(r"\s*#.*", "", block) for block in found]


def test_both_languages_say_the_same():
    for language in ("sh", "yaml"):
        assert blocks(README, language) == blocks(CHINESE, language)
    for pattern in (
        r"^## ",
        r"^\|",
        r"^- \*\*",
        r"^\d\. ",
        r"\]\((?!README)[^)]+\)",
        r"\{\{\w+\}\}",
    ):
        ours, theirs = (re.findall(pattern, read(page), re.MULTILINE) for page in (README, CHINESE))
        # Counted only: Paddle's site, for one, has a page for each language.
        assert len(ours) == len(theirs), pattern
    numbers = [re.findall(r"\d+\.\d+ / [\d. /]+\d", read(page)) for page in (README, CHINESE)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("page", [README, CHINESE])
def test_the_example_for_own_data_works(page, tmp_path):
    [text] = blocks(page, "yaml")
    text = text.replace("_base_: configs", f"_base_: {ROOT.as_posix()}/configs")
    (tmp_path / "mine.yml").write_text(text, encoding="utf-8")
    root = tmp_path / "data"
    for mode in ("train", "val"):
        mask = np.zeros((30, 40), np.uint8)
        mask[:, 20:] = 1
        (root / mode).mkdir(parents=True)
        cv2.imwrite(str(root / mode / "i.jpg"), np.full((30, 40, 3), 99, np.uint8))
        cv2.imwrite(str(root / mode / "m.png"), mask)
        (root / f"{mode}.txt").write_text(f"{mode}/i.jpg {mode}/m.png\n")
    cfg = Config(str(tmp_path / "mine.yml"), opts=[f"dataset_root={root.as_posix()}"])
    builder = SegBuilder(cfg)
    sample = builder.train_dataset[0]
    assert sample["img"].shape == (3, 512, 512)
    assert set(np.unique(sample["label"])) <= {0, 1, 255}
    assert builder.val_dataset[0]["img"].shape == (3, 30, 40)
    assert cfg.model_cfg["num_classes"] == 2
    assert builder.loss["coef"] == [1]


def test_the_page_of_configs_has_yaml():
    for block in blocks("docs/config.md", "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_nothing_speaks_of_a_machine():
    """Files of the repository name no absolute place of the machine that they were made on."""
    places = re.compile(r"(?<![\w.{}/])/(?:work|home|root|tmp|mnt|Users)/")
    checked = 0
    for path in [*map(ROOT.joinpath, PAGES), ROOT / "Makefile", ROOT / "setup.py"]:
        assert not places.search(path.read_text(encoding="utf-8")), path
        checked += 1
    for folder, pattern in (
        ("paddleseg_deeplab", "*.py"),
        ("deploy", "*.py"),
        ("configs", "*.yml"),
    ):
        for path in (ROOT / folder).rglob(pattern):
            assert not places.search(path.read_text(encoding="utf-8")), path
            checked += 1
    assert checked > 100
