# SPDX-License-Identifier: Apache-2.0
"""The report of a data check: report.md for a person, report.json for programs, pictures."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from paddleseg_deeplab.tools.check_dataset.charts import draw_aspects, draw_classes, draw_sizes
from paddleseg_deeplab.tools.check_dataset.check import Check
from paddleseg_deeplab.tools.check_dataset.findings import KINDS, level_counts
from paddleseg_deeplab.transforms.reading import exif
from paddleseg_deeplab.utils.visualize import save_image

FORMAT = 1  # of report.json
_SHOWN = 10
_HEADS = {"error": "Errors", "warning": "Warnings", "hint": "Hints"}


def summary(check: Check) -> str:
    """One line: what was found, as ``2 errors, 1 warning, 0 hints``."""
    parts = level_counts(check.findings).items()
    return ", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in parts)


def _sizes(one):
    """Smallest, median and largest width and height of a set, or None without images."""
    if not one.sizes:
        return None
    sizes = np.array([size for size, count in one.sizes.items() for _ in range(count)])
    return {
        "different": len(one.sizes),
        **{
            key: [int(v) for v in fold(sizes, axis=0)]
            for key, fold in (("smallest", np.min), ("median", np.median), ("largest", np.max))
        },
    }


def _weights(one):
    weights = one.weights()
    return None if weights is None else [float(f"{w:.4g}") for w in weights]


def as_dict(check: Check, config: str) -> dict[str, Any]:
    """What report.json holds."""
    sets = {}
    for name, one in check.sets.items():
        sets[name] = {
            "type": type(one.dataset).__name__,
            "num_classes": one.num_classes,
            "ignore_index": one.ignore_index,
            "label_map": one.label_map,
            "samples": one.samples,
            "checked": one.checked,
            "labelled": one.labelled,
            "sizes": _sizes(one),
            "images_by_size": [[*size, count] for size, count in one.sizes.most_common()],
            "images_by_mode": dict(one.modes.most_common()),
            "images_by_orientation": dict(sorted(one.orientations.items())),
            "class_names": [str(each) for each in one.class_names],
            "class_pixels": one.counts.tolist(),
            "class_images": one.images_with.tolist(),
            "void_pixels": int(one.void),
            "unknown_pixels": int(one.unknown),
            "nodata_pixels": int(one.nodata_pixels),
            "class_weights": _weights(one),
        }
    findings = [
        {
            "kind": found.kind,
            "level": found.level,
            "set": found.where,
            "count": found.count,
            "title": KINDS[found.kind].title,
            "advice": found.advice,
            "paste": found.paste,
            "values": [
                dict(zip(("value", "pixels", "files", "first_file"), each)) for each in found.values
            ],
            "files": [{"path": path, "detail": detail} for path, detail in found.files],
        }
        for found in check.findings
    ]
    return {
        "format": FORMAT,
        "config": str(config),
        "exit_status": 1 if check.errors else 0,
        "counts": level_counts(check.findings),
        "max_samples": check.max_samples,
        "findings": findings,
        "sets": sets,
    }


def _finding_lines(found):
    """A finding in Markdown."""
    lines = [f"### {KINDS[found.kind].title}: {found.count} ({found.where})", ""]
    if found.advice:
        lines += [found.advice, ""]
    for k, paste in enumerate(found.paste):
        lines += ["or" if k else None, "" if k else None, "```yaml", paste, "```", ""]
    if found.values:
        lines += ["| value | pixels | files | first file |", "|---|---|---|---|"]
        for value, pixels, files, first in found.values[: 2 * _SHOWN]:
            lines.append(f"| {value} | {pixels} | {files} | `{first}` |")
        if len(found.values) > 2 * _SHOWN:
            lines.append(f"| ... | {len(found.values) - 2 * _SHOWN} more values | | |")
        lines.append("")
    for path, detail in found.files[:_SHOWN]:
        lines.append(f"- `{path}`" + (f": {detail}" if detail else ""))
    if found.count > _SHOWN:
        lines.append(f"- ... {found.count - min(_SHOWN, len(found.files))} more")
    return [line for line in lines if line is not None] + [""]


def _class_table(check):
    """Pixels, images and weights of each class in Markdown, both sets side by side."""
    sets = {n: one for n, one in check.sets.items() if one.labelled}
    if not sets:
        return []
    weighted = sets.get("train") or next(iter(sets.values()))
    weights = _weights(weighted) or [None] * weighted.num_classes
    head = ["class", *(f"{n}: {what}" for n in sets for what in ("pixels", "share", "labels"))]
    lines = ["## Classes", "", "| " + " | ".join([*head, "weight"]) + " |"]
    lines.append("|---" * (len(head) + 1) + "|")
    for k, weight in enumerate(weights):
        cells = [f"{k} {weighted.class_names[k]}".replace("|", "\\|")]
        for one in sets.values():
            if k < one.num_classes:
                share = 100 * one.counts[k] / max(one.counts.sum(), 1)
                cells += [f"{one.counts[k]}", f"{share:.3g} %", f"{one.images_with[k]}"]
            else:
                cells += ["", "", ""]
        lines.append("| " + " | ".join([*cells, "" if weight is None else f"{weight:.4g}"]) + " |")
    void = ["void"]
    for one in sets.values():
        total = max(one.counts.sum() + one.void + one.unknown, 1)
        void += [f"{one.void}", f"{100 * one.void / total:.3g} % of all", ""]
    lines += ["| " + " | ".join([*void, ""]) + " |", ""]
    if weights[0] is not None:
        lines += [
            "Weights by median frequency, as `weight: auto` of a loss makes them (which looks at "
            "500 labels at most). Ready to paste into a loss:",
            "",
            "```yaml",
            f"weight: [{', '.join(f'{w:g}' for w in weights)}]",
            "```",
            "",
        ]
    return lines


def _set_table(check):
    lines = [
        "## Sets",
        "",
        "| set | type | entries | pairs read | labels | width x height: smallest, median, largest "
        "| channels |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in check.sets.items():
        sizes = _sizes(one)
        shown = "-"
        if sizes:
            shown = ", ".join("{}x{}".format(*sizes[k]) for k in ("smallest", "median", "largest"))
        modes = ", ".join(f"{mode} {count}" for mode, count in one.modes.most_common())
        lines.append(
            f"| {name} | {type(one.dataset).__name__} | {one.samples} | {one.checked} "
            f"| {one.labelled} | {shown} | {modes} |"
        )
    for name, one in check.sets.items():
        if one.nodata is not None:
            lines += [
                "",
                f"{name}: {one.nodata_pixels} pixels have no data (nodata: {one.nodata}).",
            ]
        if one.orientations:
            told = [f"{n} ({exif.describe(k)})" for k, n in sorted(one.orientations.items())]
            lines += ["", f"{name}: images that their EXIF field turns: {', '.join(told)}."]
    return [*lines, ""]


def as_markdown(check: Check, config: str, pictures: Collection[str] = ()) -> str:
    """The text of report.md."""
    lines = [f"# Data check of {config}", "", f"{summary(check).capitalize()}."]
    if check.max_samples is not None:
        lines += [
            "",
            f"At most {check.max_samples} pairs of each set were read: more faults may be in the "
            "rest, and rare classes may only seem to be missing.",
        ]
    lines.append("")
    for level, head in _HEADS.items():
        found = [each for each in check.findings if each.level == level]
        if found:
            lines += [f"## {head}", ""]
            for each in found:
                lines += _finding_lines(each)
    lines += _set_table(check) + _class_table(check)
    if pictures:
        lines += ["## Pictures", ""]
        lines += [f"![{Path(name).stem}]({name})\n" for name in pictures]
    return "\n".join(lines).rstrip() + "\n"


def write_report(
    check: Check, save_dir: str, config: str, crop_size: tuple[int, int] | None = None
) -> list[str]:
    """Writes report.md, report.json and the pictures.

    Args:
        check (Check): What was found.
        save_dir (str): Folder; made if needed.
        config (str): The config's path, for the heading.
        crop_size (tuple): (width, height) of training's crop.

    Returns:
        list[str]: The files written.

    Raises:
        OSError: They cannot be written.
    """
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {name: one.sizes for name, one in check.sets.items() if one.sizes}
    counts = {name: one.counts for name, one in check.sets.items() if one.labelled}
    pictures = {}
    if sizes:
        pictures["sizes.png"] = draw_sizes(sizes, crop_size)
        pictures["aspect_ratios.png"] = draw_aspects(sizes)
    if counts:
        names = max((check.sets[name].class_names for name in counts), key=len)
        pictures["classes.png"] = draw_classes(names, counts)
    for name, picture in pictures.items():
        save_image(folder / name, picture)
    text = json.dumps(as_dict(check, config), indent=1, ensure_ascii=False)
    # A file name need not be UTF-8.
    to = {"encoding": "utf-8", "errors": "backslashreplace"}
    (folder / "report.md").write_text(as_markdown(check, config, pictures), **to)
    (folder / "report.json").write_text(text + "\n", **to)
    return [str(folder / name) for name in ("report.md", "report.json", *pictures)]
