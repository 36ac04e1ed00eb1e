# SPDX-License-Identifier: Apache-2.0
"""Makes masks and lists from others' annotations; needs no Paddle."""

import argparse

from paddleseg_deeplab.utils.errors import UserError

DESCRIPTION = """Makes what the datasets here read from what others give.

  paddleseg-deeplab prepare_dataset cityscapes --dataset_root data/cityscapes
  paddleseg-deeplab prepare_dataset voc_sbd --sbd_root benchmark_RELEASE --voc_root data/VOCdevkit
  paddleseg-deeplab prepare_dataset labelme --annotations data/drawn --save_dir data/mine
  paddleseg-deeplab prepare_dataset coco --json instances_train2017.json \\
      --images train2017 --save_dir data/coco --mode train
  paddleseg-deeplab prepare_dataset eiseg --images data/photos --save_dir data/mine
  paddleseg-deeplab prepare_dataset colours --images data/images --masks data/SegmentationClass \\
      --colours data/labelmap.txt --save_dir data/mine
  paddleseg-deeplab prepare_dataset binary --images data/images --masks data/masks \\
      --mask_pattern {image}_{class} --save_dir data/mine
  paddleseg-deeplab prepare_dataset split --images data/mine/images --masks data/mine/masks

Exit status: 0 all done, 1 some files could not be done (they are named, the others are done),
2 a mistake in the flags or in the annotations as a whole: nothing was done.
"""
_SHOWN = 5  # files that a dry run names


def _lists(parser):
    parser.add_argument("--val", type=float, default=0.2, help="share of val (default: 0.2)")
    parser.add_argument("--test", type=float, default=0.0, help="share of test (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument(
        "--group_by_folder",
        action="store_true",
        help="files of one folder, such as frames of one video, stay in one set",
    )


def _separator(parser):
    parser.add_argument(
        "--separator",
        help="between image and mask in the lists (default: a blank, or the first of , ; tab | "
        "that stands in no path)",
    )


def _classes(parser):
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="classes 1, 2, ... or one text file with a name a line (default: all there are)",
    )
    parser.add_argument(
        "--other_labels",
        choices=("error", "background", "void"),
        default="error",
        help="what becomes of labels that are not in --classes (default: error)",
    )
    parser.add_argument("--save_dir", required=True, help="where masks and lists go")


def _unlabelled(parser, default="skip"):
    parser.add_argument(
        "--unlabelled",
        choices=("background", "skip"),
        help="images without annotations: masks of background only, or left out (default: "
        f"{default})",
    )


def _folders(parser, kind=""):
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--masks", required=True, help=f"folder of masks{kind and ' of ' + kind}")


def _suffixes(parser):
    parser.add_argument("--image_suffix", default="", help="end of image names, before the .")
    parser.add_argument("--mask_suffix", default="", help="end of mask names, such as _mask")


def _cityscapes(parser):
    parser.add_argument("--dataset_root", required=True, help="the folder with gtFine")
    parser.add_argument(
        "--annotations", choices=("gtFine", "gtCoarse"), default="gtFine", help="default: gtFine"
    )


def _voc_sbd(parser):
    parser.add_argument("--sbd_root", required=True, help="benchmark_RELEASE, as SBD unpacks to")
    parser.add_argument("--voc_root", required=True, help="VOCdevkit, or VOC2012 in it")


def _labelme(parser):
    parser.add_argument("--annotations", required=True, help="folder of labelme's .json files")
    _classes(parser)
    parser.add_argument(
        "--line_width", type=float, default=10.0, help="of lines, in pixels (default: 10)"
    )
    parser.add_argument(
        "--point_radius", type=float, default=5.0, help="of points, in pixels (default: 5)"
    )
    _unlabelled(parser)
    _lists(parser)
    _separator(parser)


def _coco(parser):
    parser.add_argument("--json", required=True, help="the instance file")
    parser.add_argument("--images", required=True, help="the folder its file names start from")
    parser.add_argument(
        "--mode", choices=("train", "val", "test"), default="train", help="default: train"
    )
    _classes(parser)
    parser.add_argument(
        "--crowd",
        choices=("void", "class", "skip"),
        help="what becomes of annotations with iscrowd (default: void, 255, but an error where "
        "that takes all of a class)",
    )
    parser.add_argument(
        "--basename",
        action="store_true",
        help="find images by the file's name alone, for paths of another machine",
    )
    parser.add_argument(
        "--ignore_sizes",
        action="store_true",
        help="height and width in the JSON are wrong; the images' own sizes count",
    )
    _separator(parser)


def _split(parser):
    _folders(parser)
    parser.add_argument(
        "--save_dir",
        help="where the lists go and their paths start from, the later dataset_root (default: the "
        "folder that holds both)",
    )
    _suffixes(parser)
    _lists(parser)
    _separator(parser)


def _colours(parser):
    _folders(parser, "colours")
    parser.add_argument(
        "--colours",
        metavar="TABLE",
        help="CVAT's labelmap.txt or another file with a name and its colour a line; or voc, "
        "cityscapes, camvid",
    )
    parser.add_argument(
        "--channel",
        choices=("red", "green", "blue"),
        help="its values are class numbers (CARLA: red), in place of --colours",
    )
    parser.add_argument(
        "--void", nargs="+", default=[], metavar="NAME", help="names of --colours that become 255"
    )
    _suffixes(parser)
    _unlabelled(parser, "named as not done, status 1")
    _classes(parser)
    _lists(parser)
    _separator(parser)


def _binary(parser):
    _folders(parser, "one class each")
    parser.add_argument(
        "--mask_pattern",
        default="{class}/{image}",
        metavar="PATTERN",
        help="path of a mask in its folder, without the ending; * is anything (default: "
        "{class}/{image}; others: {image}_{class}, {image}/{class}, {image})",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="for masks of shades: the share of the highest value from which on a pixel is of the "
        "class, such as 0.5",
    )
    _unlabelled(parser, "named as not done, status 1")
    _classes(parser)
    _lists(parser)
    _separator(parser)


def _eiseg(parser):
    parser.add_argument("--images", required=True, help="the folder that was opened in EISeg")
    parser.add_argument("--labels", help="what EISeg wrote (default: the folder label in it)")
    parser.add_argument(
        "--label_list", help="its list of labels (default: autosave_label.txt in --labels)"
    )
    _unlabelled(parser)
    _classes(parser)
    _lists(parser)
    _separator(parser)


def _options(args):
    from tqdm import tqdm

    from paddleseg_deeplab.tools.prepare_dataset.jobs import Options

    if args.num_workers is not None and args.num_workers < 0:
        raise UserError(f"--num_workers should be at least 0, not {args.num_workers}.")
    return Options(
        num_workers=args.num_workers,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        separator=getattr(args, "separator", None),
        progress=lambda total, word: tqdm(total=total, desc=word, unit="file", disable=None),
    )


def _deal(args):
    from paddleseg_deeplab.tools.prepare_dataset.lists import Deal

    return Deal(args.val, args.test, args.seed, args.group_by_folder)


def _wanted(args):
    from paddleseg_deeplab.tools.prepare_dataset.classes import Wanted

    return Wanted(args.classes, args.other_labels)


def _prepare_cityscapes(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.cityscapes import prepare_cityscapes

    return prepare_cityscapes(args.dataset_root, annotations=args.annotations, options=options)


def _prepare_voc_sbd(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.voc import prepare_voc_sbd

    return prepare_voc_sbd(args.sbd_root, args.voc_root, options=options)


def _prepare_labelme(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.labelme import prepare_labelme

    return prepare_labelme(
        args.annotations,
        args.save_dir,
        wanted=_wanted(args),
        line_width=args.line_width,
        point_radius=args.point_radius,
        unlabelled=args.unlabelled,
        deal=_deal(args),
        options=options,
    )


def _prepare_coco(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.coco import Reading, prepare_coco

    return prepare_coco(
        args.json,
        args.images,
        args.save_dir,
        mode=args.mode,
        wanted=_wanted(args),
        reading=Reading(args.crowd, args.basename, args.ignore_sizes),
        options=options,
    )


def _prepare_split(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.split import prepare_split

    return prepare_split(
        args.images,
        args.masks,
        args.save_dir,
        image_suffix=args.image_suffix,
        mask_suffix=args.mask_suffix,
        deal=_deal(args),
        options=options,
    )


def _prepare_colours(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.colours import Colours, prepare_colours

    return prepare_colours(
        args.images,
        args.masks,
        args.save_dir,
        colours=Colours(args.colours, args.channel, tuple(args.void)),
        wanted=_wanted(args),
        pairing=_pairing(args),
        deal=_deal(args),
        options=options,
    )


def _prepare_binary(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.binary import Layers, prepare_binary

    return prepare_binary(
        args.images,
        args.masks,
        args.save_dir,
        layers=Layers(args.mask_pattern, args.threshold),
        wanted=_wanted(args),
        unlabelled=args.unlabelled,
        deal=_deal(args),
        options=options,
    )


def _prepare_eiseg(args, options):
    from paddleseg_deeplab.tools.prepare_dataset.eiseg import prepare_eiseg

    return prepare_eiseg(
        args.images,
        args.labels,
        args.save_dir,
        label_list=args.label_list,
        wanted=_wanted(args),
        unlabelled=args.unlabelled,
        deal=_deal(args),
        options=options,
    )


def _pairing(args):
    from paddleseg_deeplab.tools.prepare_dataset.split import Pairing

    return Pairing(args.image_suffix, args.mask_suffix, args.unlabelled)


# Kind: what it makes, its flags, and what prepares it.
_KINDS = {
    "cityscapes": (
        "Cityscapes: *_labelIds.png to *_labelTrainIds.png",
        _cityscapes,
        _prepare_cityscapes,
    ),
    "voc_sbd": (
        "PASCAL VOC and SBD: SegmentationClassAug and aug.txt, for mode trainaug",
        _voc_sbd,
        _prepare_voc_sbd,
    ),
    "labelme": (
        "labelme's JSON files: masks, class_names.txt and lists",
        _labelme,
        _prepare_labelme,
    ),
    "coco": (
        "COCO's instance JSON: masks, class_names.txt and a list",
        _coco,
        _prepare_coco,
    ),
    "colours": (
        "masks of colours, or of numbers in one channel: masks of classes and lists",
        _colours,
        _prepare_colours,
    ),
    "binary": (
        "masks of one class each, sharp or of shades: masks of classes and lists",
        _binary,
        _prepare_binary,
    ),
    "eiseg": (
        "what PaddleSeg's EISeg writes: masks, class_names.txt and lists",
        _eiseg,
        _prepare_eiseg,
    ),
    "split": (
        "a folder of images and one of masks: train, val and test lists",
        _split,
        _prepare_split,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="kind", required=True)
    for kind, (text, add_flags, _) in _KINDS.items():
        one = kinds.add_parser(kind, help=text, description=text)
        add_flags(one)
        one.add_argument(
            "--num_workers",
            type=int,
            help="processes; 0 works in this one (default: one a processor, at most 8)",
        )
        one.add_argument(
            "--overwrite", action="store_true", help="make again what is there (default: keep it)"
        )
        one.add_argument(
            "--dry_run", action="store_true", help="say what would be done, write nothing"
        )
        one.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )


def run(args: argparse.Namespace) -> int:
    """Prepares as the flags say; 0, or 1 where some files could not be done."""
    from paddleseg_deeplab.prediction.outputs import check_save_dir
    from paddleseg_deeplab.utils.logger import logger

    options = _options(args)
    if getattr(args, "save_dir", None) is not None:
        check_save_dir(args.save_dir)
    prepare = _KINDS[args.kind][2]
    outcome = prepare(args, options)
    if args.dry_run:
        for path in outcome.done[:_SHOWN]:
            logger.info("would write %s", path)
        if len(outcome.done) > _SHOWN:
            logger.info("would write %d more", len(outcome.done) - _SHOWN)
    for note in outcome.notes:
        logger.info("%s", note)
    for source, reason in outcome.failures:
        logger.error("not done: %s", reason if source in reason else f"{source}: {reason}")
    logger.info(
        "%d files %s, %d there already, %d failures.",
        len(outcome.done),
        "would be written" if args.dry_run else "written",
        len(outcome.kept),
        len(outcome.failures),
    )
    return 1 if outcome.failures else 0
