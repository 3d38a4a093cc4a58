# SPDX-License-Identifier: Apache-2.0
"""MA-GCNN and M-GCNN: classifiers of graphs that are given as motif grids."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops._checks import readable
from ..ops.subgraph_attention import subgraph_attention
from .poolingformer import check_counts

__all__ = ["MAGCNN", "MGCNN", "SubgraphAttention"]


class SubgraphAttention(nn.Module):
    """Heads of attention between the subgraphs of a graph, their outputs side by side.

    For each head: V = Z W, e = V a_q + b_q, g = V a_k + b_k, and :func:`innerloop.subgraph_attention` of them. W and a
    start from Glorot's uniform distribution, all biases from 0.

    Args:
        in_features: D. heads: H. head_dim: d.

    Forward:
        z: (B, N, D). valid: bool (B, N), False for subgraphs that take no part, or None. Returns (B, N, H·d).

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, in_features: int, heads: int, head_dim: int) -> None:
        super().__init__()
        check_counts("SubgraphAttention", in_features=in_features, heads=heads, head_dim=head_dim)
        self.weight = nn.Parameter(torch.empty(heads, head_dim, in_features))
        self.score_weight = nn.Parameter(torch.empty(2, heads, head_dim))  # a_q, a_k
        self.score_bias = nn.Parameter(torch.empty(2, heads))
        self.bias = nn.Parameter(torch.empty(heads, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for weight in self.weight:
                nn.init.xavier_uniform_(weight)
            for weight in self.score_weight.flatten(0, 1):
                nn.init.xavier_uniform_(weight[None])
            self.score_bias.zero_()
            self.bias.zero_()

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.attend(F.linear(z, self.weight.flatten(0, 1)), valid)

    def attend(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """What :meth:`forward` makes of Z W for all heads, (B, N, H·d)."""
        v = values.unflatten(2, self.bias.shape)  # (B, N, H, d)
        score = torch.einsum("bnhd,shd->sbhn", v, self.score_weight) + self.score_bias[:, None, :, None].to(v.dtype)
        return (
            subgraph_attention(v.transpose(1, 2), *score, self.bias.to(v.dtype), valid=valid).transpose(1, 2).flatten(2)
        )

    def extra_repr(self) -> str:
        heads, head_dim, in_features = self.weight.shape
        return f"in_features={in_features}, heads={heads}, head_dim={head_dim}"


class _GridConvolutions(nn.Module):
    """The two convolutions of both models: a vector of 64 channels for each k × k block of a grid."""

    channels = 64

    def __init__(self, motif_size: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        k = self.motif_size = motif_size
        self.conv1 = nn.Conv2d(in_channels, 32, (1, k), stride=(1, k))
        self.conv2 = nn.Conv2d(32, self.channels, (k, 1), stride=(k, 1))
        self.dropout = nn.Dropout(dropout)
        for conv in (self.conv1, self.conv2):
            _glorot(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, k·S, k·N) to (B, 64, S, N)."""
        x = self.dropout(F.relu(self.conv1(x)))
        return self.dropout(F.relu(self.conv2(x)))


class _GridClassifier(nn.Module):
    """What both models share: the checks of their arguments, and the convolutions."""

    def __init__(
        self,
        num_slots: int,
        num_classes: int,
        in_channels: int,
        node_features: int,
        motif_size: int,
        dropout: float,
        **counts: int,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_counts(
            name, num_slots=num_slots, num_classes=num_classes, in_channels=in_channels, motif_size=motif_size, **counts
        )
        _check_features(name, node_features=node_features)
        _check_share(name, dropout=dropout)
        self.num_slots, self.num_classes, self.node_features = num_slots, num_classes, node_features
        self.convolutions = _GridConvolutions(motif_size, in_channels, dropout)

    def _check(self, x: Tensor, features: Tensor | None, num_nodes: int | None = None) -> None:
        name, k = type(self).__name__, self.convolutions.motif_size
        _check_tensor(name, x=x, features=features)
        channels, rows = self.convolutions.conv1.in_channels, k * self.num_slots
        columns = None if num_nodes is None else k * num_nodes
        fits = x.is_floating_point() and x.dim() == 4 and tuple(x.shape[1:3]) == (channels, rows)
        if not fits or not x.shape[3] or (x.shape[3] % k if columns is None else x.shape[3] != columns):
            wanted = f"{k}·N of at least {k}" if columns is None else columns
            raise ValueError(
                f"{name}: x is {x.dtype} of shape {tuple(x.shape)}, expected floating point "
                f"(B, {channels}, {rows}, {wanted})"
            )
        if (features is None) != (self.node_features == 0):
            given = "none" if features is None else "a tensor"
            raise ValueError(f"{name}: features is {given} with node_features={self.node_features}")
        shape = (len(x), x.shape[3] // k, self.node_features)
        if features is not None and tuple(features.shape) != shape:
            raise ValueError(f"{name}: features has shape {tuple(features.shape)}, expected {shape}")
        self._check_dtype(x=x, features=features)

    def _check_dtype(self, **inputs: Tensor | None) -> None:
        dtype = self.convolutions.conv1.weight.dtype
        for name, t in inputs.items():
            if t is None or t.dtype == dtype or (t.is_floating_point() and torch.is_autocast_enabled(t.device.type)):
                continue
            raise TypeError(f"{type(self).__name__}: {name} is {t.dtype}, expected {dtype} like the parameters")

    def loss(self, x: Tensor, y: Tensor, *args: Tensor | None, **options: Tensor | None) -> Tensor:
        """Mean cross-entropy of the softmax of `forward(x, ...)` against the classes y, int64 (B,), B at least 1."""
        _check_tensor(type(self).__name__, x=x, y=y)
        if not len(y):
            raise ValueError(f"{type(self).__name__}: y is empty, expected a class of at least one graph")
        return F.cross_entropy(self(x, *args, **options), y)


class _PiecewiseLinear(nn.Module):
    """Each of G features as T numbers from 0 to 1, how far it is through each of T bins: (B, G) to (B, G·T).

    Source: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning (NeurIPS 2022), with bins
    between quantiles. Bins of no width, where many graphs share a value, are 0 throughout.
    """

    def __init__(self, in_features: int, bins: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.full((in_features, bins + 1), torch.nan))
        self.fitted = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.fitted = not self.edges.is_meta and not bool(self.edges.isnan().any())

    def fit(self, features: Tensor) -> None:
        share = torch.linspace(0, 1, self.edges.shape[1], device=features.device)
        self.edges.copy_(features.sort(0).values[(share * (len(features) - 1)).round().long()].T)
        self.fitted = True

    def forward(self, features: Tensor) -> Tensor:
        # The buffer may have been set in other ways too: functional_call, DistributedDataParallel.
        if not self.fitted and readable(self.edges) and bool(self.edges.isnan().any()):
            raise RuntimeError("MAGCNN: the bins of graph_features are not set, expected fit_bins to be called before")
        low, width = self.edges[:, :-1], self.edges.diff()
        place = ((features[:, :, None] - low) / width.clamp(min=torch.finfo(width.dtype).tiny)).clamp(0, 1)
        return place.masked_fill(width == 0, 0).flatten(1)


class _GraphHead(nn.Module):
    """Class scores (B, C) of features (B, G) of whole graphs: bins, batch normalisation, then one hidden layer."""

    def __init__(self, in_features: int, bins: int, hidden: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.bins = _PiecewiseLinear(in_features, bins) if bins else None
        in_features *= max(bins, 1)
        # A feature that hardly varies, such as the share of a rare label, is not blown up.
        self.norm = nn.BatchNorm1d(in_features, eps=1e-3, affine=False)
        self.fc1, self.fc2 = nn.Linear(in_features, hidden), nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            _glorot(layer)

    def forward(self, features: Tensor) -> Tensor:
        norm = self.norm
        if self.bins is not None:
            features = self.bins(features)
        if self.training and len(features) == 1:
            features = F.batch_norm(features, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            features = norm(features)
        return self.fc2(self.dropout(F.relu(self.fc1(self.dropout(features)))))


class MGCNN(_GridClassifier):
    """M-GCNN, the baseline of MA-GCNN: a perceptron on the vectors of all blocks of the motif grid.

    Each k × k block of a grid becomes 64 channels by two convolutions; layers of 128, 64 and C follow on all of them,
    slot by slot and in each node by node. Kernels start from Glorot's uniform distribution, biases from 0.

    Args:
        num_nodes: N, central nodes of a grid. num_slots: S, blocks of each. num_classes: C.
        in_channels: F, channels of a grid.
        node_features: E, further features of each central node, behind the channels in the perceptron's input; not in
            the paper.
        motif_size: k, side of a block.
        dropout: share of zeros after each convolution. The paper's code names 0.5 but runs without any.

    Forward:
        x: (B, F, k·S, k·N), as of :func:`innerloop.motif_grid`. features: (B, N, E). Returns logits (B, C).

    Raises:
        ValueError: numbers or shapes that do not fit. TypeError: inputs that are no tensors of the parameters' dtype.

    Source: Peng et al. (AAAI 2020; arXiv 1811.08270) and its released code.
    """

    def __init__(
        self,
        num_nodes: int,
        num_slots: int,
        num_classes: int,
        *,
        in_channels: int = 1,
        node_features: int = 0,
        motif_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_slots, num_classes, in_channels, node_features, motif_size, dropout, num_nodes=num_nodes)
        self.num_nodes = num_nodes
        width = num_nodes * (_GridConvolutions.channels * num_slots + node_features)
        self.fc1, self.fc2, self.fc3 = nn.Linear(width, 128), nn.Linear(128, 64), nn.Linear(64, num_classes)
        for layer in (self.fc1, self.fc2, self.fc3):
            _glorot(layer)

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        self._check(x, features, self.num_nodes)
        z = self.convolutions(x).permute(0, 2, 3, 1).flatten(1)  # by slot, node, channel
        if features is not None:
            z = torch.cat([z, features.flatten(1)], 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(z)))))


class MAGCNN(_GridClassifier):
    """MA-GCNN: attention between the subgraphs of a graph, each of which then votes for classes.

    Each k × k block of a grid becomes 64 channels by two convolutions; the blocks of a central node, side by side, are
    its subgraph's vector, channel by channel and in each slot by slot. Two layers of :class:`SubgraphAttention` follow,
    the second with one head of C channels, o_i. The votes are Σ_i softmax(softmax(o_i)): in a narrow band, so that two
    classes are never more than N (e - 1) / (e + C - 1) apart. Kernels start from Glorot's uniform distribution, biases
    from 0.

    Ours and not the paper's: with ``graph_features``, features of the whole graph go through batch normalisation
    (without weights) and a perceptron of one hidden layer, and its C outputs are added to the mean of the nodes' votes,
    not to their sum, so that their scale does not grow with N. The attention sees N central nodes and S motifs of each;
    such features, statistics of orbit counts, say, are of all nodes. In evaluation they are normalised by the running
    statistics of the batches trained on; so is a batch of one graph in training, which has no variance.

    Args:
        num_slots: S, blocks of each central node. num_classes: C.
        in_channels: F, channels of a grid.
        node_features: E, further features of each central node, behind its subgraph's vector; not in the paper.
        heads, head_dim: of the first attention layer.
        motif_size: k, side of a block.
        dropout: share of zeros after each convolution. The paper's code names 0.5 but runs without any.
        graph_features: G, features of the whole graph; 0 is the paper's model.
        graph_bins: T, if above 0: each of these features comes as T numbers, how far it is through each of T bins
            (piecewise linear encoding; Gorishniy et al., NeurIPS 2022). :meth:`fit_bins` sets them first.
        graph_hidden: units of their hidden layer.
        graph_dropout: share of zeros of the normalised features, and of the hidden layer.

    Forward:
        x: (B, F, k·S, k·N), as of :func:`innerloop.motif_grid`. features: (B, N, E). valid: bool (B, N), False for
        central nodes that are padding; without, these take part and vote, as in the paper's code. graph_features:
        (B, G). Returns votes (B, C), or scores with graph features; the class is their argmax.

    Raises:
        ValueError: numbers or shapes that do not fit. TypeError: inputs that are no tensors of the parameters' dtype.
        RuntimeError: bins that are not set.

    Source: Peng et al. (AAAI 2020; arXiv 1811.08270) and its released code.

    Example:
        >>> import torch
        >>> from innerloop.nn import MAGCNN
        >>> model = MAGCNN(num_slots=15, num_classes=2)
        >>> x, y = torch.rand(4, 1, 45, 54), torch.tensor([0, 1, 1, 0])
        >>> (model.loss(x, y) + model.l2()).backward()
        >>> model(x).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        num_slots: int,
        num_classes: int,
        *,
        in_channels: int = 1,
        node_features: int = 0,
        heads: int = 8,
        head_dim: int = 16,
        motif_size: int = 3,
        dropout: float = 0.0,
        graph_features: int = 0,
        graph_bins: int = 0,
        graph_hidden: int = 64,
        graph_dropout: float = 0.5,
    ) -> None:
        super().__init__(
            num_slots,
            num_classes,
            in_channels,
            node_features,
            motif_size,
            dropout,
            heads=heads,
            head_dim=head_dim,
            graph_hidden=graph_hidden,
        )
        _check_features("MAGCNN", graph_features=graph_features, graph_bins=graph_bins)
        if graph_bins and not graph_features:
            raise ValueError(f"MAGCNN: graph_bins is {graph_bins}, expected 0 without graph_features")
        _check_share("MAGCNN", graph_dropout=graph_dropout)
        self.graph_features = graph_features
        width = _GridConvolutions.channels * num_slots + node_features
        self.attention = SubgraphAttention(width, heads, head_dim)
        self.output = SubgraphAttention(heads * head_dim, 1, num_classes)
        self.graph_head = (
            _GraphHead(graph_features, graph_bins, graph_hidden, num_classes, graph_dropout) if graph_features else None
        )

    @torch.no_grad()
    def fit_bins(self, graph_features: Tensor) -> None:
        """Ends the bins of each feature at its quantiles over the graphs to train on, (n, G), n at least 1.

        Raises:
            ValueError: another shape, NaN or inf, or a model without bins. TypeError: no floating-point tensor.
        """
        bins = None if self.graph_head is None else self.graph_head.bins
        if bins is None:
            raise ValueError("MAGCNN: fit_bins of a model with graph_bins=0 or graph_features=0")
        if not isinstance(graph_features, Tensor) or not graph_features.is_floating_point():
            kind = graph_features.dtype if isinstance(graph_features, Tensor) else type(graph_features).__name__
            raise TypeError(f"MAGCNN: graph_features is {kind}, expected a floating-point tensor (n, G)")
        if graph_features.dim() != 2 or graph_features.shape[1] != self.graph_features or not len(graph_features):
            raise ValueError(
                f"MAGCNN: graph_features has shape {tuple(graph_features.shape)}, expected (n, {self.graph_features})"
            )
        graph_features = graph_features.to(bins.edges)
        if not graph_features.isfinite().all():
            raise ValueError(f"MAGCNN: graph_features holds NaN or inf, expected finite numbers of {bins.edges.dtype}")
        bins.fit(graph_features)

    def node_logits(self, x: Tensor, features: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(B, N, C): o, of which each central node's vote is the softmax of the softmax."""
        self._check(x, features)
        z = self.convolutions(x).permute(0, 3, 1, 2).flatten(2)
        if features is not None:
            z = torch.cat([z, features], 2)
        return self.output(self.attention(z, valid), valid)

    def forward(
        self,
        x: Tensor,
        features: Tensor | None = None,
        valid: Tensor | None = None,
        graph_features: Tensor | None = None,
    ) -> Tensor:
        _check_tensor("MAGCNN", x=x, graph_features=graph_features)
        if (graph_features is None) != (self.graph_features == 0):
            given = "none" if graph_features is None else "a tensor"
            raise ValueError(f"MAGCNN: graph_features is {given} in a model with graph_features={self.graph_features}")
        shape = (len(x), self.graph_features)
        if graph_features is not None and tuple(graph_features.shape) != shape:
            raise ValueError(f"MAGCNN: graph_features has shape {tuple(graph_features.shape)}, expected {shape}")
        self._check_dtype(graph_features=graph_features)
        return self.count_votes(self.node_logits(x, features, valid), valid, graph_features)

    def count_votes(
        self, node_logits: Tensor, valid: Tensor | None = None, graph_features: Tensor | None = None
    ) -> Tensor:
        """(B, C): what :meth:`forward` makes of (B, N, C), as of :meth:`node_logits`."""
        votes = node_logits.softmax(-1).softmax(-1)
        votes = (votes if valid is None else votes * valid[..., None]).sum(1)
        if graph_features is None:
            return votes
        voters = node_logits.shape[1] if valid is None else valid.sum(1, keepdim=True).clamp(min=1)
        return votes / voters + self.graph_head(graph_features)

    def l2(self, coefficient: float = 0.01) -> Tensor:
        """coefficient · Σ ‖p‖² / 2 over all trained parameters, biases too: the paper's code adds it to the loss."""
        return coefficient / 2 * sum(p.square().sum() for p in self.parameters() if p.requires_grad)


def _check_features(owner: str, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{owner}: {name} is {count!r}, expected an int of at least 0")


def _check_tensor(owner: str, **inputs: Tensor | None) -> None:
    for name, t in inputs.items():
        if not isinstance(t, Tensor) and (t is not None or name == "x"):
            raise TypeError(f"{owner}: {name} is {type(t).__name__}, expected a tensor")


def _check_share(owner: str, **shares: float) -> None:
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share < 1:
            raise ValueError(f"{owner}: {name} is {share!r}, expected a share in [0, 1)")


def _glorot(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
