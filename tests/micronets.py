"""micronets: one tiny net per topology, each a few lines. ``test_micronets.py`` runs its laws over every row.

A row is a forward function under ``@net``: its name names the net, its first argument holds the layers given to the
decorator. ``free`` is the smallest share of channels (without the model's own outputs) that must be free to go.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

Inputs = Callable[[int], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Micro:
    """``inputs(batch)`` are example inputs. ``pinned``: an operator that must be named as the reason of a pin.

    ``zeroed``: which slices of a removed channel the oracle sets to zero in the dense module: those that read it
    ("reads"), or all of them where the weight is itself computed ("all"); "" where a norm over channels or a
    parameter used as data has no such reference.
    """

    forward: Callable[..., Any]
    parts: dict[str, Any]
    inputs: Inputs
    free: float
    pinned: str
    zeroed: str

    def build(self) -> nn.Module:
        kind = type(self.forward.__name__, (Net,), {"forward": self.forward})
        return randomised(kind(copy.deepcopy(self.parts)))


class Net(nn.Module):
    """``parts`` become submodules, parameters and buffers; a part that cannot be copied is a function that makes it."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        for name, part in parts.items():
            part = part() if isinstance(part, FunctionType) else part
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


NETS: dict[str, Micro] = {}


def net(inputs: Inputs, free: float = 1.0, *, pinned: str = "", zeroed: str = "reads", **parts: Any) -> Any:
    def add(forward: Any) -> Any:
        assert forward.__name__ not in NETS, forward.__name__
        forward.__code__ = forward.__code__.replace(co_name="forward")  # torch keeps the lines of no other function
        NETS[forward.__name__] = Micro(forward, parts, inputs, free, pinned, zeroed)
        return forward

    return add


def randomised(model: nn.Module) -> nn.Module:
    """No value at its default: a bias of 0, a scale of 1 and a running mean of 0 hide faults."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or name.startswith("fixed"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif tensor.dim() > 1:
            noise = noise / max(1.0, (tensor.numel() / tensor.shape[0]) ** 0.5)
        else:
            noise = 1 + 0.3 * noise
        tensor.data.copy_(noise)
    return model.eval()


# -- inputs and layers ----------------------------------------------------------------------------------------------


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def image(batch: int) -> tuple[Tensor]:
    return (normal(batch, 3, 8, 8),)


def pixels_last(batch: int) -> tuple[Tensor]:
    """As pictures come from files: the colours of a pixel lie side by side."""
    return (normal(batch, 8, 8, 3).permute(0, 3, 1, 2),)


def tokens(batch: int) -> tuple[Tensor]:
    return (normal(batch, 6, 5),)


def vector(batch: int) -> tuple[Tensor]:
    return (normal(batch, 10),)


def signal(batch: int) -> tuple[Tensor]:
    return (normal(batch, 3, 9),)


def words(batch: int) -> tuple[Tensor]:
    return (torch.randint(0, 20, (batch, 6), generator=torch.Generator().manual_seed(batch)),)


def conv(given: int, out: int, kernel: int = 3, **rest: Any) -> nn.Conv2d:
    return nn.Conv2d(given, out, kernel, padding=rest.pop("padding", kernel // 2), **rest)


def block(given: int, out: int, **rest: Any) -> nn.Sequential:
    return nn.Sequential(conv(given, out, **rest), nn.BatchNorm2d(out), nn.ReLU())


def head(width: int) -> nn.Linear:
    return nn.Linear(width, 5)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


# -- plain chains ---------------------------------------------------------------------------------------------------


@net(image, conv=conv(3, 12), bn=nn.BatchNorm2d(12), head=head(12))
def conv_bn_relu(s, x):
    return s.head(pooled(F.relu(s.bn(s.conv(x)))))


@net(vector, a=nn.Linear(10, 16), b=nn.Linear(16, 12), head=head(12))
def mlp(s, x):
    return s.head(F.gelu(s.b(F.relu(s.a(x)))))


@net(vector, a=nn.Linear(10, 16), bn=nn.BatchNorm1d(16), head=head(16))
def mlp_bn(s, x):
    return s.head(torch.sigmoid(s.bn(s.a(x))))  # f(0) is not 0


@net(image, a=conv(3, 12), b=conv(12, 7))
def output_is_a_conv(s, x):
    return s.b(F.elu(s.a(x)))


@net(image, 0.0, a=conv(3, 7))
def only_an_output(s, x):
    return F.relu(s.a(x))


@net(image, a=conv(3, 12), pool=nn.MaxPool2d(2), up=nn.Upsample(scale_factor=2, mode="bilinear"), b=conv(12, 8),
     head=head(8))  # fmt: skip
def pools_and_upsamples(s, x):
    x = s.up(s.pool(F.hardswish(s.a(x))))
    x = F.interpolate(F.avg_pool2d(s.b(x), 2), scale_factor=2)
    return s.head(F.adaptive_avg_pool2d(F.dropout(x, 0.5, s.training), 1).flatten(1))


@net(image, a=conv(3, 12), squash=conv(12, 1), b=conv(1, 12), head=head(12))
def one_channel_between(s, x):
    return s.head(pooled(s.b(F.relu(s.squash(F.relu(s.a(x)))))))


@net(image, a=conv(1, 12, bias=False), b=block(12, 8), head=head(8))
def one_channel_input(s, x):
    return s.head(pooled(s.b(s.a(x[:, :1]))))


@net(image, a=block(3, 12), b=conv(12, 8, kernel=1, bias=False), act=nn.PReLU(8), head=head(8))
def prelu_per_channel(s, x):
    return s.head(pooled(s.act(s.b(s.a(x)))))


@net(image, a=conv(3, 12, padding="same"), b=conv(12, 8, padding_mode="reflect"), c=conv(8, 8, padding_mode="circular"),
     head=head(8))  # fmt: skip
def padding_modes(s, x):
    return s.head(pooled(s.c(F.leaky_relu(s.b(F.relu6(s.a(x)))))))


@net(image, a=conv(3, 12), norm=nn.BatchNorm2d(12, track_running_stats=False), b=conv(12, 8), head=head(8))
def batch_norm_of_the_batch(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def casts(s, x):
    x = s.a(x).to(torch.float64).relu()
    return s.head(pooled(s.b(x.float().to(x.device).contiguous())))


@net(vector, a=nn.Linear(10, 16), head=head(16))
def clone_and_copy(s, x):
    x = s.a(x).clone()
    return s.head(torch.empty_like(x).copy_(x).nan_to_num().clamp(-2, 2))


@net(image, a=conv(3, 12), pool=nn.MaxPool2d(2, return_indices=True), unpool=nn.MaxUnpool2d(2), b=conv(12, 8),
     head=head(8))  # fmt: skip
def max_unpool(s, x):
    return s.head(pooled(s.b(s.unpool(*s.pool(s.a(x))))))


# -- residual -------------------------------------------------------------------------------------------------------


@net(image, stem=block(3, 12), a=conv(12, 12), b=conv(12, 12), head=head(12))
def residual_add(s, x):
    x = s.stem(x)
    x = x + s.b(F.relu(s.a(x)))
    return s.head(pooled(F.relu(x)))


@net(image, stem=block(3, 8), a=block(8, 12, stride=2), b=conv(12, 12), down=conv(8, 12, kernel=1, stride=2),
     head=head(12))  # fmt: skip
def downsample_residual(s, x):
    x = s.stem(x)
    return s.head(pooled(F.relu(s.b(s.a(x)) + s.down(x))))


@net(image, stem=block(3, 8), a=block(8, 16, stride=2), b=conv(16, 16), head=head(16))
def option_a_shortcut(s, x):
    x = s.stem(x)
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0.0)
    return s.head(pooled(F.relu(s.b(s.a(x)) + shortcut)))


@net(image, stem=block(3, 8), a=block(8, 14), head=head(14))
def padded_on_one_side(s, x):
    x = s.stem(x)
    return s.head(pooled(s.a(x) + F.pad(x, (0, 0, 0, 0, 0, 6), value=1.5)))


@net(image, stem=conv(3, 8), head=head(14))
def padded_then_read(s, x):
    return s.head(pooled(F.pad(s.stem(x), (0, 0, 0, 0, 2, 4), value=1.5)))


@net(image, 0.0, pinned="aten.add", a=conv(3, 3), head=head(3))
def residual_with_the_input(s, x):
    return s.head(pooled(x + s.a(x)))


@net(image, a=conv(3, 12), b=conv(3, 12, kernel=1), bn=nn.BatchNorm2d(12), c=conv(12, 12), head=head(12))
def three_branches(s, x):
    x = F.relu(s.a(x) + s.b(x))
    return s.head(pooled(F.relu(s.bn(x) + s.c(x) + x)))


@net(image, down=block(3, 8), deep=block(8, 12, stride=2), up=nn.ConvTranspose2d(12, 8, 2, 2), out=conv(16, 8),
     head=head(8))  # fmt: skip
def skip_over_a_u(s, x):
    x = s.down(x)
    return s.head(pooled(s.out(torch.cat([x, s.up(s.deep(x))], 1))))


@net(image, c1=block(3, 8), c2=block(8, 12, stride=2), l1=conv(8, 10, kernel=1), l2=conv(12, 10, kernel=1),
     out=conv(10, 8), head=head(8))  # fmt: skip
def pyramid(s, x):
    c1 = s.c1(x)
    p2 = s.l2(s.c2(c1))
    p1 = s.l1(c1) + F.interpolate(p2, size=c1.shape[-2:], mode="nearest")
    return s.head(pooled(s.out(p1))), s.head(pooled(s.out(p2)))


# -- concatenation --------------------------------------------------------------------------------------------------


@net(image, a=conv(3, 8), b=conv(3, 12), c=block(20, 8), head=head(8))
def cat_channels(s, x):
    return s.head(pooled(s.c(torch.cat([F.relu(s.a(x)), s.b(x)], 1))))


@net(image, a=conv(3, 8), b=conv(3, 12), c=block(20, 8), head=head(8))
def cat_minus_three(s, x):
    return s.head(pooled(s.c(torch.cat([F.relu(s.a(x)), s.b(x)], dim=-3))))


@net(image, a=conv(3, 12), b=conv(3, 12), c=block(12, 8), head=head(8))
def cat_rows(s, x):
    return s.head(pooled(s.c(torch.cat([s.a(x), s.b(x)], dim=2))))


@net(image, a=conv(3, 12), b=conv(12, 12), c=conv(12, 8), d=conv(8, 8), head=head(8))
def cat_rows_then_split(s, x):
    one, two = s.a(x), s.b(F.relu(s.a(x)))
    first, _ = torch.split(s.c(torch.cat([one, two], 2)), [one.shape[2], two.shape[2]], dim=2)
    return s.head(pooled(s.d(first)))


@net(tokens, a=nn.Linear(5, 8), b=nn.Linear(5, 12), head=head(20))
def cat_features(s, x):
    return s.head(torch.cat([s.a(x), s.b(x).tanh()], dim=-1)).mean(1)


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(8, 12), head=head(12))
def cat_batch(s, x):
    return s.head(pooled(s.c(torch.cat([s.a(x), s.b(x)]))))


@net(image, a=conv(3, 8), b=conv(24, 8), head=head(8))
def cat_repeated(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.cat([x, F.relu(x), x], 1))))


@net(image, a=conv(3, 8), b=conv(14, 8), head=head(8))
def cat_with_the_input(s, x):
    return s.head(pooled(s.b(torch.cat([x, s.a(x), torch.ones_like(x)], 1))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(24, 8), head=head(8))
def cat_of_cats(s, x):
    inner = torch.cat([s.a(x), s.b(x)], 1)
    return s.head(pooled(s.d(torch.cat([s.c(x), inner], 1))))


@net(image, a=block(3, 4), b=conv(3, 8), c=conv(3, 12), d=conv(12, 8), head=head(8))
def cat_plus_conv(s, x):
    return s.head(pooled(s.d(s.c(x) + torch.cat([s.a(x), s.b(x)], 1))))


@net(image, a=conv(3, 4), b=conv(3, 8), c=conv(3, 8), d=conv(3, 4), e=conv(12, 8), head=head(8))
def cat_plus_other_cat(s, x):
    one, two = torch.cat([s.a(x), s.b(x)], 1), torch.cat([s.c(x), s.d(x)], 1)
    return s.head(pooled(s.e(one + F.relu(two))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(16, 8), e=conv(16, 8), head=head(8))
def cat_shares_a_part(s, x):
    one = s.d(torch.cat([s.a(x), s.b(x)], 1))
    two = s.e(torch.cat([s.c(x), F.relu(s.a(x))], 1))
    return s.head(pooled(one + two))


@net(image, stem=conv(3, 8), bn1=nn.BatchNorm2d(8), a=conv(8, 6), bn2=nn.BatchNorm2d(14), b=conv(14, 6),
     bn3=nn.BatchNorm2d(20), head=head(20))  # fmt: skip
def dense_block(s, x):
    x = s.stem(x)
    x = torch.cat([x, s.a(F.relu(s.bn1(x)))], 1)
    x = torch.cat([x, s.b(F.relu(s.bn2(x)))], 1)
    return s.head(pooled(F.relu(s.bn3(x))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=nn.Conv1d(16, 8, 3), head=head(8))
def cat_of_means(s, x):
    x = torch.cat([s.a(x).mean(dim=(2,)), torch.mean(s.b(x), 3)], dim=1)
    return s.head(s.c(x).mean(2))


# -- splitting ------------------------------------------------------------------------------------------------------


@net(image, a=block(3, 16), b=conv(4, 8), c=conv(12, 8), head=head(8))
def split_4_12(s, x):
    one, two = torch.split(s.a(x), [4, 12], dim=1)
    return s.head(pooled(s.b(one) + s.c(two)))


@net(image, a=block(3, 16), b=conv(8, 8), c=conv(8, 8), head=head(8))
def chunk_in_two(s, x):
    one, two = s.a(x).chunk(2, 1)
    return s.head(pooled(s.b(one) + s.c(two)))


@net(image, a=block(3, 13), b=conv(5, 8), c=conv(5, 8), d=conv(3, 8), head=head(8))
def chunk_uneven(s, x):
    one, two, three = s.a(x).chunk(3, 1)
    return s.head(pooled(s.b(one) + s.c(two) + s.d(three)))


@net(image, a=block(3, 16), b=conv(6, 8), c=conv(4, 8), head=head(8))
def split_by_size(s, x):
    one, two, three = s.a(x).split(6, 1)
    return s.head(pooled(s.b(one) + s.b(two) + s.c(three)))


@net(image, a=block(3, 13), b=conv(7, 8), c=conv(6, 8), head=head(8))
def tensor_split_uneven(s, x):
    one, two = torch.tensor_split(s.a(x), 2, dim=1)
    return s.head(pooled(s.b(one) + s.c(two)))


@net(image, a=block(3, 16), b=conv(16, 8), head=head(8))
def unbind_and_stack(s, x):
    x = s.a(x)
    one, two = x.view(x.shape[0], 2, 8, 8, 8).unbind(1)
    x = torch.stack([F.relu(two), torch.tanh(one)], 1)
    return s.head(pooled(s.b(x.flatten(1, 2))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(8, 8), head=head(8))
def stack_and_sum(s, x):
    return s.head(pooled(s.c(torch.stack([s.a(x), s.b(x)]).sum(0))))


@net(image, 0.0, pinned="aten.unbind", a=block(3, 12), head=head(12))
def unbind_every_channel(s, x):
    channels = s.a(x).unbind(1)
    return s.head(pooled(torch.stack(channels[::-1], 1)))


@net(image, a=block(3, 16), m1=block(8, 8), m2=block(8, 8), b=block(32, 12), head=head(12))
def c2f(s, x):
    parts = list(s.a(x).chunk(2, 1))
    parts.append(s.m1(parts[-1]))
    parts.append(parts[-1] + s.m2(parts[-1]))
    return s.head(pooled(s.b(torch.cat(parts, 1))))


@net(image, a=conv(3, 12), b=block(12, 24), side=block(12, 12), c=conv(24, 12), head=head(12))
def split_then_cat(s, x):
    x = s.a(x)
    side = s.side(x)
    one, two = torch.split(s.b(x), (12, 12), 1)
    return s.head(pooled(s.c(torch.cat([one, side], 1)) + two))


@net(image, a=block(3, 20), b=block(5, 8), c=block(10, 8), head=head(8))
def split_into_one_layer(s, x):
    one, two, three = torch.split(s.a(x), [5, 5, 10], dim=1)
    return s.head(pooled(torch.cat([s.b(one), s.b(two)], 2))) + s.head(pooled(s.c(three)))


@net(image, a=block(3, 16), b=conv(8, 8), head=head(8))
def slice_first(s, x):
    return s.head(pooled(s.b(s.a(x)[:, :8, :-1, :-1])))


@net(image, a=block(3, 16), b=conv(10, 8), c=conv(9, 8), head=head(8))
def slices_overlap(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x[:, :10]) + s.c(x[:, -9:])))


@net(image, a=block(3, 16), b=conv(8, 8), head=head(8))
def narrow_channels(s, x):
    return s.head(pooled(s.b(s.a(x).narrow(1, 4, 8))))


@net(image, 0.9, pinned="aten.select", a=block(3, 12), b=conv(12, 8), head=head(8))
def select_one_channel(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) * x[:, 3].unsqueeze(1)))


@net(image, 0.9, a=block(3, 12), b=conv(1, 8), c=conv(12, 8), head=head(8))
def slice_of_one_channel(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x[:, 2:3]) + s.c(x)))


@net(image, a=block(3, 12), b=conv(6, 8), head=head(8))
def every_other_channel(s, x):
    return s.head(pooled(s.b(s.a(x)[:, ::2])))


@net(image, 0.4, pinned="aten.slice", a=block(3, 12), b=conv(4, 8), head=head(8))
def every_other_channel_of_a_part(s, x):
    return s.head(pooled(s.b(s.a(x)[:, 3:10:2])))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def even_and_odd_swapped(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.stack([-x[:, 1::2], x[:, ::2]], 2).flatten(1, 2))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def gathered_by_a_list(s, x):
    return s.head(pooled(s.b(s.a(x)[:, [3, 1, 0, 2, 7, 5, 4, 6, 11, 10, 9, 8]])))


@net(image, order=torch.randperm(12, generator=torch.Generator().manual_seed(1)), a=block(3, 12), b=conv(12, 8),
     head=head(8))  # fmt: skip
def gathered_by_a_buffer(s, x):
    return s.head(pooled(s.b(torch.index_select(s.a(x), 1, s.order))))


@net(image, a=block(3, 16), b=block(4, 4), c=block(4, 4), d=conv(12, 8), head=head(8))
def res2net(s, x):
    one, two, three, four = torch.split(s.a(x), 4, 1)
    two = s.b(two + one)
    return s.head(pooled(s.d(torch.cat([two, s.c(three + two), four], 1))))


@net(image, a=block(3, 12), small=conv(4, 4, groups=4), large=conv(8, 8, kernel=5, groups=8), b=conv(12, 8),
     head=head(8))  # fmt: skip
def mixed_depthwise(s, x):
    one, two = torch.split(s.a(x), [4, 8], 1)
    return s.head(pooled(s.b(torch.cat([s.small(one), s.large(two)], 1))))


@net(image, a=block(3, 6), cheap=block(6, 6, groups=6), b=conv(10, 8), head=head(8))
def ghost(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.cat([x, s.cheap(x)], 1)[:, :10])))


# -- views ----------------------------------------------------------------------------------------------------------


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def view_hard_coded(s, x):
    x = F.max_pool2d(s.a(x), 2).view(-1, 12 * 4 * 4)
    return s.head(F.relu(s.fc(x)))


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def view_hard_coded_after_the_batch(s, x):
    x = F.max_pool2d(s.a(x), 2)
    return s.head(F.relu(s.fc(x.view(x.size(0), 12 * 16))))


@net(image, 0.6, pinned="aten.reshape", a=block(3, 12), fc=nn.Linear(64, 6), head=nn.Linear(72, 5))
def view_hard_coded_channels(s, x):
    x = s.fc(s.a(x).view(-1, 12, 64))
    return s.head(x.reshape(-1, 72))


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def view_minus_one(s, x):
    x = F.max_pool2d(s.a(x), 2)
    return s.head(F.relu(s.fc(x.view(x.shape[0], -1))))


@net(image, a=block(3, 12), fc=nn.Linear(12 * 4 * 4, 16), head=head(16))
def flatten_to_linear(s, x):
    return s.head(F.relu(s.fc(torch.flatten(F.max_pool2d(s.a(x), 2), 1))))


@net(image, a=block(3, 12), head=head(12))
def unused_view_with_sizes(s, x):
    x = s.a(x)
    x.view(-1, 2, 6, 8, 8).tanh()  # of fewer channels it takes another batch, or fails
    return s.head(pooled(x))


@net(pixels_last, a=conv(3, 12), b=conv(12, 8))
def contiguous_in_the_traced_layout_only(s, x):
    x = s.b(torch.relu(s.a(x))).permute(0, 2, 3, 1).contiguous()  # kernels keep the channels last: nothing to do
    return x.view(x.shape[0], -1, 4)


@net(signal, a=nn.Conv1d(3, 12, 3), bn=nn.BatchNorm1d(12), fc=nn.Linear(12 * 7, 16), head=head(16))
def conv1d_flatten(s, x):
    return s.head(F.relu(s.fc(s.bn(s.a(x)).flatten(1))))


@net(lambda n: (normal(n, 2, 4, 4, 4),), a=nn.Conv3d(2, 12, 3), bn=nn.BatchNorm3d(12), fc=nn.Linear(12 * 8, 16),
     head=head(16))  # fmt: skip
def conv3d_flatten(s, x):
    return s.head(F.relu(s.fc(s.bn(s.a(x)).flatten(1))))


@net(vector, fc=nn.Linear(10, 12 * 9), up=nn.ConvTranspose2d(12, 8, 4, 2, 1), head=head(8))
def view_to_image(s, x):
    x = F.relu(s.fc(x)).view(-1, s.up.in_channels, 3, 3)
    return s.head(pooled(F.relu(s.up(x))))


@net(image, a=block(3, 12), b=nn.Conv1d(12, 8, 1), head=head(8))
def places_in_a_row(s, x):
    return s.head(s.b(s.a(x).flatten(2)).mean(2))


@net(image, a=conv(3, 12), norm=nn.BatchNorm2d(12), fc=nn.Linear(12, 16), head=head(16))
def nhwc(s, x):
    x = s.norm(s.a(x)).permute(0, 2, 3, 1)
    return s.head(F.gelu(s.fc(x))).mean((1, 2))


@net(image, a=conv(3, 12), fc=nn.Linear(12, 16), back=nn.Linear(16, 12), b=conv(12, 8), head=head(8))
def nhwc_and_back(s, x):
    x = s.a(x)
    x = x + s.back(F.gelu(s.fc(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
    return s.head(pooled(s.b(x)))


@net(signal, zeroed="", a=nn.Conv1d(3, 12, 3, padding=1), bn=nn.BatchNorm1d(12), places=nn.Linear(9, 6), head=head(12))
def linear_over_places(s, x):
    x = s.places(s.bn(s.a(x)))
    return s.head(F.relu(x).transpose(1, 2)).mean(1)


@net(image, a=block(3, 12), b=nn.Linear(12, 8), head=head(8))
def squeezed(s, x):
    x = F.adaptive_avg_pool2d(s.a(x), 1).squeeze(-1).squeeze(-1)
    x = s.b(x)[:, :, None, None]
    return s.head(x.squeeze(3).squeeze(2))


@net(image, a=block(3, 12), b=nn.Linear(12, 8), head=head(8))
def windows(s, x):
    x = s.a(x).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    x = F.relu(s.b(x)).view(-1, 2, 2, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 8)
    return s.head(x).mean((1, 2))


@net(vector, a=nn.Linear(10, 24), split=nn.Unflatten(1, (6, 4)), b=nn.Conv1d(6, 8, 3), flat=nn.Flatten(), head=head(16))
def unflatten_and_flatten(s, x):
    return s.head(s.flat(F.relu(s.b(s.split(s.a(x))))))


@net(tokens, 0.8, pinned="aten.add", zeroed="all", embed=nn.Linear(5, 12), across=nn.Linear(6, 10),
     back=nn.Linear(10, 6), mlp=nn.Linear(12, 16), down=nn.Linear(16, 12), head=head(12))  # fmt: skip
def mixer(s, x):
    x = s.embed(x)
    x = x + s.back(F.gelu(s.across(x.transpose(1, 2)))).transpose(1, 2)
    return s.head(x + s.down(F.gelu(s.mlp(x)))).sum(1)


# -- transposed, depthwise, grouped convolution ---------------------------------------------------------------------


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 8, 2, 2), bn=nn.BatchNorm2d(8), head=head(8))
def transposed(s, x):
    return s.head(pooled(F.relu(s.bn(s.up(s.a(x))))))


@net(image, a=nn.ConvTranspose2d(3, 12, 3, padding=1), b=nn.ConvTranspose2d(12, 12, 3, padding=1), head=head(12))
def transposed_chain(s, x):
    return s.head(pooled(s.b(s.a(x))))


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 8, 2, 2, groups=2), head=head(8))
def transposed_grouped(s, x):
    return s.head(pooled(F.relu(s.up(F.relu(s.a(x))))))


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 24, 2, 2, groups=6), head=head(24))
def transposed_many_groups(s, x):
    return s.head(pooled(F.relu(s.up(F.relu(s.a(x))))))


@net(image, a=conv(3, 12), up=nn.ConvTranspose2d(12, 12, 2, 2, groups=12), head=head(12))
def transposed_depthwise(s, x):
    return s.head(pooled(F.relu(s.up(F.relu(s.a(x))))))


@net(image, a=block(3, 12), dw=block(12, 12, groups=12), pw=block(12, 8, kernel=1), head=head(8))
def depthwise(s, x):
    return s.head(pooled(s.pw(s.dw(s.a(x)))))


@net(image, a=block(3, 8), dw=block(8, 16, groups=8), pw=block(16, 8, kernel=1), head=head(8))
def depthwise_multiplier(s, x):
    return s.head(pooled(s.pw(s.dw(s.a(x)))))


@net(image, dw=conv(3, 12, groups=3), pw=block(12, 8, kernel=1), head=head(8))
def depthwise_of_the_input(s, x):
    return s.head(pooled(s.pw(F.relu(s.dw(x)))))


@net(image, stem=block(3, 8), expand=block(8, 24, kernel=1), dw=block(24, 24, groups=24),
     project=conv(24, 8, kernel=1), head=head(8))  # fmt: skip
def inverted_residual(s, x):
    x = s.stem(x)
    return s.head(pooled(x + s.project(s.dw(s.expand(x)))))


@net(
    image,
    a=block(3, 12),
    route=nn.Linear(12, 3),
    experts=nn.Parameter(torch.randn(3, 12 * 9) / 3),
    b=block(12, 8, kernel=1),
    zeroed="all",
    head=head(8),
)
def filters_of_each_sample(s, x):
    x = torch.relu(s.a(x))
    filters = (torch.sigmoid(s.route(pooled(x))) @ s.experts).view(-1, 1, 3, 3)
    n, _, *size = x.shape
    y = F.conv2d(x.reshape(1, -1, *size), filters, padding=1, groups=n * 12)
    return s.head(pooled(s.b(torch.relu(y.reshape(n, 12, *size)))))


@net(image, a=block(3, 12), g=block(12, 12, groups=2), b=conv(12, 8), head=head(8))
def grouped_few(s, x):
    return s.head(pooled(s.b(s.g(s.a(x)))))


@net(image, a=block(3, 12), g=block(12, 12, groups=6), b=conv(12, 8), head=head(8))
def grouped_many(s, x):
    return s.head(pooled(s.b(s.g(s.a(x)))))


@net(image, free=0.7, pinned="cumsum", a=block(3, 12), g=block(12, 24, groups=6), b=conv(24, 8), head=head(8))
def grouped_behind_fixed(s, x):
    """No whole group can go, as what goes in is fixed; the same place of every group can."""
    x = s.a(x)
    return s.head(pooled(s.b(s.g(x)))) + x.cumsum(1).mean((1, 2, 3))[:, None]


@net(image, a=block(3, 8), g=block(8, 16, groups=4), b=conv(16, 8), head=head(8))
def grouped_widening(s, x):
    return s.head(pooled(s.b(s.g(s.a(x)))))


@net(image, a=block(3, 12), g=conv(12, 12, groups=3), b=conv(12, 12), head=head(12))
def grouped_residual(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(F.relu(x + s.g(x)))))


@net(signal, a=nn.Conv1d(3, 12, 1), dw=nn.Conv1d(12, 12, 3, groups=12, padding=1), head=head(12))
def depthwise_1d(s, x):
    return s.head(F.silu(s.dw(s.a(x))).mean(2))


# -- gates ----------------------------------------------------------------------------------------------------------


@net(image, a=block(3, 12), down=conv(12, 6, kernel=1), up=conv(6, 12, kernel=1), head=head(12))
def squeeze_excite(s, x):
    x = s.a(x)
    gate = torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1)))))
    return s.head(pooled(x * gate))


@net(image, a=block(3, 12), down=nn.Linear(12, 6), up=nn.Linear(6, 12), head=head(12))
def squeeze_excite_linear(s, x):
    x = s.a(x)
    b, c, _, _ = x.size()
    gate = torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1).view(b, c))))).view(b, c, 1, 1)
    return s.head(pooled(x * gate.expand_as(x)))


@net(image, 0.4, pinned="aten.conv1d", a=block(3, 12), mix=nn.Conv1d(1, 1, 3, padding=1), b=conv(12, 8), head=head(8))
def conv_across_channels(s, x):
    x = s.a(x)
    gate = s.mix(pooled(x).unsqueeze(1)).sigmoid().squeeze(1)
    return s.head(pooled(s.b(x * gate[:, :, None, None])))


@net(image, 0.4, pinned="aten.max", a=block(3, 12), mix=conv(2, 1, bias=False), b=conv(12, 8), head=head(8))
def spatial_attention(s, x):
    x = s.a(x)
    places = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return s.head(pooled(s.b(x * s.mix(places).sigmoid())))


@net(image, a=conv(3, 16), b=conv(8, 8), head=head(8))
def glu(s, x):
    return s.head(pooled(s.b(F.glu(s.a(x), dim=1))))


@net(image, a=conv(3, 16), b=conv(8, 8), head=head(8))
def glu_by_chunk(s, x):
    one, two = s.a(x).chunk(2, 1)
    return s.head(pooled(s.b(one * torch.sigmoid(two))))


@net(tokens, a=nn.Linear(5, 24), b=nn.Linear(12, 8), head=head(8))
def gated_ffn_by_chunk(s, x):
    gate, value = s.a(x).chunk(2, dim=-1)
    return s.head(s.b(F.silu(gate) * value)).mean(1)


@net(tokens, gate=nn.Linear(5, 12), up=nn.Linear(5, 12), down=nn.Linear(12, 8), head=head(8))
def gated_ffn(s, x):
    return s.head(s.down(F.silu(s.gate(x)) * s.up(x))).mean(1)


@net(image, a=block(3, 12), b=block(3, 12), pick=nn.Linear(12, 24), head=head(12))
def selective_kernel(s, x):
    one, two = s.a(x), s.b(x)
    weights = s.pick(pooled(one + two)).view(-1, 2, 12).softmax(1)
    return s.head(pooled(one * weights[:, 0, :, None, None] + two * weights[:, 1, :, None, None]))


# -- shuffles and moves ---------------------------------------------------------------------------------------------


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def channel_shuffle(s, x):
    return s.head(pooled(s.b(shuffled(s.a(x), 2))))


@net(image, a=block(3, 12), shuffle=nn.ChannelShuffle(3), b=conv(12, 8), head=head(8))
def channel_shuffle_module(s, x):
    return s.head(pooled(s.b(s.shuffle(s.a(x)))))


@net(image, a=block(3, 16), b1=block(8, 8), b2=block(8, 8), c=conv(16, 8), head=head(8))
def stacked_shuffles(s, x):
    x = s.a(x)
    for branch in (s.b1, s.b2):
        one, two = x.chunk(2, 1)
        x = shuffled(torch.cat([one, branch(two)], 1), 2)
    return s.head(pooled(s.c(x)))


@net(image, 0.6, a=block(3, 12), g1=block(12, 12, groups=3), g2=conv(12, 12, groups=3), head=head(12))
def shuffle_between_groups(s, x):
    return s.head(pooled(s.g2(shuffled(s.g1(s.a(x)), 3))))


@net(image, a=block(3, 12), g=block(12, 12, groups=3), b=conv(12, 8), head=head(8))
def shuffle_after_groups(s, x):
    return s.head(pooled(s.b(shuffled(s.g(s.a(x)), 3))))


@net(image, a=block(3, 24), shuffle=nn.PixelShuffle(2), b=conv(6, 8), head=head(8))
def pixel_shuffle(s, x):
    return s.head(pooled(s.b(s.shuffle(s.a(x)))))


@net(image, a=block(3, 6), shuffle=nn.PixelUnshuffle(2), b=conv(24, 8), head=head(8))
def pixel_unshuffle(s, x):
    return s.head(pooled(s.b(s.shuffle(s.a(x)))))


@net(image, a=block(3, 24), b=conv(6, 8), head=head(8))
def depth_to_space_by_hand(s, x):
    n, _, h, w = x.shape
    x = s.a(x).view(n, 2, 2, 6, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, 6, 2 * h, 2 * w)
    return s.head(pooled(s.b(x)))


@net(image, a=block(3, 6), b=conv(24, 8), head=head(8))
def focus(s, x):
    x = s.a(x)
    x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    return s.head(pooled(s.b(x)))


@net(image, a=block(3, 6), fc=nn.Linear(24, 16), head=head(16))
def patch_merging(s, x):
    x = s.a(x).permute(0, 2, 3, 1)
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return s.head(s.fc(x)).mean((1, 2))


@net(image, a=block(3, 6), fc=nn.Linear(24, 16), head=head(16))
def unfold_patches(s, x):
    x = F.unfold(s.a(x), 2, stride=2).transpose(1, 2)
    return s.head(F.relu(s.fc(x))).mean(1)


@net(image, a=block(3, 24), b=conv(6, 8), head=head(8))
def fold_patches(s, x):
    x = F.fold(s.a(x).flatten(2), (16, 16), 2, stride=2)
    return s.head(pooled(s.b(x)))


@net(image, a=block(3, 6), b=nn.Conv3d(6, 8, (1, 2, 2)), head=head(8))
def tensor_unfold(s, x):
    x = s.a(x).unfold(2, 4, 4).flatten(4)
    return s.head(s.b(x).mean((2, 3, 4)))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def roll_places(s, x):
    return s.head(pooled(s.b(torch.roll(s.a(x), (1, -2), (2, 3)))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def roll_channels(s, x):
    return s.head(pooled(s.b(torch.roll(s.a(x), 5, 1))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def flip_channels(s, x):
    return s.head(pooled(s.b(s.a(x).flip(1))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def flip_and_add(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x + x.flip(1))))


@net(image, a=block(3, 6), b=conv(12, 8), head=head(8))
def repeat_interleave_channels(s, x):
    return s.head(pooled(s.b(s.a(x).repeat_interleave(2, dim=1))))


@net(image, a=block(3, 6), b=conv(12, 8), head=head(8))
def repeat_channels(s, x):
    return s.head(pooled(s.b(s.a(x).repeat(1, 2, 1, 1))))


@net(lambda batch: (*tokens(batch), normal(batch, 6) > 0), embed=nn.Linear(5, 12), mlp=nn.Linear(12, 16), head=head(16))
def mask_repeated_over_channels(s, x, y):
    x = s.embed(x)
    x = x.masked_fill(y.unsqueeze(-1).repeat(1, 1, 12), 0.0)
    return s.head(F.relu(s.mlp(x)).mean(1))


@net(image, a=block(3, 12), mask=conv(12, 1), b=conv(12, 8), head=head(8))
def expanded_mask(s, x):
    x = s.a(x)
    mask = torch.sigmoid(s.mask(x)).expand(-1, 12, -1, -1)
    return s.head(pooled(s.b(x * mask)))


@net(vector, fc=nn.Linear(10, 12), b=conv(12, 8), head=head(8))
def expanded_places(s, x):
    x = s.fc(x)[:, :, None, None].expand(-1, -1, 4, 4)
    return s.head(pooled(F.relu(s.b(x))))


@net(image, a=block(3, 12), b=conv(14, 8), head=head(8))
def coordinates_appended(s, x):
    x = s.a(x)
    rows = torch.linspace(-1, 1, 8).view(1, 1, 8, 1).expand(x.shape[0], 1, 8, 8)
    return s.head(pooled(s.b(torch.cat([x, rows, rows.transpose(2, 3)], 1))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def swapped_axes(s, x):
    return s.head(pooled(s.b(s.a(x).swapaxes(1, 2).movedim(2, 0).permute(1, 0, 3, 2))))


@net(image, a=block(3, 12), b=conv(12, 8), head=head(8))
def padded_places(s, x):
    x = F.pad(s.a(x), (1, 1, 0, 2), "reflect")
    return s.head(pooled(s.b(F.pad(x, (-1, 0, 1, 0)))))


# -- parameters, buffers and constants beside layers ----------------------------------------------------------------


@net(image, a=conv(3, 12), scale=weight(12, 1, 1), b=conv(12, 8), head=head(8))
def layer_scale(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)) * s.scale)))


@net(image, a=conv(3, 12), learned=weight(12, 8, 8), b=conv(12, 8), head=head(8))
def learned_constant_added(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x) + s.learned))))


@net(image, a=conv(3, 12), stored=torch.zeros(1, 12, 8, 8), b=conv(12, 8), head=head(8))
def buffer_of_full_size(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x) - s.stored))))


@net(image, a=conv(3, 4), b=conv(4, 8), head=head(8))
def literal_per_channel(s, x):
    scale = torch.tensor([0.5, 2.0, -1.0, 3.0])
    return s.head(pooled(s.b(F.relu(s.a(x) * scale.view(1, 4, 1, 1)))))


@net(image, 0.4, a=conv(3, 12), b=conv(12, 8), head=head(8))
def counted_per_channel(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x) * torch.arange(12).view(1, 12, 1, 1)))))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def zeros_joined(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x + torch.zeros(x.shape[0], 12, 8, 8) + x.new_ones(12, 1, 1))))


@net(image, stem=block(3, 12), a=conv(12, 12), head=head(12))
def reused_layer(s, x):
    return s.head(pooled(s.a(F.relu(s.a(s.stem(x))))))


@net(image, a=conv(3, 12), b=conv(3, 12), bn=nn.BatchNorm2d(12), c=conv(12, 8), head=head(8))
def reused_norm(s, x):
    return s.head(pooled(s.c(F.relu(s.bn(s.a(x))) * s.bn(s.b(x)))))


@net(image, a=block(3, 8), b=block(8, 8), c=block(8, 8), head=head(8))
def reused_and_linked(s, x):
    x = s.a(x)
    return s.head(pooled(x + s.b(x) + s.b(s.c(x))))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(8, 8), head=head(8))
def used_twice_in_a_cycle(s, x):
    one, two = s.a(x) + s.b(x), s.b(x) - s.a(x)
    return s.head(pooled(s.c(one + two)))


_shared = conv(8, 8)


@net(image, stem=conv(3, 8), a=_shared, b=_shared, head=head(8))
def one_module_two_names(s, x):
    return s.head(pooled(s.b(F.relu(s.a(s.stem(x))))))


_table = nn.Embedding(20, 16)
_out = nn.Linear(16, 20, bias=False)
_out.weight = _table.weight


@net(words, 0.5, zeroed="all", table=_table, mlp=nn.Linear(16, 12), back=nn.Linear(12, 16), out=_out)
def tied_embedding(s, x):
    x = s.table(x)
    return s.out(x + s.back(F.gelu(s.mlp(x))))


@net(image, zeroed="", a=parametrizations.weight_norm(conv(3, 12)), b=parametrizations.weight_norm(conv(12, 8)),
     head=head(8))  # fmt: skip
def weight_norm(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="", a=lambda: nn.utils.weight_norm(conv(3, 12)), b=lambda: nn.utils.weight_norm(conv(12, 8)),
     head=head(8))  # fmt: skip
def weight_norm_by_hook(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, 0.4, pinned="aten.vdot", zeroed="", a=parametrizations.spectral_norm(conv(3, 12)), b=conv(12, 8),
     head=head(8))  # fmt: skip
def spectral_norm(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.flip(3)


_symmetric = conv(12, 8)
parametrize.register_parametrization(_symmetric, "weight", Symmetric())


@net(image, zeroed="all", a=conv(3, 12), b=_symmetric, head=head(8))
def parametrized(s, x):
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="", a=conv(3, 12), b=weight(8, 12, 3, 3), head=head(8))
def weight_standardised(s, x):
    w = s.b - s.b.mean((1, 2, 3), keepdim=True)
    w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
    return s.head(pooled(F.conv2d(F.relu(s.a(x)), w)))


@net(image, a=conv(3, 12), b=conv(3, 12), c=conv(12, 8), head=head(8))
def shaped_like_another(s, x):
    y = s.b(x)
    return s.head(pooled(s.c(F.relu(s.a(x).flatten(2).view_as(y)) + y.flatten(1).reshape_as(y))))


@net(tokens, a=nn.Linear(5, 12), head=head(12))
def empty_slice_in_front(s, x):
    x = s.a(x)
    return s.head(torch.cat([x[:, :0], F.relu(x[:, 0:])], 1).mean(1))


@net(vector, a=nn.Linear(10, 12), head=head(12))
def numbers_that_share_memory(s, x):
    numbers = torch.arange(1.0, 13.0)
    return s.head(F.relu(s.a(x) * numbers) + numbers.view(12))


@net(tokens, a=nn.Linear(5, 12), b=nn.Linear(5, 12), mix=nn.Conv1d(2, 4, 1), back=nn.ConvTranspose1d(4, 2, 1),
     head=head(12))  # fmt: skip
def conv_of_one_place_across_channels(s, x):
    x = torch.stack([s.a(x).mean(1), s.b(x).mean(1)], 1)
    return s.head(s.back(F.relu(s.mix(x))).sum(1))


@net(tokens, 0.2, pinned="aten.conv1d", a=nn.Linear(5, 12), mix=nn.Conv1d(6, 4, 1, padding=1), head=head(14))
def conv_of_one_place_pads_channels(s, x):
    return s.head(F.relu(s.mix(s.a(x))).sum(1))


@net(image, zeroed="", a=conv(3, 12), b=weight(8, 12, 3, 3), gain=weight(8), head=head(8))
def weight_standardised_by_batch_norm(s, x):
    w = F.batch_norm(s.b.reshape(1, 8, -1), None, None, weight=s.gain, training=True, momentum=0.0).reshape_as(s.b)
    return s.head(pooled(F.conv2d(F.relu(s.a(x)), w)))


@net(vector, zeroed="all", a=nn.Linear(10, 16), w=weight(12, 16), up=weight(12, 2), down=weight(2, 16), head=head(12))
def lora(s, x):
    x = F.relu(s.a(x))
    return s.head(F.relu(F.linear(x, s.w + 0.5 * (s.up @ s.down))))


@net(vector, a=nn.Linear(10, 16), w=weight(16, 12), head=head(12))
def times_a_parameter(s, x):
    return s.head(torch.tanh(F.relu(s.a(x)) @ s.w))


@net(vector, a=nn.Linear(10, 16), w=weight(16, 12), head=head(12))
def transposed_times_column(s, x):
    x = F.relu(s.a(x)).unsqueeze(-1)
    return s.head((s.w.t() @ x).squeeze(-1))


@net(image, a=weight(12, 3, 3, 3), bias=weight(12), b=weight(8, 12, 1, 1), head=head(8))
def functional_conv(s, x):
    return s.head(pooled(F.conv2d(F.relu(F.conv2d(x, s.a, s.bias)), s.b)))


@net(vector, a=weight(16, 10), bias=weight(16), head=head(16))
def functional_linear(s, x):
    return s.head(F.relu(F.linear(x, s.a, s.bias)))


@net(vector, a=weight(10, 16), bias=weight(16), b=weight(16, 12), head=head(12))
def addmm(s, x):
    return s.head(torch.addmm(s.bias, x, s.a).relu() @ s.b)


@net(image, a=conv(3, 12).requires_grad_(False), bn=nn.BatchNorm2d(12).requires_grad_(False), b=conv(12, 8),
     c=conv(8, 12), head=head(12))  # fmt: skip
def frozen(s, x):
    x = F.relu(s.bn(s.a(x)))
    return s.head(pooled(x + s.c(s.b(x))))


@net(image, a=conv(3, 12).requires_grad_(False), head=head(12).requires_grad_(False))
def all_frozen(s, x):
    return s.head(pooled(s.a(x)))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def detached(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x.detach()) + x))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def no_grad_region(s, x):
    with torch.no_grad():
        x = F.relu(s.a(x))
        y = x * 2
    return s.head(pooled(s.b(y) + x))


@net(image, a=conv(3, 12), unused=weight(7), spare=conv(4, 4), head=head(12))
def unused_parameters(s, x):
    return s.head(pooled(s.a(x)))


@net(image, a=conv(3, 12), when=weight(12), b=conv(12, 8), head=head(8))
def compared_with_a_parameter(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(torch.where(x > s.when[:, None, None], x, x.clamp(max=0.0)))))


@net(vector, 0.8, pinned="aten.softmax", experts=weight(3, 10, 12), out=weight(3, 12, 8), gate=nn.Linear(10, 3),
     head=head(8))  # fmt: skip
def stacked_experts(s, x):
    hidden = F.gelu(torch.matmul(x.expand(3, -1, -1), s.experts))
    each = torch.bmm(hidden, s.out)
    gate = s.gate(x).softmax(-1)
    return s.head((each * gate.t().unsqueeze(-1)).sum(0))


# -- reductions and comparisons over channels -----------------------------------------------------------------------


@net(image, zeroed="", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_mean(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) * x.mean(1, keepdim=True)))


@net(image, 0.4, zeroed="", a=conv(3, 3), b=conv(3, 8), head=head(8))
def spread_of_few_channels(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x / (x.std(1, keepdim=True) + 0.1))))


@net(image, 0.9, a=conv(3, 12), b=conv(12, 8), head=head(1))
def a_mean_that_is_zero(s, x):
    x = s.b(F.relu(s.a(x)))[:, :1]
    x = F.layer_norm(x, x.shape[1:]).mean((2, 3), keepdim=True)  # nothing but rounding
    return s.head((x - 0.25 * x).mean((2, 3)))


@net(image, a=conv(3, 12), b=conv(12, 8))
def shuffled_outputs(s, x):
    x = s.b(F.relu(s.a(x)))
    return x.view(-1, 4, 2, *x.shape[2:]).transpose(1, 2).reshape(-1, 8, *x.shape[2:])


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def spread_of_one_channel(s, x):
    x[:, :1].std(1)  # no number in the dense net either, and nobody reads it
    return s.head(pooled(s.b(F.relu(s.a(x)))))


@net(image, zeroed="all", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_sum(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) * torch.tanh(x.sum(1, keepdim=True))))


@net(image, a=conv(3, 4), b=conv(3, 4), c=conv(3, 8), d=conv(8, 4))
def sum_of_everything(s, x):
    total = torch.sum(s.b(x))
    return s.d(s.c(x)) + s.a(x) * 0 + total


@net(image, 0.0, pinned="aten.max", a=conv(3, 12), head=nn.Linear(64, 5))
def channel_max(s, x):
    return s.head(s.a(x).max(1).values.flatten(1))


@net(image, 0.0, pinned="aten.amax", a=conv(3, 12), head=nn.Linear(64, 5))
def channel_amax(s, x):
    return s.head(s.a(x).amax(1).flatten(1))


@net(image, 0.4, pinned="aten.softmax", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_softmax(s, x):
    return s.head(pooled(s.b(s.a(x).softmax(1))))


@net(image, 0.4, pinned="aten.cumsum", a=conv(3, 12), b=conv(12, 8), head=head(8))
def channel_cumsum(s, x):
    return s.head(pooled(s.b(s.a(x).cumsum(1))))


@net(image, 0.4, pinned="aten.topk", a=conv(3, 12), b=conv(4, 8), head=head(8))
def channel_topk(s, x):
    return s.head(pooled(s.b(s.a(x).topk(4, dim=1).values)))


@net(image, 0.0, pinned="aten.argmax", a=conv(3, 12))
def channel_argmax(s, x):
    return s.a(x).argmax(1)


@net(image, zeroed="", a=conv(3, 12), b=conv(12, 8), head=head(8))
def normalized_over_channels(s, x):
    return s.head(pooled(s.b(F.normalize(s.a(x), dim=1))))


@net(vector, zeroed="", a=nn.Linear(10, 12), b=nn.Linear(10, 12))
def cosine(s, x):
    return F.cosine_similarity(s.a(x), s.b(x), dim=1)


@net(image, 0.4, a=conv(3, 12), lrn=nn.LocalResponseNorm(3), b=conv(12, 8), head=head(8))
def local_response_norm(s, x):
    return s.head(pooled(s.b(s.lrn(s.a(x)))))


@net(tokens, 0.0, pinned="aten.avg_pool", a=nn.Linear(5, 8), pool=nn.AvgPool2d(2), head=head(4))
def pooled_over_features(s, x):
    return s.head(s.pool(s.a(x)[:, None])[:, 0]).mean(1)


# -- norms ----------------------------------------------------------------------------------------------------------


@net(image, zeroed="", a=conv(3, 12), norm=nn.GroupNorm(1, 12), b=conv(12, 8), head=head(8))
def group_norm_one(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, a=conv(3, 12), norm=nn.GroupNorm(12, 12), b=conv(12, 8), head=head(8))
def group_norm_each(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, zeroed="", a=conv(3, 16), norm=nn.GroupNorm(4, 16), b=conv(16, 8), head=head(8))
def group_norm_between(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, zeroed="", a=conv(3, 16), norm=nn.GroupNorm(8, 16, affine=False), b=conv(16, 16), head=head(16))
def group_norm_many(s, x):
    x = s.norm(s.a(x))
    return s.head(pooled(x + F.relu(s.b(x))))


@net(image, a=conv(3, 12), norm=nn.InstanceNorm2d(12, affine=True, track_running_stats=True), b=conv(12, 8),
     head=head(8))  # fmt: skip
def instance_norm_running(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(image, a=conv(3, 12), one=nn.InstanceNorm2d(12, affine=True), b=conv(12, 8), two=nn.InstanceNorm2d(8),
     c=conv(8, 8), head=head(8))  # fmt: skip
def instance_norm(s, x):
    return s.head(pooled(s.c(F.relu(s.two(s.b(F.relu(s.one(s.a(x)))))))))


@net(tokens, zeroed="", a=nn.Linear(5, 16), norm=nn.LayerNorm(16), b=nn.Linear(16, 12), head=head(12))
def layer_norm(s, x):
    return s.head(F.gelu(s.b(s.norm(s.a(x))))).mean(1)


@net(tokens, zeroed="", a=nn.Linear(5, 16), norm=nn.LayerNorm(16, elementwise_affine=False), head=head(16))
def layer_norm_plain(s, x):
    return s.head(s.norm(s.a(x))).mean(1)


@net(tokens, zeroed="", a=nn.Linear(5, 16), b=nn.Linear(16, 16), c=nn.Linear(16, 16), n1=nn.LayerNorm(16),
     n2=nn.LayerNorm(16), head=head(16))  # fmt: skip
def layer_norm_residuals(s, x):
    x = s.a(x)
    x = x + F.relu(s.n1(s.b(x)))
    return s.head(x + F.relu(s.n2(s.c(x)))).mean(1)


@net(image, zeroed="", a=conv(3, 12), norm=nn.LayerNorm(12), b=conv(12, 8), head=head(8))
def layer_norm_channels_first(s, x):
    x = s.norm(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return s.head(pooled(s.b(x)))


@net(image, zeroed="", a=conv(3, 12), norm=nn.LayerNorm([12, 8, 8]), b=conv(12, 8), head=head(8))
def layer_norm_whole_image(s, x):
    return s.head(pooled(s.b(F.relu(s.norm(s.a(x))))))


@net(tokens, zeroed="", a=nn.Linear(5, 16), norm=nn.RMSNorm(16), b=nn.Linear(16, 12), head=head(12))
def rms_norm(s, x):
    return s.head(F.gelu(s.b(s.norm(s.a(x))))).mean(1)


@net(tokens, zeroed="", a=nn.Linear(5, 16), scale=weight(16), b=nn.Linear(16, 12), head=head(12))
def rms_norm_by_hand(s, x):
    x = s.a(x)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * s.scale
    return s.head(F.gelu(s.b(x))).mean(1)


@net(image, zeroed="", a=conv(3, 12), scale=weight(12), shift=weight(12), b=conv(12, 8), head=head(8))
def layer_norm_by_hand(s, x):
    x = s.a(x)
    mean = x.mean(1, keepdim=True)
    var = (x - mean).pow(2).mean(1, keepdim=True)
    x = s.scale[:, None, None] * ((x - mean) / torch.sqrt(var + 1e-6)) + s.shift[:, None, None]
    return s.head(pooled(s.b(x)))


@net(vector, zeroed="", a=nn.Linear(10, 16), scale=weight(16), b=nn.Linear(16, 16), head=head(16))
def norm_by_sum_of_squares(s, x):
    x = F.relu(s.a(x))
    x = torch.div(x, x.pow(2).sum(dim=1, keepdim=True).sqrt())
    return s.head(s.b(x * s.scale))


@net(tokens, zeroed="", a=nn.Linear(5, 12), grow=weight(1, 1, 12), head=head(12))
def global_response_norm(s, x):
    x = F.gelu(s.a(x))
    size = x.norm(p=2, dim=1, keepdim=True)
    return s.head(x + s.grow * (x * (size / (size.mean(-1, keepdim=True) + 1e-6)))).mean(1)


# -- attention ------------------------------------------------------------------------------------------------------


def heads_of(x: Tensor, heads: int) -> Tensor:
    n, t, c = x.shape
    return x.view(n, t, heads, c // heads).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


_QKV: dict[str, Any] = {
    **{"embed": nn.Linear(5, 12), "proj": nn.Linear(16, 12), "head": head(12)},
    **{"q": nn.Linear(12, 16), "k": nn.Linear(12, 16), "v": nn.Linear(12, 16)},
}


@net(tokens, **_QKV)
def attention(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, **_QKV)
def attention_by_hand(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return s.head(x + s.proj(joined(scores.softmax(-1) @ v))).mean(1)


@net(tokens, **_QKV)
def attention_divided(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 4) for f in (s.q, s.k, s.v))
    scores = torch.matmul(q, k.transpose(-2, -1)) / (k.size(-1) ** 0.5)
    y = torch.matmul(F.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
    return s.head(x + s.proj(y.view(x.shape[0], -1, 16))).mean(1)


@net(tokens, **_QKV)
def attention_one_head(s, x):
    x = s.embed(x)
    scores = torch.bmm(s.q(x), s.k(x).transpose(1, 2)) / 4.0
    return s.head(x + s.proj(torch.bmm(scores.softmax(-1), s.v(x)))).mean(1)


@net(tokens, **_QKV)
def attention_masked(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))).mean(1)


@net(tokens, **_QKV)
def attention_causal(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))).mean(1)


@net(tokens, **_QKV)
def attention_einsum(s, x):
    x = s.embed(x)
    q, k, v = (f(x).view(-1, 6, 2, 8) for f in (s.q, s.k, s.v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    return s.head(x + s.proj(y.reshape(-1, 6, 16))).mean(1)


@net(tokens, **_QKV, wider=nn.Linear(5, 9), kv=nn.Linear(9, 32))
def attention_across(s, x):
    y = s.wider(x)
    x = s.embed(x)
    k, v = s.kv(y).chunk(2, -1)
    q, k, v = (heads_of(f, 2) for f in (s.q(x), k, v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), qkv=nn.Linear(12, 48), proj=nn.Linear(16, 12), head=head(12))
def attention_fused(s, x):
    x = s.embed(x)
    b, n, _ = x.shape
    q, k, v = s.qkv(x).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 16)
    return s.head(x + s.proj(y)).mean(1)


@net(
    tokens,
    zeroed="all",
    embed=nn.Linear(5, 12),
    qkv=nn.Linear(12, 48, bias=False),
    proj=nn.Linear(16, 12),
    head=head(12),
)
def attention_fused_by_hand(s, x):
    x = s.embed(x)
    b, n, _ = x.shape
    qkv = s.qkv(x).reshape(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0] * 8**-0.5, qkv[1], qkv[2]
    y = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return s.head(x + s.proj(y.transpose(1, 2).reshape(b, n, -1))).mean(1)


@net(tokens, embed=nn.Linear(5, 12), qkv=nn.Linear(12, 48), proj=nn.Linear(16, 12), head=head(12))
def attention_split_in_three(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(part, 2) for part in s.qkv(x).split(16, dim=-1))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), attend=nn.MultiheadAttention(12, 3, batch_first=True),
     mlp=nn.Linear(12, 16), back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def multihead_attention(s, x):
    x = s.embed(x)
    x = x + s.attend(x, x, x, need_weights=False)[0]
    return s.head(x + s.back(F.gelu(s.mlp(x)))).mean(1)


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), attend=nn.MultiheadAttention(12, 3), mlp=nn.Linear(12, 16),
     back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def multihead_attention_weights(s, x):
    x = s.embed(x).transpose(0, 1)
    y, weights = s.attend(x, x, x)
    return s.head((y + s.back(F.gelu(s.mlp(x)))).mean(0)), weights


@net(tokens, zeroed="all", embed=nn.Linear(5, 12), context=nn.Linear(5, 8), head=head(12),
     attend=nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True))  # fmt: skip
def multihead_attention_across(s, x):
    other = s.context(x)
    x = s.embed(x)
    return s.head(x + s.attend(x, other, other, need_weights=False)[0]).mean(1)


@net(tokens, zeroed="", embed=nn.Linear(5, 12), head=head(12),
     layer=nn.TransformerDecoderLayer(12, 2, 16, batch_first=True, norm_first=True))  # fmt: skip
def decoder_layer(s, x):
    x = s.embed(x)
    return s.head(s.layer(x, x.flip(1))).mean(1)


@net(tokens, zeroed="", embed=nn.Linear(5, 12), layer=nn.TransformerEncoderLayer(12, 2, 16, batch_first=True),
     head=head(12))  # fmt: skip
def encoder_layer(s, x):
    return s.head(s.layer(s.embed(x))).mean(1)


_GROUPED: dict[str, Any] = {
    **{"embed": nn.Linear(5, 12), "proj": nn.Linear(32, 12), "head": head(12)},
    **{"q": nn.Linear(12, 32), "k": nn.Linear(12, 16), "v": nn.Linear(12, 16)},
}


@net(tokens, **_GROUPED)
def grouped_query_interleaved(s, x):
    x = s.embed(x)
    q = heads_of(s.q(x), 4)
    k, v = (heads_of(f(x), 2).repeat_interleave(2, dim=1) for f in (s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, **_GROUPED)
def grouped_query_expanded(s, x):
    x = s.embed(x)
    q = heads_of(s.q(x), 4)
    k, v = (heads_of(f(x), 2)[:, :, None].expand(-1, 2, 2, 6, 8).reshape(-1, 4, 6, 8) for f in (s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, **_GROUPED)
def grouped_query_flag(s, x):
    x = s.embed(x)
    q, k, v = heads_of(s.q(x), 4), heads_of(s.k(x), 2), heads_of(s.v(x), 2)
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))).mean(1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-two, one], -1) * sin


@net(tokens, **_QKV, fixed_angles=torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.5, 0.2, 0.1])).repeat(1, 2))
def rotary(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    cos, sin = s.fixed_angles.cos(), s.fixed_angles.sin()
    y = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
    return s.head(x + s.proj(joined(y))).mean(1)


@net(tokens, **_QKV)
def rotary_computed(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    turns = 1.0 / (100 ** (torch.arange(0, 8, 2).float() / 8))
    angles = torch.outer(torch.arange(6).float(), turns).repeat(1, 2)
    q, k = (rotated(part, angles.cos(), angles.sin()) for part in (q, k))
    y = F.scaled_dot_product_attention(q, k, v)
    return s.head(x + s.proj(joined(y))).mean(1)


@net(tokens, **_QKV)
def rotary_interleaved(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    angles = torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.5, 0.2, 0.1])).repeat_interleave(2, 1)
    turned = [torch.stack([-part[..., 1::2], part[..., ::2]], -1).reshape(part.shape) for part in (q, k)]
    q, k = (part * angles.cos() + other * angles.sin() for part, other in zip((q, k), turned, strict=True))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, zeroed="", **_QKV, nq=nn.RMSNorm(8), nk=nn.RMSNorm(8))
def attention_with_normed_keys(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(s.nq(q), s.nk(k), v)))).mean(1)


@net(tokens, **_QKV, bias=weight(2, 6, 6))
def attention_with_bias(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=s.bias)))).mean(1)


@net(tokens, **_QKV, bias_table=weight(11, 2), where=(torch.arange(6)[:, None] - torch.arange(6) + 5).flatten())
def relative_position_bias(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    bias = s.bias_table[s.where].view(6, 6, 2).permute(2, 0, 1).unsqueeze(0)
    scores = q @ k.transpose(-2, -1) * 8**-0.5 + bias
    return s.head(x + s.proj(joined(scores.softmax(-1) @ v))).mean(1)


@net(tokens, 0.9, pinned="aten.matmul", **_QKV, mix=nn.Linear(4, 4))
def talking_heads(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 4) for f in (s.q, s.k, s.v))
    scores = s.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1) * 0.5).permute(0, 3, 1, 2)
    return s.head(x + s.proj(joined(scores.softmax(-1) @ v))).mean(1)


@net(tokens, **{**_QKV, "proj": lambda: weight(16, 12)}, shift=weight(12))
def attention_into_a_product_of_rows(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 2) for f in (s.q, s.k, s.v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1)
    return s.head(x + torch.addmm(s.shift, y.view(-1, y.size(-1)), s.proj).view(x.shape)).mean(1)


@net(tokens, **_QKV)
def many_narrow_heads(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 8) for f in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(F.scaled_dot_product_attention(q, k, v)))).mean(1)


@net(tokens, 0.4, pinned="aten.softmax", **_QKV)
def attention_over_channels(s, x):
    x = s.embed(x)
    q, k, v = (heads_of(f(x), 4).transpose(2, 3) for f in (s.q, s.k, s.v))
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return s.head(x + s.proj(joined(y.transpose(2, 3)))).mean(1)


@net(image, a=conv(3, 12), qkv=conv(12, 24, kernel=1), proj=conv(8, 12, kernel=1), head=head(12))
def linear_attention(s, x):
    x = F.relu(s.a(x))
    q, k, v = s.qkv(x).flatten(2).chunk(3, 1)
    context = k.softmax(-1) @ v.transpose(1, 2)
    y = (context.transpose(1, 2) @ F.relu(q)).unflatten(2, (8, 8))
    return s.head(pooled(x + s.proj(y)))


@net(tokens, embed=nn.Linear(5, 12), token=weight(1, 1, 12), position=weight(1, 7, 12), mlp=nn.Linear(12, 16),
     back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def class_token(s, x):
    x = torch.cat([s.token.expand(x.shape[0], -1, -1), s.embed(x)], dim=1) + s.position
    x = x + s.back(F.gelu(s.mlp(x)))
    return s.head(x[:, 0])


@net(tokens, embed=nn.Linear(5, 12), mlp=nn.Linear(12, 16), back=nn.Linear(16, 12), head=head(12))
def sine_positions_computed(s, x):
    angles = torch.arange(6.0)[:, None] * torch.exp(torch.arange(0.0, 12.0, 2.0) / -12)
    x = s.embed(x) + torch.cat([angles.sin(), angles.cos()], 1)
    return s.head((x + s.back(F.gelu(s.mlp(x)))).mean(1))


@net(image, patch=nn.Conv2d(3, 12, 4, stride=4), position=weight(1, 4, 12), mlp=nn.Linear(12, 16),
     back=nn.Linear(16, 12), head=head(12))  # fmt: skip
def position_embedding(s, x):
    x = s.patch(x).flatten(2).transpose(1, 2) + s.position
    return s.head((x + s.back(F.gelu(s.mlp(x)))).mean(1))


@net(words, table=nn.Embedding(20, 12), places=nn.Embedding(6, 12), mlp=nn.Linear(12, 16), head=head(16))
def word_and_place_tables(s, x):
    x = s.table(x) + s.places(torch.arange(6))
    return s.head(F.relu(s.mlp(x))).mean(1)


# -- products -------------------------------------------------------------------------------------------------------


@net(vector, a=nn.Linear(10, 12), b=nn.Linear(10, 12), head=head(12))
def bilinear_product(s, x):
    return s.head(s.a(x) * torch.tanh(s.b(x)))


@net(vector, 0.4, pinned="aten.flatten", a=nn.Linear(10, 6), b=nn.Linear(10, 8), head=head(48))
def outer_product_flattened(s, x):
    x = s.a(x).unsqueeze(2) * s.b(x).unsqueeze(1)
    return s.head(F.relu(x).flatten(1))


@net(vector, 0.4, pinned="aten.reshape", a=nn.Linear(10, 6), b=nn.Linear(10, 8), head=head(48))
def outer_product_by_bmm(s, x):
    x = torch.bmm(s.a(x).unsqueeze(2), s.b(x).unsqueeze(1))
    return s.head(x.view(-1, 48))


@net(image, 0.0, pinned="aten.flatten", a=conv(3, 8), head=head(64))
def gram_matrix(s, x):
    x = s.a(x).flatten(2)
    return s.head((x @ x.transpose(1, 2) / 64).flatten(1))


@net(vector, a=nn.Linear(10, 6), b=nn.Linear(10, 8), join=nn.Bilinear(6, 8, 12), head=head(12))
def bilinear_layer(s, x):
    return s.head(F.relu(s.join(s.a(x), s.b(x))))


@net(vector, a=nn.Linear(10, 8), b=nn.Linear(10, 8))
def dot_product(s, x):
    return (s.a(x) * s.b(x)).sum(-1)


@net(vector, zeroed="all", fields=nn.Linear(10, 24), head=head(3))
def factorisation_machine(s, x):
    v = s.fields(x).view(-1, 3, 8)
    return s.head(0.5 * ((v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)).expand(-1, 3))


@net(vector, a=nn.Linear(10, 12), b=nn.Linear(10, 12), c=nn.Linear(12, 8), head=head(8))
def larger_of_two(s, x):
    x = torch.max(s.a(x), torch.minimum(s.b(x), s.a(x)))
    return s.head(F.relu(s.c(x)).lerp(s.c(-x), 0.3))


@net(image, a=conv(3, 12), w=weight(8, 12), head=head(8))
def einsum_as_a_conv(s, x):
    return s.head(torch.einsum("bchw,oc->bohw", s.a(x), s.w).mean((2, 3)))


@net(tokens, a=nn.Linear(5, 12), w=weight(8, 12), head=head(8))
def einsum_with_dots(s, x):
    return s.head(torch.einsum("...c,oc->...o", s.a(x), s.w)).mean(1)


@net(image, 0.0, pinned="aten.einsum", a=conv(3, 8), head=head(8))
def einsum_of_a_diagonal(s, x):
    return s.head(torch.einsum("bchh->bc", s.a(x)))


@net(tokens, a=nn.Linear(5, 12), w=weight(12, 8), head=head(8))
def einsum_without_an_arrow(s, x):
    return s.head(torch.einsum("btc,cz", s.a(x), s.w)).mean(1)


@net(image, a=conv(3, 12), w=weight(12, 8), head=head(8))
def tensordot(s, x):
    return s.head(torch.tensordot(s.a(x), s.w, dims=([1], [0])).mean((1, 2)))


@net(vector, a=nn.Linear(10, 12), w=weight(12), b=nn.Linear(1, 8), head=head(8))
def times_a_vector(s, x):
    return s.head(F.relu(s.b((F.relu(s.a(x)) @ s.w).unsqueeze(1))))


@net(image, a=conv(3, 12), route=nn.Linear(12, 2), bank=weight(2, 8 * 12 * 9), head=head(8), zeroed="")
def conditional_conv(s, x):
    x = s.a(x)
    n, c, h, w = x.shape
    kernels = (torch.sigmoid(s.route(pooled(x))) @ s.bank).view(n * 8, 12, 3, 3)
    x = F.conv2d(x.view(1, n * c, h, w), kernels, groups=n)
    return s.head(pooled(x.view(n, 8, 6, 6)))


# -- in-place -------------------------------------------------------------------------------------------------------


@net(image, a=conv(3, 12), b=conv(12, 12), act=nn.ReLU(inplace=True), head=head(12))
def in_place_ops(s, x):
    x = s.act(s.a(x))
    y = s.b(x)
    y += x
    return s.head(pooled(y.relu_().mul_(2)))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(8, 8), head=head(8))
def in_place_add_scaled(s, x):
    one, two, three = s.a(x), s.b(x), s.c(x)
    total = two + three
    one.add_(two, alpha=2.0)
    return s.head(pooled(s.d(total + one)))


@net(image, a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), d=conv(8, 8), head=head(8))
def written_out(s, x):
    with torch.no_grad():
        one, two, three = s.a(x), s.b(x), s.c(x)
        total = two + three
        torch.add(one, two, alpha=2.0, out=three)
    return s.head(pooled(s.d(total + three)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def partial_write(s, x):
    x = F.relu(s.a(x))
    x[:, :2] = 0
    return s.head(pooled(s.b(x)))


@net(image, a=conv(3, 12), side=conv(3, 4), b=conv(12, 8), head=head(8))
def partial_write_of_a_tensor(s, x):
    y = s.a(x)
    y[:, 4:8] = s.side(x)
    return s.head(pooled(s.b(y)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def view_written(s, x):
    x = s.a(x)
    part = x[:, :4]
    part.mul_(3.0)
    return s.head(pooled(s.b(x)))


@net(image, a=conv(3, 12), b=conv(12, 8), head=head(8))
def view_of_places_written(s, x):
    x = s.a(x)
    x[:, :, 0] = 0.5
    return s.head(pooled(s.b(x)))


@net(image, a=conv(3, 6), b=conv(3, 6), c=conv(12, 8), head=head(8))
def filled_buffer(s, x):
    joined = x.new_zeros(x.shape[0], 12, 8, 8)
    joined[:, :6] = s.a(x)
    joined[:, 6:] = s.b(x)
    return s.head(pooled(s.c(joined)))


@net(image, 0.4, pinned="aten.index_fill_", a=conv(3, 12), b=conv(12, 8), head=head(8))
def written_by_index(s, x):
    x = s.a(x)
    x[:, [1, 5]] = 2.0
    return s.head(pooled(s.b(x)))


@net(tokens, a=nn.Linear(5, 12), b=nn.Conv1d(12, 8, 3), head=head(8))
def transposed_in_place(s, x):
    x = s.a(x)
    x.transpose_(1, 2)
    return s.head(s.b(x).mean(2))


# -- inputs and outputs ---------------------------------------------------------------------------------------------


@net(lambda n: (normal(n, 3, 8, 8), normal(n + 1, 10)[:n]), a=conv(3, 12), b=nn.Linear(10, 12), head=head(12))
def two_inputs(s, x, y):
    return s.head(pooled(F.relu(s.a(x) * s.b(y)[:, :, None, None])))


@net(lambda n: (normal(n, 10), normal(n + 1, 6)[:n]), zeroed="all", a=nn.Linear(10, 8), b=nn.Linear(6, 8),
     head=head(16))  # fmt: skip
def two_inputs_three_outputs(s, x, y):
    x, y = F.relu(s.a(x)), F.relu(s.b(y))
    return x.sum(1), (x * y).sum(1), s.head(torch.cat([x, y], 1))


@net(image, stem=conv(3, 12), a=conv(12, 8), box=head(8), label=nn.Linear(12, 3))
def dict_output(s, x):
    x = s.stem(x)
    return {"box": s.box(pooled(s.a(x))), "label": (s.label(pooled(x)), x.shape[0])}


@net(image, stem=conv(3, 12), a=conv(12, 8), head=head(8))
def features_are_an_output(s, x):
    features = F.relu(s.stem(x))
    y = F.relu(s.a(features))
    return features, s.head(pooled(y))


@net(words, table=nn.Embedding(20, 12), fc=nn.Linear(12, 16), head=head(16))
def text_classifier(s, x):
    return s.head(F.relu(s.fc(s.table(x).mean(1))))


@net(words, table=nn.Embedding(20, 12, padding_idx=0), a=nn.Conv1d(12, 8, 3), b=nn.Conv1d(12, 8, 2), head=head(16))
def text_cnn(s, x):
    x = s.table(x).transpose(1, 2)
    return s.head(torch.cat([F.relu(f(x)).amax(2) for f in (s.a, s.b)], 1))


@net(words, bag=nn.EmbeddingBag(20, 12, mode="mean"), head=head(12))
def embedding_bag(s, x):
    return s.head(s.bag(x))


@net(lambda n: (normal(n, 3, 8, 8), torch.arange(n) % 4), a=conv(3, 12), table=nn.Embedding(4, 24), b=conv(12, 8),
     head=head(8))  # fmt: skip
def modulated_by_a_class(s, x, y):
    scale, shift = s.table(y).chunk(2, 1)
    return s.head(pooled(s.b(F.relu(s.a(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]))))


@net(lambda n: (normal(n, 3, 8, 8), normal(n + 1, 2, 8, 8)[:n].tanh()), a=conv(3, 12), b=conv(12, 8), head=head(8))
def warped(s, x, grid):
    return s.head(pooled(s.b(F.grid_sample(s.a(x), grid.permute(0, 2, 3, 1), align_corners=False))))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def branch_on_shape(s, x):
    x = s.a(x)
    return s.head(pooled(s.b(x) if x.shape[-1] > 4 else x))


@net(image, a=conv(3, 12), b=conv(12, 12), head=head(12))
def branch_on_values(s, x):
    x = s.a(x)
    x = F.softplus(x) if x.max() > -1e9 else F.relu(x)
    return s.head(pooled(s.b(x)))


# -- recurrent ------------------------------------------------------------------------------------------------------


@net(tokens, embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, batch_first=True), head=head(12))
def lstm(s, x):
    return s.head(s.rnn(s.embed(x))[0][:, -1])


@net(tokens, rnn=nn.RNN(5, 12, batch_first=True), head=head(12))
def plain_rnn_of_the_input(s, x):
    return s.head(s.rnn(x)[0])


@net(words, table=nn.Embedding(20, 8), rnn=nn.LSTM(8, 12, 3, dropout=0.5), head=head(12))
def lstm_stacked(s, x):
    return s.head(s.rnn(s.table(x).transpose(0, 1))[0].transpose(0, 1))


@net(tokens, rnn=nn.LSTM(5, 8, num_layers=2, bidirectional=True, batch_first=True), mlp=nn.Linear(16, 12),
     head=head(12))  # fmt: skip
def lstm_both_ways(s, x):
    return s.head(F.relu(s.mlp(s.rnn(x)[0]))).mean(1)


@net(tokens, rnn=nn.LSTM(5, 12, bias=False, batch_first=True), head=head(24))
def lstm_final_states(s, x):
    _, (h, c) = s.rnn(x)
    return s.head(torch.cat([h[-1], c[-1]], 1))


@net(tokens, rnn=nn.LSTM(5, 8, 2, bidirectional=True, batch_first=True), head=head(16))
def lstm_final_states_both_ways(s, x):
    _, (h, _) = s.rnn(x)
    return s.head(torch.cat([h[-2], h[-1]], 1))


@net(tokens, rnn=nn.LSTM(5, 12, proj_size=8, batch_first=True), mlp=nn.Linear(8, 12), head=head(12))
def lstm_projected(s, x):
    return s.head(F.relu(s.mlp(s.rnn(x)[0]))).mean(1)


@net(tokens, embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, 2, bias=False, bidirectional=True, proj_size=6),
     head=head(12), states=head(18))  # fmt: skip
def lstm_projected_both_ways(s, x):
    y, (h, c) = s.rnn(s.embed(x).transpose(0, 1))
    return s.head(y.mean(0)), s.states(torch.cat([h[1], c[2]], 1))


@net(tokens, h=weight(2, 1, 6), rnn=nn.LSTM(5, 12, bidirectional=True, proj_size=6, batch_first=True), head=head(12),
     c=weight(2, 1, 12))  # fmt: skip
def lstm_projected_from_a_learned_state(s, x):
    h, c = (state.expand(-1, x.shape[0], -1).contiguous() for state in (s.h, s.c))
    return s.head(s.rnn(x, (h, c))[0].amax(1))


@net(lambda n: (normal(n, 6, 5), normal(n + 1, 2, 12)[:n]), 0.04, embed=nn.Linear(5, 8),
     rnn=nn.LSTM(8, 12, 2, batch_first=True), head=head(12))  # fmt: skip
def lstm_from_a_given_state(s, x, h):
    h = h.transpose(0, 1).contiguous()
    return s.head(s.rnn(s.embed(x), (h, torch.tanh(h)))[0][:, -1])


@net(tokens, h=weight(2, 1, 12), c=weight(2, 1, 12), rnn=nn.LSTM(5, 12, bidirectional=True, batch_first=True),
     head=head(24))  # fmt: skip
def lstm_from_a_learned_state(s, x):
    h, c = (state.expand(-1, x.shape[0], -1).contiguous() for state in (s.h, s.c))
    return s.head(s.rnn(x, (h, c))[0].amax(1))


@net(tokens, start=nn.Linear(5, 12), rnn=nn.GRU(5, 12, batch_first=True), head=head(12))
def gru_from_a_computed_state(s, x):
    return s.head(s.rnn(x, torch.tanh(s.start(x.mean(1)))[None])[1][0])


@net(tokens, rnn=nn.LSTM(5, 12, batch_first=True), head=head(12))
def lstm_from_written_zeros(s, x):
    h = x.new_zeros(1, x.shape[0], 12)
    return s.head(s.rnn(x, (h, h))[0].mean(1))


@net(tokens, a=nn.LSTM(5, 12, batch_first=True), b=nn.LSTM(12, 8, batch_first=True), head=head(8))
def two_lstms(s, x):
    return s.head(s.b(F.relu(s.a(x)[0]))[1][0][0])


@net(
    tokens,
    zeroed="",
    embed=nn.Linear(5, 12),
    rnn=nn.LSTM(12, 12, batch_first=True),
    norm=nn.LayerNorm(12),
    head=head(12),
)
def lstm_residual(s, x):
    x = s.embed(x)
    return s.head(s.norm(x + s.rnn(x)[0]).mean(1))


@net(tokens, embed=nn.Linear(5, 12), rnn=nn.LSTM(12, 12, batch_first=True), head=head(12))
def lstm_used_twice(s, x):
    first, state = s.rnn(s.embed(x))
    return s.head(s.rnn(first, state)[0][:, -1])


@net(lambda n: (normal(n, 3, 5),), embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, bidirectional=True), head=head(24))
def lstm_steps_first(s, x):
    return s.head(s.rnn(s.embed(x))[0])


@net(tokens, 0.5, rnn=nn.LSTM(5, 1, batch_first=True), mlp=nn.Linear(1, 8), head=head(8))
def lstm_of_one_unit(s, x):
    return s.head(s.mlp(s.rnn(x)[0]).mean(1))


@net(tokens, embed=nn.Linear(5, 8), rnn=nn.GRU(8, 12), head=head(12))
def gru(s, x):
    return s.head(s.rnn(s.embed(x).transpose(0, 1))[1][0])


@net(tokens, rnn=nn.GRU(5, 8, 2, bias=False, bidirectional=True, batch_first=True), head=head(16))
def gru_both_ways(s, x):
    return s.head(s.rnn(x)[0].amax(1))


@net(tokens, embed=nn.Linear(5, 8), rnn=nn.RNN(8, 12, 2, batch_first=True), head=head(12))
def rnn(s, x):
    return s.head(s.rnn(s.embed(x))[0]).mean(1)


@net(tokens, rnn=nn.RNN(5, 12, nonlinearity="relu", bidirectional=True, bias=False), head=head(24))
def rnn_relu(s, x):
    y, h = s.rnn(x.transpose(0, 1))
    return s.head(y.mean(0) + h.transpose(0, 1).flatten(1))


@net(tokens, wx=nn.Linear(5, 32), wh=nn.Linear(8, 32, bias=False), head=head(8))
def lstm_by_hand(s, x):
    h = c = x.new_zeros(x.shape[0], 8)
    for t in range(3):
        i, f, g, o = (s.wx(x[:, t]) + s.wh(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return s.head(h)


@net(tokens, embed=nn.Linear(5, 8), cell=nn.LSTMCell(8, 12), head=head(12))
def lstm_cell(s, x):
    x = s.embed(x)
    h = c = x.new_zeros(x.shape[0], 12)
    for t in range(2):
        h, c = s.cell(x[:, t], (h, c))
    return s.head(h)


@net(tokens, first=nn.GRUCell(5, 12, bias=False), second=nn.GRUCell(12, 8), head=head(8))
def gru_cells(s, x):
    a = b = None
    for t in range(3):
        a = s.first(x[:, t], a)
        b = s.second(a, b)
    return s.head(b)


@net(tokens, start=weight(12), tanh=nn.RNNCell(5, 12), relu=nn.RNNCell(12, 12, nonlinearity="relu"), head=head(12))
def rnn_cells(s, x):
    h = s.start.expand(x.shape[0], -1)
    for t in range(2):
        h = s.relu(s.tanh(x[:, t], h), h)
    return s.head(h)


@net(signal, a=nn.Conv1d(3, 12, 3, stride=2), bn=nn.BatchNorm1d(12), rnn=nn.LSTM(12, 8, 2, bidirectional=True,
     batch_first=True), head=head(16))  # fmt: skip
def speech(s, x):
    x = F.relu(s.bn(s.a(x)))
    return s.head(s.rnn(x.transpose(1, 2))[0])


@net(image, a=block(3, 8), rnn=nn.GRU(32, 12, bidirectional=True, batch_first=True), head=head(24))
def columns_read_in_turn(s, x):
    x = F.max_pool2d(s.a(x), (2, 1))
    return s.head(s.rnn(x.permute(0, 3, 1, 2).flatten(2))[0])


@net(lambda n: (*words(n), words(n + 1)[0][:n, :4]), zeroed="all", table=nn.Embedding(20, 8),
     encoder=nn.GRU(8, 12, batch_first=True), decoder=nn.GRU(8, 12, batch_first=True), query=nn.Linear(12, 12),
     head=nn.Linear(24, 20))  # fmt: skip
def translation_with_attention(s, x, y):
    keys, state = s.encoder(s.table(x))
    found, _ = s.decoder(s.table(y), state)
    weights = (s.query(found) @ keys.transpose(1, 2)).softmax(-1)
    return s.head(torch.cat([found, weights @ keys], 2))


@net(words, zeroed="all", table=nn.Embedding(20, 12), rnn=nn.LSTM(12, 12, batch_first=True))
def language_model(s, x):
    return s.rnn(s.table(x))[0] @ s.table.weight.t()


@net(tokens, embed=nn.Linear(5, 8), rnn=nn.LSTM(8, 12, batch_first=True), head=head(12))
def lstm_over_packed_sequences(s, x):
    lengths = torch.full((x.shape[0],), 6)
    packed = nn.utils.rnn.pack_padded_sequence(s.embed(x), lengths, batch_first=True)
    return s.head(s.rnn(packed)[1][0][0])


@net(tokens, rnn=nn.GRU(5, 12, bidirectional=True, batch_first=True), head=head(24))
def gru_over_packed_sequences(s, x):
    lengths = torch.full((x.shape[0],), 4)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    y, _ = nn.utils.rnn.pad_packed_sequence(s.rnn(packed)[0], batch_first=True, padding_value=0.5)
    return s.head(y)


# -- operators without a row ----------------------------------------------------------------------------------------


@torch.library.custom_op("micronets::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@net(image, 0.4, pinned="micronets.cube", a=conv(3, 12), b=conv(12, 8), head=head(8))
def custom_op(s, x):
    x = torch.tanh(s.a(x))
    x = cube(x)  # the op without a row
    return s.head(pooled(s.b(x)))


@net(image, 0.4, pinned="aten.histc", a=conv(3, 12), b=conv(3, 8), head=head(8))
def histogram(s, x):
    counts = torch.histc(s.a(x), bins=5, min=-1, max=1)  # the op without a row
    return s.head(pooled(s.b(x))), counts


@net(vector, 0.4, pinned="aten.fft", a=nn.Linear(10, 12), b=nn.Linear(12, 8), head=head(8))
def fourier(s, x):
    x = torch.fft.fft(s.a(x)).real  # the op without a row
    return s.head(s.b(x))


@net(vector, 0.4, pinned="aten.linalg_matrix_exp", a=nn.Linear(10, 9), b=nn.Linear(9, 8), head=head(8))
def matrix_exponential(s, x):
    x = torch.linalg.matrix_exp(s.a(x).view(-1, 3, 3) / 3)  # the op without a row
    return s.head(s.b(x.flatten(1)))
