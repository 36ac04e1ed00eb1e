# SPDX-License-Identifier: Apache-2.0
"""Flags and settings that val and predict share."""

from paddleseg_deeplab.postprocess.settings import add_crf_arguments, crf_settings
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

# As deploy.engine.KINDS, which needs Paddle.
ENGINES = ("auto", "dygraph", "paddle", "onnxruntime", "openvino")
_AUG_KEYS = ("scales", "flip_horizontal", "flip_vertical")
_WINDOW_KEYS = ("crop_size", "stride")


def add_inference_arguments(parser, aug_flag, crf=True):
    """Adds the flags of scales, flips, sliding window, batches, engine, precision and the CRF.

    Args:
        parser (argparse.ArgumentParser): Takes them.
        aug_flag (str): "aug_eval" or "aug_pred", as PaddleSeg names the switch.
        crf (bool): Also those of the CRF. Default True.
    """
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--batch_size",
        type=int,
        help="images of equal size at once (default: 1, small ones together)",
    )
    run.add_argument(
        "--num_workers",
        type=int,
        help="threads that read ahead, and that write (default: 2, or 1 on one processor; 0 with "
        "datasets or transforms of your own)",
    )
    run.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the network on a CPU: dygraph, or an export of it in Paddle Inference, "
        "ONNX Runtime or OpenVINO. auto (default): where there are enough images to pay for the "
        "export, OpenVINO if it is installed, else Paddle Inference",
    )
    run.add_argument(
        "--precision",
        choices=["fp32", "fp16", "bf16"],
        default="fp32",
        help="fp16 and bf16: mixed precision on a GPU; bf16 with --engine openvino: on a CPU that "
        "has it (default: fp32)",
    )
    run.add_argument("--amp_level", choices=["O1", "O2"], default="O1", help="default: O1")
    aug = parser.add_argument_group("several scales and flips (probabilities are averaged)")
    aug.add_argument(f"--{aug_flag}", action="store_true", help="average scales and flips")
    aug.add_argument("--scales", nargs="+", type=float, help="such as 0.75 1.0 1.25 (default: 1.0)")
    aug.add_argument("--flip_horizontal", action="store_true", help="also the mirrored image")
    aug.add_argument("--flip_vertical", action="store_true", help="also the image upside down")
    window = parser.add_argument_group("sliding window")
    window.add_argument("--is_slide", action="store_true", help="go over the image in windows")
    window.add_argument(
        "--slide_above",
        type=float,
        metavar="FACTOR",
        help="windows for large images only: those of more than FACTOR times the pixels of "
        "--crop_size, here by default the training's crop",
    )
    window.add_argument(
        "--crop_size", nargs=2, type=int, metavar=("W", "H"), help="the window, such as 512 512"
    )
    window.add_argument(
        "--stride",
        nargs=2,
        type=int,
        metavar=("W", "H"),
        help="its steps, such as 341 341 (with --slide_above by default two thirds of the window)",
    )
    if crf:
        add_crf_arguments(parser, "the config's test_config.crf")


def inference_settings(config, args, aug_flag):
    """The config's ``test_config`` with the flags over it, as in PaddleSeg.

    Args:
        config (Config): Of the run.
        args: Parsed flags of `add_inference_arguments`.
        aug_flag (str): "aug_eval" or "aug_pred".

    Returns:
        dict: Keyword arguments of `evaluate` or `predict`.

    Raises:
        UserError: A flag's value is not allowed.
    """
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name} should be at least {least}, not {getattr(args, name)}.")
    settings = config.test_config
    crf = settings.pop("crf", None)
    if hasattr(args, "crf"):
        crf = crf_settings(crf, args, f"{config.path}: test_config.crf")
        if crf is not None:
            settings["crf"] = crf
    # As in PaddleSeg test_config's switch is the evaluation's: prediction asks with its own flag.
    switched_on = bool(settings.pop("aug_eval", False)) and aug_flag == "aug_eval"
    if getattr(args, aug_flag):
        switched_on = True
        settings["scales"] = 1.0 if args.scales is None else args.scales
        settings["flip_horizontal"] = args.flip_horizontal
        settings["flip_vertical"] = args.flip_vertical
    else:
        _warn_of_idle_flags(args, _AUG_KEYS, aug_flag)
    if switched_on:
        # Unset means off, though `predict` as PaddleSeg's flips horizontally by default.
        settings = {"scales": 1.0, "flip_horizontal": False, "flip_vertical": False, **settings}
    settings[aug_flag] = switched_on
    _set_window(settings, config, args)
    for key in ("batch_size", "num_workers", "engine", "precision", "amp_level"):
        settings[key] = getattr(args, key)
    return settings


def _set_window(settings, config, args):
    """Puts the flags of the sliding window over the config's settings of it."""
    if args.is_slide and args.slide_above is not None:
        raise UserError("--is_slide puts every image into windows, --slide_above large ones only.")
    if args.is_slide:
        settings["is_slide"] = True
        settings.pop("slide_above", None)
    if args.slide_above is not None:
        settings["slide_above"] = args.slide_above
        settings.pop("is_slide", None)
    by_size = settings.get("slide_above") is not None
    if args.is_slide or by_size:
        # A part that no flag gives is the config's.
        for key in _WINDOW_KEYS:
            settings[key] = getattr(args, key) or settings.get(key)
    elif not settings.get("is_slide"):
        _warn_of_idle_flags(args, _WINDOW_KEYS, "is_slide")
    if by_size and settings["crop_size"] is None:
        from paddleseg_deeplab.cvlibs.builder import training_crop

        settings["crop_size"] = training_crop(config)


def _warn_of_idle_flags(args, names, switch):
    idle = [f"--{name}" for name in names if getattr(args, name)]
    if idle:
        logger.warning("%s: no effect without --%s.", " ".join(idle), switch)


def dataset_facts(builder):
    """Validation set, class names and colours, as far as they can be had.

    A trained model is often used where its dataset is not: then names and colours are the
    config's, the dataset class', or made up (the VOC colour table, as datasets have it).

    Args:
        builder (SegBuilder): Of the run.

    Returns:
        tuple: The dataset or None; list[str] and uint8 [K, 3] RGB for the model's K classes.
    """
    import numpy as np

    from paddleseg_deeplab import registry
    from paddleseg_deeplab.datasets.base import voc_palette

    config, count = builder.config.val_dataset_cfg, builder.model.num_classes
    dataset, component = None, None
    if config:
        component = registry.DATASETS[config["type"]]
        try:
            dataset = builder.val_dataset
        except (UserError, OSError) as error:
            logger.info("Going on without the dataset itself: %s", error)
    facts = []
    for key, made_up in (
        ("class_names", [f"class {i}" for i in range(count)]),
        ("palette", voc_palette(count)),
    ):
        value = getattr(dataset, key, None)
        if value is None and dataset is None and config:
            value = config.get(key, getattr(component, key.upper(), None))
        usable = value is not None and not isinstance(value, str) and len(value) == count
        facts.append(value if usable else made_up)
    return dataset, list(facts[0]), np.asarray(facts[1], np.uint8)
