# SPDX-License-Identifier: Apache-2.0
"""One image into the confusion matrix, beside scikit-learn and torchmetrics."""

from children import memory_of
from harness import assert_close, compare, peer
from works.confusion import VOID, make_inputs

from paddleseg_deeplab.utils.cpu import thread_count
from paddleseg_deeplab.utils.metrics import ConfusionMatrix

CLASSES = (19, 150)
SIZE = (1024, 2048)
SMALL = (32, 48)
NAMES = ("scikit-learn", "torchmetrics")


def ours(classes, pred, label):
    return lambda: ConfusionMatrix(classes, VOID).update(pred, label)


def scikit_learn(classes, pred, label):
    from sklearn.metrics import confusion_matrix

    truth, found = label.reshape(-1), pred.reshape(-1)
    # Pixels whose truth is not among `labels` are left out: the void ones.
    return lambda: confusion_matrix(truth, found, labels=range(classes))


def torchmetrics(classes, pred, label):
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    torch.set_num_threads(thread_count())
    found, truth = torch.from_numpy(pred), torch.from_numpy(label)
    return lambda: multiclass_confusion_matrix(found, truth, classes, ignore_index=VOID).numpy()


MAKERS = {None: ours, NAMES[0]: scikit_learn, NAMES[1]: torchmetrics}


def check(mine, theirs, name):
    assert_close(f"matrix, {name}", mine, theirs, 0)


def memory_work(name, classes, size):
    """For `children.peak_memory`: the update of ours (name None) or a peer's."""
    MAKERS[name](classes, *make_inputs(classes, SMALL))()
    return MAKERS[name](classes, *make_inputs(classes, size))


def rows(options):
    size = SMALL if options.small else SIZE
    for classes in CLASSES[:1] if options.small else CLASSES:
        inputs = make_inputs(classes, size)
        yield from compare(
            f"update, {classes} classes, {size[0]}x{size[1]} ({inputs[1].nbytes >> 20} MiB a map)",
            ours(classes, *inputs),
            {
                name: peer(lambda name=name, k=classes, maps=inputs: MAKERS[name](k, *maps))
                for name in NAMES
            },
            check,
            options,
            goals=dict.fromkeys(NAMES, "5"),
            floor=options.rates.floor(moved=sum(array.nbytes for array in inputs)),
            memory=lambda name, k=classes: memory_of(
                options, "suites.confusion", "memory_work", name, k, size
            ),
        )
