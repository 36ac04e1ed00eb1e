# SPDX-License-Identifier: Apache-2.0
"""The outcome of one check."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        name (str): What was checked.
        status (str): "PASS", "FAIL" or "SKIP".
        detail (str): What was found, on one line.
    """

    name: str
    status: str
    detail: str


def passed(name: str, detail: str) -> Row:
    return Row(name, "PASS", detail)


def failed(name: str, detail: str) -> Row:
    return Row(name, "FAIL", detail)


def skipped(name: str, detail: str) -> Row:
    return Row(name, "SKIP", detail)
