"""Valid files made invalid: bits, lengths, JSON's values, what a safetensors header says."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

__all__ = ["HOSTILE_TEXTS", "mutate_bytes", "mutate_json", "mutate_lines", "mutate_safetensors"]

HOSTILE_TEXTS = [
    "</script><script>alert(1)</script>",
    "\"'<!--&amp;]]>",
    "\x00\x01\x1b[31m\x7f",
    "\u202eevil\u2066\u2069\u200b",
    "\ud800",
    "\udcff",
    "e" + "\u0301" * 50,
    "␣▁Ġ##",
    "../../etc/passwd",
    "%s{0}$title",
    "",
    " ",
    "\r\n",
    "x" * 5000,
    "NaN",
    "NaN:7fc00000",
    "NaN:" + "f" * 40,
    "-Infinity",
    "float8",
    "١٢٣",
    "😀",
]
_RAW = "\x02raw{}\x03"
RAW = [
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    "[" * 900 + "]" * 900,
    "9" * 5000,
    "9" * 300,
    "1e999",
    "-0",
    "0.1e-400",
    "NaN",
    "Infinity",
    "-Infinity",
    '{"a": 1, "a": [], "a": {}}',
    '"\\ud800"',
    "'",
    "",
]
"""What no writer of JSON writes: nesting, numbers of many digits, keys that are there twice."""
NUMBERS = [0, 1, -1, 2, 3, 7, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30]
NUMBERS_TOO: list[Any] = [0.5, 1e300, -1e-300, math.nan, math.inf, -math.inf, True, False, None]
PIECES = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\n\n",
    b'"',
    b",",
    b"\t",
]
PIECES += [b"{", b"}", b"[", b"]", b"\\", b"\\ud800", b"#", b"\x1a", "\u2028".encode(), b"'"]
LONG = [b'"' + b"a" * 200_000, b"[" * 100_000, b"a" * 200_000, b"\xff" * 1000, b"\n" * 1000]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "X",
]
DTYPES += ["U16", "U32", "U64", "F8_E5M2", "F8_E8M0", "C64", "F6_E2M3"]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bits, some bytes, or what stands where, are others."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.choice((1, 2, 8, 64, 1000)))
        match rng.randrange(8):
            case 0:
                for _ in range(rng.choice((1, 1, 4, 40))):
                    if made:
                        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
            case 1:
                del made[at:]
            case 2:
                del made[at:end]
            case 3:
                made[at:at] = rng.choice(PIECES) * rng.choice((1, 1, 3))
            case 4:
                made[at:at] = made[at:end]
            case 5:
                made[at:end] = rng.randbytes(end - at)
            case 6:
                made[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)))
            case 7 if rng.random() < 0.05:
                made[at:at] = rng.choice(LONG)
    return bytes(made)


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """Cells and lines of a text are others."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    mark = rng.choice((b"\n", b"\t", b",", b'"', b" "))
    parts = data.split(mark)
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(parts))
        match rng.randrange(5):
            case 0:
                parts[at] = _text(rng).encode("utf-8", "surrogatepass")
            case 1:
                parts[at] = str(_number(rng)).encode()
            case 2:
                parts.insert(at, rng.choice(parts))
            case 3:
                parts[at] = rng.choice(RAW).encode() if rng.random() < 0.1 else b"{}"
            case 4:
                parts[at] = json.dumps({"text": _value(rng), "id": _value(rng)}).encode()
    return mark.join(parts)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Values of a JSON document are others, or its bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    return edited(rng, json.loads(data)).encode("utf-8", "surrogatepass")


def edited(rng: random.Random, document: Any) -> str:
    """A document with a few values changed, moved, added or left out."""
    holder = [document]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        box, key = _somewhere(rng, holder)
        match rng.randrange(7):
            case 0 | 1:
                box[key] = _value(rng)
            case 2 if isinstance(box, dict):
                box[_text(rng)] = box.pop(key) if rng.random() < 0.5 else box[key]
            case 2 | 3:
                if box is not holder:
                    del box[key]
            case 4:
                box[key] = [box[key]] * rng.choice((1, 2, 50))
            case 5:
                other, name = _somewhere(rng, holder)
                box[key] = json.loads(json.dumps(other[name]))
            case 6 if isinstance(box[key], (int, float)):
                box[key] = _number(rng)
            case 6:
                box[key] = _RAW.format(rng.randrange(len(RAW)))
        if not holder:
            holder.append(None)
    text = json.dumps(holder[0], ensure_ascii=rng.random() < 0.8)
    for number, raw in enumerate(RAW):
        if "raw" not in text:
            break
        for mark in (json.dumps(_RAW.format(number)), _RAW.format(number)):
            text = text.replace(mark, raw, 20)  # not gigabytes
    return text


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header lies: of shapes, dtypes, places, its own length, or in its metadata."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    (length,) = struct.unpack_from("<Q", data)
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    about = header["__metadata__"]
    names = [name for name in header if name != "__metadata__"]
    one: Any = header[rng.choice(names)]
    text = None
    match rng.randrange(10):
        case 0 | 1 | 2 | 3:
            about["captum_lig"] = edited(rng, json.loads(about["captum_lig"]))
        case 4:
            one["shape"] = [_number(rng) for _ in range(rng.choice((0, 1, 2, 3, 100)))]
        case 5:
            one["dtype"] = rng.choice(DTYPES)
        case 6:
            one["data_offsets"] = sorted(rng.randrange(len(numbers) + 9) for _ in range(2))
        case 7:
            one["data_offsets"] = list(header[rng.choice(names)]["data_offsets"])
        case 8:
            text = edited(rng, header)
        case 9:
            numbers = mutate_bytes(rng, numbers)
    if text is None and rng.random() < 0.1:
        name = rng.choice(names)
        header[rng.choice([*names, _text(rng)])] = header.pop(name)
    made = (json.dumps(header) if text is None else text).encode("utf-8", "surrogatepass")
    said = len(made) if rng.random() < 0.95 else rng.choice((0, 1, 2**40, 2**63, len(made) + 5))
    return struct.pack("<Q", said) + made + numbers


def _text(rng: random.Random) -> str:
    return rng.choice(HOSTILE_TEXTS)


def _number(rng: random.Random) -> Any:
    return rng.choice(NUMBERS if rng.random() < 0.6 else NUMBERS_TOO)


def _value(rng: random.Random) -> Any:
    simple = rng.random()
    if simple < 0.3:
        return _text(rng)
    if simple < 0.7:
        return _number(rng)
    if simple < 0.8:
        return [_value(rng) for _ in range(rng.randrange(3))]
    if simple < 0.9:
        return {_text(rng): _value(rng) for _ in range(rng.randrange(3))}
    return _RAW.format(rng.randrange(len(RAW)))


def _somewhere(rng: random.Random, holder: list[Any]) -> tuple[Any, Any]:
    """A list or an object, and one of its keys, at a depth drawn as one goes down."""
    box: Any = holder
    key: Any = 0
    while isinstance(box[key], (list, dict)) and box[key] and rng.random() < 0.85:
        box = box[key]
        key = rng.choice(list(box)) if isinstance(box, dict) else rng.randrange(len(box))
    return box, key
