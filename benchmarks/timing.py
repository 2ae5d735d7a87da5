"""How long calls take, when they take turns: what disturbs the machine for a while then disturbs them all."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

MIN_ROUNDS = 2
SECONDS_EACH = 4.0  # for all the rounds of one contestant, as far as MIN_ROUNDS allows
SLOW = 3.0  # seconds: a call as long as this needs no warm-up, unless it compiles
# Seconds: calls are repeated until so many have passed, and counted as the mean. A process that has slept finds its
# threads on one core and takes up to 40 ms until they are on two: no library's time, but four calls of a fast one.
MIN_SAMPLE = 0.3
PAUSE = 0.02  # seconds before each sample, for the threads of the one before to go to sleep


class Contestant(NamedTuple):
    """A call, and how to wait for its result."""

    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    compiles: bool = True
    # On a GPU calls are queued, ever more of them, and only the last is waited for: a training loop does not wait, too.
    queued: bool = False


class Timing(NamedTuple):
    """Seconds a call, and how many samples were taken."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int


Clock = Callable[[], float]


def take_turns(
    contestants: Mapping[str, Contestant], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time all of them, A B C A B C ...; the slow ones sit out the later rounds."""
    samples: dict[str, list[float]] = {}
    wanted = {}
    for name, contestant in contestants.items():
        first = _seconds(contestant, 0, clock)
        samples[name] = [first] if first > SLOW and not contestant.compiles else []
        wanted[name] = rounds

    for turn in range(rounds):
        for name, contestant in contestants.items():
            if len(samples[name]) >= wanted[name]:
                continue
            time.sleep(PAUSE)
            samples[name].append(_seconds(contestant, MIN_SAMPLE, clock))
            if turn == 0:
                wanted[name] = min(rounds, max(MIN_ROUNDS, math.ceil(SECONDS_EACH / samples[name][0])))
    return {name: _timing(seconds) for name, seconds in samples.items()}


def _seconds(contestant: Contestant, at_least: float, clock: Clock) -> float:
    """The mean time of as many calls as it takes."""
    start, calls, queue = clock(), 0, 1
    while calls == 0 or clock() - start < at_least:
        for _ in range(queue):
            result = contestant.call()
        contestant.wait(result)
        calls += queue
        if contestant.queued:
            queue *= 2
    return (clock() - start) / calls


def _timing(seconds: list[float]) -> Timing:
    first, median, third = np.percentile(seconds, [25, 50, 75])
    return Timing(float(median), float(first), float(third), len(seconds))
