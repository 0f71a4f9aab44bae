"""Fuzzing: random inputs from a seed, and a watch that makes a hang or a memory blow-up a failure."""

import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MORE_BYTES = 512 * 2**20  # of address space, that one input may take
MORE_CPU_S = 20.0  # of this process alone, whatever else the machine does
MOST_SAID = 100_000  # characters of a message

_PAGE = resource.getpagesize()


class TookTooLong(BaseException):
    """Caught by nobody."""


@contextmanager
def watched() -> Iterator[None]:
    """Around one input: more memory is a MemoryError, more seconds are TookTooLong."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    handler = signal.signal(signal.SIGVTALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (num_pages * _PAGE + MORE_BYTES, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, MORE_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, handler)


def _too_long(number: int, frame: object) -> None:
    raise TookTooLong(f"more than {MORE_CPU_S} s of CPU")


def num_refused(inputs: Iterator[Any], take: Callable[[Any], object], clear: tuple[type[Exception], ...]) -> int:
    """How many inputs `take` refuses with a clear error; any other error fails, with the input that made it."""
    refused = 0
    for number, each in enumerate(inputs):
        try:
            with watched():
                take(each)
        except clear as error:
            said = str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(f"input {number}: {type(error).__name__}: {error} from {each!r:.2000}") from error
        else:
            continue
        assert 0 < len(said) < MOST_SAID, f"input {number} is refused in {len(said)} characters: {each!r:.2000}"
    return refused


def altered(noise: random.Random, content: bytes, tokens: list[bytes]) -> bytes:
    """With a few changes: bits, bytes, cuts, doubled stretches, and tokens that mean something to who reads it."""
    made = bytearray(content)
    for _ in range(noise.choice([1, 1, 2, 5])):
        place = noise.randrange(len(made) + 1)
        length = noise.choice([1, 1, 4, noise.randrange(1, 200)])
        match noise.randrange(6):
            case 0 if made:
                made[place % len(made)] ^= 1 << noise.randrange(8)
            case 1:
                made[place:place] = noise.randbytes(length)
            case 2:
                del made[place : place + length]
            case 3:
                made[place:place] = made[place : place + length] * noise.randrange(1, 4)
            case 4:
                del made[place:]
            case _:
                made[place:place] = noise.choice(tokens)
    return bytes(made)


def value(noise: random.Random, depth: int = 4) -> Any:
    """Any plain value: of the wrong type more often than not, and sometimes huge."""
    kinds = 8 if depth else 6
    match noise.randrange(kinds):
        case 0:
            return noise.choice([0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**30, noise.randrange(-10, 1000)])
        case 1:
            return noise.choice([0.0, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf"), 0.5])
        case 2:
            return noise.choice([True, False, None])
        case 3 | 4:
            return noise.choice(["", "a", "mean", "1", "nan", "../..", "/dev/zero", "~nobody9/x", "\u2028", "é" * 300])
        case 5:
            return "x" * noise.choice([1, 80, 5_000])
        case 6:
            return [value(noise, depth - 1) for _ in range(noise.randrange(4))]
    return {noise.choice(["name", "num", "a", "", "dist", "lr"]): value(noise, depth - 1) for _ in range(3)}
