# SPDX-License-Identifier: Apache-2.0
"""VisualDL curves, pictures and texts of a training run (``visualdl --logdir <save_dir>``)."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from paddleseg_deeplab.core.report import EvaluationResult
from paddleseg_deeplab.core.training.watch.averages import Averages
from paddleseg_deeplab.core.training.watch.preview import Preview
from paddleseg_deeplab.core.training.watch.watcher import IterationReport, Watcher
from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger

_PICTURES = 4  # validation images whose predictions are shown


def _old_records(logdir, last_step):
    """The curves, pictures and texts in the newest log file of a folder, up to a step.

    VisualDL shows one file a folder, the newest: a resumed run that only opened a new one would
    hide every curve drawn before (seen in VisualDL 2.5.3). So the old records are copied.
    """
    from google.protobuf.message import DecodeError
    from visualdl.proto import record_pb2
    from visualdl.reader.record_reader import RecordReader

    files = sorted(Path(logdir).glob("vdlrecords.*.log"))
    records = []
    for data in RecordReader(filepath=str(files[-1])).get_remain() if files else []:
        record = record_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            logger.warning("%s ends in a damaged record; those before it are kept.", files[-1])
            break
        if not record.values:
            continue
        value = record.values[0]
        kind = value.WhichOneof("one_value")
        # The new file has a head and hyper-parameters of its own, and tells its config at this
        # very step.
        if kind in ("meta_data", "hparam") or (kind == "text" and value.id == last_step):
            continue
        if value.id <= last_step:
            records.append(record)
    return records


class VisualDLWriter:
    """Writes a run's records.

    Args:
        logdir (str): Folder of the log file.
        resumed_at (int): Records of an earlier log up to this iteration are carried over.
        resumed_from (str, optional): Folder of the earlier log; `logdir` by default.

    Raises:
        UserError: visualdl is not installed.
    """

    def __init__(
        self, logdir: str | Path, resumed_at: int = 0, resumed_from: str | Path | None = None
    ) -> None:
        try:
            from visualdl import LogWriter
        except ModuleNotFoundError as error:
            raise UserError("--use_vdl needs visualdl: pip install visualdl") from error

        old = _old_records(resumed_from or logdir, resumed_at) if resumed_at else []
        # Named by the nanosecond: VisualDL's own names clash within a second.
        self._writer = LogWriter(logdir=str(logdir), file_name=f"vdlrecords.{time.time_ns()}.log")
        for record in old:
            self._writer._get_file_writer().add_record(record)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Adds ``{tag: number}`` at an iteration; NaN (an absent class) is left out."""
        for tag, value in values.items():
            if value == value:
                # VisualDL takes no % in a tag.
                self._writer.add_scalar(tag.replace("%", "percent"), float(value), iteration)

    def image(self, tag: str, rgb: np.ndarray, iteration: int) -> None:
        """Adds a picture, uint8 [H, W, 3] RGB."""
        self._writer.add_image(tag, rgb, iteration)

    def text(self, tag: str, text: str, iteration: int = 0) -> None:
        self._writer.add_text(tag, text, iteration)

    def config(self, text: str, iteration: int = 0) -> None:
        """Adds a config, YAML, as one text a section.

        The page joins lines (VisualDL 2.5.3), which makes nonsense of indented YAML; so each
        section is written in braces.
        """
        content = yaml.safe_load(text)
        plain = {k: v for k, v in content.items() if not isinstance(v, dict)}
        sections = {k: v for k, v in content.items() if isinstance(v, dict)}
        for name, value in {"run": plain, **sections}.items():
            flow = yaml.safe_dump(
                value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
            )
            self.text(f"config/{name}", flow.strip(), iteration)

    def describe(
        self,
        config_text: str,
        hyper_parameters: Mapping[str, float | str] | None,
        iteration: int,
        evaluates: bool,
    ) -> None:
        """Adds the config (YAML, or "") and the row of hyper-parameters (dict, or None)."""
        if config_text:
            self.config(config_text, iteration)
        metrics = ["Train/loss", *(["Evaluate/mIoU", "Evaluate/Acc"] if evaluates else [])]
        self.hyper_parameters(hyper_parameters or {}, metrics)

    def hyper_parameters(self, values: Mapping[str, float | str], metrics: Sequence[str]) -> None:
        """Adds the run's row to the table of hyper-parameters.

        Args:
            values (dict): Name to str, int or float.
            metrics (list[str]): Tags of scalars whose last values complete the row.
        """
        self._writer.add_hparams(values, metrics)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class VisualDL(Watcher):
    """Draws a run's curves, and pictures of its predictions.

    Args:
        writer (VisualDLWriter): Takes them; is closed with this.
        averages (Averages): Of its own.
        preview (Preview | None): Makes the pictures of a run that evaluates.
    """

    def __init__(
        self, writer: VisualDLWriter, averages: Averages, preview: Preview | None = None
    ) -> None:
        self._writer = writer
        self._averages = averages
        self._preview = preview

    def after_iteration(self, report: IterationReport) -> None:
        means = self._averages.add(report)
        if means is None:
            return
        scalars = {
            "Train/loss": means.loss,
            "Train/lr": means.learning_rate,
            "Train/batch_cost": means.batch_seconds,
            "Train/step_cost": means.step_seconds,
            "Train/reader_cost": means.reader_seconds,
            "Train/images_per_second": means.images_per_second,
            "Train/memory_mib": means.memory_mib,
        }
        scalars.update({f"Train/loss_{name}": value for name, value in means.parts.items()})
        self._writer.scalars(scalars, report.iteration)

    def after_saving(self, iteration: int, folder: Path) -> None:
        self._writer.flush()

    def after_evaluation(self, iteration: int, result: EvaluationResult) -> None:
        scalars = {"Evaluate/mIoU": result.miou, "Evaluate/Acc": result.accuracy}
        scalars.update({"Evaluate/Kappa": result.kappa, "Evaluate/Dice": result.mean_dice})
        if result.loss is not None:
            scalars["Evaluate/loss"] = result.loss
        for name, iou in zip(result.class_names, result.class_iou):
            scalars[f"Evaluate/IoU/{name}"] = iou
        self._writer.scalars(scalars, iteration)
        for i, picture in self._preview.pictures(_PICTURES) if self._preview is not None else ():
            self._writer.image(f"Evaluate/truth_and_prediction_{i}", picture, iteration)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
