"""Networks: published sizes, inputs of every size they claim, and refusals that name the way out."""

import socket

import numpy as np
import pytest
import torch

from fedkd.errors import SpecError
from fedkd.learner import models


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def logits(network, shape, n=2):
    with torch.inference_mode():
        return network.eval()(torch.zeros(n, *shape))


def test_lenet_is_the_published_network():
    # 10 (25 + 1) + 20 (250 + 1) + 50 (320 + 1) + 10 (50 + 1), Selective-FD
    network = models.build("lenet", (1, 28, 28), 10, dropout=0.0)
    assert parameters(network) == 260 + 5020 + 16050 + 510 == 21_840
    assert models.count(network) == 21_840


def test_dropout_has_no_parameters_and_is_silent_when_predicting():
    torch.manual_seed(0)
    network = models.build("lenet", (1, 28, 28), 10, dropout=0.5)
    x = torch.rand(4, 1, 28, 28)
    assert parameters(network) == 21_840
    assert torch.equal(network.eval()(x), network.eval()(x))
    assert not torch.equal(network.train()(x), network.train()(x))


@pytest.mark.parametrize("side", range(16, 34))
def test_lenet_takes_every_size_from_16_up(side):
    for shape in ((1, side, side), (3, side, 28), (1, 28, side)):
        assert logits(models.build("lenet", shape, 5, dropout=0.0), shape).shape == (2, 5)


@pytest.mark.parametrize("side", [4, 5, 7, 8, 9, 14, 28, 32])
def test_cnn_takes_every_size_from_4_up(side):
    for shape in ((1, side, side), (3, side, 8)):
        assert logits(models.build("cnn", shape, 5, width=4, hidden=8), shape).shape == (2, 5)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 8, 8), (2, 3, 4, 5)])
def test_mlp_takes_inputs_of_any_shape(shape):
    network = models.build("mlp", shape, 4, hidden=6)
    assert logits(network, shape).shape == (2, 4)
    assert parameters(network) == 6 * (np.prod(shape) + 1) + 4 * 7


def test_mlp_grows_layer_by_layer_and_dropout_adds_none():
    # Hinton et al.: 784 - 1200 - 1200 - 10
    network = models.build("mlp", (1, 28, 28), 10, hidden=1200, layers=2, dropout=0.5, inputs=0.2)
    assert parameters(network) == 1200 * 785 + 1200 * 1201 + 10 * 1201
    shares = [layer.p for layer in network if isinstance(layer, torch.nn.Dropout)]
    assert shares == [0.2, 0.5, 0.5]  # of the inputs, and of either hidden layer
    assert not any(isinstance(layer, torch.nn.Dropout) for layer in models.build("mlp", (4,), 3, hidden=5))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 7, 5), (1, 1, 2, 3)])
def test_our_pooling_is_torchs_with_and_without_a_gradient(shape):
    torch.manual_seed(0)
    x = torch.randn(*shape)
    expected = torch.nn.functional.max_pool2d(x, 2)
    for form in (torch.contiguous_format, torch.channels_last):
        laid = x.contiguous(memory_format=form)
        assert torch.equal(models.MaxPool()(laid), expected)
        with torch.inference_mode():
            assert torch.equal(models.MaxPool()(laid), expected)


@pytest.mark.parametrize(("kind", "options"), [("lenet", {"dropout": 0.0}), ("cnn", {"width": 6, "hidden": 8})])
def test_how_weights_lie_in_memory_changes_what_is_learned_by_no_more_than_rounding(kind, options):
    from fedkd.learner.torch_learner import Adam

    outputs = []
    for form in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        network = models.build(kind, (2, 16, 16), 3, **options).to(memory_format=form)
        x, y = torch.rand(8, 2, 16, 16), torch.arange(8) % 3
        optimizer = Adam(network.parameters(), 1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        outputs.append(network(x))
    assert torch.allclose(*outputs, atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[0][[1, 0, 2, 3, 4, 5, 6, 7]], atol=1e-3)


def test_cnn_grows_with_its_options():
    # width 4: 4 (9 + 1) + 8 (36 + 1); 8 maps of 2x2 after two poolings of 8x8; 16 hidden units
    assert parameters(models.build("cnn", (1, 8, 8), 3, width=4, hidden=16)) == 40 + 296 + 16 * 33 + 3 * 17


def test_an_image_too_small_for_the_convolutions_is_refused():
    for kind, options, least in (("lenet", {"dropout": 0.0}, 16), ("cnn", {"width": 4, "hidden": 8}, 4)):
        with pytest.raises(
            SpecError, match=rf"{kind} needs images .* at least {least}x{least}, got \(1, 28, {least - 1}"
        ):
            models.build(kind, (1, 28, least - 1), 3, **options)


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_takes_gray_and_color_and_has_the_classes_asked_for(channels):
    network = models.build("torchvision", (channels, 8, 8), 7, name="squeezenet1_1", size=32)
    assert logits(network, (channels, 8, 8)).shape == (2, 7)


def test_gray_is_seen_like_color_with_three_equal_channels():
    network = models.build("torchvision", (1, 32, 32), 3, name="squeezenet1_1", size=0).eval()
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(network(x), network(x.repeat(1, 3, 1, 1)))


def test_inputs_are_resized_only_when_asked():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape))
            return x.mean((2, 3))

    for size in (0, 20):
        models.FromTorchvision(Spy(), size)(torch.zeros(2, 3, 8, 8))
    assert seen == [(2, 3, 8, 8), (2, 3, 20, 20)]


def test_of_several_heads_the_main_one_counts():
    class Heads(torch.nn.Module):
        def forward(self, x):
            return x.sum((2, 3)), None

    assert models.FromTorchvision(Heads(), 0)(torch.ones(2, 3, 4, 4)).tolist() == [[16.0] * 3] * 2


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "r3d_18", "raft_small", "quantized_resnet18"]
)
def test_a_network_that_does_not_classify_images_is_unknown_and_nothing_is_downloaded(name, monkeypatch):
    def resolve(*arguments, **options):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)  # whatever name a downloader was imported by
    with pytest.raises(SpecError, match=f"torchvision has no classifier '{name}'"):
        models.build("torchvision", (3, 64, 64), 3, name=name, size=0)


@pytest.mark.parametrize(("name", "shape"), [("alexnet", (1, 32, 32)), ("vit_b_16", (3, 32, 32))])
def test_a_network_that_cannot_take_the_inputs_says_how_to_resize_them(name, shape):
    with pytest.raises(SpecError, match=r"cannot take inputs .* resize them, as in size=224"):
        models.build("torchvision", shape, 3, name=name, size=0)
