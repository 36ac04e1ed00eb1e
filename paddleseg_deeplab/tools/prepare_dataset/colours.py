# SPDX-License-Identifier: Apache-2.0
"""Masks of colours, or of class numbers in one channel, to masks of classes."""

import collections
import dataclasses
import os
from collections.abc import Mapping

import numpy as np

from paddleseg_deeplab.tools.prepare_dataset.classes import (
    BACKGROUNDS,
    MOST_CLASSES,
    Wanted,
    class_numbers,
    read_classes,
)
from paddleseg_deeplab.tools.prepare_dataset.jobs import Job, Options, Outcome, in_order
from paddleseg_deeplab.tools.prepare_dataset.lists import Deal
from paddleseg_deeplab.tools.prepare_dataset.pixels.colour_table import (
    VOID_NAME,
    count_codes,
    read_codes,
    read_table,
    to_classes,
    told,
)
from paddleseg_deeplab.tools.prepare_dataset.split import Pairing
from paddleseg_deeplab.tools.prepare_dataset.whole_set import (
    Entry,
    WholeSet,
    background_entry,
    mask_place,
    write_like,
)
from paddleseg_deeplab.transforms.reading.values import VOID
from paddleseg_deeplab.utils.errors import UserError, first_few

_OTHER = {"error": None, "background": 0, "void": VOID}
_CHANNELS = {"red": 16, "green": 8, "blue": 0}  # bits below it in a colour's number
_LISTED = 8  # unknown colours that are named


@dataclasses.dataclass(frozen=True)
class Colours:
    """What the values of masks mean.

    Attributes:
        table (str): See `colour_table.read_table`; None where a channel holds class numbers.
        channel (str): "red", "green" or "blue": its values are class numbers, 255 void, as in
            CARLA's semantic camera (red).
        void (tuple[str]): Names in the table that become void.
    """

    table: str | None = None
    channel: str | None = None
    void: tuple[str, ...] = ()

    def check(self) -> None:
        """Exactly one of table and channel is needed.

        Raises:
            UserError: Both are given, or none.
        """
        if bool(self.table) == bool(self.channel):
            raise UserError(
                "Give --colours with the table of colours, or --channel with the channel that "
                "holds class numbers."
            )


def _codes(path: str, channel: str | None) -> np.ndarray:
    codes = read_codes(path)
    return codes if channel is None else codes >> _CHANNELS[channel] & 255


def survey_mask(path: str, channel: str | None) -> collections.Counter[int]:
    """{colour or value: pixels} of a mask."""
    return count_codes(_codes(path, channel))


def convert_colours(
    place: str, mask: str, image: str, numbers: Mapping[int, int], count: int, how: tuple
) -> None:
    """Writes the classes of one mask; `how` is (channel, class of unknown ones or None)."""
    channel, other = how
    write_like(place, to_classes(_codes(mask, channel), numbers, other), image, count)


def _named_classes(
    colours: Colours, wanted: Wanted, found: Mapping[int, int]
) -> tuple[list[str], dict[int, int]]:
    """Names of the classes 0, 1, ... and {colour: class} of a table."""
    table = read_table(str(colours.table))
    strange = sorted(set(colours.void) - set(table.values()))
    if strange:
        known = ", ".join(dict.fromkeys(table.values()))
        raise UserError(f"--void {', '.join(strange)}: not in {colours.table}, which has {known}.")
    table = {code: VOID_NAME if name in colours.void else name for code, name in table.items()}
    counts: collections.Counter[str] = collections.Counter()
    for code, name in table.items():
        counts[name] += found.get(code, 0)
    if wanted.classes:
        chosen = read_classes(wanted.classes)
        used = {name: count for name, count in counts.items() if count or name in chosen}
        numbers = class_numbers(chosen, used, wanted.other_labels, "--classes")
        return ["background", *chosen], {c: numbers.get(n, VOID) for c, n in table.items()}
    # Every pixel has a colour, so that a background is a class only where the table has one.
    names = [name for name in dict.fromkeys(table.values()) if name != VOID_NAME]
    names.sort(key=lambda name: name not in BACKGROUNDS)
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UserError(f"{colours.table} has {len(names)} classes; 2 to {MOST_CLASSES} fit.")
    places = {name: number for number, name in enumerate(names)}
    return names, {code: places.get(name, VOID) for code, name in table.items()}


def _numbered_classes(wanted: Wanted, found: Mapping[int, int]) -> tuple[list[str], dict[int, int]]:
    """Names of the classes 0, 1, ... and {value: class} where a channel holds class numbers."""
    if wanted.classes:
        names = ["background", *read_classes(wanted.classes)]
    else:
        most = max((value for value in found if value != VOID), default=0)
        names = [f"class_{number}" for number in range(max(most, 1) + 1)]
    return names, {**{number: number for number in range(len(names))}, VOID: VOID}


def _refuse(
    unknown: Mapping[int, int], files: Mapping[int, list[str]], channel: str | None
) -> None:
    """UserError with the values that are no class, the most frequent first."""
    often = sorted(unknown, key=lambda code: -unknown[code])
    listed = first_few(
        [
            f"{told(code) if channel is None else code} ({unknown[code]} pixels in "
            f"{len(files[code])} masks, such as {files[code][0]})"
            for code in often
        ],
        _LISTED,
    )
    many = (
        " So many come from JPEG or from smoothed edges: save masks as PNG, without smoothing."
        if len(unknown) > 50
        else ""
    )
    what = "colours that the table lacks" if channel is None else f"{channel} values of no class"
    raise UserError(
        f"--masks: {len(unknown)} {what}: {listed}.{many} Add them, or say what becomes of them: "
        "--other_labels background or void."
    )


def prepare_colours(
    images: str,
    masks: str,
    save_dir: str,
    *,
    colours: Colours,
    wanted: Wanted,
    pairing: Pairing,
    deal: Deal,
    options: Options,
) -> Outcome:
    """Writes annotations/*.png, class_names.txt and lists.

    Args:
        images, masks (str): Folders; pairs have the same path inside them.
        save_dir (str): Where everything goes; the images stay where they are.
        colours (Colours): What the masks' values mean.
        wanted (Wanted): The classes; without a choice they are those of the table in its order,
            the background first where it has one. `other_labels` also says what becomes of colours
            that the table lacks.
        pairing (Pairing): How pairs are found.
        deal (Deal): How images are dealt out to train, val and test.
        options (Options): How to work.

    Returns:
        Outcome: What was done.

    Raises:
        UserError: No pairs, colours that the table lacks (with their counts and files), lists that
            exist; nothing was written.
    """
    colours.check()
    outcome = Outcome()
    pairs, alone, notes = pairing.find(images, masks, outcome, but=[save_dir])
    calls = [(os.path.join(masks, mask), colours.channel) for _, mask in pairs]
    found: collections.Counter[int] = collections.Counter()
    files: dict[int, list[str]] = collections.defaultdict(list)
    usable = []
    for (counts, reason), pair in zip(in_order(survey_mask, calls, options, "reading"), pairs):
        if reason is not None:
            outcome.failures.append((os.path.join(masks, pair[1]), reason))
            continue
        assert counts is not None  # else there is a reason
        usable.append(pair)
        found.update(counts)
        for code in counts:
            files[code].append(pair[1])
    if colours.channel is None:
        names, numbers = _named_classes(colours, wanted, found)
    else:
        names, numbers = _numbered_classes(wanted, found)
    unknown = {code: count for code, count in found.items() if code not in numbers}
    other = _OTHER[wanted.other_labels]
    if unknown and other is None:
        _refuse(unknown, files, colours.channel)
    entries = {}
    for name, mask in usable:
        image, source = (os.path.join(*each) for each in ((images, name), (masks, mask)))
        data = (source, image, numbers, len(names), (colours.channel, other))
        entries[name] = Entry(image, Job(source, mask_place(save_dir, name), convert_colours, data))
    for name in alone:
        entries[name] = background_entry(images, name, save_dir, len(names))
    if entries:
        pixels: collections.Counter[int] = collections.Counter()
        for code, count in found.items():
            pixels[numbers[code] if other is None else numbers.get(code, other)] += count
        listed = [f"{name} {pixels[number]}" for number, name in enumerate(names)]
        notes.append("pixels: " + ", ".join([*listed, f"void {pixels[VOID]}"]))
        if unknown:
            notes.append(
                f"{len(unknown)} unknown colours, {sum(unknown.values())} pixels: now "
                + wanted.other_labels
            )
        WholeSet(entries, deal.sets(entries), names, save_dir).write(options, outcome, notes)
    return outcome
