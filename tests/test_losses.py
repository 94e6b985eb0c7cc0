"""Distillation losses: numbers by hand, gradients, and the limits that the papers state."""

import math

import pytest
import torch

from fedkd.errors import SpecError
from fedkd.losses import check, distill_loss

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
