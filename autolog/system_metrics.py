"""Metrics of the machine while a run is open, under MLflow's own names, sampled by the sender from outside.

MLflow's own monitors (:mod:`mlflow.system_metrics.metrics`) measure, with psutil and, for GPUs, nvidia-ml-py or pyrsmi,
so that names and units are MLflow's: ``system/cpu_utilization_percentage`` and so on. Interval, samples per point and
node id are those of MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL (seconds, 10), MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING
(1) and MLFLOW_SYSTEM_METRICS_NODE_ID. Unlike MLflow's, the first point is of the end of the first interval: psutil's
processor load is that since it was asked before, and 0 the first time.

What is measured goes through the spool like all else, so that it is neither lost nor doubled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autolog import guard
from autolog.records import EndRun, OpenRun, Points, now
from autolog.spool import Row, Spool

INTERVAL = 10.0


class Sampling:
    """The thread that samples for the open runs of one spool which ask for it; it begins with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._ended: set[str] = set()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def restore(self, spool: Spool) -> None:
        """Go on with the runs that an earlier sender sampled for."""
        for key, known in spool.keys("run:").items():
            if known.detail.get("system") and known.detail.get("state") in ("open", "adopted"):
                self._begin(key.removeprefix("run:"))

    def see(self, rows: Iterable[Row]) -> None:
        """Note which runs begin and end; rows that are seen again change nothing."""
        for _, record in rows:
            if isinstance(record, OpenRun) and record.system_metrics:
                self._begin(record.run)
            elif isinstance(record, EndRun):
                with self._lock:
                    self._ended.add(record.run)

    def _begin(self, run: str) -> None:
        with self._lock:
            if run in self._ended or run in self._waiting or self._stopped.is_set():
                return
            self._waiting.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="autolog-system", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """End the thread: no more runs will come. Harmless when repeated."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(5.0)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        spool = Spool(self._folder)
        try:
            machine = guard.attempt(_Machine)
            if machine.value is None:
                spool.problem(
                    "system",
                    f"system metrics are not recorded ({machine.error}); run: pip install 'mlflow-autolog[system]'",
                )
                return
            sampled = guard.attempt(self._sample, spool, machine.value)
            if sampled.error is not None:
                guard.attempt(spool.problem, "system", f"system metrics are not recorded any more ({sampled.error})")
        finally:
            spool.close()

    def _sample(self, spool: Spool, machine: _Machine) -> None:
        # Those of a whole window; the ones that begin within it join with the next.
        runs: dict[str, _Network] = {}
        begun: set[str] = set()
        while True:
            with self._lock:
                for run in self._waiting:
                    if run not in begun:
                        begun.add(run)
                        runs[run] = _Network()
                self._ended |= spool.ending()
                runs = {run: network for run, network in runs.items() if run not in self._ended}
            if self._stopped.is_set():
                return
            if not runs:
                self._wake.wait()
                self._wake.clear()
                machine.begin()
                continue
            for _ in range(machine.samples):
                if self._stopped.wait(machine.interval):
                    return
                machine.collect()
            values = machine.values()
            at = now()
            # What ended meanwhile gets no point of a time after its end.
            ended = self._ended | spool.ending()
            for run, network in runs.items():
                if run not in ended and spool.exists():
                    step = int(spool.meta(f"system:{run}") or 0)
                    named = {f"{machine.prefix}{name}": value for name, value in {**values, **network.values()}.items()}
                    spool.append([Points(run, step, at, named)])
                    spool.set_meta(f"system:{run}", str(step + 1))


class _Machine:
    """What is the same for all runs.

    Raises: ImportError without psutil.
    """

    def __init__(self) -> None:
        from mlflow import environment_variables as settings
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

        self.interval = float(settings.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or INTERVAL)
        self.samples = int(settings.MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or 1)
        node = settings.MLFLOW_SYSTEM_METRICS_NODE_ID.get()
        self.prefix = f"system/{node}/" if node else "system/"
        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor()]
        graphics = guard.attempt(_gpus)
        if graphics.value is not None:
            self._monitors.append(graphics.value)
        self.begin()

    def begin(self) -> None:
        """Begin an interval of the processor's load now."""
        import psutil

        psutil.cpu_percent()

    def collect(self) -> None:
        """Measure once."""
        for monitor in self._monitors:
            monitor.collect_metrics()

    def values(self) -> dict[str, float]:
        """Return the means of what was measured since the last time."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return found


def _gpus() -> Any:
    """Return the monitor of NVIDIA's or AMD's GPUs; None where there are none that it can see."""
    from mlflow.system_metrics.metrics import gpu_monitor, rocm_monitor

    nvidia = guard.attempt(gpu_monitor.GPUMonitor)
    return nvidia.value if nvidia.value is not None else guard.attempt(rocm_monitor.ROCMMonitor).value


class _Network:
    """What came and went since a run began: of each run its own."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitor = NetworkMonitor()

    def values(self) -> dict[str, float]:
        """Return megabytes received and transmitted."""
        self._monitor.collect_metrics()
        return dict(self._monitor.aggregate_metrics())
