# SPDX-License-Identifier: Apache-2.0
"""What every test of a bad input does: run a verb in this process and look at what it left."""

import re

import yaml

_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[(DEBUG|INFO|WARNING)\] ")

GOOD = """
batch_size: 2
iters: 1
train_dataset:
  type: Shapes
  num_classes: 3
  image_size: [32, 32]
  num_samples: 2
  mode: train
  transforms:
    - type: RandomPaddingCrop
      crop_size: [32, 32]
    - type: Normalize
val_dataset:
  type: Shapes
  num_classes: 3
  image_size: [32, 32]
  num_samples: 1
  mode: val
  transforms:
    - type: Normalize
model:
  type: DeepLabV3P
  backbone:
    type: ResNet18_vd
    output_stride: 16
  backbone_indices: [0, 3]
  aspp_ratios: [1, 2]
  aspp_out_channels: 4
optimizer:
  type: SGD
  momentum: 0.9
  weight_decay: 4.0e-5
lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.1
loss:
  types:
    - type: CrossEntropyLoss
  coef: [1]
"""


def good_config(folder, name="c.yml", **sections):
    """Writes a config that trains in a second; sections replace its own, None removes one."""
    content = yaml.safe_load(GOOD)
    for key, value in sections.items():
        if value is None:
            del content[key]
        elif isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key].update(value)
        else:
            content[key] = value
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def tree(folder):
    """Everything below a folder: relative path -> content of a file, None for a folder."""
    found = sorted(folder.rglob("*"))
    return {p.relative_to(folder): None if p.is_dir() else p.read_bytes() for p in found}


def message_of(main, argv, capsys, folder):
    """Runs a verb that has to refuse its input, and returns the one line that says why.

    Args:
        main (callable): The verb's ``main(argv)``.
        argv (list[str]): Its flags.
        capsys: pytest's fixture.
        folder (Path): Everything that the verb could write to lies below it.
    """
    before = tree(folder)
    capsys.readouterr()
    try:
        status = main([str(word) for word in argv])
    except SystemExit as error:  # argparse
        status = error.code
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line and not _LOG_LINE.match(line)]
    assert status == 2, f"status {status}, and on stderr: {err}"
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert lines[0].startswith(("error: ", "usage: ")) or " [ERROR] " in lines[0], err
    changed = sorted(map(str, set(tree(folder).items()) ^ set(before.items())))
    assert not changed, f"left behind: {changed}"
    return lines[0]


def refuses(main, argv, words, capsys, folder):
    """`message_of`, and the line holds all the words."""
    line = message_of(main, argv, capsys, folder)
    for word in words:
        assert word in line, line
    return line
