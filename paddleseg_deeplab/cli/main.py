# SPDX-License-Identifier: Apache-2.0
"""The console command ``paddleseg-deeplab <verb>``; the root scripts call the same functions."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from paddleseg_deeplab.cli import common
from paddleseg_deeplab.cli.inference_flags import add_inference_arguments
from paddleseg_deeplab.utils.errors import nearest

# Folders of `tools`, whose command.py has DESCRIPTION, `add_arguments` and `run`; and which of the
# common flags they take besides.
_TOOLS = {
    "inspect_model": (),
    "convert_weights": (),
    "search_crf": ("config", "inference"),
    "check_dataset": (),
    "prepare_dataset": (),
    "recipes": (),
}
# As the help lists them.
VERBS = ("train", "val", "predict", "export", "infer", *_TOOLS, "quickstart")


def _module_of(verb):
    # A command's own module has `main(argv)`.
    place = f"tools.{verb}.command" if verb in _TOOLS else f"cli.{verb}"
    return importlib.import_module(f"paddleseg_deeplab.{place}")


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Adds all flags of a verb to a parser."""
    common_flags = _TOOLS.get(verb, ())
    if "config" in common_flags:
        common.add_config_arguments(parser)
    _module_of(verb).add_arguments(parser)
    if "inference" in common_flags:
        add_inference_arguments(parser, "aug_eval", crf=False)


def run_verb(verb: str, argv: Sequence[str] | None = None) -> int:
    """Runs a verb with its flags (``sys.argv[1:]`` by default) and returns its exit status."""
    module = _module_of(verb)
    if verb not in _TOOLS:
        return module.main(argv)

    def add(parser):
        add_arguments(verb, parser)

    prog = f"paddleseg-deeplab {verb}"
    return common.main_of(add, module.run, module.DESCRIPTION, argv, prog)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in VERBS:
        return run_verb(argv[0], argv[1:])
    lines = ["usage: paddleseg-deeplab <verb> [flags]", ""]
    for verb in VERBS:
        lines.append(f"  {verb:<16}{_module_of(verb).__doc__.splitlines()[0]}")
    lines += ["", "paddleseg-deeplab <verb> --help lists a verb's flags."]
    if argv and argv[0] in ("-h", "--help"):
        print("\n".join(lines))
        return 0
    if argv:
        lines.insert(0, f"error: unknown verb {argv[0]!r}. {nearest(argv[0], VERBS)}")
    print("\n".join(lines), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
