"""What a ``torch.utils.data`` dataset says about itself without an item being asked for, which is the user's code.

Looked at is what its attributes hold: arrays, tensors, frames, texts, numbers, lists of them and other datasets, as in
torch's own datasets, torchvision's and most that users write. What is on a device is not read: that would wait for it.
"""

from __future__ import annotations

import itertools
import json
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from autolog import datasets, guard, signature
from autolog.datasets import Dataset

#: How far lists and datasets inside each other are looked into; attributes and items of one, and parts in all.
_DEPTH, _ITEMS, _PARTS = 8, 64, 4096
#: Packages of arrays and frames.
_ARRAYS = ("numpy", "pandas", "polars", "scipy")


#: The fingerprint of each sampler's indices; whoever changes them makes a new sampler.
_fingerprints: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()


class Data:
    """What a loader walks over: a dataset, or the part of it that its sampler picks, as the folds of one dataset.

    dataset: returns it, while it lives. length: how many items it has, None where it does not know.
    part: tells the part from others, in whatever order; None for all of it.
    """

    __slots__ = ("dataset", "length", "part")

    def __init__(self, loader: Any) -> None:
        dataset = loader.dataset
        self.dataset = weakref.ref(dataset) if type(dataset).__weakrefoffset__ else lambda: dataset
        self.part = guard.attempt(_part, loader).value
        self.length = length(dataset)

    def overlies(self, other: Data) -> bool:
        """Return whether both are of one dataset, as far as it is still there."""
        dataset = self.dataset()
        return dataset is not None and dataset is other.dataset()

    def same(self, other: Data) -> bool:
        """Return whether the other one is the same data, as far as it is still there."""
        return self.overlies(other) and self.part == other.part


def length(data: Any) -> int | None:
    """Return how many items a dataset or batches a loader has, None where it does not know."""
    return guard.attempt(len, data).value if hasattr(type(data), "__len__") else None


def _part(loader: Any) -> tuple[int, int] | None:
    """Return (number, sum of hashes) of the indices that a ``SubsetRandomSampler`` or one like it picks."""
    sampler = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # accelerate's, around the user's.
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", loader.sampler)
    if not hasattr(sampler, "indices"):
        return None
    known = _fingerprints.get(sampler)
    if known is None:
        import numpy as np

        # The steps of splitmix64, https://prng.di.unimi.it/splitmix64.c, whose sum knows no order.
        number = np.asarray(sampler.indices).astype(np.uint64).ravel() + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            number = (number ^ (number >> np.uint64(shift))) * np.uint64(factor)
        known = _fingerprints[sampler] = (len(number), int((number ^ (number >> np.uint64(31))).sum()))
    return known


def describe(dataset: Any, name: str, length: int | None, part: tuple[int, int] | None = None) -> Dataset | None:
    """Describe a dataset; None where it has nothing that would tell it from another one of its class and length.

    The digest covers its class, its length and a sample of its content. The schema is that of its first two tensors or
    arrays with as many rows as it has items: features and targets.

    length: how many items it has, where that is known. part: as :class:`Data` has it.
    """
    picked = "" if part is None else f" {part}"
    known = list(itertools.islice(_parts(dataset, _DEPTH), _PARTS))
    parts = known or list(itertools.islice(_parts(getattr(dataset, "__dict__", {}), _DEPTH), _PARTS))
    if not parts:
        return None
    arrays = [part for part in parts if length and hasattr(part, "dtype") and part.shape[:1] == (length,)]
    rows = length if part is None else part[0]
    profile: dict[str, Any] = {} if rows is None else {"num_rows": rows}
    specs: dict[str, Any] = {"features": None, "targets": None}
    for role, array in zip(specs, arrays, strict=False):
        profile[f"{role}_shape"] = [int(extent) for extent in array.shape]
        specs[role] = json.dumps(signature.schema(array))
    return datasets.made_of(
        [f"{type(dataset).__qualname__} {length}{picked}", *parts],
        name=name,
        schema=json.dumps({"mlflow_tensorspec": specs}) if arrays else None,
        profile=json.dumps(profile),
    )


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """Return the arrays, frames and texts that `value` consists of, in order; of long lists a sample."""
    import torch

    if not depth:
        return
    held = getattr(value, "__dict__", {})
    # Hugging Face's datasets know a digest of their own, which covers every transformation.
    if isinstance(held.get("_fingerprint"), str):
        yield held["_fingerprint"]
    elif isinstance(value, torch.utils.data.Dataset):
        yield from _parts(held, depth - 1)
    elif isinstance(value, torch.Tensor):
        readable = type(value) in (torch.Tensor, torch.nn.Parameter) and value.is_cpu and not value.is_quantized
        yield value if readable and value.layout is torch.strided else f"{value.dtype}{tuple(value.shape)}"
    elif isinstance(value, str | int | float | bytes):
        yield repr(value[:1000]) if isinstance(value, str | bytes) else repr(value)
    elif isinstance(value, Mapping):
        for key in [key for key in itertools.islice(value, _ITEMS) if isinstance(key, str)]:
            found = list(_parts(value[key], depth - 1))
            yield from [key, *found] if found else ()
    elif isinstance(value, list | tuple | range):
        yield f"{len(value)} items"
        for i in datasets.spread(len(value), _ITEMS):
            yield from _parts(value[i], depth - 1)
    elif type(value).__module__.partition(".")[0] in _ARRAYS and hasattr(value, "shape"):
        yield value


__all__ = ["describe"]
