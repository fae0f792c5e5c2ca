"""``--random mean``: in the place of each draw stands its mean, in the graph and in the model's own class alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_model import cli, slim
from slim_model.calling.draws import MEANS, Means
from slim_model.errors import InputError
from slim_model.graph.options import TracingOptions
from slim_model.proof.capture import capture
from small_nets import trained

aten = torch.ops.aten
ROWS = 20_000
P = torch.tensor([0.2, 0.7])
CALLS: dict[Any, Callable[[], Tensor]] = {
    aten.randn.default: lambda: torch.randn(ROWS, 2),
    aten.randn.generator: lambda: torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(1)),
    aten.rand.default: lambda: torch.rand(ROWS, 2),
    aten.rand.generator: lambda: torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(1)),
    aten.randn_like.default: lambda: torch.randn_like(P.expand(ROWS, 2)),
    aten.randn_like.generator: lambda: aten.randn_like.generator(P.expand(ROWS, 2), generator=None),
    aten.rand_like.default: lambda: torch.rand_like(P.expand(ROWS, 2)),
    aten.rand_like.generator: lambda: aten.rand_like.generator(P.expand(ROWS, 2), generator=None),
    aten.normal.float_float: lambda: torch.normal(3.0, 0.5, (ROWS, 2)),
    aten.normal.Tensor_float: lambda: torch.normal(P.expand(ROWS, 2), 0.5),
    aten.normal.float_Tensor: lambda: torch.normal(3.0, P.expand(ROWS, 2)),
    aten.normal.Tensor_Tensor: lambda: torch.normal(P.expand(ROWS, 2), torch.ones(ROWS, 1)),
    aten.bernoulli.default: lambda: torch.bernoulli(P.expand(ROWS, 2)),
    aten.bernoulli.p: lambda: aten.bernoulli.p(torch.zeros(ROWS, 2), 0.3),
    aten.bernoulli.Tensor: lambda: aten.bernoulli.Tensor(torch.zeros(ROWS, 2), P),
    aten.poisson.default: lambda: torch.poisson(3 * P.expand(ROWS, 2)),
    aten._standard_gamma.default: lambda: torch._standard_gamma(3 * P.expand(ROWS, 2)),
    aten.binomial.default: lambda: torch.binomial(torch.full((ROWS, 2), 4.0), P.expand(ROWS, 2)),
    aten.normal_.default: lambda: torch.empty(ROWS, 2).normal_(2, 0.5),
    aten.uniform_.default: lambda: torch.empty(ROWS, 2).uniform_(-1, 2),
    aten.bernoulli_.float: lambda: torch.empty(ROWS, 2).bernoulli_(0.3),
    aten.bernoulli_.Tensor: lambda: torch.empty(ROWS, 2).bernoulli_(P),
    aten.exponential_.default: lambda: torch.empty(ROWS, 2).exponential_(4),
    aten.geometric_.default: lambda: torch.empty(ROWS, 2).geometric_(0.4),
    aten.log_normal_.default: lambda: torch.empty(ROWS, 2).log_normal_(0.5, 0.25),
}
LAYERS: dict[str, Callable[[], Tensor]] = {
    "dropout": lambda: F.dropout(P.expand(ROWS, 2), 0.3),
    "feature dropout": lambda: F.dropout1d(P.expand(ROWS, 2)[..., None], 0.3)[..., 0],
    "native dropout": lambda: torch.native_dropout(P.expand(ROWS, 2), 0.3, True)[0],
    "rrelu": lambda: F.rrelu(-P.expand(ROWS, 2), training=True),
}


def test_each_row_is_tried() -> None:
    assert set(CALLS) == set(MEANS)


@pytest.mark.parametrize("call", [*CALLS.values(), *LAYERS.values()], ids=[*map(str, CALLS), *LAYERS])
def test_it_is_the_mean_of_many_draws(call: Callable[[], Tensor]) -> None:
    torch.manual_seed(0)
    drawn = call()
    with Means():
        mean, again = call(), call()
    assert mean.shape == drawn.shape
    assert mean.dtype == drawn.dtype
    assert torch.equal(mean, again)
    assert not torch.equal(mean, drawn)
    assert torch.allclose(mean, mean[:1].expand_as(mean))
    error = drawn.std(0) / ROWS**0.5
    assert bool(((drawn.mean(0) - mean[0]).abs() <= 4 * error).all())


class Vae(nn.Module):
    """``draw`` from the mean and the deviation of a latent."""

    def __init__(self, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.mean, self.spread = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.inner, self.leave, self.draw = nn.Linear(8, 16), nn.Linear(16, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        return self.leave(torch.relu(self.inner(self.draw(self.mean(h), F.softplus(self.spread(h))))))


DRAWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reparametrised": lambda mean, spread: mean + spread * torch.randn_like(spread),
    "normal": lambda mean, spread: torch.distributions.Normal(mean, spread).sample(),
    "rsample": lambda mean, spread: torch.distributions.Normal(mean, spread).rsample(),
    "uniform": lambda mean, spread: torch.distributions.Uniform(mean, mean + spread + 1).rsample(),
    "flags": lambda mean, spread: torch.distributions.Bernoulli(torch.sigmoid(mean)).sample() * spread,
    "gamma": lambda mean, spread: torch.distributions.Gamma(spread, mean.exp()).rsample(),
    "gumbel": lambda mean, spread: F.gumbel_softmax(mean) * spread,
    "dropout left on": lambda mean, spread: F.dropout(mean) + spread,
    "written": lambda mean, spread: mean + torch.zeros_like(spread).normal_() * spread,
}
X = torch.linspace(-1, 1, 24).reshape(4, 6)


@pytest.mark.parametrize("name", DRAWS)
def test_a_model_that_draws_is_slimmed_in_its_means(name: str) -> None:
    model = trained(Vae(DRAWS[name]))
    with pytest.raises(InputError, match=r"draws random numbers at test_take.*: random='mean'"):
        slim(model, X, multiple_of=1)
    small, _, report = slim(model, X, multiple_of=1, random="mean")
    assert type(small) is Vae
    assert small.enter.out_features < 16
    note = next(note for note in report.warnings if "the mean is taken" in note)
    assert "test_take_means.py" in note
    graph = capture(model, (X,), TracingOptions(random="mean"))
    with Means():
        expected = model(X)
    torch.testing.assert_close(graph.run((X,))[0], expected)


def test_files_hold_the_mean(tmp_path: Path) -> None:
    """From the command line, of an exported program, in each file that is written."""
    model = trained(Vae(DRAWS["normal"]))
    source, out, saved = (tmp_path / name for name in ("in.pt2", "out.onnx", "small.pt2"))
    torch.export.save(torch.export.export(model, (X,)), source)
    options = ["--no-bench", "--multiple-of", "1", "--quiet"]
    assert cli.run([str(source), str(out), *options]) == 2
    assert not out.exists()
    assert cli.run([str(source), str(out), *options, "--random", "mean", "--save", str(saved)]) == 0
    with torch.no_grad():
        small = torch.export.load(saved).module()(X)
    (written,) = onnxruntime.InferenceSession(out).run(None, {"x": X.numpy()})
    np.testing.assert_allclose(written, small.numpy(), rtol=1e-4, atol=1e-6)


WITHOUT: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "choice": ("multinomial", lambda mean, spread: spread * torch.distributions.Categorical(spread).sample()[:, None]),
    "order": ("randperm", lambda mean, spread: mean[:, torch.randperm(8)]),
    "cauchy": ("cauchy_", lambda mean, spread: mean + torch.empty_like(spread).cauchy_()),
}


@pytest.mark.parametrize("options", [{}, {"random": "mean"}], ids=["plain", "mean"])
@pytest.mark.parametrize("name", ["choice", "order", "cauchy"])
def test_what_has_no_mean_is_refused_with_what_helps(name: str, options: dict[str, str]) -> None:
    operator, draw = WITHOUT[name]
    with pytest.raises(InputError, match=rf"aten.{operator}\S* draws numbers that have no mean at test_take"):
        slim(trained(Vae(draw)), X, multiple_of=1, **options)
    slim(trained(Vae(lambda mean, spread: torch.softmax(mean, 1))), X, multiple_of=1)


class Decides(nn.Module):
    def __init__(self, noise: float) -> None:
        super().__init__()
        self.enter, self.leave, self.noise = nn.Linear(6, 16), nn.Linear(16, 3), noise

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(torch.relu(self.enter(x)))
        y = y + self.noise * torch.randn_like(y) if self.noise else y
        return y[y[:, 0] > 0]


def test_decisions_from_values_are_not_followed_with_means() -> None:
    with pytest.raises(InputError, match=r"random 'mean': the model also makes decisions .* out in eval mode"):
        slim(trained(Decides(0.1)), X, multiple_of=1, random="mean")
    slim(trained(Decides(0.0)), X, multiple_of=1, random="mean")


def test_what_draws_nothing_is_left_alone() -> None:
    model = trained(nn.Sequential(nn.Linear(6, 16), nn.Dropout(), nn.Linear(16, 3)))
    _, _, report = slim(model, X, multiple_of=1, random="mean")
    assert not any("mean is taken" in note for note in report.warnings)
    with pytest.raises(InputError, match="random 'median' is unknown; it is one of refuse, mean"):
        slim(model, X, random="median")
