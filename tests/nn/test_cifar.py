# SPDX-License-Identifier: Apache-2.0
"""The 32×32 classifiers against the published harness: sizes, parameter names, feature shapes and numbers."""

import math

import pytest
import torch
from innerloop.nn.cifar import MODELS, create, small_cnn
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

# Of mdistiller's models at 100 classes.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "ResNet50": 23_705_252,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "MobileNetV2": 812_836,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
}

# Channels and side of each feature map of a 32×32 image, and the pooled channels; one or two models of each family.
FEATURES = {
    "resnet8": ([(16, 32), (16, 32), (32, 16), (64, 8)], 64),
    "resnet8x4": ([(32, 32), (64, 32), (128, 16), (256, 8)], 256),
    "ResNet50": ([(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)], 2048),
    "wrn_16_1": ([(16, 32), (16, 32), (32, 16), (64, 8)], 64),
    "wrn_16_2": ([(16, 32), (32, 32), (64, 16), (128, 8)], 128),
    "vgg8": ([(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)], 512),
    "MobileNetV2": ([(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)], 1280),
    "ShuffleV1": ([(24, 32), (240, 16), (480, 8), (960, 4)], 960),
    "ShuffleV2": ([(24, 32), (116, 16), (232, 8), (464, 4)], 1024),
}

# mdistiller's first two logits of the second image, for the weights of `fill`.
GOLDEN = {
    "resnet8": (-0.225175754, -0.630630315),
    "resnet8x4": (-0.639623733, -3.142499861),
    "ResNet50": (4.062166906, 4.341208564),
    "wrn_16_1": (-0.145873163, -0.696289024),
    "wrn_16_2": (0.001010479, 0.849650483),
    "vgg8": (1.652364337, -1.434945538),
    "MobileNetV2": (3.069627552, 1.043153798),
    "ShuffleV1": (-8.000717776, 2.912895234),
    "ShuffleV2": (7.953449336, 7.861949179),
}

# One name of each kind of parameter and buffer, in both harnesses.
NAMES = {
    "resnet8": {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.running_mean": (16,),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer2.0.bn2.bias": (32,),
        "layer2.0.downsample.0.weight": (32, 16, 1, 1),
        "layer2.0.downsample.1.num_batches_tracked": (),
        "fc.weight": (100, 64),
    },
    "ResNet50": {
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "layer1.0.shortcut.0.weight": (256, 64, 1, 1),
        "layer4.0.shortcut.1.weight": (2048,),
        "linear.bias": (100,),
    },
    "wrn_16_2": {
        "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
        "block3.layer.1.bn2.weight": (128,),
        "bn1.weight": (128,),
        "fc.weight": (100, 128),
    },
    "vgg13": {
        "block0.0.weight": (64, 3, 3, 3),
        "block4.3.bias": (512,),
        "block4.4.running_var": (512,),
        "classifier.weight": (100, 512),
    },
    "MobileNetV2": {
        "conv1.0.weight": (16, 3, 3, 3),
        "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
        "blocks.6.0.conv.3.weight": (480, 1, 3, 3),
        "blocks.6.0.conv.7.bias": (160,),
        "conv2.1.weight": (1280,),
        "classifier.0.weight": (100, 1280),
    },
    "ShuffleV1": {
        "conv1.weight": (24, 3, 1, 1),
        "layer1.0.conv1.weight": (54, 24, 1, 1),
        "layer1.1.conv1.weight": (60, 80, 1, 1),
        "layer2.7.conv3.weight": (480, 40, 1, 1),
        "linear.weight": (100, 960),
    },
    "ShuffleV2": {
        "layer1.0.conv1.weight": (24, 1, 3, 3),
        "layer1.0.bn5.weight": (58,),
        "layer2.7.conv3.weight": (116, 116, 1, 1),
        "conv2.weight": (1024, 464, 1, 1),
        "bn2.running_var": (1024,),
        "linear.weight": (100, 1024),
    },
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Weights and running statistics that need no generator: waves, whose phase is the place of the sorted name."""
    for phase, (name, value) in enumerate(sorted(model.state_dict().items())):
        if not value.is_floating_point():
            continue
        wave = torch.sin(1.7 * torch.arange(value.numel(), dtype=torch.float64) + phase).view_as(value)
        if value.dim() > 1:
            value.copy_(wave * 2 / math.sqrt(value[0].numel()))
        else:
            value.copy_(0.1 * wave + (0 if name.endswith(("bias", "running_mean")) else 1))


def images(batch: int = 2) -> Tensor:
    return torch.sin(0.37 * torch.arange(batch * 3 * 32 * 32, dtype=torch.float64)).view(batch, 3, 32, 32)


def test_parameters_are_as_many_as_published():
    assert {name: count(make()) for name, make in MODELS.items()} == PARAMETERS


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_published_checkpoints(name):
    state = create(name).state_dict()
    assert {key: tuple(state[key].shape) for key in NAMES[name]} == NAMES[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_the_harness(name):
    model = create(name).double().eval()
    fill(model)
    with torch.no_grad():
        logits = model(images())
    expected = torch.tensor(GOLDEN[name], dtype=torch.float64)
    assert_close(logits[1, :2], expected, op="cifar_golden")


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_shapes(name):
    model = create(name)
    channels_and_sides, pooled_channels = FEATURES[name]
    for batch in (1, 3):
        logits, maps, pooled = model(images(batch).float(), features=True)
        assert logits.shape == (batch, 100)
        assert [tuple(m.shape) for m in maps] == [(batch, c, side, side) for c, side in channels_and_sides]
        assert pooled.shape == (batch, pooled_channels)
    assert model.eval()(torch.randn(0, 3, 32, 32)).shape == (0, 100)


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_other_classes_channels_and_sides(name):
    model = create(name, num_classes=7, in_channels=1).eval()
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    assert model(torch.randn(1, 1, 8, 11)).shape == (1, 7)


@pytest.mark.parametrize("name", GOLDEN)
def test_gradients_reach_every_parameter(name):
    side = 16 if name == "ResNet50" else 32  # for speed
    model = create(name, num_classes=5)
    F.cross_entropy(model(torch.randn(3, 3, side, side)), torch.arange(3)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # Batch norm takes the bias of the convolution before it out again.
        assert parameter.grad.any() or (name == "vgg8" and key.endswith("0.bias")), key


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "ShuffleV2"])
def test_features_belong_to_the_logits(name):
    model = create(name).double().eval()
    x = images(3)
    logits, maps, pooled = model(x, features=True)
    assert torch.equal(model(x), logits)
    *_, head = model.children()
    assert_close(F.linear(pooled, head.weight, head.bias), logits)
    assert all(m.requires_grad for m in maps)
    if name == "resnet8":
        assert_close(maps[-1].mean((2, 3)), pooled)
        assert all((m >= 0).all() for m in maps)
    if name == "wrn_16_1":  # maps come before the batch norm and ReLU of the next block
        assert all((m < 0).any() for m in maps)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "MobileNetV2", "ShuffleV1"])
def test_train_and_eval(name):
    model, x = create(name), torch.randn(4, 3, 32, 32)
    before = {key: value.clone() for key, value in model.named_buffers()}
    model.eval()
    with torch.no_grad():
        assert_close(model(x)[:2], model(x[:2]), op="cifar_batch")
        assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
        model.train()
        assert (model(x)[:2] - model(x[:2])).abs().max() > 1e-3
    assert all((value == 2).all() for key, value in model.named_buffers() if key.endswith("num_batches_tracked"))
    assert not any(torch.equal(value, before[key]) for key, value in model.named_buffers())


def test_a_seed_gives_the_same_model():
    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(create("ShuffleV2").parameters())

    assert torch.equal(made(3), made(3))
    assert not torch.equal(made(3), made(4))


def test_initial_weights():
    for name, rtol in (("resnet8x4", 0.05), ("vgg8", 0.05), ("MobileNetV2", 0.3), ("ShuffleV1", 0.3)):
        for module in create(name).modules():
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
                assert abs(module.weight.std().item() / std - 1) < rtol, (name, module)
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert not module.bias.any()


@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleV2"])
def test_compiles_without_graph_breaks(name):
    model, x = create(name).eval(), torch.randn(2, 3, 32, 32)
    expected = model(x, features=True)
    actual = torch.compile(model, backend="eager", fullgraph=True)(x, features=True)
    assert_close(actual[0], expected[0])
    assert len(actual[1]) == len(expected[1])


@pytest.mark.parametrize(
    ("widths", "num_classes", "parameters"),
    [((32, 64, 128), 200, 118_696), ((8, 16, 32), 200, 12_544), ((32, 64, 128), 10, 94_186), ((8, 16, 16), 10, 3_778)],
)
def test_small_cnn(widths, num_classes, parameters):
    """Sizes of the specification: about 118 k, 12.5 k, 94 k and 3.8 k."""
    model = small_cnn(widths, num_classes).double()
    assert count(model) == parameters
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    logits, maps, pooled = model(x, features=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(w, s, s) for w, s in zip(widths, (28, 14, 7), strict=True)]

    conv1, conv2, conv3, head = (p for p in model.parameters() if p.dim() > 1)
    for weight in (conv1, conv2, conv3):
        x = F.batch_norm(F.conv2d(x, weight, padding=1), None, None, training=True).relu()
        x = x if weight is conv3 else F.max_pool2d(x, 2)
    assert_close(pooled, x.mean((2, 3)))
    assert_close(logits, F.linear(x.mean((2, 3)), head, model.classifier.bias))


def test_small_cnn_of_any_depth():
    assert small_cnn((4,), 3, in_channels=2)(torch.randn(2, 2, 5, 5)).shape == (2, 3)
    assert small_cnn([4, 6, 8, 10], 3)(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("resnet9"), "create: name is 'resnet9', expected one of resnet8, .*ResNet50, .*ShuffleV2"),
        (lambda: create("resnet8", 0), "create: num_classes is 0, expected an int of at least 1"),
        (lambda: MODELS["vgg8"](num_classes=2.5), "create: num_classes is 2.5"),
        (lambda: MODELS["vgg8"](in_channels=-1), "create: in_channels is -1"),
        (lambda: small_cnn((), 10), r"small_cnn: widths is \(\), expected at least one"),
        (lambda: small_cnn((8, 0), 10), r"small_cnn: widths\[1\] is 0"),
        (lambda: small_cnn((8,), 10, in_channels=0), "small_cnn: in_channels is 0"),
        (lambda: small_cnn((8,), True), "small_cnn: num_classes is True"),
        (
            lambda: small_cnn((8,), 2)(torch.rand(2, 3, 8, 8)),
            r"x is torch.float32 of shape \(2, 3, 8, 8\), expected floating point \(B, 1, H, W\)",
        ),
        (lambda: small_cnn((8,), 2)(torch.rand(1, 8, 8)), r"x is torch.float32 of shape \(1, 8, 8\)"),
        (lambda: small_cnn((8,), 2)(torch.ones(2, 1, 8, 8, dtype=torch.uint8)), "x is torch.uint8"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
