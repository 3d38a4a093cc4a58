# SPDX-License-Identifier: Apache-2.0
"""torch.nn modules on the ops."""

from .nbfnet import GeneralizedRelationalConv, NBFNet

__all__ = ["GeneralizedRelationalConv", "NBFNet"]
