"""Work on batches in several processes, a few batches ahead.

The processes are loky's: they neither copy the locks of running threads, as a fork would, nor run the caller's script again.

A decoder in C may end its process on a damaged or malicious file. Then the batches under way are worked on item by item, each
in a process of its own, and the item that ends it again is told as such.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from loky import ProcessPoolExecutor

T = TypeVar("T")
A = TypeVar("A")
Work = Callable[[list[T]], list[A]]
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Each process is one of as many as there are processors: threads of its own would only stand in the others' way."""


def in_parallel(
    work: Work[T, A], batches: Iterator[list[T]], fatal: A, workers: int | None = None, apart: bool = False
) -> Iterator[tuple[list[T], list[A]]]:
    """Each batch with the answers that `work` gives to its items, in any order of batches.

    Parameters
    ----------
    work : answers each item of a batch; goes to other processes, so it must be picklable
    fatal : the answer to an item that ends the process
    workers : processes; as many as there are processors when left out. With 0, or a single batch, this one does the work
    apart : other processes do the work even of a single batch
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    few = list(islice(batches, 2 if workers else 0))
    if not few or (len(few) < 2 and not apart):
        yield from ((batch, work(batch)) for batch in chain(few, batches))
        return
    yield from _in_processes(work, chain(few, batches), fatal, workers)


def _in_processes(work: Work[T, A], batches: Iterator[list[T]], fatal: A, workers: int) -> Iterator[tuple[list[T], list[A]]]:
    for lost in _until_one_ends(work, batches, workers):
        if isinstance(lost, tuple):
            yield lost
        else:
            yield from ((batch, [_alone(work, item, fatal) for item in batch]) for batch in lost)
            yield from _in_processes(work, batches, fatal, workers)


def _until_one_ends(
    work: Work[T, A], batches: Iterator[list[T]], workers: int
) -> Iterator[tuple[list[T], list[A]] | list[list[T]]]:
    """Batches with their answers; when a process ends, the batches that were under way, and no more."""
    with ProcessPoolExecutor(workers, env=_ONE_THREAD) as pool:
        under_way = {pool.submit(work, batch): batch for batch in islice(batches, 2 * workers)}
        while under_way:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                try:
                    answers = future.result()
                except BrokenProcessPool:
                    yield list(under_way.values())
                    return
                yield under_way.pop(future), answers
                for batch in islice(batches, 1):
                    try:
                        under_way[pool.submit(work, batch)] = batch
                    except BrokenProcessPool:
                        yield [batch, *under_way.values()]
                        return


def _alone(work: Work[T, A], item: T, fatal: A) -> A:
    with ProcessPoolExecutor(1, env=_ONE_THREAD) as pool:
        try:
            (answer,) = pool.submit(work, [item]).result()
            found: A = answer
            return found
        except BrokenProcessPool:
            return fatal
