# SPDX-License-Identifier: Apache-2.0
"""Poolingformer (Zhang et al., ICML 2021): two-level pooling attention for long documents."""
