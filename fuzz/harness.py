"""Runs a target: over random and mutated inputs for a while, or under atheris, which looks for new ways.

    python fuzz/fuzz_wire.py [--seconds 10] [--seed N]       without atheris
    python fuzz/fuzz_wire.py --atheris [libFuzzer options]   with it: pip install '.[fuzz]'

A failure prints the input as a Python literal; `--input` takes one back.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

if "--atheris" in sys.argv:
    import atheris  # type: ignore[import-not-found]

    sys.argv.remove("--atheris")
    # For good: a target imports muontrap after this module, and muontrap some more later.
    atheris.instrument_imports(include=["muontrap"]).__enter__()
else:
    atheris = None

Target = Callable[[bytes], None]
LIKELY = (0, 1, 2, 7, 8, 0x20, 0x28, 0x29, 0x7F, 0x80, 0xFF)


def run(target: Target, corpus: Sequence[bytes]) -> None:
    """Parse the command line and fuzz; end with status 1 at the first failure."""
    if atheris:
        atheris.instrument_func(target)
        seeds = ",".join(map(_nameless_file, corpus))
        atheris.Setup([*sys.argv, f"-seed_inputs={seeds}"], partial(_try, target))
        atheris.Fuzz()
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--input", type=ast.literal_eval, default=None)
    arguments = parser.parse_args()
    if arguments.input is not None:
        target(arguments.input)
        return
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    print(f"seed {seed}")
    print(f"{for_a_while(target, corpus, random.Random(seed), arguments.seconds)} inputs, none fails")


def for_a_while(target: Target, corpus: Sequence[bytes], chance: random.Random, seconds: float) -> int:
    """Feed the corpus, each item also cut short at each byte; then mutants of it until the time is over."""
    count = 0
    for item in corpus:
        for length in range(len(item) + 1):
            _try(target, item[:length])
            count += 1
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _try(target, mutant(corpus, chance))
        count += 1
    return count


def mutant(corpus: Sequence[bytes], chance: random.Random) -> bytes:
    """Return an item with some bytes changed, removed, repeated, or taken from another."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 40)))
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = chance.choice((*LIKELY, chance.randrange(256)))
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end]
        elif kind == 3:
            data[at:end] = chance.choice(corpus)[at:end]
        else:
            data[at:end] = chance.randbytes(end - at)
    return bytes(data)


def _nameless_file(data: bytes) -> str:
    """Return the path of a file that goes with this process, as libFuzzer ends without any clean-up."""
    fd = os.memfd_create("seed")
    os.write(fd, data)
    return f"/proc/self/fd/{fd}"


def _try(target: Target, data: bytes) -> None:
    try:
        target(data)
    except BaseException:
        print(f"fails on {data!r}", file=sys.stderr)
        raise
