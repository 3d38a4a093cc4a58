# SPDX-License-Identifier: Apache-2.0
"""Triton kernels and their config tables (source folder csrc/triton). Importing this package imports no Triton."""
