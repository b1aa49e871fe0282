"""The module that is trained, found where the user holds it, and what is said about it once per run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from flavors.torch.sites import user_frames
from flavors.torch.values import plain

if TYPE_CHECKING:
    from types import FrameType

    from torch.nn import Module
    from torch.optim import Optimizer

    from flavors.torch.optimizers import Entry

Visible = list[tuple[str, Any]]

_OPTIMIZED = 0x1  # inspect.CO_OPTIMIZED: a function's frame, whose locals are not its f_locals.
#: Lines of the layer table.
_LAYERS = 1000


def visible(frame: FrameType | None) -> Visible:
    """Return (name, object) of what the user's code around `frame` holds, nearest first.

    That is local variables, the attributes of ``self``, and globals of the nearest user frame.
    """
    found: Visible = []
    for i, at in enumerate(user_frames(frame)):
        held = dict(at.f_locals)
        if at.f_code.co_flags & _OPTIMIZED and sys.version_info < (3, 13):
            # Python keeps this copy with the frame: it would hold the batch of the first step until the loop ends.
            at.f_locals.clear()
        found.extend(held.items())
        owner = held.get("self")
        if owner is not None:
            found.extend(getattr(owner, "__dict__", {}).items())
            found.extend(getattr(owner, "_modules", {}).items())
        if i == 0 and at.f_code.co_flags & _OPTIMIZED:
            found.extend(at.f_globals.items())
    return found


def root(entry: Entry, around: Visible) -> tuple[str, Module] | None:
    """Return (variable name, module) of the whole model that `entry`'s optimizer trains; None where there is none.

    A user may optimize the head of a model only. So of the modules in reach that hold the most of the optimizer's
    parameters, the one with the most parameters in all is the model; among equals it is the one whose
    ``parameters()`` the optimizer was given, then the nearest.
    """
    import torch

    trained = {id(parameter) for parameter in entry.parameters()}
    noted = entry.module() if entry.module is not None else None
    candidates: Visible = [("model", noted)] if noted is not None else []
    candidates += around
    best = _best(candidates, trained, torch.nn.Module)
    if best is None:
        import gc

        # Once per run, where the user's code around the step does not hold the model.
        best = _best((("model", held) for held in gc.get_objects()), trained, torch.nn.Module)
    if best is None:
        return None
    name = next((name for name, held in around if unwrap(held, torch.nn.Module) is best), "model")
    return name.strip("_") or "model", best


def _best(candidates: Iterable[tuple[str, Any]], trained: set[int], kind: type) -> Any:
    best, reach, seen = None, (0, 0), set()
    for _, held in candidates:
        module = unwrap(held, kind)
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        held_ids = {id(parameter) for parameter in module.parameters()}
        score = (len(held_ids & trained), len(held_ids))
        if score[0] and score > reach:
            best, reach = module, score
    return best


def unwrap(held: Any, kind: type) -> Any:
    """Return the user's module inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.

    kind: ``torch.nn.Module``. Returns None for what is no module.
    """
    # type(), since isinstance() asks a proxy object for its __class__.
    if not issubclass(type(held), kind):
        return None
    while True:
        name = type(held).__name__
        if name in ("DistributedDataParallel", "DataParallel") and issubclass(type(held.module), kind):
            held = held.module
        elif name == "OptimizedModule":
            held = held._orig_mod
        else:
            return held


def hyper_parameters(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's name and hyper-parameters, under the names of MLflow's autologging for Lightning.

    The learning rate is the one that the user gave, where a scheduler has changed it since. Groups after the first
    say what is different about them, as ``<name>_<group>``.
    """
    found: dict[str, Any] = {"optimizer_name": type(optimizer).__name__}
    first: dict[str, Any] = {}
    for i, group in enumerate(optimizer.param_groups):
        values = {
            name: plain(value) for name, value in group.items() if name not in ("params", "initial_lr", "param_names")
        }
        if "initial_lr" in group:
            values["lr"] = plain(group["initial_lr"])
        if i == 0:
            first = values
            found.update(values)
        else:
            found.update({f"{name}_{i}": value for name, value in values.items() if first.get(name) != value})
    return found


def facts(module: Module | None, optimizer: Optimizer, around: Visible) -> dict[str, Any]:
    """Return what is certain about the training besides the optimizer.

    Keys: model_class, total_parameters, trainable_parameters, device, dtype, and where exactly one is in reach
    lr_scheduler and lr_scheduler.<argument>, loss_function, batch_size; where they are in reach grad_scaler (whether
    the loss scaling of mixed precision is on) and wrapped_in (what is around the model: DistributedDataParallel,
    torch.compile).
    """
    import torch

    found: dict[str, Any] = {}
    if module is not None:
        parameters = list(module.parameters())
        found["model_class"] = type(module).__name__
        found["total_parameters"] = sum(parameter.numel() for parameter in parameters)
        found["trainable_parameters"] = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        found["device"] = ", ".join(sorted({str(parameter.device) for parameter in parameters}))
        found["dtype"] = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}))
    schedulers, losses, loaders = {}, {}, {}
    wrappers: dict[str, None] = {}
    for _, held in around:
        kind = type(held)
        if issubclass(kind, torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau):
            if getattr(held, "optimizer", None) is optimizer:
                schedulers[id(held)] = held
        elif issubclass(kind, torch.nn.modules.loss._Loss):
            losses[id(held)] = kind.__name__
        elif issubclass(kind, torch.utils.data.DataLoader):
            loaders[id(held)] = held.batch_size
        elif issubclass(kind, torch.amp.GradScaler):
            found["grad_scaler"] = held.is_enabled()
        elif module is not None and unwrap(held, torch.nn.Module) is module:
            wrappers.update(dict.fromkeys(_wrappers(held)))
    if wrappers:
        found["wrapped_in"] = ", ".join(wrappers)
    if len(schedulers) == 1:
        (scheduler,) = schedulers.values()
        found.update(_arguments(scheduler))
    schedulers = {number: type(held).__name__ for number, held in schedulers.items()}
    for name, known in (("lr_scheduler", schedulers), ("loss_function", losses), ("batch_size", loaders)):
        values = set(known.values()) if name == "batch_size" else list(known.values())
        if len(values) == 1 and (value := next(iter(values))) is not None:
            found[name] = value
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        # Losses are those of rank 0: nothing is reduced over ranks here.
        found["world_size"] = distributed.get_world_size()
    return found


def _wrappers(held: Any) -> Iterator[str]:
    """Yield what is around a module, outermost first, as :func:`unwrap` takes it off."""
    while True:
        name = type(held).__name__
        if name in ("DistributedDataParallel", "DataParallel"):
            yield name
            held = held.module
        elif name == "OptimizedModule":
            yield "torch.compile"
            held = held._orig_mod
        else:
            return


def _arguments(scheduler: Any) -> dict[str, Any]:
    """Return the arguments that a scheduler was made with, as far as it keeps them as numbers or texts."""
    names = list(inspect.signature(type(scheduler).__init__).parameters)
    kept = {name: vars(scheduler).get(name) for name in names if name not in ("last_epoch", "verbose")}
    return {f"lr_scheduler.{name}": value for name, value in kept.items() if type(value) in (int, float, str, bool)}


def summary(module: Module) -> str:
    """Return a table of the module's layers: name, type, number of parameters, and whether they are trained."""
    rows = [("Name", "Type", "Params", "Trainable")]
    for name, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if name and not own and next(layer.children(), None) is not None:
            continue
        count = sum(parameter.numel() for parameter in own)
        trained = "-" if not own else "yes" if all(parameter.requires_grad for parameter in own) else "no"
        rows.append((name or "(model)", type(layer).__name__, f"{count:,}", trained))
        if len(rows) > _LAYERS:
            rows.append(("...", "", "", ""))
            break
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows]
    lines.insert(1, "-" * (sum(widths) + 6))
    total = sum(parameter.numel() for parameter in module.parameters())
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    lines += ["", f"Total params: {total:,}", f"Trainable params: {trainable:,}"]
    return "\n".join([*lines, f"Non-trainable params: {total - trainable:,}", ""])


__all__ = ["Visible", "facts", "hyper_parameters", "root", "summary", "unwrap", "visible"]
