# SPDX-License-Identifier: Apache-2.0
"""What may follow the network: the dense CRF. NumPy and SciPy only, no Paddle in here."""
