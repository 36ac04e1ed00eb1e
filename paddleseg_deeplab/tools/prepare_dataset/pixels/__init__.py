# SPDX-License-Identifier: Apache-2.0
"""Which pixels drawn shapes, run lengths and colours stand for."""
