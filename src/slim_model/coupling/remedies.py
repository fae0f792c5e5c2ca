"""For each reason why channels stay, what its owner can do about it."""

from __future__ import annotations

_MATCH_SIZES = "Give both sides channels of the model's own, or a side of size one."
_STATE = "Let the layer start from zeros or from a parameter, and not from an input of the model."

REMEDIES: dict[str, str] = {
    # labels and couple
    "it is an output of the model": "None is needed: whoever calls the model reads these. If it is an intermediate "
    "result that nobody needs, do not return it.",
    "this operation has no rule": "Write it with operators that have one, or add a row to slim_model/ops.",
    "its rule does not cover this case": "Write the line in a plainer form; please report the case.",
    "removing channels here could not be shown to be exact": "Please report the model: this is where the proof failed.",
    "you asked to keep it (--keep)": "Leave out --keep, or make the pattern narrower.",
    "it meets positions that are fixed": "Remove the fixed positions it is lined up with (zeros or inputs that are "
    "concatenated or shuffled in), or give each part a layer of its own.",
    "a single position of its axis is read by number": "Slice a range that a layer reads, or compute the one value by "
    "a layer of its own.",
    "it is contracted with fixed values": "Contract it with a parameter of the model instead of with an input.",
    # layers
    "its bias is fixed": "Make the bias a parameter of the layer.",
    "its axis is spatial, and a convolution runs along it": "Move the channels to axis 1 before the convolution "
    "(permute). Where it is to mix channels (gates from neighbouring ones), mix them by a linear layer or a 1x1 "
    "convolution, or let it give as many as it takes, by padding of its own.",
    "the blocks of a grouped convolution keep their width": "None is needed: whole groups can go instead. For narrower "
    "groups use fewer and wider ones.",
    "it is multiplied with a batch of fixed size": "Keep channels out of the batch axes of the product.",
    "it is added to a value whose positions are fixed": _MATCH_SIZES,
    "this form of einsum has no rule": "Write it as matmul, or as an einsum without repeated letters in one operand.",
    "it is multiplied with a value whose positions are fixed": _MATCH_SIZES,
    "its other axes are fixed": _MATCH_SIZES,
    "tokens are fixed": "Put tokens on the last axis but one, and channels on the last.",
    "attention is normalised over it": "Put tokens on the last axis but one, and channels on the last.",
    "it is combined with a fixed number of heads": "Give both sides the same number of heads, made by layers.",
    "it is looked up by the model's input": "None: the vocabulary is what the input may hold.",
    # norms and pointwise
    "its normalisation is fixed": "Make its scale and shift parameters of the norm.",
    "it is normalised over it": "Use a norm over channels, or over each channel alone (BatchNorm).",
    "it is combined with a value whose positions are fixed": "Send that value through a layer first (a convolution or "
    "linear one), or give it size one along this axis.",
    "it is joined with a value whose positions are fixed": _MATCH_SIZES,
    "it is stacked with a value whose positions are fixed": _MATCH_SIZES,
    "it is padded with its own values": "Pad spatial axes only, or pad channels with a constant; a convolution along "
    "channels (circular ECA) by padding of its own.",
    "its slopes are fixed": "Make the slopes a parameter of PReLU, one for each channel or one for all.",
    "its size is checked": "Take the check of the size out of the forward.",
    # values along an axis
    "its indices come from fixed channels": "Pool and unpool the same channels.",
    "its positions are used as data": "Compute the positions from the input, and not from channels.",
    "its axis is spatial": "Move the channels to axis 1 before pooling or resizing (permute). In place of a norm over "
    "neighbouring channels (local response norm) use one over each channel alone (BatchNorm).",
    "its positions are coordinates": "None: each position is a coordinate.",
    "values along it are compared with each other": "Compare along a spatial axis instead, or put a layer (linear or "
    "1x1 convolution) before it: then only the channels of that one stay.",
    "a triangle of it is cut out": "Cut the triangle out of spatial axes, or of a product without a channel axis.",
    "all its values are used together": "Use values of a layer of its own for this.",
    "it is reduced to one value": "Use a sum or mean over channels, reduce over spatial axes instead, or put a layer "
    "before it: then only the channels of that one stay.",
    "the model's own class would take it over the channels that are left": "Write it as a sum times a number, or put a "
    "layer before it: then only the channels of that one stay.",
    "it is compared with fixed values": "Compare it with values of the model's own layers.",
    # moving
    "nothing of it is left for the example input": "Give an --input for which this part is not empty.",
    "it is given the sizes of a value whose positions are fixed": "Give the sizes as numbers, or those of a value that "
    "the model's own layers make.",
    "two channel axes are merged into one": "Put a layer before the flattening, so that one axis holds the channels.",
    "its bytes are read as another type": "Convert the values with .to(dtype) instead.",
    "patches are cut along it": "Put channels on axis 1 before unfold.",
    "patches are summed along it": "Put channels on axis 1 before fold.",
    "every n-th channel of a part is taken": "Take every n-th channel of the whole axis, from its start to its end.",
    "it is indexed by computed values": "Index with a stored tensor (a buffer) instead.",
    "it is indexed by values that cannot be rewritten": "Index along one axis, or along axes side by side, with a "
    "stored tensor of whole numbers.",
    # recurrent layers
    "its weights are fixed": "Make all weights and biases parameters of the layer.",
    "its initial state is fixed": _STATE,
    "its positions are steps, samples or layers": "Put the channels on the last axis of what enters the layer.",
}


def remedy_for(why: str) -> str:
    """What to do about a reason; those that go into detail (in brackets) share one."""
    return REMEDIES[why.partition(" (")[0] if why not in REMEDIES else why]
