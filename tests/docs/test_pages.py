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
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
# An English page and the Chinese one that says the same.
PAIRS = [(page.replace("_CN.md", ".md"), page) for page in PAGES if page.endswith("_CN.md")]
LIGHT = "configs/camvid/deeplabv3p_resnet18_os16_256x256.yml"
OTHERS_FLAGS = {
    # of Paddle's launcher
    *("--nproc_per_node", "--nnodes", "--master", "--devices", "--elastic_level"),
    "--help",
    "--logdir",  # of visualdl
    "--build",  # of cmake
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


def anchors(text):
    """What a heading is called in a link, as GitHub makes it."""
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_into_a_page_find_its_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", read(page)):
        if not target.startswith("http"):
            other = (ROOT / page).parent / target if target else ROOT / page
            assert anchor in anchors(other.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_every_page_is_linked():
    """From the READMEs on, whoever follows links comes to every page."""
    seen, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        if page in seen or not page.endswith(".md"):
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^)#]+)", read(page)):
            if not target.startswith("http"):
                place = (ROOT / page).parent.joinpath(target).resolve()
                ahead.append(place.relative_to(ROOT.resolve()).as_posix())
    assert seen == set(PAGES)


def test_every_command_is_told():
    for page in (README, CHINESE):
        for verb in VERBS:
            assert f"\n| `{verb}` |" in read(page), f"{verb} in {page}"


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
    assert set(re.findall(r"\]\(\.\./(configs/[^)]+\.yml)\)", read("docs/recipes.md"))) == recipes


def blocks(page, language):
    """Code blocks without comments."""
    found = re.findall(rf"```{language}\n(.*?)```", read(page), re.DOTALL)
    return [re.sub(r"\s*#.*", "", block) for block in found]


@pytest.mark.parametrize("pair", PAIRS)
def test_both_languages_say_the_same(pair):
    for language in ("sh", "yaml"):
        assert blocks(pair[0], language) == blocks(pair[1], language)
    for pattern in (
        r"^## ",
        r"^\|",
        r"^- \*\*",
        r"^\d\. ",
        r"^- ",
        r"\]\([^)]+\)",
        r"\{\{\w+\}\}",
    ):
        ours, theirs = (re.findall(pattern, read(page), re.MULTILINE) for page in pair)
        # Counted only: Paddle's site, for one, has a page for each language.
        assert len(ours) == len(theirs), pattern
    # Figures and names in code may stand in another order within a sentence, so both are sorted.
    for pattern in (r"\d+(?:[.,]\d+)+", r"(?<!`)`([^`\n]+)`(?!`)"):
        ours, theirs = (sorted(re.findall(pattern, read(page))) for page in pair)
        assert ours == theirs


def test_there_are_pages_in_both_languages():
    assert (README, CHINESE) in PAIRS
    assert ("docs/troubleshooting.md", "docs/troubleshooting_CN.md") in PAIRS


@pytest.mark.parametrize("page", [README, CHINESE])
@pytest.mark.parametrize(("base", "crop"), [(None, 512), (LIGHT, 256)])
def test_the_example_for_own_data_works(page, base, crop, tmp_path):
    """As it stands, and with the base that the page names for a CPU."""
    [text] = blocks(page, "yaml")
    if base is not None:
        assert f"`{base}`" in read(page)
        text = re.sub("_base_: .*", f"_base_: {base}", text)
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
    assert sample["img"].shape == (3, crop, crop)
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
    others = ("Makefile", "setup.py", "pyproject.toml", "CITATION.cff", ".pre-commit-config.yaml")
    for path in map(ROOT.joinpath, (*PAGES, *others)):
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
