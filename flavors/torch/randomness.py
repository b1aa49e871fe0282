"""States of random generators: the global ones, and those that the user made."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autolog.patching import user_frame, variable_name

if TYPE_CHECKING:
    from flavors.torch.models import Visible


def generators(around: Visible) -> dict[str, Any]:
    """Return the user's own generators in reach by name: torch's, numpy's, Python's, and those of data loaders.

    A loader's that has no variable of its own is called ``<loader>.generator``.
    """
    import torch

    found: dict[str, Any] = {}
    for name, held in around:
        if name and _is_generator(held) and held is not torch.default_generator:
            found.setdefault(name, held)
    for name, held in around:
        if issubclass(type(held), torch.utils.data.DataLoader):
            own = held.generator if held.generator is not None else getattr(held.sampler, "generator", None)
            if own is not None and not any(own is known for known in found.values()):
                found[f"{name}.generator"] = own
    return found


def states(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of each generator."""
    return {name: _state(one) for name, one in generators.items()}


def pairs(given: Sequence[Any], saved: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return (generator, state): each gets what is saved under its variable's name, or the only one that is left.

    Raises: LookupError where there is none; ValueError where it is of a generator of another kind.
    """
    frame, left, found = user_frame(), dict(saved), []
    named = [(one, variable_name(one, frame) or "") for one in given]
    # Names first: what is left over is for those without.
    for one, name in sorted(named, key=lambda pair: pair[1] not in left):
        if name not in left and len(left) != 1:
            held = ", ".join(saved) or "none"
            raise LookupError(f"the checkpoint holds no state of a generator {name!r} (it holds: {held})")
        kind, state = left.pop(name if name in left else next(iter(left)))
        if kind != _kind(one):
            raise ValueError(f"the checkpoint's generator is one of {kind}, not of {_kind(one)}")
        found.append((one, state))
    return found


def set_states(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Set each generator to its state, as :func:`pairs` returns them."""
    for one, state in pairs:
        kind = _kind(one)
        if kind == "torch":
            one.set_state(state)
        elif kind == "numpy":
            one.bit_generator.state = state
        else:
            one.setstate(state)


def _is_generator(held: Any) -> bool:
    import torch

    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random, *((numpy.random.Generator,) if numpy is not None else ()))
    return issubclass(type(held), kinds) and type(held) is not random.SystemRandom


def _kind(generator: Any) -> str:
    return type(generator).__module__.partition(".")[0]


def _state(generator: Any) -> tuple[str, Any]:
    kind = _kind(generator)
    if kind == "torch":
        return kind, generator.get_state()
    return kind, generator.bit_generator.state if kind == "numpy" else generator.getstate()


def random_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, numpy (where imported), torch and its CUDA devices."""
    import torch

    found: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        found["numpy"] = numpy.random.get_state(legacy=True)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # A CUDA generator's state is on the host: nothing is waited for.
        found["cuda"] = [torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())]
    return found


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set what :func:`random_state` returned."""
    import torch

    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        import numpy as np

        np.random.set_state(state["numpy"])
    for i, one in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one, i)


__all__ = ["generators", "pairs", "random_state", "set_random_state", "set_states", "states"]
