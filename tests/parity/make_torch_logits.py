# SPDX-License-Identifier: Apache-2.0
"""Writes torch_logits.npz and torch_keys.json with networks written in torch.

They prove that `convert_weights` brings torchvision's DeepLabV3 and kazuto1011's DeepLab V1, V2
and V3 over: their names and shapes, and the logits they give. The networks, in torch_networks.py,
are short versions of our own with the sources' names; to make the files again, with torch 2 on the
CPU::

    python tests/parity/make_torch_logits.py

Weights and inputs come from `source_fill` and `image`, which depend on names, shapes and NumPy's
PCG64 alone, so that the test needs neither torch nor large files. In torch_keys.json an entry
``[name, number]`` stands for a batch norm: five tensors, see `expand`.
"""

import json
from pathlib import Path

import numpy as np
from make_paddleseg_logits import digest, fill, image

HERE = Path(__file__).parent
LOGITS_FILE = HERE / "torch_logits.npz"
KEYS_FILE = HERE / "torch_keys.json"

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
NETWORKS = tuple(
    f"{family}_{depth}"
    for family in (
        "torchvision_deeplabv3",
        "kazuto1011_deeplabv1",
        "kazuto1011_deeplabv2",
        "kazuto1011_deeplabv3",
    )
    for depth in BLOCKS
)
# (height, width) and step: every step-th pixel of the logits is kept. Steps share no factor with
# the stride, so that all phases of the upsampling are among them. The tall one is there for the
# large rates: on its map of 38x5 even the rate of 36 meets more than its kernel's middle row.
SIZES = {(65, 49): 9, (64, 64): 13, (97, 81): 17}
TALL = {(297, 33): 17}
_COUNTERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def sizes_of(network):
    """{(height, width): step} of the inputs compared at."""
    return {**SIZES, **TALL} if network.endswith("resnet50") else SIZES


def source_fill(name, shape):
    """The value of one tensor of a source network, drawn from its name and shape alone."""
    if name.endswith("num_batches_tracked"):
        return np.array(1234, np.int64)
    if name.endswith("running_var"):  # as `fill` knows them: positive, and near 1
        name = name[: -len("running_var")] + "._variance"
    elif len(shape) == 1 and name.endswith(".weight"):
        name = name[: -len(".weight")] + "_batch_norm.weight"
    return fill(name, shape)


def expand(entries):
    """{name: shape} of torch_keys.json's entries."""
    shapes = {}
    for name, shape in entries:
        if isinstance(shape, list):
            shapes[name] = shape
            continue
        for part in _COUNTERS:
            shapes[f"{name}.{part}"] = [] if part == _COUNTERS[-1] else [shape]
    return shapes


def source_state(entries):
    """{name: array} of a whole source network."""
    return {name: source_fill(name, shape) for name, shape in expand(entries).items()}


def _entries(state):
    """What `expand` takes, of a torch state_dict."""
    last = "." + _COUNTERS[-1]
    norms = {name[: -len(last)] for name in state if name.endswith(last)}
    entries = [
        [name, list(tensor.shape)]
        for name, tensor in state.items()
        if name.rpartition(".")[0] not in norms
    ]
    entries += [[norm, state[f"{norm}.weight"].shape[0]] for norm in norms]
    assert {k: list(v.shape) for k, v in state.items()} == expand(entries)
    return sorted(entries)


def main():
    import torch
    from torch_networks import kazuto1011, outputs_of, torchvision

    logits, keys, digests = {}, {}, {}
    for name in NETWORKS:
        family, depth = name.rsplit("_", 1)
        version = int(family[-1])
        blocks = BLOCKS[depth]
        is_torchvision = family.startswith("torchvision")
        network = torchvision(blocks) if is_torchvision else kazuto1011(version, blocks)
        state = network.state_dict()
        keys[name], digests[name] = _entries(state), digest(state)
        arrays = source_state(keys[name])
        network.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
        network.eval()
        for size, step in sizes_of(name).items():
            with torch.no_grad():
                outputs = outputs_of(name, network, torch.from_numpy(image(size)))
            for suffix, y in outputs.items():
                # Only the multi-scale config's own depth; the auxiliary head once.
                if suffix and (suffix == "_msc") != (depth == "resnet101"):
                    continue
                kept = y.numpy()[:, :, ::step, ::step]
                logits[f"{name}{suffix}_{size[0]}x{size[1]}"] = kept
                print(f"{name}{suffix}", size, kept.shape, "deviation", kept.std(), digests[name])
    np.savez_compressed(LOGITS_FILE, **logits)
    text = json.dumps({"digests": digests, "networks": keys}, separators=(",", ":"))
    KEYS_FILE.write_text(text.replace("]],", "]],\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
