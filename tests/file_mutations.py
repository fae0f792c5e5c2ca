"""Small changes to the bytes of a file, as damage or malice would make them; each is drawn from a `Random`."""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]

MARK = "ran"
"""The folder that code from a file would make."""

_CALL = f"__import__('os').mkdir('{MARK}')"
HOSTILE_WORDS = (
    *("os.system", "posix.mkdir", "builtins.eval", "builtins.exec", "builtins.getattr", "torch.load", "torch.save"),
    *("torch.ops.aten.from_file", "torch.ops.aten.save", "torch.classes.profiling", "__class__", "__reduce__", _CALL),
    *("9**9**9", "Symbol('s0')", "1e999", "NaN", "-Infinity", "-1", "0", "99999999999999999999", "2147483648", "null"),
    *("[]", "{}", "true", "../../x", "a/b", "\x00", "\u2028", "builtins.tuple", "aten.repeat.default"),
)
_PAYLOADS = (
    f"cposix\nmkdir\n(S'{MARK}'\ntR0".encode(),
    f"cbuiltins\nexec\n(S'{_CALL}'\ntR0".encode().replace(b"'os'", b'"os"').replace(b"'ran'", b'"ran"'),
    b"\x8c\x05posix\x8c\x06system\x93\x8c\x09mkdir ran\x85R0",
    f"(S'{MARK}'\niposix\nmkdir\n0".encode(),
)
_EXTREMES = (0, 1, -1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))


# -- of any bytes -----------------------------------------------------------------------------------------------------


def _span(content: bytes, draw: Random, longest: int = 64) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.randint(1, longest))


def _flip(content: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def _overwrite(content: bytes, draw: Random) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + draw.randbytes(end - start) + content[end:]


def _blank(content: bytes, draw: Random) -> bytes:
    start, end = _span(content, draw, 4096)
    return content[:start] + bytes(end - start) + content[end:]


def _cut(content: bytes, draw: Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _remove(content: bytes, draw: Random) -> bytes:
    start, end = _span(content, draw, 512)
    return content[:start] + content[end:]


def _repeat(content: bytes, draw: Random) -> bytes:
    start, end = _span(content, draw, 512)
    return content[:end] + content[start:end] * draw.choice((1, 2, 100)) + content[end:]


def _move(content: bytes, draw: Random) -> bytes:
    start, end = _span(content, draw, 512)
    at = draw.randrange(len(content) + 1)
    return content[:at] + content[start:end] + content[at:]


def _number(content: bytes, draw: Random) -> bytes:
    """An extreme one in place of 1, 2, 4 or 8 bytes."""
    size = draw.choice((1, 2, 4, 8))
    value = draw.choice(_EXTREMES) & (2 ** (8 * size) - 1)
    at = draw.randrange(max(1, len(content) - size))
    return content[:at] + value.to_bytes(size, draw.choice(("little", "big"))) + content[at + size :]


def _word(content: bytes, draw: Random) -> bytes:
    """A hostile word, or another word of the file, in place of one."""
    words = list(re.finditer(rb"[A-Za-z_][\w.]*|-?\d+", content[:200_000]))
    if not words:
        return _flip(content, draw)
    word, other = draw.choice(words), draw.choice(words)[0]
    new = draw.choice((draw.choice(HOSTILE_WORDS).encode("utf-8", "replace"), other))
    return content[: word.start()] + new + content[word.end() :]


BYTES: tuple[Mutation, ...] = (
    *(_flip, _flip, _overwrite, _blank, _cut, _remove, _repeat, _move, _number, _number, _word, _word),
)


def _any(content: bytes, draw: Random) -> bytes:
    return draw.choice(BYTES)(content, draw) if content else draw.randbytes(8)


# -- of what has parts and sums ---------------------------------------------------------------------------------------


def of_pickle(content: bytes, draw: Random) -> bytes:
    """One instruction is left out, doubled, or followed by a call; or as of any bytes."""
    try:
        starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    except Exception:
        return _any(content, draw)
    choice, place = draw.randrange(5), draw.randrange(len(starts) - 1)
    start, end = starts[place], starts[place + 1]
    if choice == 0:
        return content[:start] + content[end:]
    if choice == 1:
        return content[:end] + content[start:end] + content[end:]
    if choice == 2:
        return content[:end] + draw.choice(_PAYLOADS) + content[end:]
    if choice == 3:
        other = draw.randrange(len(starts) - 1)
        return content[:start] + content[starts[other] : starts[other + 1]] + content[end:]
    return _any(content, draw)


def of_zip(content: bytes, draw: Random) -> bytes:
    """A record is changed, left out, renamed, doubled or compressed; its sums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    at = draw.choices(range(len(records)), [3 if _is_text(name) else 1 for name, _ in records])[0]
    name, held = records[at]
    choice = draw.randrange(10)
    if choice < 6:
        records[at] = name, _of_record(name, held, draw)
    elif choice == 6:
        del records[at]
    elif choice == 7:
        records[at] = _any(name.encode(), draw).decode("latin1").replace("\x00", ""), held
    elif choice == 8:
        records.append((name, draw.choice(records)[1]))
    else:
        records[at] = name, draw.choice(records)[1]
    form = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", form) as archive:
        for name, held in records:
            archive.writestr(name or "x", held)
    return written.getvalue()


def _is_text(name: str) -> bool:
    return name.endswith((".pkl", ".json", ".py"))


def _of_record(name: str, held: bytes, draw: Random) -> bytes:
    if name.endswith(".pkl"):
        return of_pickle(held, draw)
    if name.endswith(".json"):
        return of_json(held, draw)
    if name.endswith(".npy"):
        return draw.choice((_any, of_npy))(held, draw)
    return _any(held, draw)


def of_json(content: bytes, draw: Random) -> bytes:
    """A value somewhere in it is another one; or as of any bytes."""
    try:
        held = json.loads(content)
    except ValueError:
        return _any(content, draw)
    holders: list[tuple[dict | list, str | int]] = []
    pending = [held]
    while pending:
        inside = pending.pop()
        pairs = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        for key, value in pairs:
            holders.append((inside, key))
            pending.append(value)
    if not holders or draw.random() < 0.2:
        return _any(content, draw)
    place, key = draw.choice(holders)
    other_place, other_key = draw.choice(holders)
    choice = draw.randrange(4)
    if choice == 0:
        del place[key]  # type: ignore[arg-type]
    elif choice == 1:
        place[key] = json.loads(json.dumps(other_place[other_key]))  # type: ignore[index,call-overload]
    elif choice == 2:
        place[key] = draw.choice((*_EXTREMES, 0.5, None, True, [], {}))  # type: ignore[index,call-overload]
    else:
        place[key] = draw.choice(HOSTILE_WORDS)  # type: ignore[index,call-overload]
    return json.dumps(held).encode("utf-8", "surrogatepass")


def of_safetensors(content: bytes, draw: Random) -> bytes:
    """The header is changed, and its length fits."""
    size = int.from_bytes(content[:8], "little")
    header = of_json(content[8 : 8 + size], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def of_npy(content: bytes, draw: Random) -> bytes:
    """The text before the numbers is changed, and its length fits."""
    size = int.from_bytes(content[8:10], "little")
    header = _word(content[10 : 10 + size], draw)
    return content[:8] + struct.pack("<H", len(header) % 2**16) + header + content[10 + size :]


def of_png(content: bytes, draw: Random) -> bytes:
    """A chunk is changed, and its sum fits."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    which = draw.randrange(len(chunks))
    kind, held = chunks[which]
    chunks[which] = kind, _any(held, draw)
    parts = [struct.pack(">I", len(h)) + k + h + struct.pack(">I", zlib.crc32(k + h)) for k, h in chunks]
    return content[:8] + b"".join(parts)


def mutate(content: bytes, draw: Random, inside: Mutation | None) -> bytes:
    """``content`` with one to three changes; ``inside``: the one that knows the form of the file."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        try:
            content = inside(content, draw) if inside and draw.random() < 0.7 else _any(content, draw)
        except Exception:  # what is already damaged has no parts
            content = _any(content, draw)
    return content
