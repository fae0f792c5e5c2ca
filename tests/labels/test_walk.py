"""Labels, by hand: where they are born, what ties and pins them, and that a replay repeats what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim_model.graph.trace import trace
from slim_model.labels.label import label
from slim_model.labels.labelled import Labelled
from slim_model.labels.values import Birth, Replay, Value, fixed_value
from slim_model.labels.walk import Walk
from slim_model.ops import flow_of


def labelled_by(model: nn.Module, *inputs: Tensor, flow: Callable[..., Any] = flow_of, **options: Any) -> Labelled:
    return label(Walk(trace(model.eval(), inputs), **options), flow)


def standing(**options: Any) -> Walk:
    """A walk that stands at one node, ``relu``, for rows' verbs to be called on."""
    graph = trace(nn.ReLU().eval(), (torch.zeros(2, 3),))
    walk = Walk(graph, **options)
    walk.enter(next(node for node in graph.nodes if node.op == "call_function"))
    return walk


@pytest.fixture
def walk() -> Walk:
    return standing()


def labels(*numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def ties_of(said: Walk | Labelled) -> list[tuple[int, int]]:
    ties = (said.labelled() if isinstance(said, Walk) else said).ties
    return [pair for a, b, _ in ties for pair in zip(a.tolist(), b.tolist(), strict=True) if pair[0] != pair[1]]


def pins_of(said: Walk | Labelled) -> list[tuple[list[int], str]]:
    pins = (said.labelled() if isinstance(said, Walk) else said).pins
    return [(pin.labels.tolist(), pin.why) for pin in pins]


# -- birth ----------------------------------------------------------------------------------------------------------


def test_every_index_of_every_axis_is_born_once() -> None:
    labelled = labelled_by(nn.Linear(3, 2), torch.zeros(2, 3))
    assert labelled.births == (Birth(1, 2, "weight", 0), Birth(3, 3, "weight", 1), Birth(6, 2, "bias", 0))
    assert tuple(labelled.births_of("weight")) == labelled.births[:2]
    assert labelled.labels == 8  # 0 is FIXED, 1-2 the rows, 3-5 the columns, 6-7 the bias


def test_an_axis_of_one_position_cannot_lose_it() -> None:
    labelled = labelled_by(nn.Linear(1, 2), torch.zeros(2, 1))
    assert [(birth.owner, birth.axis) for birth in labelled.births] == [("weight", 0), ("bias", 0)]


def test_a_shared_tensor_has_one_set_of_labels() -> None:
    layer = nn.Linear(3, 3, bias=False)
    labelled = labelled_by(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 3))
    assert labelled.births == (Birth(1, 3, "0.weight", 0), Birth(4, 3, "0.weight", 1))
    other = nn.Linear(3, 3, bias=False)
    other.weight = layer.weight
    labelled = labelled_by(nn.Sequential(layer, nn.ReLU(), other), torch.zeros(2, 3))
    assert len(labelled.births) == 2
    assert set(labelled.shared.items()) <= {("2.weight", "0.weight")}


def test_labels_a_node_makes_are_its_own(walk: Walk) -> None:
    assert walk.fresh(2).tolist() == [1, 2]
    assert walk.labelled().births == (Birth(1, 2, f"@{walk.node.name}", 0),)


# -- what a layer does ----------------------------------------------------------------------------------------------


def test_a_linear_layer_ties_its_bias_and_is_pinned_by_what_it_reads_and_by_the_output() -> None:
    labelled = labelled_by(nn.Linear(3, 2), torch.zeros(2, 3))
    assert ties_of(labelled) == [(1, 6), (2, 7)]  # rows of the weight and the bias
    assert pins_of(labelled) == [
        ([3, 4, 5], "it is contracted with fixed values"),
        ([1, 2], "it is an output of the model"),
    ]
    assert [axis.tolist() for axis, _ in labelled.made] == [[1, 2]]
    assert labelled.read == ()  # what a fixed value meets is read by nobody who could do with less


def test_a_second_layer_reads_what_the_first_makes() -> None:
    labelled = labelled_by(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)), torch.zeros(2, 3))
    assert labelled.births[3] == Birth(10, 2, "1.weight", 1)
    assert ties_of(labelled) == [(1, 10), (2, 11)]
    assert sorted(axis.tolist() for axis in labelled.read) == [[1, 2], [10, 11]]


def test_an_operator_without_a_rule_pins_what_it_takes() -> None:
    def all_but_relu(node: Any) -> Any:
        return None if "relu" in str(node.target) else flow_of(node)

    labelled = labelled_by(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(2, 3), flow=all_but_relu)
    assert [str(node.target) for node in labelled.unknown] == ["aten.relu.default"]
    assert pins_of(labelled)[1:] == [([1, 2], "this operation has no rule")]  # its output is fixed: no pin there


def test_a_rule_that_fails_pins_and_says_what_failed() -> None:
    def refusing(walk: Walk, **arguments: Any) -> Any:
        raise ValueError("not this form")

    def flow(node: Any) -> Any:
        return refusing if "relu" in str(node.target) else flow_of(node)

    labelled = labelled_by(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(2, 3), flow=flow)
    why = "its rule does not cover this case (not this form)"
    assert pins_of(labelled)[1:] == [([1, 2], why)]
    assert labelled.pinned_nodes == {"relu": why}


def test_a_node_that_could_not_be_cut_is_pinned_next_time() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    labelled = labelled_by(model, torch.zeros(2, 3), pinned_nodes={"relu": "it could not be cut"})
    assert pins_of(labelled)[1:] == [([1, 2], "it could not be cut")]


# -- the verbs of the rows ------------------------------------------------------------------------------------------


def test_axes_that_agree_are_tied_position_by_position(walk: Walk) -> None:
    first = labels(1, 2)
    assert walk.agree([first, labels(3, 4), labels(5, 6)], "") is first
    assert ties_of(walk) == [(1, 3), (2, 4), (1, 5), (2, 6)]


def test_an_axis_that_agrees_with_a_fixed_one_is_fixed(walk: Walk) -> None:
    assert walk.agree([labels(1, 2), None], "they meet") is None
    assert pins_of(walk) == [([1, 2], "they meet")]


def test_values_meet_from_the_back_and_an_axis_of_one_asks_for_nothing(walk: Walk) -> None:
    one, other = Value((4, 1, 2), (None, None, labels(1, 2))), Value((3, 2), (labels(3, 4, 5), labels(6, 7)))
    shape, axes = walk.meet([one, other], "")
    assert shape == (4, 3, 2)
    assert [axis if axis is None else axis.tolist() for axis in axes] == [None, [3, 4, 5], [1, 2]]
    assert ties_of(walk) == [(1, 6), (2, 7)]


def test_a_value_that_meets_a_fixed_one_is_pinned(walk: Walk) -> None:
    walk.meet([Value((2,), (labels(1, 2),)), fixed_value((5, 2))], "it meets a fixed value")
    assert pins_of(walk) == [([1, 2], "it meets a fixed value")]


def test_labels_that_vary_along_one_axis_settle_there(walk: Walk) -> None:
    [(axis, along)] = walk.settle(labels([1, 1, 1], [2, 2, 2]))
    assert (axis, along.tolist()) == (0, [1, 2])
    assert ties_of(walk) == []


def test_labels_that_vary_along_two_axes_are_tied_along_the_one_with_fewer(walk: Walk) -> None:
    [(axis, along)] = walk.settle(labels([1, 2, 3], [4, 5, 6]))  # 2 heads of width 3: width keeps more apart
    assert (axis, along.tolist()) == (1, [1, 2, 3])
    assert ties_of(walk) == [(1, 4), (2, 5), (3, 6)]


def test_the_axis_that_stays_apart_can_be_chosen() -> None:
    walk = standing(apart={"relu": {0}})
    [(axis, along)] = walk.settle(labels([1, 2, 3], [4, 5, 6]))
    assert (axis, along.tolist()) == (0, [1, 4])
    assert ties_of(walk) == [(1, 2), (1, 3), (4, 5), (4, 6)]


def test_a_channel_that_is_read_by_its_number_is_pinned(walk: Walk) -> None:
    assert walk.settle(labels([5, 5], [5, 5])) == []
    assert pins_of(walk) == [([5], "a single position of its axis is read by number")]


@pytest.mark.parametrize(
    ("count", "whole", "ties"),
    [
        (2, False, [(1, 5), (2, 6), (3, 7), (4, 8)]),  # few large blocks: the same places of each go
        (4, True, [(1, 2), (3, 4), (5, 6), (7, 8)]),  # many small blocks: whole ones go
    ],
)
def test_blocks_go_whole_or_the_same_places_of_each(
    walk: Walk, count: int, whole: bool, ties: list[tuple[int, int]]
) -> None:
    assert walk.blocks([labels(*range(1, 9))], count) is whole
    assert ties_of(walk) == ties
    assert [marks.tolist() for marks, _ in walk.labelled().whole_blocks] == ([[1, 3, 5, 7]] if whole else [])


def test_whole_blocks_of_both_sides_go_together(walk: Walk) -> None:
    assert walk.blocks([labels(1, 2, 3), labels(4, 5, 6)], 3)
    assert ties_of(walk) == [(1, 4), (2, 5), (3, 6)]


def test_no_whole_block_goes_where_one_side_is_fixed_or_it_is_not_wanted(walk: Walk) -> None:
    assert not walk.blocks([labels(1, 2, 3), None], 3)
    assert not standing(in_blocks={"relu"}).blocks([labels(1, 2, 3)], 3)


def test_an_output_of_one_position_has_no_labels(walk: Walk) -> None:
    walk.node.meta["val"] = torch.zeros(2, 1)
    value = walk.out([labels(1, 2, 3), labels(4)])
    assert value.shape == (3, 1)  # as long as its labels, whatever the node's own size is
    assert value.axes[1] is None


# -- constants ------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale * 3)


def test_what_follows_from_stored_tensors_has_a_value() -> None:
    labelled = labelled_by(Scaled(), torch.zeros(2, 2))
    products = [node for node in labelled.graph.nodes if "mul" in str(node.target)]
    assert labelled.constants.of(products[0]).tolist() == [3.0, 6.0]  # type: ignore[union-attr]
    assert labelled.constants.of(products[1]) is None  # depends on the input


# -- replay ---------------------------------------------------------------------------------------------------------


def test_a_replay_carries_the_kept_channels_and_repeats_the_choices() -> None:
    """The small layer of 2 rows was cut from one of 3: channel 2 is gone."""
    born = {("weight", 0): labels(1, 3), ("bias", 0): labels(1, 3)}
    replay = Replay(born, {"placeholder": [], "p_weight": [], "p_bias": [], "linear": []}, {})
    labelled = labelled_by(nn.Linear(4, 2), torch.zeros(2, 4), replay=replay)
    (out,) = [value for node, value in labelled.values.items() if "linear" in str(node.target)]
    assert out.axes[1].tolist() == [1, 3]
    assert ties_of(labelled) == []  # the bias holds the channels that the rows make


def test_a_replay_in_which_channels_do_not_meet_shows_it() -> None:
    born = {("weight", 0): labels(1, 3), ("bias", 0): labels(1, 2)}
    replay = Replay(born, {"linear": []}, {})
    labelled = labelled_by(nn.Linear(4, 2), torch.zeros(2, 4), replay=replay)
    assert ties_of(labelled) == [(3, 2)]


def test_a_choice_is_made_once(walk: Walk) -> None:
    assert walk.choose(lambda: "whole") == "whole"
    again = standing(replay=Replay({}, walk.labelled().choices, {}))
    assert again.choose(lambda: "something else") == "whole"
