"""Take docs/pictures/: MLflow's pages and the terminal, after the examples were trained.

Needs chromium, and the package mlflow, whose pages mlflow-skinny lacks: pip install mlflow==<version of mlflow-skinny>.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
EXAMPLES = ("sklearn_penguins", "xgboost_penguins")
#: Every pixel right of this is not about runs, but MLflow's assistant, which it opens for those who come first.
WIDTH = 1260
#: A loop with a validation, as the README has it.
LOOP = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(X / 16).float(), torch.tensor(y))
train_data, val_data = random_split(digits, [0.8, 0.2])
train_loader = DataLoader(train_data, batch_size=64, shuffle=True)
val_loader = DataLoader(val_data, batch_size=256)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
loss_function = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

for epoch in range(12):
    model.train()
    for x, target in train_loader:
        optimizer.zero_grad()
        loss_function(model(x), target).backward()
        optimizer.step()
    scheduler.step()
    model.eval()
    with torch.no_grad():
        for x, target in val_loader:
            loss_function(model(x), target)
"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""

#: How many of MLflow's charts have a line.
DRAWN = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length"

START = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--lang=en-US"]
# As with a mouse that points at nothing: what appears under it is not shown.
START += ["--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"]


def train(folder: Path, environ: dict[str, str]) -> None:
    shutil.copy(ROOT / "examples" / "penguins.py", folder)
    for name in EXAMPLES:
        shutil.copy(ROOT / "examples" / f"{name}.py", folder)
        subprocess.run([sys.executable, f"{name}.py"], cwd=folder, env=environ, check=True)
    (folder / "digits.py").write_text(LOOP)
    command = [sys.executable, "-m", "autolog", "run", "digits.py"]
    subprocess.run(command, cwd=folder, env=environ, check=True)


def shoot(url: str, name: str, width: int, height: int, folder: Path, seconds: int = 20) -> None:
    """Write the page `url` as docs/pictures/<name>.png."""
    raw = folder / f"{name}.png"
    command = [*START, f"--screenshot={raw}"]
    command += [f"--user-data-dir={folder / 'chromium'}", f"--window-size={width},{height}"]
    command += [f"--virtual-time-budget={seconds * 1000}", url]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    shrink(raw, PICTURES / f"{name}.png")


def shoot_charts(
    url: str, name: str, width: int, height: int, folder: Path, charts: int, patience: float = 180
) -> None:
    """Write a page of so many charts, which load when they come into view: chromium's own screenshot does not wait.

    patience: seconds after which it is an error that they are not there.
    """
    to_chromium, ours_out = os.pipe()
    ours_in, from_chromium = os.pipe()
    command = [*START, "--remote-debugging-pipe"]
    command += [f"--user-data-dir={folder / 'chromium'}", f"--window-size={width},{height}"]
    # DevTools' protocol on file descriptors 3 and 4: JSON with a null byte behind it.
    script = f'exec "$@" 3<&{to_chromium} 4>&{from_chromium}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command, "about:blank"],
        pass_fds=(to_chromium, from_chromium),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_chromium)
    os.close(from_chromium)
    answers = os.fdopen(ours_in, "rb")
    number = 0

    def ask(method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        nonlocal number
        number += 1
        asked = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(ours_out, json.dumps(asked).encode() + b"\0")
        while True:
            said = b""
            while not said.endswith(b"\0"):
                said += answers.read(1)
            answer = json.loads(said[:-1])
            if answer.get("id") == number:
                assert "result" in answer, answer
                return dict(answer["result"])

    try:
        target = ask("Target.createTarget", url=url)["targetId"]
        session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        deadline = time.monotonic() + patience
        drawn = 0
        while drawn < charts:
            if time.monotonic() > deadline:
                sys.exit(f"{url} shows {drawn} charts after {patience:.0f} s, not {charts}")
            time.sleep(1)
            # Each chart is drawn on several layers; the first holds its axes and lines.
            found = ask("Runtime.evaluate", session, expression=DRAWN, returnByValue=True)
            drawn = int(found["result"].get("value") or 0)
        time.sleep(2)
        image = ask("Page.captureScreenshot", session, format="png")["data"]
    finally:
        process.terminate()
        process.wait(20)
    raw = folder / f"{name}.png"
    raw.write_bytes(base64.b64decode(image))
    shrink(raw, PICTURES / f"{name}.png")


def shrink(raw: Path, to: Path) -> None:
    """Keep at most 128 colours, which a page has hardly more of."""
    from PIL import Image

    with Image.open(raw) as image:
        part = image.crop((0, 0, min(image.width, WIDTH), image.height))
        part.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(to, optimize=True)
    print(f"{to.relative_to(ROOT)}: {to.stat().st_size // 1000} kB")


def terminal(command: list[str], name: str, folder: Path, environ: dict[str, str], width: int = 100) -> None:
    """Write what a command shows on a terminal."""
    import pty

    from rich.console import Console
    from rich.text import Text

    environ = {**environ, "COLUMNS": str(width), "TERM": "xterm-256color"}
    leader, follower = pty.openpty()
    subprocess.run(["stty", "cols", str(width), "rows", "60"], stdin=follower, check=True)
    process = subprocess.Popen(command, cwd=folder, env=environ, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # The other end is closed: the command has ended.
            break
        if not part:
            break
        shown += part
    process.wait()
    os.close(leader)
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(Text.from_ansi(f"$ autolog {' '.join(command[3:])}\n"))
    console.print(Text.from_ansi(shown.decode().replace("\r\n", "\n")))
    svg = folder / f"{name}.svg"
    page = console.export_svg(title="", font_aspect_ratio=0.61).replace("Fira Code", "DejaVu Sans Mono")
    svg.write_text(page)
    box = page.split('viewBox="', 1)[1].split('"', 1)[0].split()
    shoot(svg.as_uri(), name, int(float(box[2])), int(float(box[3])), folder, seconds=1)


def main() -> None:
    if not CHROMIUM:
        sys.exit("chromium is not installed")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="penguins-") as place:
        folder = Path(place)
        store = f"sqlite:///{folder / 'mlflow.db'}"
        environ = {
            **os.environ,
            "MLFLOW_TRACKING_URI": store,
            "MLFLOW_EXPERIMENT_NAME": "penguins",
            "AUTOLOG_SPOOL_DIR": str(folder / "spool"),
            "AUTOLOG_CHECKPOINTS": "every=epoch,monitor=val_loss",
            "AUTOLOG_EXIT_TIMEOUT": "60",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        train(folder, environ)
        terminal([sys.executable, "-m", "autolog", "show"], "show", folder, environ)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            store,
            "--port",
            port,
            "--workers",
            "1",
        ]
        server = subprocess.Popen(command, cwd=folder, env=environ, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.5)
            pages(address, store, folder)
        finally:
            server.terminate()
            server.wait(20)


def pages(address: str, store: str, folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("penguins")
    assert experiment is not None
    base = f"{address}/#/experiments/{experiment.experiment_id}"
    shoot(f"{base}/models?workflowType=machine_learning", "models", 1700, 620, folder)
    (loop,) = client.search_runs([experiment.experiment_id], "tags.mlflow.source.name LIKE '%digits.py'")
    curves = f"{base}/runs/{loop.info.run_id}/model-metrics?workflowType=machine_learning"
    shoot_charts(curves, "curves", 1700, 1120, folder, charts=6)


if __name__ == "__main__":
    main()
