"""The activations of AFIM: values and derivatives against formulas in float64, safety at 0, and swapping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.mechanisms.activation import BoundedActivation, Replaced, SurrogateReLU, relu_inputs
from raybench.registry import MODELS
from raybench.seeding import seeded_globals

EPSILON = 1e-3


def value_and_slope(activation: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    value = activation(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def grid(reach: float = 20.0) -> Tensor:
    """Both sides of 0, from EPSILON on, densely where f bends."""
    right = torch.logspace(math.log10(EPSILON), math.log10(reach), 4000, dtype=torch.float64)
    right[0] = EPSILON  # rounding must not put it inside
    return torch.cat([-right, right])


# --- the bounded activation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 1.0, 7.3])
@pytest.mark.parametrize("offset", [0.0, 1.0, 2.5])
def test_value_and_derivative_solve_the_equation(beta: float, offset: float) -> None:
    """f = sqrt(beta) tanh(sqrt(beta)(C - 1/x)) and f'(x) x^2 + f^2 = beta."""
    x = grid()
    value, slope = value_and_slope(BoundedActivation(beta, EPSILON, offset), x)
    c = offset / math.sqrt(beta)
    wanted = math.sqrt(beta) * torch.tanh((math.sqrt(beta) * c * x - math.sqrt(beta)) / x)
    assert torch.allclose(value, wanted, rtol=0.0, atol=1e-10)
    assert float((slope * x.square() + value.square() - beta).abs().max()) < 1e-10 * max(1.0, beta)


def test_derivative_is_that_of_the_forward_pass() -> None:
    """Against autograd through the plain formula, where that is finite, and finite differences."""
    beta, offset = 0.7, 1.3
    x = grid(5.0)[3000:5000]
    x = x[x.abs() > 0.05].requires_grad_(True)
    plain = math.sqrt(beta) * torch.tanh(offset - math.sqrt(beta) / x)
    (wanted,) = torch.autograd.grad(plain.sum(), x)
    activation = BoundedActivation(beta, EPSILON, offset)
    assert torch.allclose(value_and_slope(activation, x.detach())[1], wanted, rtol=1e-9, atol=1e-10)
    points = torch.tensor([-2.0, -0.3, 0.2, 1.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(activation, (points,))


def test_the_documents_equation_has_the_wrong_sign() -> None:
    """f' = (f^2 - beta) / x^2, as printed, is solved by -f and not by f."""
    beta, x = 2.0, grid()
    value, slope = value_and_slope(BoundedActivation(beta, EPSILON), x)
    printed = (value.square() - beta) / x.square()
    assert torch.allclose(-slope, printed, rtol=1e-6, atol=1e-8)
    assert float((slope - printed).abs().max()) > 1.0


def test_shape_of_the_function() -> None:
    beta, offset = 4.0, 1.0
    activation = BoundedActivation(beta, EPSILON, offset)
    c = offset / math.sqrt(beta)

    def at(x: float) -> float:
        return float(activation(torch.tensor(x, dtype=torch.float64)))

    assert at(1.0 / c) == pytest.approx(0.0, abs=1e-12)
    assert value_and_slope(activation, torch.tensor([1.0 / c], dtype=torch.float64))[1].item() == pytest.approx(1.0)
    assert at(1e9) == pytest.approx(math.sqrt(beta) * math.tanh(offset))
    assert at(-1e9) == pytest.approx(math.sqrt(beta) * math.tanh(offset))
    assert at(1e-9) == pytest.approx(-math.sqrt(beta))  # the jump of 2 sqrt(beta)
    assert at(-1e-9) == pytest.approx(math.sqrt(beta))
    assert at(0.0) == pytest.approx(-math.sqrt(beta))  # 0 counts as positive


@pytest.mark.parametrize(
    ("offset", "largest"),
    [(0.0, 0.4392), (0.5, 0.954), (1.0, 1.835), (2.0, 4.94), (3.0, 9.97), (5.0, 26.0), (10.0, 101.0)],
)
def test_largest_slope_depends_on_the_offset_only(offset: float, largest: float) -> None:
    """sup f' = max_s sech^2(s) (offset - s)^2, a tabled number of the specification."""
    s = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64)
    formula = float(((offset - s) / torch.cosh(s)).square().max())
    assert formula == pytest.approx(largest, rel=5e-3)
    for beta in (0.04, 9.0):
        x = grid(200.0) * math.sqrt(beta)
        slope = value_and_slope(BoundedActivation(beta, EPSILON * math.sqrt(beta), offset), x)[1]
        assert float(slope.max()) == pytest.approx(formula, rel=1e-3)
        assert float(slope.min()) >= 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", [1e-4, 1.0, 100.0])
def test_finite_everywhere_and_no_gradient_at_zero(dtype: torch.dtype, beta: float) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 1e-3, -1e-3, 0.1, 1.0, -3.0, 1e4], dtype=dtype)
    value, slope = value_and_slope(BoundedActivation(beta, 1e-4), x)
    assert value.dtype == slope.dtype == dtype
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(slope).all())
    assert torch.equal(slope[:6], torch.zeros_like(slope[:6]))
    naive = x.double()[:1].clone().requires_grad_(True)  # what the custom derivative is for
    plain = torch.tanh(1.0 - 1.0 / naive)
    assert bool(torch.isnan(torch.autograd.grad(plain.sum(), naive)[0]).all())


def test_works_in_fp32_under_autocast() -> None:
    activation = BoundedActivation(1.0, 1e-3)
    x = torch.linspace(-2.0, 2.0, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(activation(x), activation(x.float()))
        assert activation(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_scales_must_be_positive(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        BoundedActivation(*bad)


# --- the surrogate -----------------------------------------------------------------------------------------------


def test_surrogate_is_relu_forward_and_the_factor_backward() -> None:
    beta, epsilon, limit = 0.5, 0.1, 3.0
    x = torch.tensor([-2.0, -0.2, -0.01, 0.0, 0.01, 0.3, 1.0, 4.0], dtype=torch.float64)
    value, factor = value_and_slope(SurrogateReLU(beta, epsilon, limit), x)
    assert torch.equal(value, F.relu(x))
    wanted = []
    for item in x.tolist():
        safe = math.copysign(max(abs(item), epsilon), 1.0 if item == 0 else item)
        raw = (max(item, 0.0) ** 2 - beta) / safe**2
        wanted.append(min(max(raw, -limit), limit))
    assert factor.tolist() == pytest.approx(wanted)
    assert factor[5] < 0 < factor[6]  # reversed below sqrt(beta)


# --- swapping ----------------------------------------------------------------------------------------------------


def build(name: str = "lenet5") -> nn.Module:
    with seeded_globals(0):
        model: nn.Module = MODELS[name].fn(10, (1, 28, 28), **({"width": 4} if name == "vgg8" else {}))
    return model.eval()


IMAGES = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["lenet5", "vgg8", "resnet8"])
def test_scales_are_mean_squares_in_the_order_of_the_pass(name: str) -> None:
    model = build(name)
    order: list[nn.Module] = []
    seen: list[float] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        order.append(module)
        seen.append(float(args[0].double().square().mean()))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.ReLU)]
    with torch.no_grad():
        model(IMAGES)
    for hook in hooks:
        hook.remove()
    found = relu_inputs(model, IMAGES)
    assert list(found) == order
    assert list(found.values()) == pytest.approx(seen)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_silent_layer_still_gets_a_scale() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    for p in model.parameters():
        nn.init.zeros_(p)
    (square,) = relu_inputs(model, torch.ones(4, 3)).values()
    assert 0.0 < square < 1e-12
    assert bool(torch.isfinite(BoundedActivation(square, 1e-2 * math.sqrt(square))(torch.zeros(3))).all())


@pytest.mark.parametrize("name", ["lenet5", "vgg8", "resnet8"])
def test_the_same_modules_and_keys_come_back(name: str) -> None:
    model = build(name)
    modules, keys, before = list(model.named_modules()), list(model.state_dict()), model(IMAGES)
    with Replaced(model, relu_inputs(model, IMAGES), lambda square: BoundedActivation(square, 1e-2)) as replaced:
        kinds = [type(m) for m in model.modules()]
        assert nn.ReLU not in kinds
        assert kinds.count(BoundedActivation) == len(replaced) > 2
        assert list(model.state_dict()) == keys
        assert not torch.equal(model(IMAGES), before)
    assert [(n, id(m)) for n, m in model.named_modules()] == [(n, id(m)) for n, m in modules]
    assert torch.equal(model(IMAGES), before)


def test_layers_come_back_one_by_one_and_after_an_exception() -> None:
    model = build()
    squares = relu_inputs(model, IMAGES)
    relus = list(squares)

    def interrupted() -> None:
        with Replaced(model, squares, lambda square: SurrogateReLU(square, 1e-2)) as replaced:
            for count in (0, 1, 3, 2):
                replaced.restore(count)
                present = list(model.modules())
                assert [relu in present for relu in relus] == [i < count for i in range(4)]
                assert replaced.restored == count
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        interrupted()
    assert all(relu in list(model.modules()) for relu in relus)


# --- facts of the document ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("true", [0, 1])
def test_matrix_m_of_equation_8(classes: int, true: int) -> None:
    """M = D^-1 H D^-1 with H the Hessian of the cross-entropy over logits and D = diag(delta_it - p_i), which is the
    negative of its gradient: entries as printed, and positive semi-definite, so Eqs. 9 to 11 cannot be."""
    logits = torch.randn(classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z[None], torch.tensor([true]))

    hessian = torch.autograd.functional.hessian(loss, logits)
    gradient = torch.autograd.functional.jacobian(loss, logits)
    m = hessian / (-gradient[:, None]) / (-gradient[None, :])
    p = logits.softmax(0)
    assert torch.allclose(hessian, p.diag() - torch.outer(p, p), atol=1e-12)
    for i in range(classes):
        for j in range(classes):
            if i == j == true:
                wanted = p[true] / (1 - p[true])
            elif i == j:
                wanted = (1 - p[i]) / p[i]
            elif true in (i, j):
                wanted = p[true] / (1 - p[true])
            else:
                wanted = torch.tensor(-1.0, dtype=torch.float64)
            assert float(m[i, j]) == pytest.approx(float(wanted), rel=1e-10)
    assert float(torch.linalg.eigvalsh(m).min()) >= -1e-12


def test_second_derivatives_of_softmax() -> None:
    """d_i d_j p_k = p_k [(delta_ik - p_i)(delta_jk - p_j) - p_i (delta_ij - p_j)], the four cases of the document."""
    logits = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, eye = logits.softmax(0), torch.eye(4, dtype=torch.float64)
    for k in range(4):
        found = torch.autograd.functional.hessian(lambda z, k=k: z.softmax(0)[k], logits)
        wanted = p[k] * (torch.outer(eye[k] - p, eye[k] - p) - p[:, None] * (eye - p[None, :]))
        assert torch.allclose(found, wanted, atol=1e-12)
