# SPDX-License-Identifier: Apache-2.0
"""torch.nn modules on the ops."""

from .nbfnet import GeneralizedRelationalConv, NBFNet, pna_scalers

__all__ = ["GeneralizedRelationalConv", "NBFNet", "pna_scalers"]
