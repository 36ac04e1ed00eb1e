# SPDX-License-Identifier: Apache-2.0
"""The console command ``paddleseg-deeplab <verb>``; the root scripts call the same functions."""

import importlib
import sys

from paddleseg_deeplab.utils.errors import nearest

# A verb is a module with `main(argv)` and a docstring whose first line says why.
_COMMANDS = {
    "train": "cli.train",
    "val": "cli.val",
    "predict": "cli.predict",
    "export": "cli.export",
    "inspect_model": "tools.inspect_model.command",
    "convert_weights": "tools.convert_weights.command",
    "search_crf": "tools.search_crf.command",
    "check_dataset": "tools.check_dataset.command",
    "prepare_dataset": "tools.prepare_dataset.command",
    "quickstart": "cli.quickstart",
}
VERBS = tuple(_COMMANDS)


def _module_of(verb):
    return importlib.import_module(f"paddleseg_deeplab.{_COMMANDS[verb]}")


def main(argv=None):
    """Runs one verb and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in VERBS:
        return _module_of(argv[0]).main(argv[1:])
    lines = ["usage: paddleseg-deeplab <verb> [flags]", ""]
    for verb in VERBS:
        module = _module_of(verb)
        lines.append(f"  {verb:<16}{module.__doc__.splitlines()[0]}")
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
