"""An explanation as text for people, as JSON, as graphviz text, and as a picture."""

from __future__ import annotations

import colorsys
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape

from slim_model.coupling.explain import ExplainedGroup, ExplainedLayer, Explanation, Hold
from slim_model.strict_json import strict_json

_SHOWN = 6  # names in a line of text


# -- text -----------------------------------------------------------------------------------------------------------


def text(explanation: Explanation) -> str:
    free, total = explanation.free, explanation.total
    lines = [f"{free:,} of {total:,} output channels of {_plural(len(explanation.layers), 'layer')} can go"]
    for group in explanation.groups:
        lines += ["", *_group(group)]
    for hold in explanation.holds:
        lines += ["", *_hold(hold)]
    said = {(hold.op, hold.where) for hold in explanation.holds}
    for op, where in [unknown for unknown in explanation.unknown_ops if unknown not in said]:
        lines += ["", f"{op}{_at(where)} has no rule; it holds no channels of layers"]
    return "\n".join(lines)


def _group(group: ExplainedGroup) -> Iterator[str]:
    times = f" x {group.positions_per_channel} positions" if group.positions_per_channel > 1 else ""
    alone = ": one channel, which stays" if group.channels == 1 else ""
    yield f"{group.name}: {_plural(group.channels, 'channel')}{times}{alone}" + _at(group.where)
    makers = dict.fromkeys(m.layer for m in group.members if m.role == "makes")
    for role, verb in (("makes", "made by"), ("holds", "held by"), ("reads", "read by")):
        layers = dict.fromkeys(m.layer for m in group.members if m.role == role)
        if names := [name for name in layers if role != "holds" or name not in makers]:
            yield f"    {verb} {_some(names)}"
    yield from (f"    {because}" for because in group.because)


def _hold(hold: Hold) -> Iterator[str]:
    fixed = sum(hold.holds.values())
    yield f"kept: {_plural(fixed, 'channel')} of {_some(list(hold.holds))}, because {hold.why}"
    if hold.op:
        yield f"    by {hold.op}{_at(hold.where)}"
    freed = sum(hold.frees.values())
    beside = f"also held by {_some(hold.beside, '; ')}" if hold.beside else ""
    if not freed:
        yield f"    without it alone nothing could go: {beside}"
    elif freed < fixed:
        yield f"    without it {_plural(freed, 'channel')} of {_some(list(hold.frees))} could go; the rest is {beside}"
    else:
        yield f"    without it {_plural(freed, 'channel')} of {_some(list(hold.frees))} could go"
    yield f"    remedy: {hold.remedy}"


def _at(where: str) -> str:
    """``'model.py:42 in forward: x = f(x)'`` -> ``' at model.py:42: x = f(x)'``; of a node its name."""
    line, _, code = where.partition(" in ")
    if ".onnx:" in line:
        return f" at {code}"
    return f" at {line}: {code.partition(': ')[2]}" if code else ""


def _some(names: Iterable[str], comma: str = ", ") -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return comma.join(names[:_SHOWN]) + more


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def json_text(explanation: Explanation) -> str:
    return strict_json(explanation.as_dict())


# -- graphviz -------------------------------------------------------------------------------------------------------


def dot(explanation: Explanation) -> str:
    """Layers in the order they run; a line joins layers that share channels, a dashed one leads to what holds them."""
    shared = _shared(explanation)
    lines = ["graph coupling {", "  rankdir=LR; node [shape=box, style=filled, fillcolor=white, fontname=sans];"]
    for i, layer in enumerate(explanation.layers):
        label = json.dumps(f"{layer.name}\n{_width(layer)}", ensure_ascii=False)
        lines.append(f'  l{i} [label={label}, fillcolor="{_fill(layer, shared)}"];')
    for (i, j), group in _arcs(explanation):
        label = json.dumps(_tip(explanation.groups[group]), ensure_ascii=False)
        lines.append(f'  l{i} -- l{j} [color="{_colour(group, shared)}", tooltip={label}];')
    numbers: dict[str, list[int]] = {}
    for i, layer in enumerate(explanation.layers):
        numbers.setdefault(layer.name, []).append(i)
    for h, hold in enumerate(explanation.holds):
        label = json.dumps(f"{hold.short}\n{hold.why}", ensure_ascii=False)
        lines.append(f"  h{h} [shape=octagon, label={label}, fillcolor=lightgrey];")
        lines += [f"  l{i} -- h{h} [style=dashed];" for name in hold.holds for i in numbers.get(name, ())]
    return "\n".join([*lines, "}", ""])


def _width(layer: ExplainedLayer) -> str:
    fixed = sum(n for group, n in layer.parts if group < 0)
    total = sum(n for _, n in layer.parts)
    return f"{total:,}" + (f" ({fixed:,} kept)" if 0 < fixed < total else " kept" if fixed else "")


def _arcs(explanation: Explanation) -> Iterator[tuple[tuple[int, int], int]]:
    """((layer, next layer), group): neighbours among the layers that make channels of the same group."""
    members: dict[int, list[int]] = {}
    for i, layer in enumerate(explanation.layers):
        for group, _ in layer.parts:
            if group >= 0:
                members.setdefault(group, []).append(i)
    for group, chain in members.items():
        for pair in itertools.pairwise(chain):
            yield pair, group


def _tip(group: ExplainedGroup) -> str:
    return f"{_plural(group.channels, 'channel')} of {group.name}" + "".join(f"\n{line}" for line in group.because)


def _shared(explanation: Explanation) -> list[int]:
    """Groups that more than one layer makes, in the order they come."""
    counted = Counter(group for layer in explanation.layers for group, _ in layer.parts)
    return [group for group, layers in counted.items() if group >= 0 and layers > 1]


def _fill(layer: ExplainedLayer, shared: list[int]) -> str:
    group = max(layer.parts, key=lambda part: part[1])[0]
    return "lightgrey" if group < 0 else _colour(group, shared)


def _colour(group: int, shared: list[int]) -> str:
    """Colours far apart (by the golden angle) for groups of several layers, one for all others."""
    if group not in shared:
        return "#b9c7d5"
    return "#" + "".join(
        f"{round(255 * x):02x}" for x in colorsys.hls_to_rgb((0.08 + 0.381966 * shared.index(group)) % 1, 0.52, 0.6)
    )


# -- a picture ------------------------------------------------------------------------------------------------------

_STEP, _BAR, _ARCS, _BARS, _LEGEND, _MARGIN = 18, 12, 130, 110, 46, 24


def svg(explanation: Explanation) -> str:
    """An arc diagram: layers in the order they run, bars as long as the root of their width, arcs where layers share
    channels, hatched what cannot go. Hold the pointer over a part to read what it is."""
    layers, shared = explanation.layers, _shared(explanation)
    width = max(640, 2 * _MARGIN + _STEP * len(layers) + 60)
    base = _LEGEND + 12 + int(max((_rise(i, j) for (i, j), _ in _arcs(explanation)), default=0))
    widest = max((sum(n for _, n in layer.parts) for layer in layers), default=1)
    body = [_arc(explanation, (i, j), group, base, _colour(group, shared)) for (i, j), group in _arcs(explanation)]
    for i, layer in enumerate(layers):
        body += _bar(explanation, i, layer, base, widest, shared)
    height = base + _BARS + 30 + 6 * max((len(_short(layer.name)) for layer in layers), default=0)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="10">',
        '<defs><pattern id="kept" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="5" height="5" fill="#e6e6e6"/><rect width="1.6" height="5" fill="#8a8a8a"/></pattern></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_legend(explanation, bool(shared)),
        *body,
        "</svg>",
        "",
    ])  # fmt: skip


def _x(i: int) -> float:
    return _MARGIN + 40 + _STEP * i


def _rise(i: int, j: int) -> float:
    return min(6 + _STEP * (j - i) / 2, _ARCS)


def _arc(explanation: Explanation, pair: tuple[int, int], group: int, base: int, colour: str) -> str:
    a, b = (_x(i) for i in pair)
    return (
        f'<path d="M{a:.0f} {base - 2} A{(b - a) / 2:.1f} {_rise(*pair):.0f} 0 0 1 {b:.0f} {base - 2}" fill="none" '
        f'stroke="{colour}" stroke-width="1.6"><title>{escape(_tip(explanation.groups[group]))}</title></path>'
    )


def _bar(
    explanation: Explanation, i: int, layer: ExplainedLayer, base: int, widest: int, shared: list[int]
) -> Iterator[str]:
    total = sum(n for _, n in layer.parts)
    length, top = max(3.0, _BARS * math.sqrt(total / widest)), float(base)
    for group, n in layer.parts:
        part = length * n / total
        fill = "url(#kept)" if group < 0 else _colour(group, shared)
        what = _why(explanation, layer) if group < 0 else _tip(explanation.groups[group])
        tip = escape(f"{layer.name}: {n:,} of {_plural(total, 'channel')}\n{what}")
        yield (
            f'<rect x="{_x(i) - _BAR / 2:.0f}" y="{top:.1f}" width="{_BAR}" height="{part:.1f}" fill="{fill}" '
            f'stroke="#555" stroke-width="0.5"><title>{tip}</title></rect>'
        )
        top += part
    x, y = _x(i) + 3, base + _BARS + 12
    yield (
        f'<text x="{x:.0f}" y="{y}" text-anchor="end" transform="rotate(-60 {x:.0f} {y})">'
        f'{escape(_short(layer.name))}<tspan fill="#777" dx="4">{total:,}</tspan></text>'
    )


def _why(explanation: Explanation, layer: ExplainedLayer) -> str:
    return "\n".join(f"kept: {hold.why} ({hold.short})" for hold in explanation.holds if layer.name in hold.holds)


def _short(name: str) -> str:
    return name if len(name) <= 26 else "..." + name[-25:]


def _legend(explanation: Explanation, coupled: bool) -> Iterator[str]:
    said = f"{explanation.free:,} of {explanation.total:,} output channels can go"
    yield f'<text x="{_MARGIN}" y="20" font-size="13" font-weight="bold">{said}</text>'
    rows = [("#b9c7d5", "free, on its own")]
    rows += [(_colour(0, [0]), "free, together with the layers its arcs lead to")] if coupled else []
    rows += [("url(#kept)", "cannot go")] if explanation.free < explanation.total else []
    x = _MARGIN
    for fill, words in rows:
        yield f'<rect x="{x}" y="28" width="12" height="9" fill="{fill}" stroke="#555" stroke-width="0.5"/>'
        yield f'<text x="{x + 17}" y="36">{words}</text>'
        x += 32 + 6 * len(words)
