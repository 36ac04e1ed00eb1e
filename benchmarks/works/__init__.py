# SPDX-License-Identifier: Apache-2.0
"""The work that `run.py --compare` gives both sides; each file is a suite.

`ROWS` of a file are functions by the row's name: ``work(lap, folder, small)``. They prepare inputs
in ``folder`` (pathlib.Path, empty), then work without an end, calling ``lap(output)`` after each
piece (see `side.Lap`); the first piece warms up. ``small`` makes it tiny, for tests.

One file serves commits that lie far apart, so it calls only what users may rely on: the commands
with their flags, PaddleSeg's Python names, state-dict keys, config keys, and never a module inside
(a test has the list). Inputs and weights are made here, so they do not depend on the commit.
"""
