"""Putting a checkpoint's states into the user's own objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import guard
from flavors.torch.models import unwrap
from flavors.torch.randomness import pairs, set_random_state, set_states
from flavors.torch.state import TRAINING_STATE

if TYPE_CHECKING:
    from torch.nn import Module


def restore(
    folder: Path,
    model: Module,
    optimizers: Sequence[Any],
    schedulers: Sequence[Any],
    scaler: Any,
    generators: Sequence[Any],
) -> tuple[int, int]:
    """Restore what is saved in the model folder `folder`; return (steps made, epochs complete).

    What is saved is unpickled, so it must come from a store that is trusted, as with ``mlflow.pytorch.load_model``.

    Raises: LookupError where a state is not among what is saved; ValueError, RuntimeError where it does not fit.
    """
    import torch

    path = folder / TRAINING_STATE
    if not path.exists():
        raise LookupError("the model holds no training state: it is none of autolog's checkpoints")
    saved = torch.load(path, map_location="cpu", weights_only=False)
    states = _pairs(
        optimizers, [(one["class"], one) for one in saved["optimizers"]], "optimizer", "AcceleratedOptimizer"
    )
    states += _pairs(schedulers, saved["schedulers"], "scheduler", "AcceleratedScheduler")
    chosen = pairs(generators, saved["generators"])
    if saved["generators"] and not generators:
        guard.say_once(
            "generators",
            "mlflow-autolog: the checkpoint holds the states of random generators, too (%s). Give yours to "
            "autolog.resume(generator=...) to have the same random numbers from them.",
            ", ".join(saved["generators"]),
        )
    if scaler is not None and saved["scaler"] is None:
        raise LookupError("the checkpoint holds no state of a gradient scaler")
    model.load_state_dict(_for(model, _weights(folder)))
    for one, state in states:
        one.load_state_dict({name: state[name] for name in ("state", "param_groups")} if "class" in state else state)
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    # Last: what comes before may draw random numbers.
    set_random_state(saved["random"])
    set_states(chosen)
    return saved["step"], saved["epoch"]


def _pairs(given: Sequence[Any], saved: Sequence[tuple[str, Any]], what: str, wrapper: str) -> list[tuple[Any, Any]]:
    """Return (object, its state): each gets the first state left over of an object of its class."""
    left = list(saved)
    found = []
    for one in given:
        inner = getattr(one, what) if type(one).__name__ == wrapper else one
        kind = type(inner).__name__
        at = next((i for i, (name, _) in enumerate(left) if name == kind), None)
        if at is None:
            held = ", ".join(name for name, _ in saved) or "none"
            raise LookupError(f"the checkpoint holds no state of a {what} {kind} (it holds: {held})")
        found.append((inner, left.pop(at)[1]))
    return found


def _weights(folder: Path) -> Mapping[str, Any]:
    import torch

    path = folder / "data" / "model.pth"
    if path.exists():
        loaded: Any = torch.load(path, map_location="cpu", weights_only=False)
        return dict(loaded.state_dict())
    exported: Any = torch.export.load(folder / "data" / "model.pt2")
    return dict(exported.state_dict)


def _for(model: Module, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved weights under the names that they have in `model`, whose parts may be wrapped or compiled."""
    import torch

    # Prefix of a wrapper's attribute, such as "encoder._orig_mod.": its name without the wrapper, "encoder.".
    renamed: dict[str, str] = {}
    for name, layer in model.named_modules():
        inner = unwrap(layer, torch.nn.Module)
        if inner is layer:
            continue
        attribute = "_orig_mod" if type(layer).__name__ == "OptimizedModule" else "module"
        renamed[f"{name}.{attribute}." if name else f"{attribute}."] = f"{name}." if name else ""
    if not renamed:
        return dict(saved)
    found = {}
    for name in model.state_dict():
        plain = name
        # Longest first, since a wrapper's own name has those around it in it.
        for wrapped in sorted(renamed, key=len, reverse=True):
            if plain.startswith(wrapped):
                plain = renamed[wrapped] + plain[len(wrapped) :]
        if plain in saved:
            found[name] = saved[plain]
    return found


__all__ = ["restore"]
