"""Distillation losses: numbers by hand, gradients, and the limits that the papers state."""

import math

import pytest
import torch

from fedkd.errors import SpecError
from fedkd.losses import attention_loss, check, distill_loss, feature_loss

Z = torch.tensor([[0.0, math.log(2), math.log(5)], [0.0, 0.0, 0.0]], dtype=torch.float64)  # softmax: 1/8, 2/8, 5/8; 1/3
P = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], dtype=torch.float64)


def loss(spec, z=Z, p=P):
    return distill_loss.build(spec)(z, p)


def gradient(spec, z, p):
    z = z.clone().requires_grad_()
    loss(spec, z, p).sum().backward()
    return z.grad


def test_kl_by_hand():
    # 0.5 ln(0.5 / 0.125) + 0.25 ln(0.25 / 0.25) + 0.25 ln(0.25 / 0.625); and ln(1 / (1/3))
    expected = [0.5 * math.log(4) + 0.25 * math.log(0.4), math.log(3)]
    assert loss("kl").tolist() == pytest.approx(expected, abs=1e-9)


def test_cross_entropy_by_hand():
    expected = [-(0.5 * math.log(0.125) + 0.25 * math.log(0.25) + 0.25 * math.log(0.625)), math.log(3)]
    assert loss("cross_entropy").tolist() == pytest.approx(expected, abs=1e-9)


def test_hard_by_hand():
    assert loss("hard").tolist() == pytest.approx([-math.log(0.125), math.log(3)], abs=1e-9)


def test_logit_matching_by_hand():
    z = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    p = torch.tensor([[0.0, math.log(1), 0.0]], dtype=torch.float64).softmax(-1)  # equal logits: centered 0
    assert loss("logit_matching", z, p).tolist() == pytest.approx([2 / 6])
    assert loss("mae", z, p).tolist() == pytest.approx([2 / 3])


def test_kl_at_a_temperature_by_hand():
    # T = 2: p_T is proportional to the roots (1/2, 1/4, 1/4) -> sqrt(2) : 1 : 1; z / 2 of equal logits is uniform.
    root = math.sqrt(2)
    soft = [root / (root + 2), 1 / (root + 2), 1 / (root + 2)]
    expected = 4 * sum(s * math.log(3 * s) for s in soft)
    assert loss("kl(temperature=2.0)", torch.zeros(1, 3, dtype=torch.float64), P[:1]).item() == pytest.approx(expected)


@pytest.mark.parametrize("spec", ["kl", "kl(temperature=4.0)", "logit_matching", "mae"])
def test_the_loss_is_zero_exactly_where_student_and_teacher_agree(spec):
    p = Z.softmax(-1)
    assert loss(spec, Z + 3.0, p).tolist() == pytest.approx([0, 0], abs=1e-9)  # logits are known up to a constant
    assert (loss(spec, Z.flip(-1), p)[0] > 0.05).item()


@pytest.mark.parametrize("name", distill_loss.names())
def test_the_gradient_of_every_loss_is_right_and_leads_to_the_teacher(name):
    z = torch.tensor([[0.3, -0.7, 1.1], [0.2, 0.1, -0.4]], dtype=torch.float64)
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: loss(name, one, p), z.clone().requires_grad_())
    step = z - 0.05 * gradient(name, z, p)
    assert (loss(name, step, p) < loss(name, z, p)).all()


@pytest.mark.parametrize("name", distill_loss.names())
def test_every_loss_is_one_number_a_row_and_finite_where_the_teacher_is_sure(name):
    sure = torch.eye(3)
    z = torch.tensor([[90.0, 0.0, -90.0]] * 3, requires_grad=True)
    value = loss(name, z, sure)
    assert value.shape == (3,)
    assert torch.isfinite(value).all()
    value.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_soft_gradients_keep_their_size_at_any_temperature():
    # Hinton et al., section 2: gradients scale as 1 / T^2, which T^2 undoes.
    sizes = [gradient(f"kl(temperature={t})", Z, P[:1].expand(2, 3)).norm().item() for t in (20.0, 40.0, 80.0)]
    assert max(sizes) / min(sizes) < 1.1


def test_at_high_temperature_kl_is_logit_matching():
    # Hinton et al., section 2.1: with zero-mean logits the gradient tends to (z - v) / C.
    z = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    high, limit = gradient("kl(temperature=1000.0)", z, p), gradient("logit_matching", z, p)
    assert torch.allclose(high, limit, atol=2e-3)
    assert not torch.allclose(gradient("kl", z, p), limit, atol=2e-2)


def test_the_gap_to_logit_matching_shrinks_as_one_over_the_temperature():
    # The next term of the expansion in 1 / T: a hundred times the temperature leaves a hundredth of the gap.
    z = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    limit = gradient("logit_matching", z, p)
    gaps = [(gradient(f"kl(temperature={t})", z, p) - limit).norm().item() for t in (10.0, 1000.0)]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)


def test_at_high_temperature_the_gradient_is_the_gap_of_centered_logits_over_the_classes():
    # Hinton et al., eq. 4, by hand: z = (0, 0, 0), v = ln(e^2, e^1, e^0) centered = (1, 0, -1); (z - v) / 3.
    p = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64).softmax(-1)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    expected = pytest.approx([-1 / 3, 0, 1 / 3], abs=1e-3)
    assert gradient("logit_matching", zero, p)[0].tolist() == expected
    assert gradient("kl(temperature=1000.0)", zero, p)[0].tolist() == expected


def test_only_a_lower_floor_lets_tiny_probabilities_teach():
    z = torch.zeros(1, 3)
    near, far = (torch.tensor([[1.0, 1e-8, tiny]]) for tiny in (1e-8, 1e-20))
    assert loss("kl(temperature=20.0)", z, near) == loss("kl(temperature=20.0)", z, far)
    assert (
        loss("kl(temperature=20.0, floor=1e-30)", z, near) < loss("kl(temperature=20.0, floor=1e-30)", z, far)
    ).all()


def test_the_mix_reduces_to_its_parts():
    assert torch.allclose(loss("kl(hard=1.0)"), loss("hard"))
    assert torch.allclose(loss("kl(hard=0.0)"), loss("kl"))
    mixed = 0.75 * loss("kl(temperature=3.0)") + 0.25 * loss("hard")
    assert torch.allclose(loss("kl(temperature=3.0, hard=0.25)"), mixed)


def test_smoothing_mixes_the_teacher_with_the_uniform_distribution():
    assert torch.allclose(loss("kl(smoothing=0.1)"), loss("kl", p=0.9 * P + 0.1 / 3))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("kl(temperature=0.0)", "'temperature' must be above 0, got 0.0"),
        ("kl(temperature=-1)", "'temperature' must be above 0"),
        ("kl(hard=1.5)", r"'hard' must be in \[0, 1\]"),
        ("kl(smoothing=1.0)", r"'smoothing' must be in \[0, 1\)"),
        ("kl(floor=0.0)", r"'floor' must be in \(0, 1\]"),
        ("kl(temp=1)", "no option 'temp'"),
    ],
)
def test_an_option_out_of_range_is_refused_before_torch_is_needed(spec, sentence):
    with pytest.raises(SpecError, match=sentence):
        check(spec)


@pytest.mark.parametrize("spec", ["kl(hard=0)", "kl(hard=1)", "kl(smoothing=0.0)", "mae"])
def test_the_ends_of_the_ranges_are_valid(spec):
    check(spec)


@pytest.mark.parametrize("temperature", ["1001", "1e999"])
def test_a_temperature_beyond_what_single_precision_resolves_is_refused(temperature):
    with pytest.raises(SpecError, match="'temperature' must be at most 1000; 'logit_matching' is the limit"):
        check(f"kl(temperature={temperature})")
    check("kl(temperature=1000)")


def test_feature_loss_by_hand():
    h, t = torch.tensor([[1.0, 0.0], [3.0, 3.0]]), torch.tensor([[0.0, 2.0], [3.0, 3.0]])
    assert feature_loss(h, t).tolist() == [2.5, 0]


def test_attention_loss_by_hand():
    # One channel (1, 2) against two channels (0, 0) and (0, 2): maps (1, 4) / sqrt(17) and (0, 1).
    h = torch.tensor([[[[1.0, 2.0]]]])
    t = torch.tensor([[[[0.0, 0.0]], [[0.0, 2.0]]]])
    a = 1 / math.sqrt(17)
    assert attention_loss(h, t).tolist() == pytest.approx([a**2 + (4 * a - 1) ** 2])


def test_attention_does_not_ask_for_the_scale_and_an_empty_map_has_a_gradient():
    h = torch.rand(2, 3, 4, 4)
    assert attention_loss(h, 7 * h).tolist() == pytest.approx([0, 0], abs=1e-10)
    nothing = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss(nothing, h).sum().backward()
    assert torch.isfinite(nothing.grad).all()


@pytest.mark.parametrize("transfer", [feature_loss, attention_loss])
def test_a_step_down_the_gradient_brings_hidden_layers_nearer(transfer):
    torch.manual_seed(0)
    h, t = torch.rand(4, 3, 2, 2, requires_grad=True), torch.rand(4, 3, 2, 2)
    transfer(h, t).sum().backward()
    assert (transfer(h - 0.1 * h.grad, t) < transfer(h, t)).all()
