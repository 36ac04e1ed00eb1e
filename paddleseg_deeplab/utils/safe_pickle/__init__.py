# SPDX-License-Identifier: Apache-2.0
"""Reads what ``paddle.save`` writes without running what the file holds.

A pickle is a program for a small machine with a stack. Most of its steps push a value or put values
together. A few name any function of any module and have it called, so that whoever opens a pickle
runs whatever its author likes. Python's unpickler is not used here, not even a restricted one: a
file of nine bytes makes it take 2 GB.

A file goes through three modules, in this order:

1. `reader`: `load` reads the bytes, gives them to the machine, copies what comes out as far as it
   may be, and makes tensors of it. The rest of the package calls nothing else.
2. `machine`: carries out the steps that build tables of arrays, and refuses all others.
3. `names`: what the few names that such files hold mean. The machine asks it instead of importing.

A file ends in a value or in one of two errors: `names.Refused`, it asks for something else than
tables of arrays; `names.Damaged`, it does not follow the format.
"""
