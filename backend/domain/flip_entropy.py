"""The count of flips of every (teacher, student, class) of a zoo, summed as n ln n, in seconds for 1,300² pairs.

M models, N samples, C classes, n = positive flips of one pair in one class. The counts of all pairs and classes would
be 1.7 billion numbers; only Σ_c n ln n of each pair is needed (Roth et al., arXiv:2310.17653, Fig. 1b), so they are
made, looked up and summed block by block, inside the processor's cache.

Classes of up to 64 samples are packed into one 64-bit word per model, and n = popcount(right[t] & wrong[s]); two
counts of one byte each then index one table of f(n₁) + f(n₂), which halves the lookups. Larger classes are counted by
a matrix product on their own columns. numpy releases the interpreter lock in every step, so plain threads share it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
Share = Callable[[Callable[[int, int], None]], None]

_WORD_BITS = 64
_PRODUCT_COLUMNS = 8192  # float32 holds every integer up to 2²⁴: the product of one block is exact
_BLOCK_WORDS = 1 << 16  # words of one (teacher, students) block: 512 KiB, what a core's second-level cache holds


def matrix_product(left: Bools, right: Bools) -> Floats:
    """left rightᵀ of 0/1 matrices [M, N], [K, N] → [M, K], exact, in blocks of columns (memory O(M · 8192))."""
    total = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], _PRODUCT_COLUMNS):
        block = slice(start, start + _PRODUCT_COLUMNS)
        a = left[:, block].astype(np.float32)
        # The same array twice lets BLAS compute one triangle only.
        total += a @ (a if right is left else right[:, block].astype(np.float32)).T
    return total


def flip_sums(correct: Bools, classes: Ints, compared: Bools | None = None, *, threads: int | None = None) -> Floats:
    """Σ_c n ln n over the classes, n the positive flips of (teacher, student) in class c, [T, S].

    Args:
        correct: [M, N].
        classes: The class each sample is counted under, [N]; −1 leaves the sample out.
        compared: Samples that take part, [N] or [M, N]; None means all.
        threads: Of this call; default: the processors this process may use.
    """
    if compared is None:
        right, wrong = correct, ~correct
    else:
        right, wrong = correct & compared, ~correct & compared
    order = np.argsort(classes, kind="stable")
    order = order[np.searchsorted(classes[order], 0) :]
    _, first, size = np.unique(classes[order], return_index=True, return_counts=True)
    sums = np.zeros((len(correct), len(correct)))
    small = size <= _WORD_BITS
    workers = threads or _processors()
    with ThreadPoolExecutor(workers) as pool:

        def share(work: Callable[[int, int], None]) -> None:
            """Run `work(start, end)` over contiguous shares of the teachers and wait."""
            # More shares than threads: a thread that is slowed down does not hold up the rest.
            bounds: list[int] = np.linspace(0, len(sums), min(len(sums), 8 * workers) + 1).astype(int).tolist()
            for done in [pool.submit(work, start, end) for start, end in pairwise(bounds)]:
                done.result()

        if small.any():
            samples = _sample_table(order, first[small], size[small])
            _add_small_classes(sums, _packed(right, samples), _packed(wrong, samples), int(size[small].max()), share)
        for start, n in zip(first[~small], size[~small], strict=True):
            columns = order[start : start + n]
            _add_large_class(sums, matrix_product(right[:, columns], wrong[:, columns]), int(n), share)
    return sums


def entropy_from_sums(positive: Ints, sums: Floats) -> Floats:
    """H = ln P − (1/P) Σ n ln n in nats; 0 where P = 0.  Arrays of one shape."""
    total = np.maximum(positive, 1)
    # All flips in one class cancel only up to rounding.
    return np.where(positive > 0, np.maximum(np.log(total) - sums / total, 0.0), 0.0)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _n_log_n(largest: int) -> Floats:
    n = np.arange(largest + 1, dtype=np.float64)
    return n * np.log(np.maximum(n, 1.0))


def _sample_table(order: NDArray[np.intp], first: NDArray[np.intp], size: NDArray[np.intp]) -> NDArray[np.intp]:
    """Sample numbers of every class, [C, 64], −1 where the class has fewer."""
    slot = np.arange(_WORD_BITS)
    at = np.minimum(first[:, None] + slot, len(order) - 1)
    return np.where(slot < size[:, None], order[at], -1)


def _packed(flags: Bools, samples: NDArray[np.intp]) -> Words:
    """Flags [M, N] as one word per model and class, [M, C], with a class of no sample added if C is odd."""
    n_classes = len(samples)
    words = np.zeros((len(flags), n_classes + n_classes % 2), dtype=np.uint64)
    taken = samples >= 0
    at = np.where(taken, samples, 0)
    for start in range(0, len(flags), 64):
        bits = np.packbits(flags[start : start + 64, at] & taken, axis=-1)
        words[start : start + 64, :n_classes] = np.ascontiguousarray(bits).view(np.uint64)[..., 0]
    return words


def _add_small_classes(sums: Floats, right: Words, wrong: Words, largest: int, share: Share) -> None:
    n_models, n_classes = right.shape
    f = _n_log_n(largest)
    # Two one-byte counts seen as one two-byte number index f(n₁) + f(n₂); symmetric, so byte order does not matter.
    table = np.zeros(largest * 256 + largest + 1)
    for n in range(largest + 1):
        table[n * 256 : n * 256 + largest + 1] = f[n] + f
    height = max(1, min(n_models, _BLOCK_WORDS // n_classes))

    def work(start: int, end: int) -> None:
        words = np.empty((height, n_classes), dtype=np.uint64)
        counts = np.empty((height, n_classes), dtype=np.uint8)
        index = np.empty((height, n_classes // 2), dtype=np.intp)
        values = np.empty((height, n_classes // 2))
        for teacher in range(start, end):
            for low in range(0, n_models, height):
                high = min(low + height, n_models)
                k = high - low
                np.bitwise_and(wrong[low:high], right[teacher], out=words[:k])
                np.bitwise_count(words[:k], out=counts[:k])
                index[:k] = counts[:k].view(np.uint16)
                # 'wrap' only spares numpy a buffer: every index is inside.
                np.take(table, index[:k], out=values[:k], mode="wrap")
                np.add.reduce(values[:k], axis=1, out=sums[teacher, low:high])

    share(work)


def _add_large_class(sums: Floats, counts: Floats, largest: int, share: Share) -> None:
    table = _n_log_n(largest)

    def work(start: int, end: int) -> None:
        for row in range(start, end):
            sums[row] += table[counts[row].astype(np.intp)]

    share(work)
