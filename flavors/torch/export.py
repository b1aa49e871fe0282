"""The pickle-free form of a model: the archive of ``torch.export``, as ``mlflow.pytorch`` saves it for "pt2".

Exporting traces the model, which takes seconds and switches on global state of torch's. So it is done by a process of
its own, which the sender starts once a snapshot is there, on the snapshot's own copy, in eval mode. It is done once for
each model of a training: in a later checkpoint the archive's weights are replaced. In the archive (torch 2.9 and
later; ``torch/export/pt2_archive/constants.py``) each weight is the bytes of a contiguous tensor, named in
``data/weights/model_weights_config.json``. Where it looks different, each checkpoint is exported.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What the training process says to the one that exports; not part of the model.
REQUEST = "export.json"
#: Seconds that an export may take.
_TIMEOUT = 900.0
_WEIGHTS = "/data/weights/model_weights_config.json"
_CONSTANTS = "/data/constants/model_constants_config.json"
_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from flavors.torch.export import main
main(sys.argv[2], sys.argv[3], sys.argv[4])
"""


class NotExportable(Exception):
    """The model cannot be exported; the message says why."""


def request(template: str) -> bytes:
    """Return the file :data:`REQUEST`; template: names the model that all of its checkpoints are weights of."""
    path = [str(Path(entry or ".").resolve()) for entry in sys.path]
    return json.dumps({"template": template, "path": path}).encode()


def finish(folder: Path, package: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn the pickled model in `folder` into an exported one; return its package description. In the sender.

    Raises: NotExportable, each time with the same message; the pickled model is unharmed then.
    """
    data, asked = folder / "data", folder / REQUEST
    if (data / "model.pth").exists():
        wanted = json.loads(asked.read_text())
        # In the spool's folder of files, as long as the spool.
        template = folder.parent / f"{wanted['template']}.pt2"
        failed = template.with_suffix(".failed")
        if not failed.exists():
            _export(folder, package, template, wanted["path"], failed)
        if failed.exists():
            asked.unlink()
            raise NotExportable(failed.read_text())
        (data / "model.pth").unlink()
    (data / "pickle_module_info.txt").unlink(missing_ok=True)
    asked.unlink(missing_ok=True)
    # As MLflow has it: its pyfunc wrapper hands over one array.
    single = len(json.loads(package["signature"]["inputs"])) == 1
    return {
        **package,
        "loader_module": package["loader_module"] if single else None,
        "requirements": [one for one in package["requirements"] if one.partition("==")[0] in ("torch", "numpy")],
    }


def _export(folder: Path, package: Mapping[str, Any], template: Path, path: list[str], failed: Path) -> None:
    if not package["signature"]:
        failed.write_text("it is not known what inputs it takes, as no signature was seen")
        return
    environ = {**os.environ, "AUTOLOG_DISABLE": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            _BOOT,
            json.dumps(path),
            str(folder),
            str(template),
            package["signature"]["inputs"],
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT,
        env=environ,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line[0].isspace()]
        failed.write_text((lines or [f"exit status {done.returncode}"])[-1][:500])


# -- in the process that exports ------------------------------------------------------------------------------------


def main(folder: str, template: str, inputs: str) -> None:
    """Write ``data/model.pt2`` beside ``data/model.pth``. inputs: the signature's, as JSON.

    Raises: what unpickling and exporting raise; AssertionError where the exported model computes something else.
    """
    import torch

    torch.set_num_threads(1)
    data, kept = Path(folder) / "data", Path(template)
    loaded: Any = torch.load(data / "model.pth", map_location="cpu", weights_only=False)
    model = loaded.eval()
    made = data / "model.pt2.part"
    if not (kept.exists() and replace_weights(kept, model.state_dict(), made)):
        export(model, json.loads(inputs), made)
        part = kept.with_suffix(".part")
        part.write_bytes(made.read_bytes())
        part.replace(kept)
    made.replace(data / "model.pt2")


def export(model: Any, specs: list[dict[str, Any]], path: Path) -> None:
    """Export `model` for inputs like `specs`, tensor specs of an MLflow signature, and check it on one of them.

    Dimensions of unknown size stay so, as ``mlflow.pytorch.save_model`` has it; the example's are 2, since torch takes
    sizes of 0 and 1 for constants.

    Raises: what ``torch.export`` raises; AssertionError.
    """
    import torch

    tensors, dynamic = [], []
    for spec in specs:
        shape, kind = spec["tensor-spec"]["shape"], getattr(torch, spec["tensor-spec"]["dtype"])
        tensors.append(torch.zeros([2 if size < 0 else size for size in shape], dtype=kind))
        auto: Any = getattr(torch.export.Dim, "AUTO", None)
        unknown = [i for i, size in enumerate(shape) if size < 0]
        dynamic.append({i: torch.export.Dim(f"dim_{i}") if auto is None else auto for i in unknown})
    names = [str(spec.get("name")) for spec in specs]
    accepted = list(inspect.signature(model.forward).parameters)
    args: tuple[Any, ...] = tuple(tensors)
    kwargs: dict[str, Any] = {}
    shapes: Any = tuple(dynamic)
    if len(specs) > 1 and names != accepted[: len(names)]:
        args, kwargs = (), dict(zip(names, tensors, strict=True))
        shapes = dict(zip(names, dynamic, strict=True))
    with torch.no_grad():
        exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        torch.testing.assert_close(exported.module()(*args, **kwargs), model(*args, **kwargs), equal_nan=True)
    torch.export.save(exported, str(path))


def replace_weights(template: Path, weights: Mapping[str, Any], path: Path) -> bool:
    """Write the archive `template` to `path` with other weights; return whether that can be done."""
    import torch

    with zipfile.ZipFile(template) as archive:
        names = archive.namelist()
        config = next((name for name in names if name.endswith(_WEIGHTS)), None)
        constants = next((name for name in names if name.endswith(_CONSTANTS)), None)
        # What is no weight may have changed, too, such as a buffer that is not persistent.
        if config is None or constants is None or json.loads(archive.read(constants))["config"]:
            return False
        entries = json.loads(archive.read(config))["config"]
        if set(entries) != set(weights):
            return False
        replaced: dict[str, bytes] = {}
        for name, entry in entries.items():
            tensor, meta = weights[name].detach(), entry["tensor_meta"]
            sizes = [size.get("as_int") for size in meta["sizes"]]
            record = f"{config.rpartition('/')[0]}/{entry['path_name']}"
            held = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            fits = sizes == list(tensor.shape) and archive.getinfo(record).file_size == len(held)
            if entry["use_pickle"] or not fits or (record in replaced and replaced[record] != held):
                return False
            if [stride.get("as_int") for stride in meta["strides"]] != list(tensor.contiguous().stride()):
                return False
            replaced[record] = held
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
            for name in names:
                made.writestr(archive.getinfo(name), replaced.get(name) or archive.read(name))
    return True


__all__ = ["REQUEST", "NotExportable", "export", "finish", "main", "replace_weights", "request"]
