"""Mutations of bytes, JSON, TOML and CSV."""

import json
import math
import struct
from random import Random
from typing import Any

_EXTREME = (0, 1, -1, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1)
_HEADER_BYTES = 4096
_MAX_BLOCK = 2048  # bytes
_MAX_DEPTH = 400
NUMBERS = (
    *(0, -1, 1, 2, 2**31, 2**63, 10**30, -0.0, 0.5, 1e-320, 1e-30, 1e13, 1e30, 1e308, -1e308),
    *(math.nan, math.inf, -math.inf),
)
TEXTS = (
    *("", "x", "x" * 20_000, "NaN", "1e400", "../../etc/passwd", "a\nb", "\x1b[2J", "\0"),
    "é" * 300,
    *("<script>alert(1)</script>", ".", "..", "-rf", "%s{0}", "\ud800", "true", "=1+1", "9" * 5000),
)


def weird(rng: Random) -> Any:
    """Return an unexpected value."""
    kind = rng.randrange(6)
    if kind <= 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice((None, True, False, [], {}, [[]], {"": {}}))
    if kind == 4:
        return [rng.choice(NUMBERS)] * rng.choice((1, 2, 3, 2000))
    found: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((2, _MAX_DEPTH))):
        found = [found] if rng.random() < 0.5 else {"a": found}
    return found


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Apply up to four random changes to the bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not found:
            break
        at, size = _place(len(found), rng), rng.randint(1, _MAX_BLOCK)
        block = bytes(found[at : at + size])
        how = rng.randrange(9)
        if how == 0:
            found[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            found[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif how == 2:
            value = rng.choice(_EXTREME) & (2**64 - 1)
            width, order = rng.choice((2, 4, 8)), rng.choice("<>")
            raw = struct.pack(order + "Q", value)
            raw = raw[:width] if order == "<" else raw[-width:]
            found[at : at + width] = raw
        elif how == 3 and rng.random() < 0.5:
            del found[at:]
        elif how == 4:
            found[at:at] = block
        elif how == 5:
            del found[at : at + len(block)]
        elif how == 6:
            found[at : at + len(block)] = bytes(len(block))
        elif how == 7:
            to = _place(len(found), rng)
            found[to : to + len(block)] = block
        else:
            found[at] = rng.randrange(256)
    return bytes(found)


def _place(size: int, rng: Random) -> int:
    """Return a random position, often near the start or the end, where headers are."""
    if rng.random() < 0.5:
        return rng.randrange(size)
    at = rng.randrange(min(size, _HEADER_BYTES))
    return at if rng.random() < 0.7 else size - 1 - at


def mutate_tree(value: Any, rng: Random) -> Any:
    """Mutate up to three values in nested dictionaries and lists."""
    root = {"": _copied(value)}
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _entries(root)
        holder, key = rng.choice(places)
        how = rng.randrange(8)
        if how == 0 and key != "":
            del holder[key]
        elif how == 1 and isinstance(holder[key], int | float):
            holder[key] = rng.choice(NUMBERS)
        elif how == 2:
            other, place = rng.choice(places)
            try:
                holder[key] = _copied(other[place])
            except (KeyError, IndexError):
                holder[key] = None
        elif how == 3:
            holder[key] = [holder[key]]
        elif how == 4:
            holder[key] = str(holder[key])[:1000]
        elif how == 5 and isinstance(holder[key], dict):
            holder[key][rng.choice(TEXTS)] = weird(rng)
        else:
            holder[key] = weird(rng)
    return root.get("")


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _entries(holder: Any) -> list[tuple[Any, Any]]:
    """Return a pair of container and key for each value in nested dictionaries and lists."""
    found, waiting = [], [(holder, 0)]
    while waiting:
        one, depth = waiting.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            found.append((one, key))
            if isinstance(one[key], dict | list) and depth < _MAX_DEPTH:
                waiting.append((one[key], depth + 1))
    return found


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes or the values of JSON, or of one line of JSON Lines."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    if rng.random() < 0.03:
        return b"[" * 200_000 if rng.random() < 0.5 else b'{"a":' * 100_000
    if rng.random() < 0.03:
        return data.replace(b"0", b"1" + b"0" * rng.choice((400, 5000)), 1)
    try:
        return json.dumps(mutate_tree(json.loads(data), rng)).encode()
    except ValueError:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutate_tree(json.loads(lines[at]), rng)).encode()
        return b"\n".join(lines) + b"\n"


# Unexpected values for the keys of TOML files.
_TOML = (
    *("nan", "inf", "-inf", "0", "-1", "1e400", "1e-320", "1e13", "9223372036854775808"),
    *("1" * 4000, '""', "'x'", "true", "[]", "{}", "[[[]]]", "[1, 'a', []]"),
    *("1979-05-27T07:32:00Z", "07:32:00", "1979-05-27", '"../../x"', '"\\u0000"', '"\\u001b[2J"'),
    *("[nan]", "[nan, nan]", "[1, 1.0, true]", "0x7fffffff"),
    *("{low = 1, high = 0}", "{low = nan, high = 1.0}", "{low = 1e-320, high = 1e308, log = true}"),
    *("{low = 0.0, high = 1.0, step = 1e-320}", "{low = 1, high = 9223372036854775807}"),
    *('"*"', '"**/**"', '["*", "?"]', '"--help"', '"-rf"', "{a = {a = {a = {}}}}", "0.1", "1", "2"),
)


def mutate_toml(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes or the lines of TOML."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        key, sign, _ = lines[at].partition("=")
        how = rng.randrange(8)
        if how <= 3 and sign:
            lines[at] = f"{key}= {rng.choice(_TOML)}"
        elif how == 4:
            lines[at] = ""
        elif how == 5:
            lines.insert(at, rng.choice(lines))
        elif how == 6 and sign:
            lines[at] = f"{key}= {_long(rng)}"
        else:
            lines.insert(
                at, f"{rng.choice(('axes', 'config', 'name', 'é', 'a.b.c'))} = {_long(rng)}"
            )
    return "\n".join(lines).encode()


def _long(rng: Random) -> str:
    depth = rng.choice((5, 5000))
    deep = "{a = " * depth + "1" + "}" * depth
    many = f"[{', '.join(map(str, range(rng.choice((20, 12_000)))))}]"
    return rng.choice(("[" * depth + "]" * depth, deep, f'"{"x" * 100_000}"', many))


def mutate_csv(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes or the cells of CSV."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    rows = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice(rows[:1] if rng.random() < 0.2 else rows)
        at = rng.randrange(max(1, len(row)))
        how = rng.randrange(8)
        if how == 0:
            del row[at : at + 1]
        elif how == 1:
            row.insert(at, str(rng.choice(NUMBERS)))
        elif how == 2:
            rows.append(list(row))
        elif how == 3:
            row[at : at + 1] = ['"' + rng.choice(TEXTS)]
        elif how == 4:
            row[at : at + 1] = [rng.choice(TEXTS)]
        else:
            row[at : at + 1] = [str(rng.choice(NUMBERS))]
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass") + b"\n"
