"""Headers damaged at random: what comes of them is a file that is read, or one line; never another exception."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from convert.contents import finite
from convert.formats import registry
from convert.options import ReadOptions
from convert.soundness import checked
from gpt_common.errors import UserError
from tests.convert.hostile.corpus_gguf import draft, gguf

FILES = 1000
EDGES = (
    0,
    1,
    2,
    7,
    8,
    9,
    31,
    32,
    33,
    255,
    65535,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
)


def damaged(whole: bytes, header: int, choose: random.Random) -> bytes:
    """With one to three bits, numbers or stretches changed, most of them in the header."""
    data = bytearray(whole)
    for _ in range(choose.choice((1, 1, 2, 3))):
        at = choose.randrange(header if choose.random() < 0.95 else len(data))
        match choose.randrange(5):
            case 0 | 1:
                data[at] ^= 1 << choose.randrange(8)
            case 2:
                width = choose.choice((4, 8))
                data[at : at + width] = (choose.choice(EDGES) % (1 << 8 * width)).to_bytes(width, "little")
            case 3:
                del data[at : at + choose.choice((1, 4, 8, 30))]
            case _:
                data[at:at] = choose.randbytes(choose.choice((1, 4, 8)))
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_read_or_refused_in_a_line(tmp_path: Path, seed: int) -> None:
    path, choose = gguf()(tmp_path), random.Random(seed)
    whole, header = path.read_bytes(), len(draft().header())
    read, said = 0, list[str]()
    for _ in range(FILES // 4):
        path.write_bytes(damaged(whole, header, choose))
        try:
            contents = finite(registry.read(path, ReadOptions()))
            checked(contents)
            contents.find_template()
            for tensor in contents.tensors.values():
                for _block in tensor.blocks():
                    pass
            contents.find_tokenizer()
            read += 1
        except UserError as error:
            said.append(str(error))
    assert all(len(line) < 900 and "\n" not in line for line in said)
    # Most of what is changed matters, and not all of it.
    assert 0 < read < FILES // 8
