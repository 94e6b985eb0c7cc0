import numpy as np
import pytest
import torch
from torch import nn

from fedkd.errors import SpecError
from fedkd.learner import Training
from fedkd.learner.hint import Hint
from fedkd.learner.models import seeded
from fedkd.learner.torch_learner import TorchLearner
from fedkd.losses import attention_loss
from fedkd.random import generator


def network(maps=2, seed=0):
    return seeded(seed, lambda: nn.Sequential(nn.Conv2d(1, maps, 3), nn.ReLU(), nn.Flatten(), nn.Linear(maps * 16, 3)))


def test_a_feature_hint_by_hand():
    student, teacher = nn.Sequential(nn.Linear(1, 2, bias=False)), nn.Sequential(nn.Linear(1, 2, bias=False))
    for net, values in ((student, [[1.0], [0.0]]), (teacher, [[0.0], [3.0]])):
        net[0].weight.data = torch.tensor(values)
    x = torch.tensor([[1.0], [2.0]])
    with Hint(student, teacher, layer="0", kind="feature", weight=2.0) as hint:
        student(x)
        # (1, 0) against (0, 3): (1 + 9) / 2 = 5, twice that; inputs twice as large: four times as much.
        assert hint(x).tolist() == [10, 40]


def test_an_attention_hint_takes_layers_of_different_widths():
    student, teacher, x = network(2), network(5, seed=1), torch.rand(4, 1, 6, 6)
    with Hint(student, teacher, layer="1", teacher_layer="0", weight=3.0) as hint:
        student(x)
        told = hint(x)
    torch.testing.assert_close(told, 3 * attention_loss(student[:2](x), teacher[:1](x)))


def test_only_the_student_learns_and_no_hook_stays():
    student, teacher, x = network(2), network(4, seed=1), torch.rand(4, 1, 6, 6)
    teacher.train()
    with Hint(student, teacher, layer="0") as hint:
        student(x)
        hint(x).sum().backward()
    assert student[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters()) and teacher.training
    assert not student[0]._forward_hooks and not teacher[0]._forward_hooks


def test_a_student_with_a_hint_ends_nearer_to_the_teachers_hidden_layer():
    x = np.random.default_rng(0).random((32, 1, 6, 6), np.float32)
    teacher, found = network(4, seed=1), {}
    with torch.no_grad():
        p = teacher(torch.from_numpy(x)).softmax(-1).numpy()
    for weight in (0.0, 10.0):
        learner = TorchLearner(network(4), Training(distill_epochs=20, batch_size=8), "small")
        with Hint(learner.network, teacher, layer="1", weight=weight) as hint:
            learner.distill(x, p, w=np.ones(32), rng=generator(0, "student"), hint=hint)
        inputs = torch.from_numpy(x)
        with torch.no_grad():
            found[weight] = float(attention_loss(learner.network[:2](inputs), teacher[:2](inputs)).mean())
    assert found[10.0] < 0.5 * found[0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "conv"}, "hint: the student has no layer 'conv'"),
        ({"layer": "1", "teacher_layer": "9"}, "hint: the teacher has no layer '9'"),
        ({"layer": "1", "kind": "atention"}, "unknown kind 'atention', expected one of feature, attention"),
        ({"layer": "1", "weight": -1.0}, "'weight' must be at least 0, got -1.0"),
    ],
)
def test_a_hint_that_cannot_be_says_why(options, message):
    with pytest.raises(SpecError, match=message):
        Hint(network(), network(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "1", "kind": "feature"}, r"needs one shape, got \(2, 4, 4\) and \(3, 4, 4\)"),
        ({"layer": "3"}, r"needs maps of one height and width, got \(3,\) and \(3,\)"),
    ],
)
def test_layers_that_do_not_fit_are_refused(options, message):
    student, teacher, x = network(2), network(3), torch.rand(2, 1, 6, 6)
    with Hint(student, teacher, **options) as hint, pytest.raises(SpecError, match=message):
        student(x)
        hint(x)


def test_a_hint_outside_of_its_block_says_so():
    student, teacher, x = network(2), network(3), torch.rand(2, 1, 6, 6)
    with pytest.raises(SpecError, match="use it in a 'with' block"):
        Hint(student, teacher, layer="1")(x)


def test_the_paper_prints_a_row_for_each_way(capsys, monkeypatch):
    from simulations.papers import hints

    monkeypatch.setattr(hints, "TRAINING", Training(epochs=2, distill_epochs=2))
    monkeypatch.setattr(hints, "TEACHER", 4)
    table = hints.main(["--small", "--seeds", "1"])
    assert list(table) == ["teacher", *hints.WAYS]
    assert len(capsys.readouterr().out.splitlines()) == 4
