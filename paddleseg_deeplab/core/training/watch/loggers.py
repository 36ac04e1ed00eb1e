# SPDX-License-Identifier: Apache-2.0
"""VisualDL curves, pictures and texts of a training run (``visualdl --logdir <save_dir>``)."""

import time
from pathlib import Path

import yaml

from paddleseg_deeplab.utils.errors import UserError
from paddleseg_deeplab.utils.logger import logger


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
    """Writes a run's records; does nothing when it is not enabled.

    Args:
        logdir (str): Folder of the log file.
        enabled (bool): False turns every method into nothing; visualdl is then not imported.
        resumed_at (int): Records of an earlier log up to this iteration are carried over.
        resumed_from (str, optional): Folder of the earlier log; `logdir` by default.

    Raises:
        UserError: visualdl is not installed.
    """

    def __init__(self, logdir, enabled=True, resumed_at=0, resumed_from=None):
        self._writer = None
        if not enabled:
            return
        try:
            from visualdl import LogWriter
        except ModuleNotFoundError as error:
            raise UserError("--use_vdl needs visualdl: pip install visualdl") from error

        old = _old_records(resumed_from or logdir, resumed_at) if resumed_at else []
        # Named by the nanosecond: VisualDL's own names clash within a second.
        self._writer = LogWriter(logdir=str(logdir), file_name=f"vdlrecords.{time.time_ns()}.log")
        for record in old:
            self._writer._get_file_writer().add_record(record)

    @property
    def enabled(self):
        return self._writer is not None

    def scalars(self, values, iteration):
        """Adds ``{tag: number}`` at an iteration; NaN (an absent class) is left out."""
        if self._writer is None:
            return
        for tag, value in values.items():
            if value == value:
                # VisualDL takes no % in a tag.
                self._writer.add_scalar(tag.replace("%", "percent"), float(value), iteration)

    def image(self, tag, rgb, iteration):
        """Adds a picture, uint8 [H, W, 3] RGB."""
        if self._writer is not None:
            self._writer.add_image(tag, rgb, iteration)

    def text(self, tag, text, iteration=0):
        if self._writer is not None:
            self._writer.add_text(tag, text, iteration)

    def config(self, text, iteration=0):
        """Adds a config, YAML, as one text a section.

        The page joins lines (VisualDL 2.5.3), which makes nonsense of indented YAML; so each
        section is written in braces.
        """
        if self._writer is None:
            return
        content = yaml.safe_load(text)
        plain = {k: v for k, v in content.items() if not isinstance(v, dict)}
        sections = {k: v for k, v in content.items() if isinstance(v, dict)}
        for name, value in {"run": plain, **sections}.items():
            flow = yaml.safe_dump(
                value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
            )
            self.text(f"config/{name}", flow.strip(), iteration)

    def describe(self, config_text, hyper_parameters, iteration, evaluates):
        """Adds the config (YAML, or "") and the row of hyper-parameters (dict, or None)."""
        if config_text:
            self.config(config_text, iteration)
        metrics = ["Train/loss", *(["Evaluate/mIoU", "Evaluate/Acc"] if evaluates else [])]
        self.hyper_parameters(hyper_parameters or {}, metrics)

    def hyper_parameters(self, values, metrics):
        """Adds the run's row to the table of hyper-parameters.

        Args:
            values (dict): Name to str, int or float.
            metrics (list[str]): Tags of scalars whose last values complete the row.
        """
        if self._writer is not None:
            self._writer.add_hparams(values, metrics)

    def flush(self):
        if self._writer is not None:
            self._writer.flush()

    def close(self):
        if self._writer is not None:
            self._writer.close()
