# SPDX-License-Identifier: Apache-2.0
"""torch.nn modules on the ops."""

from .astarnet import AStarNet, AStarSearch, AStarSelection
from .nbfnet import ExplainedPath, GeneralizedRelationalConv, NBFNet, pna_scalers
from .poolingformer import PoolingAttention, PoolingformerLayer, SlidingWindowAttention, global_positions
from .poolingformer_encoder import PoolingformerEncoder, load_roberta, position_copies
from .poolingformer_heads import (
    PoolingformerForMaskedLM,
    PoolingformerForQuestionAnswering,
    PoolingformerForSequenceClassification,
    PoolingformerForSummarization,
    QuestionAnsweringLogits,
)
from .ultra import Ultra, relation_graph

__all__ = [
    "AStarNet",
    "AStarSearch",
    "AStarSelection",
    "ExplainedPath",
    "GeneralizedRelationalConv",
    "NBFNet",
    "PoolingAttention",
    "PoolingformerEncoder",
    "PoolingformerForMaskedLM",
    "PoolingformerForQuestionAnswering",
    "PoolingformerForSequenceClassification",
    "PoolingformerForSummarization",
    "PoolingformerLayer",
    "QuestionAnsweringLogits",
    "SlidingWindowAttention",
    "Ultra",
    "global_positions",
    "load_roberta",
    "pna_scalers",
    "position_copies",
    "relation_graph",
]
