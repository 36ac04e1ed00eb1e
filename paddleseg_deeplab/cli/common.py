# SPDX-License-Identifier: Apache-2.0
"""What the commands share: flags, the device, and how an error reaches the person."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from paddleseg_deeplab.utils.errors import RunStopped, UserError
from paddleseg_deeplab.utils.files.written import expand_home
from paddleseg_deeplab.utils.installed import explain
from paddleseg_deeplab.utils.logger import logger, setup_console

if TYPE_CHECKING:
    from paddleseg_deeplab.core.ranks import Ranks
    from paddleseg_deeplab.cvlibs import Config
    from paddleseg_deeplab.prediction.cleanup import Cleanup

# What Paddle says on every run and nobody can act upon.
_PADDLE_NOISE = ("No ccache found", "When training, we now always track global mean and variance")


# Flags that are a place or a name. Empty, from an unset variable of a shell, they would mean the
# folder at hand.
_PLACES = (
    "config",
    "device",
    "save_dir",
    "model_path",
    "model_dir",
    "image_path",
    "resume_model",
    "input",
    "output",
    # of prepare_dataset
    *("dataset_root", "sbd_root", "voc_root", "annotations", "json", "images", "masks", "labels"),
    "colours",
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the flags in one line."""

    # `argparse` takes a namespace of any class; nobody here gives one.
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        parsed = super().parse_args(args, namespace)
        for name in _PLACES:
            value = getattr(parsed, name, None)
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"--{name} is empty: give a value or leave the flag out")
            if isinstance(value, str):  # a shell replaces ~ in "--flag ~/x", not in "--flag=~/x"
                setattr(parsed, name, expand_home(value))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. {self.prog} --help lists the flags.\n")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that train, val, predict and export share."""
    parser.add_argument("--config", required=True, help="YAML file, such as configs/....yml")
    parser.add_argument(
        "--opts",
        nargs="+",
        metavar="KEY=VALUE",
        help="override anything in the config: val_dataset.dataset_root=data/x loss.coef=[1]",
    )
    parser.add_argument(
        "--data_format",
        choices=["NCHW", "NHWC"],
        help="memory layout of model and backbone, and of losses without one of their own "
        "(default: as in the config, else NCHW)",
    )
    add_device_argument(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        help="cpu, gpu, gpu:1, ... (default: the GPU where Paddle sees one, else the CPU)",
    )


def parse_bool(text: str) -> bool:
    """True or False from a flag's value; `argparse`'s own bool takes "False" for true."""
    value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"True or False, not {text!r}")
    return value


def image_paths(args: argparse.Namespace) -> str | list[str]:
    """What --image_path names; one path by itself, which then has to be there."""
    return args.image_path[0] if len(args.image_path) == 1 else args.image_path


def add_divisor_argument(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, default: str
) -> None:
    """Adds --size_divisor; ``default`` says where its default is from."""
    parser.add_argument(
        "--size_divisor",
        type=int,
        metavar="N",
        help="repeat each image's last row and column until N divides both sides, such as 16, the "
        f"output stride; results have the image's size (default: {default}, else none)",
    )


def add_crf_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """Adds ``--crf`` and ``--crf_params``.

    Args:
        parser (argparse.ArgumentParser): Takes them.
        source (str): What the settings come from where the flags are not given.
    """
    group = parser.add_argument_group("dense CRF")
    group.add_argument(
        "--crf",
        type=parse_bool,
        nargs="?",
        const=True,
        metavar="True|False",
        help=f"refine the result along the image's edges (default: as {source} says)",
    )
    group.add_argument(
        "--crf_params",
        nargs="+",
        metavar="KEY=VALUE",
        help=f"such as bilateral_xy=50 iterations=5, over those of {source}",
    )


def add_output_arguments(parser: argparse.ArgumentParser, save_dir: str) -> None:
    """Adds the flags that say what is written of the results, where, and what is done before.

    Args:
        parser (argparse.ArgumentParser): Takes them.
        save_dir (str): The default of ``--save_dir``.
    """
    parser.add_argument("--save_dir", default=save_dir, help=f"default: {save_dir}")
    parser.add_argument(
        "--outputs",
        nargs="+",
        default=["overlay", "palette"],
        help="of overlay, palette, raw, prob; labelme, labelme_polygons (a JSON for each image), "
        "coco (coco.json), areas (areas.csv) (default: overlay palette)",
    )
    add = parser.add_argument_group("cleaning the labels, before anything is written").add_argument
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="pixels whose best class has a lower probability become unknown, such as 0.6",
    )
    add("--unknown", type=int, metavar="N", help="the label of those pixels (default: 255, void)")
    add(
        "--fill_holes",
        type=int,
        metavar="N",
        help="fill holes of fewer than N pixels inside a class",
    )
    add(
        "--min_area",
        type=int,
        metavar="N",
        help="regions of fewer than N pixels take the class around them",
    )


def cleanup_of(args: argparse.Namespace) -> Cleanup | None:
    """What the flags of `add_output_arguments` say of the labels; None: nothing.

    Raises:
        UserError: A number is not allowed.
    """
    from paddleseg_deeplab.prediction.cleanup import Cleanup

    names = ("min_area", "fill_holes", "threshold", "unknown")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "unknown" in given and "threshold" not in given:
        raise UserError("--unknown is the label of pixels below --threshold: give that one too.")
    return Cleanup(**given) if given else None


def read_config(
    args: argparse.Namespace, *, pretrained: bool = True, **overrides: float | None
) -> Config:
    """The `Config` that the shared flags describe.

    Args:
        args: Parsed flags of `add_config_arguments`.
        pretrained (bool): False forgets pretrained weights, since a whole model is loaded later.
        **overrides: ``learning_rate``, ``batch_size``, ``iters`` of `Config`.
    """
    from paddleseg_deeplab.cvlibs import Config

    given = {"data_format": args.data_format, "pretrained": pretrained, **overrides}
    return Config(args.config, opts=args.opts, **given)


def join_ranks(device: str | None = None) -> Ranks:
    """The processes that a launcher started, joined; `core.ranks.Ranks`, one by default.

    All but the first log warnings only from here on.

    Args:
        device (str, optional): What --device was; `select_device` has been called with it.

    Raises:
        UserError: One GPU was named for all of them.
    """
    from paddleseg_deeplab.core.ranks import join

    ranks = join(device)
    if not ranks.is_main:
        logger.setLevel(max(logger.level, logging.WARNING))
    return ranks


@contextlib.contextmanager
def _imports():
    """For a command's own imports: what is wrong with a package is one line and status 2."""
    try:
        yield
    except ImportError as error:
        explained = explain(error)
        if explained is None:
            raise
        _tell(explained)
        raise SystemExit(2) from error


def _tell(error):
    # Of an error that all processes of a run share, one of them speaks.
    if not getattr(error, "silent", False):
        print(f"error: {error}", file=sys.stderr)


def main_of(
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int | None],
    description: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> int:
    """Parses flags, runs the command, and turns a `UserError` into one line and status 2.

    Args:
        add_arguments (callable): Takes the parser.
        run (callable): Takes the parsed flags; returns an exit status or None for 0.
        description (str): For ``--help``.
        argv (list[str], optional): Flags; ``sys.argv[1:]`` by default.
        prog (str, optional): The command's name in messages.

    Returns:
        int: The exit status.
    """
    parser = Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    with _imports():
        add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug lines")
    args = parser.parse_args(argv)
    setup_console(logging.DEBUG if args.debug else logging.INFO)
    if not getattr(args, "print_detail", False):
        for message in _PADDLE_NOISE:
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        os.environ.setdefault("GLOG_minloglevel", "2")  # of Paddle's C++ side: errors only
    return status_of(run, args)


def status_of(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Runs a command; its exit status, with what went wrong as one line on stderr.

    Where other processes of a run may wait for this one, and cannot be told (an error marked
    ``unagreed``), it ends at once: Paddle would wait for them at the end of the program.

    Args:
        run (callable): Takes the parsed flags; returns an exit status or None for 0.
        args: The flags, ``debug`` among them: whether to show tracebacks.
    """
    try:
        return int(run(args) or 0)
    except (UserError, ImportError) as caught:
        error = caught if isinstance(caught, UserError) else explain(caught)
        if error is None:
            raise
        if args.debug:
            logger.exception("The error below came from here:")
        _tell(error)
        return _ended(caught, 2)
    except RunStopped as error:
        _tell(error)
        return _ended(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if getattr(error, "unagreed", False):
            traceback.print_exc()
        _ended(error, 1)
        raise


def _ended(error, status):
    """The status; ends the process by it where others may wait for it (`Ranks.leave`)."""
    if getattr(error, "unagreed", False):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
