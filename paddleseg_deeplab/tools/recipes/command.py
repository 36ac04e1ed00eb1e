# SPDX-License-Identifier: Apache-2.0
"""Lists the configs that come with the package."""

import argparse

from paddleseg_deeplab.cvlibs.config import load_with_bases
from paddleseg_deeplab.cvlibs.recipes import FOLDER, recipes

DESCRIPTION = """Lists the recipes: configs of whole trainings, which come with the package.

A command takes a recipe by its name, and so does _base_ in a config of your own:

  paddleseg-deeplab train --config quickstart.yml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", help="list only names that hold these words")


def run(args: argparse.Namespace) -> None:
    """Prints a line a recipe: name, model, backbone, dataset, iterations."""
    rows = [["recipe", "model", "backbone", "dataset", "iterations"]]
    for name in recipes():
        if all(word.lower() in name.lower() for word in args.words):
            rows.append([name, *_facts(name)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\n{len(rows) - 1} recipes; the files are in {FOLDER}")


def _facts(name: str) -> list[str]:
    config = load_with_bases(FOLDER / name)
    model, data = config.get("model", {}), config.get("train_dataset", {})
    backbone = model.get("backbone", {})
    facts = (model.get("type"), backbone.get("type"), data.get("type"), config.get("iters"))
    return ["-" if fact is None else str(fact) for fact in facts]
