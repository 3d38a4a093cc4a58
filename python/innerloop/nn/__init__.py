# SPDX-License-Identifier: Apache-2.0
"""torch.nn modules on the ops."""

from .astarnet import AStarNet, AStarSearch, AStarSelection
from .contrastive import (
    CKDLoss,
    ClipLoss,
    EmbeddingQueue,
    InfoNCELoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
)
from .distillation import DKDLoss, KDLoss, cosine_kd, dkd, kd
from .distillation_features import CRDLoss, PKTLoss, RKDLoss, SPLoss, hcl, pkt, rkd, sp
from .grad_cache import cached_contrastive_step
from .ma_gcnn import MAGCNN, MGCNN, SubgraphAttention
from .nbfnet import ExplainedPath, GeneralizedRelationalConv, NBFNet, pna_scalers
from .orbit_features import AddOrbitCounts, AddSubstructureCounts
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
    "MAGCNN",
    "MGCNN",
    "AStarNet",
    "AStarSearch",
    "AStarSelection",
    "AddOrbitCounts",
    "AddSubstructureCounts",
    "CKDLoss",
    "CRDLoss",
    "ClipLoss",
    "DKDLoss",
    "EmbeddingQueue",
    "ExplainedPath",
    "GeneralizedRelationalConv",
    "InfoNCELoss",
    "KDLoss",
    "NBFNet",
    "NTXentLoss",
    "PKTLoss",
    "PoolingAttention",
    "PoolingformerEncoder",
    "PoolingformerForMaskedLM",
    "PoolingformerForQuestionAnswering",
    "PoolingformerForSequenceClassification",
    "PoolingformerForSummarization",
    "PoolingformerLayer",
    "QuestionAnsweringLogits",
    "RKDLoss",
    "SPLoss",
    "SigLipLoss",
    "SlidingWindowAttention",
    "SubgraphAttention",
    "SupConLoss",
    "Ultra",
    "cached_contrastive_step",
    "cosine_kd",
    "dkd",
    "global_positions",
    "hcl",
    "kd",
    "load_roberta",
    "pkt",
    "pna_scalers",
    "position_copies",
    "relation_graph",
    "rkd",
    "sp",
]
