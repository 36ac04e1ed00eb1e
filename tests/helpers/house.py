# SPDX-License-Identifier: Apache-2.0
"""The order of the package's rooms."""

# The upper floors first. A room imports what lies on lower floors, and itself; of its own floor
# nothing else.
FLOORS = [
    ("cli",),
    ("tools",),
    ("core",),
    ("deploy", "cvlibs"),
    ("datasets", "prediction", "models"),
    ("transforms", "optimizers", "postprocess"),
    ("kernels",),
    ("utils", "registry"),
]
