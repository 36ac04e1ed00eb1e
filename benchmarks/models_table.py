# SPDX-License-Identifier: Apache-2.0
"""Fills in the figures of docs/models.md: tensors, numbers, multiply-adds, receptive fields.

  python benchmarks/models_table.py docs/models.md            # rewrites the cells
  python benchmarks/models_table.py docs/models.md --check    # exit status 1 if one is wrong

A row of a table whose head has a column "tensors" says in its other cells what it is about: a link
to a config, followed by changes such as `model.upsample=deconv`, or a backbone's name in
backquotes, followed by settings such as `stride_in=1x1`. Other cells and lines stay as they are.
No weights are made: a row takes one to five seconds.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

# First, so that the CPU environment is prepared before Paddle is imported.
import paddleseg_deeplab  # noqa: F401  isort: skip
import paddle

from paddleseg_deeplab import registry
from paddleseg_deeplab.cvlibs import Config, SegBuilder
from paddleseg_deeplab.cvlibs.config import parse_opts
from paddleseg_deeplab.tools.inspect_model.network import inspect_network
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

SIZE = (513, 513)
STRIDES = (8, 16, 32)
FILLED = ("tensors", "numbers", "multiply-adds", "receptive field")
_CHANGE = re.compile(r"[\w.]+=[^\s`|]+")
_CONFIG = re.compile(r"\]\(([^)]+\.yml)\)")


class Row:
    """The network of one row, at any output stride that it takes."""

    def __init__(self, text, page):
        self.opts = [change.rstrip(",") for change in _CHANGE.findall(text)]
        config = _CONFIG.search(text)
        names = [n for n in re.findall(r"`(\w+)`", text) if n in registry.BACKBONES.components_dict]
        self.config = (page.parent / config.group(1)).resolve() if config else None
        self.backbone = names[0] if names else None
        if not config and not names:
            raise UserError(f"no config and no registered backbone in: {text}")

    def build(self, stride):
        """The network; None stands for the row's own output stride."""
        if self.config is None:
            component = registry.BACKBONES[self.backbone]
            settings = {path[-1]: value for path, value in parse_opts(self.opts)}
            if stride is not None:
                settings["output_stride"] = stride
            return component(**settings)
        opts = list(self.opts)
        if stride is not None:
            opts.append(f"model.backbone.output_stride={stride}")
        config = Config(str(self.config), opts=opts)
        config.drop_pretrained()
        config.set_data_format("NCHW")
        return SegBuilder(config).model

    def facts(self):
        """({stride: NetworkFacts}, the row's own stride)."""

        def measured(stride):
            strides = []

            def build():
                model = self.build(stride)
                part = model if self.config is None else model.backbone
                strides.extend(part.feat_strides[-1:])
                return model

            found = inspect_network(build, SIZE)
            return strides[0], found

        own, facts = measured(None)
        found = {own: facts}
        for stride in STRIDES:
            if stride not in found:
                try:
                    got, facts = measured(stride)
                except (UserError, ValueError, TypeError):
                    continue
                if got == stride:
                    found[stride] = facts
        return found, own


def figures(row):
    """Cells by column name."""
    found, own = row.facts()
    mine = found[own]
    work = [found[s].multiply_adds if s in found else None for s in STRIDES]
    fields = [s.receptive_field for s in mine.stages if s.receptive_field]
    return {
        "tensors": str(mine.tensors),
        "numbers": f"{mine.numbers:,}",
        "multiply-adds": " / ".join("-" if w is None else f"{w / 1e9:.1f}" for w in work),
        "receptive field": str(max(fields, default="-")),
    }


def _cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _column(cell):
    """Which of `FILLED` a head's cell names, or None."""
    return next((name for name in FILLED if cell.lower().startswith(name)), None)


def rows_of(lines):
    """(line number from 0, cells, column of `FILLED` or None of each, what the row is about)."""
    columns = []
    for i, line in enumerate(lines):
        cells = _cells(line) if line.startswith("|") else []
        if not cells:
            columns = []
        elif "tensors" in cells:
            columns = [_column(cell) for cell in cells]
        elif columns and set(line) - set("|-: "):  # not the line under the head
            yield i, cells, columns, " ".join(c for c, at in zip(cells, columns) if at is None)


def filled(page):
    """The page's text with the figures in it, and what is wrong with the rows that have none.

    Args:
        page (Path): A Markdown file.

    Returns:
        tuple[str, list[str]]: the new text; a line for each row that was left as it is.
    """
    lines, faults = page.read_text(encoding="utf-8").split("\n"), []
    for i, cells, columns, about in list(rows_of(lines)):
        try:
            new = figures(Row(about, page))
        except (UserError, ValueError, TypeError) as error:
            faults.append(f"{page}, line {i + 1}: {error}")
            continue
        cells = [cell if at is None else new[at] for cell, at in zip(cells, columns)]
        lines[i] = "| " + " | ".join(cells) + " |"
        print(about, flush=True)
    return "\n".join(lines), faults


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", help="Markdown file")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    args = parser.parse_args()
    paddle.set_device("cpu")
    logger.setLevel(logging.ERROR)
    page = Path(args.page)
    new, faults = filled(page)
    print("\n".join(faults), file=sys.stderr)
    if not args.check:
        page.write_text(new, encoding="utf-8")
        return 1 if faults else 0
    old = page.read_text(encoding="utf-8")
    wrong = [pair for pair in zip(old.split("\n"), new.split("\n")) if pair[0] != pair[1]]
    for before, after in wrong:
        print(f"page:     {before}\nmeasured: {after}")
    return 1 if wrong or faults else 0


if __name__ == "__main__":
    sys.exit(main())
