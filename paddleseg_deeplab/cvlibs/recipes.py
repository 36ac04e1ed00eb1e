# SPDX-License-Identifier: Apache-2.0
"""The recipes that come with the package: the files of ``configs/``, found by their names.

``paddleseg_deeplab/recipes`` is a link to ``configs/`` in the repository, and a folder of its files
in an installed package.
"""

from pathlib import Path

from paddleseg_deeplab.utils.errors import UserError, did_you_mean

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


def recipes() -> dict[str, Path]:
    """Path of each recipe by its name, such as "camvid/deeplabv3p_resnet18_os16_256x256.yml".

    Files of ``_base_``, which are no whole configs, are left out.
    """
    names = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.glob("**/*.yml")}
    return {name: names[name] for name in sorted(names) if not name.startswith("_base_")}


def recipe_named(name: str) -> Path | None:
    """The recipe of this name, with its folder or, since no two files are called alike, without."""
    name = name.removeprefix("configs/")
    for known, path in recipes().items():
        if name in (known, path.name):
            return path
    return None


def find_config(text: str | Path) -> Path:
    """The config file that a person means.

    Args:
        text: A path; or, where there is no such file, the name of a recipe.

    Raises:
        UserError: Neither a file nor a recipe.
    """
    path = Path(text)
    found = path if path.is_file() else recipe_named(path.as_posix())
    if found is None:
        names = [name for known in recipes() for name in (known, known.rpartition("/")[2])]
        hint = did_you_mean(path.as_posix(), names)
        raise UserError(
            f"There is no config file {path}, and no recipe of that name.{hint} Check the path "
            "after --config; `paddleseg-deeplab recipes` lists the recipes."
        )
    return found
