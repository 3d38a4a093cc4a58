# SPDX-License-Identifier: Apache-2.0
"""Image classifiers for 32×32 inputs: the teachers and students of the knowledge-distillation literature.

Architectures, names of models and names of parameters are those of the harness in which their results are published
(HobbitLong/RepDistiller, megvii-research/mdistiller), so the entry "model" of its checkpoints goes into
`load_state_dict` as it is. Initial weights have one rule here, see :class:`ImageClassifier`; the harness has torch's
defaults in both ShuffleNets, heads from N(0, 0.01²) with bias 0 in VGG and MobileNetV2, and head bias 0 in WRN.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .poolingformer import check_counts

__all__ = ["MODELS", "ImageClassifier", "create", "small_cnn"]


class ImageClassifier(nn.Module):
    """A chain of modules, global average pooling and a linear head; built by :func:`create` and :func:`small_cnn`.

    Convolutions start from Kaiming's normal distribution over the fan-out with bias 0, batch norms from weight 1 and
    bias 0, the head as `nn.Linear` does.

    Args:
        maps: modules whose outputs are the feature maps; part i of a ModuleList is "name.i".
        modules: the chain in order of application, from the first convolution to the head. The parts of a ModuleList
            are links of the chain.
    """

    def __init__(self, maps: Sequence[str], **modules: nn.Module) -> None:
        super().__init__()
        self.maps = tuple(maps)
        for name, module in modules.items():
            self.add_module(name, module)
        convs = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        self.in_channels = convs[0].in_channels

    def forward(self, x: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor], Tensor]:
        """Logits of images.

        Args:
            x: floating point (B, in_channels, H, W); with MODELS, H and W of at least 8.
            features: return what feature distillation compares, too.

        Returns:
            Logits (B, num_classes); with `features`: logits, the feature maps (B, C, H', W') from the stem to the last
            stage, and the pooled features (B, F), which the head maps to logits.

        Raises:
            ValueError: x of another dtype or shape.
        """
        if not x.is_floating_point() or x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"ImageClassifier: x is {x.dtype} of shape {tuple(x.shape)}, expected floating point "
                f"(B, {self.in_channels}, H, W)"
            )
        *body, (_, head) = self._chain()
        maps = []
        for name, module in body:
            x = module(x)
            if features and name in self.maps:
                maps.append(x)
        pooled = x.mean((2, 3))
        logits = head(pooled)
        return (logits, maps, pooled) if features else logits

    def _chain(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.named_children():
            if isinstance(module, nn.ModuleList):
                yield from ((f"{name}.{i}", part) for i, part in enumerate(module))
            else:
                yield name, module


def create(name: str, num_classes: int = 100, in_channels: int = 3) -> ImageClassifier:
    """The classifier of that name, with new weights from torch's default generator.

    Args:
        name: a key of `MODELS`:

            - resnet8, 14, 20, 32, 44, 56, 110: ResNet of 6n + 2 layers with widths 16, 32, 64 (He et al., Deep Residual
              Learning for Image Recognition, CVPR 2016, section 4.2) and 1×1 convolutions on the shortcuts that change
              shape; resnet8x4, resnet32x4: 4 times as wide, with a stem of 32 channels.
            - ResNet50: the ImageNet network (ibid., table 1) with a 3×3 stem of stride 1 and no max-pooling.
            - wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2: WRN-depth-width (Zagoruyko & Komodakis, Wide Residual Networks,
              BMVC 2016).
            - vgg11, 13, 16, 19: configurations A, B, D, E (Simonyan & Zisserman, ICLR 2015) with batch norm, one linear
              layer, and no pooling before the last block; vgg8: one convolution per block.
            - MobileNetV2: width 0.5, expansion 6 (Sandler et al., CVPR 2018); the harness's form has ReLU for ReLU6,
              a 1×1 convolution in the first block too, and 1/16 of the resolution in place of 1/32.
            - ShuffleV1: ShuffleNet 1× with 3 groups (Zhang et al., CVPR 2018); ShuffleV2: ShuffleNet V2 1× (Ma et al.,
              ECCV 2018). Both have a 1×1 stem of stride 1; V1 has a ReLU after the depthwise convolution too.
        num_classes: outputs.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown name, or a number below 1.

    Example:
        >>> import torch
        >>> from innerloop.nn.cifar import create
        >>> logits, maps, pooled = create("resnet8x4")(torch.randn(2, 3, 32, 32), features=True)
        >>> logits.shape, [m.shape[1] for m in maps], pooled.shape
        (torch.Size([2, 100]), [32, 64, 128, 256], torch.Size([2, 256]))
    """
    if name not in _BUILDERS:
        raise ValueError(f"create: name is {name!r}, expected one of {', '.join(_BUILDERS)}")
    check_counts("create", num_classes=num_classes, in_channels=in_channels)
    return _BUILDERS[name](num_classes, in_channels)


def small_cnn(widths: Sequence[int], num_classes: int, in_channels: int = 1) -> ImageClassifier:
    """[conv3×3, batch norm, ReLU] per width with 2×2 max-pooling between, global average pooling, linear.

    Args:
        widths: channels of the convolutions; 118,696 parameters with (32, 64, 128) and 200 classes.
        num_classes: outputs.
        in_channels: channels of the images, whose sides are at least 2^(len(widths) - 1).

    Raises:
        ValueError: no widths, or a number below 1.
    """
    if not widths:
        raise ValueError(f"small_cnn: widths is {widths!r}, expected at least one")
    check_counts("small_cnn", num_classes=num_classes, in_channels=in_channels)
    check_counts("small_cnn", **{f"widths[{i}]": width for i, width in enumerate(widths)})
    return _plain(widths, [1] * len(widths), len(widths) - 1, False, num_classes, in_channels)


def _conv(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


def _conv_bn_relu(*args: int, **options: int) -> list[nn.Module]:
    conv = _conv(*args, **options)
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]


def _stages(
    block: Callable[[int, int, int], nn.Module], widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]
) -> list[nn.Sequential]:
    """Stage i maps widths[i] to widths[i + 1] channels by depths[i] blocks, the first of which has strides[i]."""
    return [
        nn.Sequential(block(before, width, stride), *(block(width, width, 1) for _ in range(depth - 1)))
        for (before, width), depth, stride in zip(pairwise(widths), depths, strides, strict=True)
    ]


class _ConvBN(nn.Module):
    """conv1, bn1, conv2, bn2, ...; `step` applies one pair by its number."""

    def __init__(self, *convs: nn.Conv2d) -> None:
        super().__init__()
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))

    def step(self, i: int, x: Tensor) -> Tensor:
        return getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))


class _Residual(_ConvBN):
    """relu(f(x) + x), with a 1×1 convolution on the shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, bottleneck: bool) -> None:
        if bottleneck:
            width = out_channels // 4
            convs = [_conv(in_channels, width, 1), _conv(width, width, stride=stride), _conv(width, out_channels, 1)]
        else:
            convs = [_conv(in_channels, out_channels, stride=stride), _conv(out_channels, out_channels)]
        super().__init__(*convs)
        self.num_convs, self.shortcut_name = len(convs), "shortcut" if bottleneck else "downsample"
        shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            shortcut.extend([_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)])
        self.add_module(self.shortcut_name, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.num_convs):
            out = self.step(i, out).relu()
        return (self.step(self.num_convs, out) + getattr(self, self.shortcut_name)(x)).relu()


class _PreActivation(nn.Module):
    """f(x) + x, where f starts with batch norm and ReLU; the shortcut shares them where it changes the shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv(in_channels, out_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv(out_channels, out_channels)
        self.convShortcut = None if in_channels == out_channels else _conv(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        out = self.conv2(self.bn2(self.conv1(active)).relu())
        return out + (x if self.convShortcut is None else self.convShortcut(active))


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle of (B, C, H, W): channel i of group g becomes channel g of group i."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class _ShuffleV1Block(_ConvBN):
    """relu(f(x) + x), or with stride 2 relu([f(x), pooled x])."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        new = out_channels - in_channels if stride == 2 else out_channels
        width, groups = new // 4, 1 if in_channels == 24 else 3  # the stem's channels are too few for groups
        super().__init__(
            _conv(in_channels, width, 1, groups=groups),
            _conv(width, width, stride=stride, groups=width),
            _conv(width, new, 1, groups=3),
        )
        self.groups, self.stride = groups, stride

    def forward(self, x: Tensor) -> Tensor:
        out = _shuffle(self.step(1, x).relu(), self.groups)
        out = self.step(3, self.step(2, out).relu())
        return (torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else out + x).relu()


class _ShuffleV2Block(_ConvBN):
    """Shuffled [x₁, f(x₂)] of the halves of x, or with stride 2 shuffled [g(x), f(x)]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        width = out_channels // 2
        g = []
        if stride == 2:
            g = [_conv(in_channels, in_channels, stride=2, groups=in_channels), _conv(in_channels, width, 1)]
        super().__init__(
            *g,
            _conv(in_channels if g else width, width, 1),
            _conv(width, width, stride=stride, groups=width),
            _conv(width, width, 1),
        )
        self.first = len(g) + 1  # number of f's first convolution

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.first > 1 else x.chunk(2, 1)
        if self.first > 1:
            left = self.step(2, self.step(1, left)).relu()
        right = self.step(self.first + 1, self.step(self.first, right).relu())
        right = self.step(self.first + 2, right).relu()
        return _shuffle(torch.cat([left, right], 1), 2)


class _InvertedResidual(nn.Module):
    """f(x), and + x where the shape stays; f widens, convolves each channel, and narrows without activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        width = in_channels * expansion
        self.conv = nn.Sequential(
            *_conv_bn_relu(in_channels, width, 1),
            *_conv_bn_relu(width, width, stride=stride, groups=width),
            _conv(width, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if self.residual else self.conv(x)


def _staged(
    block: Callable[[int, int, int], nn.Module],
    widths: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
    num_classes: int,
    in_channels: int,
    *,
    stem: int = 3,
    last: int | None = None,
    head: str = "linear",
) -> ImageClassifier:
    """Stem, stages, head: `stem` is its kernel, `last` the width of a 1×1 convolution behind the stages."""
    modules = dict(zip(("conv1", "bn1", "relu"), _conv_bn_relu(in_channels, widths[0], stem), strict=True))
    layers = {f"layer{i}": stage for i, stage in enumerate(_stages(block, widths, depths, strides), 1)}
    modules |= layers
    if last is not None:
        modules |= dict(zip(("conv2", "bn2", "relu2"), _conv_bn_relu(widths[-1], last, 1), strict=True))
    modules[head] = nn.Linear(last or widths[-1], num_classes)
    return ImageClassifier(("relu", *layers), **modules)


def _resnet(depth: int, widths: Sequence[int], num_classes: int, in_channels: int) -> ImageClassifier:
    block, n = partial(_Residual, bottleneck=False), (depth - 2) // 6
    return _staged(block, widths, (n, n, n), (1, 2, 2), num_classes, in_channels, head="fc")


def _wide_resnet(depth: int, factor: int, num_classes: int, in_channels: int) -> ImageClassifier:
    widths, n = (16, 16 * factor, 32 * factor, 64 * factor), (depth - 4) // 6
    stages = _stages(_PreActivation, widths, (n, n, n), (1, 2, 2))
    blocks = {f"block{i}": nn.Sequential(OrderedDict(layer=stage)) for i, stage in enumerate(stages, 1)}
    return ImageClassifier(
        ("conv1", *blocks),
        conv1=_conv(in_channels, widths[0]),
        **blocks,
        bn1=nn.BatchNorm2d(widths[-1]),
        relu=nn.ReLU(),
        fc=nn.Linear(widths[-1], num_classes),
    )


def _plain(
    widths: Sequence[int], depths: Sequence[int], pools: int, bias: bool, num_classes: int, in_channels: int
) -> ImageClassifier:
    """Blocks of 3×3 convolutions; 2×2 max-pooling follows the first `pools` of them."""
    modules: dict[str, nn.Module] = {}
    for i, ((before, width), depth) in enumerate(zip(pairwise((in_channels, *widths)), depths, strict=True)):
        sources = [before] + [width] * (depth - 1)
        modules[f"block{i}"] = nn.Sequential(*(m for c in sources for m in _conv_bn_relu(c, width, bias=bias)))
        if i < pools:
            modules[f"pool{i}"] = nn.MaxPool2d(2)
    maps = [name for name in modules if name.startswith("block")]
    return ImageClassifier(maps, **modules, classifier=nn.Linear(widths[-1], num_classes))


def _mobilenet_v2(num_classes: int, in_channels: int) -> ImageClassifier:
    """The widths are half of the paper's, but for the last."""
    widths, depths, strides = (8, 12, 16, 32, 48, 80, 160), (2, 3, 4, 3, 3, 1), (1, 2, 2, 1, 2, 1)
    first = nn.Sequential(_InvertedResidual(16, widths[0], 1, expansion=1))
    return ImageClassifier(
        ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
        conv1=nn.Sequential(*_conv_bn_relu(in_channels, 16, stride=2)),
        blocks=nn.ModuleList([first, *_stages(_InvertedResidual, widths, depths, strides)]),
        conv2=nn.Sequential(*_conv_bn_relu(widths[-1], 1280, 1)),
        classifier=nn.Sequential(nn.Linear(1280, num_classes)),
    )


_VGG = (64, 128, 256, 512, 512)

_BUILDERS: dict[str, Callable[[int, int], ImageClassifier]] = {
    **{f"resnet{depth}": partial(_resnet, depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(_resnet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
    "ResNet50": partial(
        _staged, partial(_Residual, bottleneck=True), (64, 256, 512, 1024, 2048), (3, 4, 6, 3), (1, 2, 2, 2)
    ),
    **{f"wrn_{depth}_{factor}": partial(_wide_resnet, depth, factor) for depth in (16, 40) for factor in (1, 2)},
    "vgg8": partial(_plain, _VGG, (1, 1, 1, 1, 1), 3, True),
    "vgg11": partial(_plain, _VGG, (1, 1, 2, 2, 2), 3, True),
    "vgg13": partial(_plain, _VGG, (2, 2, 2, 2, 2), 3, True),
    "vgg16": partial(_plain, _VGG, (2, 2, 3, 3, 3), 3, True),
    "vgg19": partial(_plain, _VGG, (2, 2, 4, 4, 4), 3, True),
    "MobileNetV2": _mobilenet_v2,
    "ShuffleV1": partial(_staged, _ShuffleV1Block, (24, 240, 480, 960), (4, 8, 4), (2, 2, 2), stem=1),
    "ShuffleV2": partial(_staged, _ShuffleV2Block, (24, 116, 232, 464), (4, 8, 4), (2, 2, 2), stem=1, last=1024),
}

#: Name to constructor, called with (num_classes=100, in_channels=3); see :func:`create`.
MODELS: dict[str, Callable[..., ImageClassifier]] = {name: partial(create, name) for name in _BUILDERS}
