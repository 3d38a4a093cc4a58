# SPDX-License-Identifier: Apache-2.0
"""Published methods end to end: model, training, evaluation by the paper's own protocol."""
