"""Steps of training with the tracking server down, against the same steps bare, interleaved; medians and ratio.

    python benchmarks/down.py [--repeat N] [--json FILE]

Down in the worst way: it takes connections and never answers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bench import Worker, machine, show
from workloads import TORCH_STEPS, WORKLOADS

#: Seconds in which what follows a training (its model is written to the disk) is done, so that it falls on no other.
SETTLES = 1.0


def black_hole() -> tuple[socket.socket, int]:
    """Listen on a port of the loopback interface, take connections, and say nothing."""
    listening = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def swallow() -> None:
        while True:
            held.append(listening.accept()[0])

    threading.Thread(target=swallow, daemon=True).start()
    return listening, listening.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15, help="turns")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    workload = WORKLOADS["torch"]
    _, port = black_hole()
    os.environ["AUTOLOG_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    os.environ["AUTOLOG_EXIT_TIMEOUT"] = "1"
    print(machine())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        workers = {name: Worker(workload, name, Path(place) / name) for name in ("bare", "ours")}
        took: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(options.repeat + 2):
            for name, worker in workers.items():
                seconds = worker.ask("work") / TORCH_STEPS
                time.sleep(SETTLES if name == "ours" else 0.0)
                if turn >= 2:
                    took[name].append(seconds)
        for worker in workers.values():
            worker.close()
    bare, ours = (statistics.median(took[name]) for name in ("bare", "ours"))
    added = statistics.median(b - a for a, b in zip(took["bare"], took["ours"], strict=True))
    print("\n| work | bare | ours, the server silent | added | of a step |\n|---|---|---|---|---|")
    print(f"| a step of: {workload.title} | {show(bare)} | {show(ours)} | {show(added)} | {added / bare:.2%} |")
    if options.json:
        row = {"bare": bare, "ours": ours, "added": added}
        options.json.write_text(json.dumps({"machine": machine(), "rows": {"down": row}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
