"""Damaged and hostile files, as a strategy of hypothesis: it makes every choice of a change, and so can simplify it.

Any bytes are changed. Such changes are mostly found by the first checksum, so headers, opcodes and numbers are changed
too, and the checksums, lengths and hashes around them are made right again.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import math
import pickletools
import random
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

_WHOLE = (0, -1, 1, 2, 7, 255, 256, 65535, 65536, 2**24, 2**28, 2**31, 2**32, 2**40, 2**63, 2**64, 1 << 2000)
_NOT_WHOLE = (0.5, -0.0, 1e-320, 1e308, math.inf, -math.inf, math.nan)
NUMBERS: tuple[Any, ...] = (*_WHOLE, 2**31 - 1, 2**63 - 1, -(2**31), -(2**63), 10**30, *_NOT_WHOLE)
TEXTS = (
    *(
        "",
        "..",
        "../../x",
        "/etc/passwd",
        "\0",
        "\x1b[2J",
        "\u202e",
        "a" * 5000,
        "nan",
        "os.system",
        "1" * 5000,
        "0x" + "f" * 5000,
    ),
    *("diracnet-1000000-1", "diracnet-10-1e9", "Conv2d", "__class__", "forward", "\ud800", "train", "cifar10", "deep"),
)
EVIL = (
    b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
    b"cbuiltins\nexec\n(X\x01\x00\x00\x001tR",
    b"\x8c\x02os\x8c\x06system\x93",
    b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR",
    b"r\xff\xff\xff\x7f",
    b"q\xff",
    b")" + b"\x85" * 3000,
    b"]q\x00]q\x01" + b"h\x00h\x00h\x00h\x00" * 9 + b"e",
    b"ccollections\nOrderedDict\n)R",
    b"(lp0\nI1\naI99\na",
    b"\x82\x01",
    b"".join(b"h%c" % n * 2 + b"\x86q%c" % (n + 1) for n in range(1, 60)),
    b"\x8a\xff" + b"\x7f" * 255,
    b"K\x01s",
    b"\x88",
)
Mutation = Callable[[bytes, random.Random], bytes]
CHOICES = st.randoms(use_true_random=False)


@st.composite
def files(draw: st.DrawFn, seeds: Sequence[bytes], aware: Sequence[Mutation]) -> bytes:
    """A seed, changed up to four times, and the end of another one now and then; fewer changes are simpler."""
    choice = draw(CHOICES)
    data = choice.choice(seeds)
    for _ in range(choice.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 4))):
        data = draw(_changed(data, aware))[: 1 << 20]
    if choice.randrange(20) == 19:
        other = choice.choice(seeds)
        data = data[: choice.randrange(len(data) + 1)] + other[choice.randrange(len(other) + 1) :]
    return data[: 1 << 20]


@st.composite
def _changed(draw: st.DrawFn, data: bytes, aware: Sequence[Mutation]) -> bytes:
    """By a change of bytes, or more often by one that knows the format."""
    choice = draw(CHOICES)
    mutation = choice.choice(aware if aware and choice.randrange(10) > 2 else BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are twice in an archive
            return mutation(data, choice) or data
    except HypothesisException:
        raise
    except Exception:  # of what is no such file any more
        return choice.choice(BYTES)(data, choice)


def one_of(among: Sequence[Any], choice: random.Random) -> Any:  # noqa: ANN401
    """An error where there is nothing, which hypothesis' own `choice` forgets."""
    return among[choice.randrange(len(among))]


def flip(data: bytes, choice: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(choice.choice((1, 1, 2, 8))):
        if made:
            made[choice.randrange(len(made))] ^= 1 << choice.randrange(8)
    return bytes(made)


def set_bytes(data: bytes, choice: random.Random) -> bytes:
    """A number of one to eight bytes, written over whatever is there; more often near the beginning."""
    place = choice.randrange(min(len(data), choice.choice((64, 1 << 10, 1 << 20))) + 1)
    size = choice.choice((1, 2, 4, 8))
    number = choice.choice([number for number in NUMBERS if isinstance(number, int)]) & ((1 << 8 * size) - 1)
    return data[:place] + number.to_bytes(size, choice.choice(("little", "big"))) + data[place + size :]


def cut(data: bytes, choice: random.Random) -> bytes:
    return data[: choice.randrange(len(data) + 1)]


def remove(data: bytes, choice: random.Random) -> bytes:
    place = choice.randrange(len(data) + 1)
    return data[:place] + data[place + choice.choice((1, 2, 4, 16, 512, 4096)) :]


def repeat(data: bytes, choice: random.Random) -> bytes:
    place, size = choice.randrange(len(data) + 1), choice.choice((1, 4, 16, 64, 512))
    return data[:place] + data[place : place + size] * choice.choice((2, 10, 1000)) + data[place + size :]


def insert(data: bytes, choice: random.Random) -> bytes:
    place = choice.randrange(len(data) + 1)
    what = choice.choice(
        (choice.randbytes(choice.choice((1, 4, 64))), b"\0" * 512, *(text.encode("utf-8", "ignore") for text in TEXTS))
    )
    return data[:place] + what + data[place:]


def change_number(data: bytes, choice: random.Random) -> bytes:
    """Another value for a number that is written in digits."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
    match = one_of(found, choice)
    return data[: match.start()] + str(choice.choice(NUMBERS)).encode() + data[match.end() :]


BYTES: tuple[Mutation, ...] = (flip, flip, set_bytes, set_bytes, cut, remove, repeat, insert)


def change_tree(value: Any, choice: random.Random) -> Any:  # noqa: ANN401
    """JSON-like data with one node changed."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:  # noqa: ANN401
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    node, key = one_of(places, choice)
    match choice.randrange(9):
        case 0 | 1:
            node[key] = choice.choice(NUMBERS)
        case 2:
            node[key] = choice.choice(TEXTS)
        case 3:
            del node[key]
        case 4:
            other, its = one_of(places, choice)
            node[key] = copy.deepcopy(other[its])
        case 5:
            made: Any = node[key]
            lists = choice.randrange(2)
            for _ in range(choice.choice((2, 20, 300))):
                made = [made] if lists else {"a": made}
            node[key] = made
        case 6 if isinstance(node, dict):
            node[choice.choice(TEXTS)] = node.pop(key)
        case 6 | 7:
            if isinstance(node[key], list):
                node[key] = (node[key] * choice.choice((0, 2, 1000)))[:20_000]
            elif isinstance(node[key], str):
                node[key] = node[key] * choice.choice((0, 2, 100))
            else:
                node[key] = [node[key]] * choice.choice((0, 1, 4))
        case _:
            node[key] = choice.choice((None, True, False, [], {}, [None], {"": None}))
    return value


def json_text(data: bytes, choice: random.Random) -> bytes:
    made = json.dumps(change_tree(json.loads(data), choice)).encode()
    if choice.randrange(10) == 9:  # a key that is there twice
        made = made.replace(b"{", b'{"format": 7, ', 1)
    return made


def prefixed(mutation: Mutation) -> Mutation:
    """For an input whose first byte says which file it is."""
    return lambda data, choice: data[:1] + mutation(data[1:], choice)


def safetensors(resign: Callable[[bytes], bytes]) -> Mutation:
    """Changes the header of a safetensors file, or the description within it, most often with a right SHA-256."""

    def change(data: bytes, choice: random.Random) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
        if choice.randrange(5):
            held = header["__metadata__"]
            held["diracnets"] = json.dumps(change_tree(json.loads(held["diracnets"]), choice))
        else:
            header = change_tree(header, choice)
        text = json.dumps(header).encode()
        made = len(text).to_bytes(8, "little") + text + rest
        return resign(made) if choice.randrange(5) else made

    return change


@lru_cache(64)
def _opcodes(data: bytes) -> tuple[bytes, ...]:
    places = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    return tuple(data[a:b] for a, b in pairwise(places))


def pickle_opcodes(data: bytes, choice: random.Random) -> bytes:
    """A pickle with opcodes removed, repeated, exchanged or added, or other numbers and texts in them."""
    ops = list(_opcodes(data))
    for _ in range(choice.choice((1, 1, 2, 5))):
        at = choice.randrange(len(ops))
        match choice.randrange(6):
            case 0:
                del ops[at]
            case 1:
                ops.insert(at, ops[choice.randrange(len(ops))])
            case 2:
                ops[at] = ops[choice.randrange(len(ops))]
            case 3:
                ops.insert(at, choice.choice(EVIL))
            case 4:
                number = choice.choice([number for number in NUMBERS if isinstance(number, int)])
                ops[at] = choice.choice(
                    (
                        b"K" + bytes([number & 255]),
                        b"J" + (number & 0xFFFFFFFF).to_bytes(4, "little"),
                        b"\x8a\x08" + (number & (1 << 64) - 1).to_bytes(8, "little"),
                    )
                )
            case _:
                ops[at] = set_bytes(ops[at], choice)
    return b"".join(ops)


def zip_records(data: bytes, choice: random.Random) -> bytes:
    """An archive of `torch.save` with one record changed, all checksums right; or with a directory that lies."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [[info.filename, archive.read(info)] for info in archive.infolist()]
    kind = choice.randrange(10)
    at = choice.randrange(len(records))
    if kind < 6:
        pickled = next(record for record in records if str(record[0]).endswith("data.pkl"))
        pickled[1] = pickle_opcodes(bytes(pickled[1]), choice)
    elif kind == 6:
        records[at][1] = choice.choice(BYTES)(bytes(records[at][1]), choice)
    elif kind == 7:
        records[at][0] = choice.choice(
            (*TEXTS, records[0][0], "../" + str(records[at][0]), str(records[at][0]).upper())
        )
    elif kind == 8:
        del records[at]
    packed = zipfile.ZIP_DEFLATED if choice.randrange(10) == 9 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(str(name).encode("utf-8", "ignore").decode()), content, packed)
    made = bytearray(out.getvalue())
    if kind == 9:  # a size, a place or a method in the directory
        marks = [match.start() for match in re.finditer(rb"PK\x01\x02|PK\x03\x04|PK\x05\x06", made)]
        place = one_of(marks, choice) + choice.choice((8, 10, 12, 16, 18, 20, 22, 24, 26, 28, 42))
        made = bytearray(made[:place] + set_bytes(bytes(made[place : place + 8]), choice) + made[place + 8 :])
    return bytes(made)


def toml_lines(data: bytes, choice: random.Random) -> bytes:
    lines = data.decode("utf-8", "replace").splitlines()
    at = choice.randrange(len(lines))
    key, _, value = lines[at].partition(" = ")
    values = (
        *map(str, NUMBERS),
        *(json.dumps(text) for text in TEXTS),
        "0x" + "f" * 6000,
        "1e400",
        "true",
        "{}",
        "[[[1]]]",
        "[]",
        "[" * 400,
        "[0x" + "f" * 5000 + "]",
        '[["' + "a" * 5000 + '"]]',
        "1979-05-27T07:32:00Z",
        "{a = {b = {c = 1}}}",
        value,
    )
    match choice.randrange(5):
        case 0 | 1 | 2:
            lines[at] = f"{key} = {choice.choice(values)}"
        case 3:
            lines.insert(at, lines[choice.randrange(len(lines))])
        case _:
            names = ("a.b.c", "init", "augment", "drops", "model", "[model]", "[[data]]", "start")
            lines[at] = f"{choice.choice(names)} = {choice.choice(values)}"
    return "\n".join(lines).encode("utf-8", "ignore")


PAX = b"path size linkpath GNU.sparse.map GNU.sparse.size GNU.sparse.realsize GNU.sparse.major hdrcharset mtime".split()


def tar_headers(data: bytes, choice: random.Random) -> bytes:
    """A tar archive with a field of a header changed, or a header put in, the checksum right."""
    places = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
    place = one_of(places, choice)
    header = bytearray(data[place : place + 512])
    names = (
        b"../../../tmp/fuzz-out",
        b"/tmp/fuzz-out",
        b"a/../../b.png",
        b"\xff\xfe.png",
        b"x" * 100,
        b"\n.cls",
        b".png",
        b"a.b.c.png",
    )
    numbers = (
        b"77777777777\0",
        b"-0000000001\0",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"           \0",
        b"00000001000\0",
        b"\x80\0\0\0\0\0\1\0\0\0\0\0",
    )
    before = b""
    match choice.randrange(7):
        case 0:
            header[:100] = choice.choice(names).ljust(100, b"\0")
        case 1:
            header[124:136] = choice.choice(numbers)
        case 2:
            header[156] = choice.choice(b"0123567LKxgSD\0X")
        case 3:
            header[157:257] = choice.choice(names).ljust(100, b"\0")
        case 4:
            header[choice.randrange(512)] = choice.randrange(256)
        case 5:
            header[345:500] = choice.choice(names).ljust(155, b"\0")
        case _:
            name = choice.choice(PAX)
            value = choice.choice(
                (*names, b"-1", b"99999999999999999999", b"9" * 5000, b"n" * 40_000, b"0,1,2", b"", b"1", b"BINARY")
            )
            record = b"%d %s=%s\n" % (len(name) + len(value) + choice.choice((3, 7, 9)), name, value)
            records = record * choice.choice((1, 2, 300))
            before = tar_block(b"x", choice.choice((b"x", b"x", b"L", b"g")), records[:70_000])
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    return data[:place] + before + bytes(header) + data[place + 512 :]


def tar_block(name: bytes, kind: bytes, content: bytes) -> bytes:
    header = bytearray(512)
    header[: len(name)] = name
    header[100:124] = b"0000644\0" * 3
    header[124:136] = b"%011o\0" % len(content)
    header[136:148] = b"0" * 11 + b"\0"
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    return bytes(header) + content + bytes(-len(content) % 512)


def gzipped(mutation: Mutation) -> Mutation:
    """For what is in a gzip file; most often packed again."""

    def change(data: bytes, choice: random.Random) -> bytes:
        made = mutation(gzip.decompress(data)[: 1 << 22], choice)
        return gzip.compress(made, 1, mtime=0) if choice.randrange(20) else made

    return change


def picture(data: bytes, choice: random.Random) -> bytes:
    """An image whose header says another size or kind, or with blocks changed, repeated or removed; checksums right."""
    if data[:4] == b"\x89PNG":
        return _png(data, choice)
    if data[:2] == b"\xff\xd8":
        return _jpeg(data, choice)
    if data[:2] in (b"P5", b"P6"):
        return change_number(data, choice)
    places = {
        b"GIF8": (6, 10),
        b"RIFF": (4, 40),
        b"BM": (14, 54),
        b"II*\0": (4, 300),
        b"MM\0*": (4, 300),
        b"\0\0\0\x0c": (80, 160),
    }
    low, high = next((span for mark, span in places.items() if data.startswith(mark)), (0, len(data)))
    return data[:low] + set_bytes(data[low:high], choice) + data[high:]


def _png(data: bytes, choice: random.Random) -> bytes:
    chunks, place = [], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + size]])
        place += 12 + size
    at = choice.randrange(len(chunks))
    match choice.randrange(5):
        case 0:
            side = choice.choice(
                (b"\0\0\x25\0", b"\0\0\x40\0", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\1\0\0", b"\0\0\0\1")
            )
            chunks[0][1] = side + choice.choice((side, chunks[0][1][4:8])) + chunks[0][1][8:]
        case 1:
            header = bytearray(chunks[0][1])
            header[choice.randrange(8, 13)] = choice.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0][1] = bytes(header)
        case 2:
            chunks[at][1] = choice.choice(BYTES)(chunks[at][1], choice)
        case 3:
            text = zlib.compress(bytes(choice.choice((10, 10_000_000))))
            kind = choice.choice(b"zTXt iCCP tEXt tRNS PLTE acTL fcTL fdAT eXIf iTXt".split())
            chunks.insert(
                at, [kind, choice.choice((b"x\0\0" + text, b"\0" * 26, b"\0\0\0\2\0\0\0\0", choice.randbytes(40)))]
            )
        case _:
            chunks[at : at + 1] = [chunks[at]] * choice.choice((0, 2, 100))
    parts = (
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )
    return data[:8] + b"".join(parts)


def _jpeg(data: bytes, choice: random.Random) -> bytes:
    marks = [match.start() for match in re.finditer(rb"\xff[\xc0-\xcf\xda\xdb\xdd\xe0-\xef]", data)]
    place = one_of(marks, choice)
    size = int.from_bytes(data[place + 2 : place + 4], "big") + 2
    segment = data[place : place + size]
    match choice.randrange(5):
        case 0:
            frame = next(mark for mark in marks if data[mark + 1] in (0xC0, 0xC2))
            sides = choice.choice((b"\x25\0\x25\0", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xdc\0\1", b"\0\1\xff\xff"))
            return data[: frame + 5] + sides + data[frame + 9 :]
        case 1:
            return data[:place] + segment * choice.choice((0, 2, 300)) + data[place + size :]
        case 2:
            return data[:place] + segment[:4] + choice.choice(BYTES)(segment[4:], choice) + data[place + size :]
        case 3:  # the last scan, many times
            scan = data[max(mark for mark in marks if data[mark + 1] == 0xDA) : -2]
            return data[:-2] + scan * choice.choice((2, 50, 1000)) + data[-2:]
        case _:
            kind = choice.choice(b"\xc0\xc1\xc2\xc3\xc9\xca\xda\xe1\xee")
            return data[: place + 1] + bytes([kind]) + data[place + 2 :]
