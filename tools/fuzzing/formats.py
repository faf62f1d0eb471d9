"""Mutations of HDF5, checkpoints, PNG, TIFF and zip that keep checksums valid where possible."""

import io
import struct
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

import h5py
import numpy as np
import torch

from fuzzing.plain import NUMBERS, TEXTS, mutate_bytes, mutate_tree, weird

_DTYPES = ("f8", "f4", "f2", "i8", "u1", "i1", "u4", "S5", "?", "c8", "O")
_HUGE = (2**24, 2**31, 2**40, 2**62)


def mutate_hdf5(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes, the data sets or the attributes of an HDF5 file."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    memory = io.BytesIO(data)
    try:
        with warnings.catch_warnings(), h5py.File(memory, "r+") as file:
            warnings.simplefilter("ignore")
            for _ in range(rng.choice((1, 1, 2))):
                _mutate_object(file, rng)
    except (TypeError, ValueError, OSError, RuntimeError, OverflowError, KeyError):
        return mutate_bytes(data, rng)  # HDF5 cannot store the mutated value
    return memory.getvalue()


def _mutate_object(file: Any, rng: Random) -> None:
    names: list[str] = []
    file.visit(names.append)
    if rng.random() < 0.4:
        _mutate_attribute(rng.choice([file, *(file[name] for name in names)]), rng)
        return
    name = rng.choice(names)
    found = file[name]
    if not isinstance(found, h5py.Dataset) or rng.random() < 0.25:
        _replace(file, name, rng)
        return
    how = rng.randrange(4)
    if how == 0 and found.shape:
        values = found[:]
        at = tuple(rng.randrange(max(1, side)) for side in found.shape)
        values[at] = rng.choice(TEXTS) if values.dtype == object else rng.choice(NUMBERS)
        _rewrite(file, name, data=values, dtype=found.dtype)
    elif how == 1:
        _rewrite(file, name, data=found[()].astype(rng.choice(_DTYPES)))
    elif how == 2:
        values = found[()]
        changed = [values[:0], values[:-1], np.concatenate([values, values]), values[..., None]]
        _rewrite(file, name, data=rng.choice([*changed, values.ravel()]), dtype=found.dtype)
    else:  # a huge data set without data
        shape = list(found.shape) or [1]
        shape[rng.randrange(len(shape))] = rng.choice(_HUGE)
        chunks = tuple(min(side, 64) for side in shape)
        _rewrite(file, name, shape=tuple(shape), dtype=found.dtype, chunks=chunks)


def _rewrite(file: Any, name: str, **options: Any) -> None:
    """Replace a data set, but keep its attributes."""
    kept = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, **options).attrs.update(kept)


def _replace(file: Any, name: str, rng: Random) -> None:
    del file[name]
    how = rng.randrange(5)
    if how == 1:
        file.create_group(name)
    elif how == 2:
        file[name] = h5py.SoftLink(rng.choice(("/", f"/{name}", "/nowhere", "/patches", "/coords")))
    elif how == 3:
        file[name] = h5py.ExternalLink(rng.choice(("/dev/zero", "/etc/passwd", "nowhere.h5")), "/")
    elif how == 4:
        file[name] = np.float64(rng.choice(NUMBERS))


def _mutate_attribute(found: Any, rng: Random) -> None:
    names = list(found.attrs)
    if not names:
        return
    name = rng.choice(names)
    how = rng.randrange(5)
    if how == 0:
        del found.attrs[name]
    elif how == 1:
        found.attrs[name] = rng.choice(NUMBERS)
    elif how == 2:
        found.attrs[name] = rng.choice(TEXTS)
    elif how == 3:
        found.attrs[name] = rng.choice(
            (np.zeros(0), np.zeros((3, 3)), h5py.Empty("f4"), np.void(b"x"))
        )
    else:
        found.attrs[name] = [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 4)))]


def mutate_pt(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes, the pickle or the values of a file that ``torch.save`` wrote."""
    how = rng.random()
    if how < 0.15:
        return mutate_bytes(data, rng)
    if how < 0.45:
        return _mutate_member(data, rng)
    content = torch.load(io.BytesIO(data), weights_only=True)
    if rng.random() < 0.05 and "architecture" in content:
        content["architecture"] = rng.choice(("regnet_y_128gf", "vgg19", "resnet50", "mnasnet0_5"))
    elif rng.random() < 0.3:
        _mutate_tensor(content, rng)
    else:
        content = mutate_tree(content, rng)
    memory = io.BytesIO()
    torch.save(content, memory)
    return memory.getvalue()


def _mutate_member(data: bytes, rng: Random) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(memory, "w") as new:
        for name in old.namelist():
            member = old.read(name)
            is_pickle = name.endswith("data.pkl")
            if is_pickle or rng.random() < 0.02:
                member = mutate_bytes(member, rng)
            new.writestr(name, member)
    return memory.getvalue()


def _mutate_tensor(content: Any, rng: Random) -> None:
    holders, waiting = [], [content]
    while waiting:
        one = waiting.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            if isinstance(one[key], torch.Tensor):
                holders.append((one, key))
            elif isinstance(one[key], dict | list):
                waiting.append(one[key])
    holder, key = rng.choice(holders)
    value = holder[key]
    holder[key] = rng.choice(
        (
            lambda: value.double(),
            lambda: value.half(),
            lambda: value.to(torch.complex64),
            lambda: value.bool(),
            lambda: value.long(),
            lambda: torch.full_like(value, 1) * rng.choice((float("nan"), 1e30, 0, -1)),
            lambda: value.reshape(-1),
            lambda: value[None],
            lambda: value.reshape(-1)[:0],
            lambda: torch.zeros(1).expand(rng.choice(_HUGE[:3])),
            lambda: torch.zeros(1).expand(value.shape),
            lambda: value.float().to_sparse() if value.dim() else value,
            lambda: torch.empty(value.shape, device="meta"),
            lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
            lambda: torch.nn.Parameter(value.float()),
        )
    )()


def mutate_png(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes or the chunks of a PNG file; the checksums of chunks stay valid."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.choice((1, 1, 2))):
        where = rng.randrange(len(chunks))
        kind, body = chunks[where]
        how = rng.randrange(7)
        if how == 0:
            chunks[where] = kind, mutate_bytes(body, rng)
        elif how == 1:
            value = rng.choice((0, 1, 49, 51, 255, 2**16, 2**31 - 1, 2**32 - 1))
            header = bytearray(chunks[0][1].ljust(13, b"\0"))
            struct.pack_into(">I", header, rng.choice((0, 4)), value)
            chunks[0] = chunks[0][0], bytes(header)
        elif how == 2:
            header = bytearray(chunks[0][1].ljust(13, b"\0"))
            header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = chunks[0][0], bytes(header)
        elif how == 3:
            chunks.insert(where, rng.choice(chunks))
        elif how == 4 and len(chunks) > 1:
            del chunks[where]
        elif how == 5:
            kind = rng.choice(
                (b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"gAMA", b"IDAT")
            )
            chunks.insert(where, (kind, rng.randbytes(rng.choice((0, 1, 6, 300)))))
        else:
            bomb = zlib.compress(bytes(rng.choice((10, 10**6, 3 * 10**7))))
            name = rng.choice((b"IDAT", b"zTXt", b"iCCP", b"iTXt"))
            start = b"" if name == b"IDAT" else b"a\0\0"
            chunks.insert(where, (name, start + bomb))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return data[:8] + b"".join(parts)


def mutate_tiff(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes or the tags of a classic TIFF file in little-endian order."""
    if rng.random() < 0.35:
        return mutate_bytes(data, rng)
    found = bytearray(data)
    places = []
    (at,) = struct.unpack_from("<I", found, 4)
    while at and at + 2 < len(found):
        (count,) = struct.unpack_from("<H", found, at)
        places += [at + 2 + 12 * number for number in range(count)]
        (at,) = struct.unpack_from("<I", found, at + 2 + 12 * count)
    values = (
        *(0, 1, 2, 3, 7, 8, 16, 255, 2**15, 2**16, 2**24, 2**31, 2**32 - 1),
        *(len(data), len(data) - 4),
    )
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry, how = rng.choice(places), rng.randrange(6)
        if how == 0:
            struct.pack_into(
                "<H", found, entry, rng.choice((254, 256, 257, 258, 259, 262, 322, 324, 65535))
            )
        elif how == 1:
            struct.pack_into("<H", found, entry + 2, rng.randrange(20))
        elif how == 2:
            struct.pack_into("<I", found, entry + 4, rng.choice(values))
        elif how == 3:
            (target,) = struct.unpack_from("<I", found, entry + 8)
            if target + 4 <= len(found):
                struct.pack_into("<I", found, target, rng.choice(values))
        else:
            struct.pack_into("<I", found, entry + 8, rng.choice(values))
    return bytes(found)


def mutate_zip(data: bytes, rng: Random) -> bytes:
    """Mutate the bytes, the file names or the members of a zip file of a patch tree."""
    if rng.random() < 0.6:
        return mutate_bytes(data, rng)
    memory = io.BytesIO()
    old, new = zipfile.ZipFile(io.BytesIO(data)), zipfile.ZipFile(memory, "w")
    with old, new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns about duplicate names
        for name in old.namelist():
            member = old.read(name)
            if rng.random() < 0.1:
                member = mutate_png(member, rng)
            entry = zipfile.ZipInfo(_mutate_name(name, rng) if rng.random() < 0.1 else name)
            entry.external_attr = rng.choice((0, 0, 0, 0o120777, 0o010644, 0o040755)) << 16
            new.writestr(entry, member, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return memory.getvalue()


def _mutate_name(name: str, rng: Random) -> str:
    how = rng.randrange(5)
    if how == 0:
        return f"../{name}"
    if how == 1:
        return name.replace("x", "x99999999", 1)
    if how == 2:
        return name.replace("_", rng.choice(("é", "\x1b", "\n", "\\", "/", "")), 1)
    if how == 3:
        return name.replace(
            "1", str(weird(rng)).replace("\0", "").encode(errors="replace").decode()[:200]
        )
    return name.upper()
