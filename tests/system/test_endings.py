"""However a process ends, its open runs say so, with the traceback where there is one; the exit code is its own."""

from __future__ import annotations

import os
import signal
import time

import pytest
from mlflow import MlflowClient

BEGIN = """
    import asyncio, os, sys, threading, time
    import sklearn
    import autolog
    autolog.autolog()
    from autolog import runtime
    run = runtime.open_run("torch")
    run.metrics({"loss": 0.5}, step=1)
"""

ENDINGS = {
    "to its end": ("pass", 0, "FINISHED", ""),
    "exception": ("raise ValueError('no good')", 1, "FAILED", "ValueError: no good"),
    "MemoryError": ("raise MemoryError()", 1, "FAILED", "MemoryError"),
    "Ctrl-C": ("raise KeyboardInterrupt()", 130, "KILLED", "KeyboardInterrupt"),
    "sys.exit()": ("sys.exit()", 0, "FINISHED", ""),
    "sys.exit(0)": ("sys.exit(0)", 0, "FINISHED", ""),
    "sys.exit(3)": ("sys.exit(3)", 3, "FAILED", "SystemExit: 3"),
    "exit(3)": ("exit(3)", 3, "FAILED", "SystemExit: 3"),
    "quit()": ("quit()", 0, "FINISHED", ""),
    "sys.exit(text)": ("sys.exit('no data')", 1, "FAILED", "SystemExit: no data"),
    "raise SystemExit": ("raise SystemExit", 0, "FINISHED", ""),
    "raise SystemExit(0)": ("raise SystemExit(0)", 0, "FINISHED", ""),
    "raise SystemExit(3)": ("raise SystemExit(3)", 3, "FAILED", ""),
    "raise SystemExit(text)": ("def main(): raise SystemExit('no data')\n    main()", 1, "FAILED", ""),
    "raise SystemExit(256)": ("raise SystemExit(256)", 0, "FINISHED", ""),
    "raise SystemExit that is caught": ("try: raise SystemExit(3)\n    except SystemExit: pass", 0, "FINISHED", ""),
    "sys.exit in asyncio": (
        "async def main(): sys.exit(2)\n    asyncio.run(main())",
        2,
        "FAILED",
        "SystemExit: 2",
    ),
    "sys.exit that is caught": (
        "try: sys.exit(3)\n    except SystemExit: pass",
        0,
        "FINISHED",
        "",
    ),
    "sys.exit in a thread": (
        "t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()",
        0,
        "FINISHED",
        "",
    ),
}


def traceback_of(place, run) -> str:
    client = MlflowClient(tracking_uri=place.store)
    if "traceback.txt" not in [item.path for item in client.list_artifacts(run.info.run_id)]:
        return ""
    with open(client.download_artifacts(run.info.run_id, "traceback.txt", str(place.folder))) as file:
        return file.read()


@pytest.mark.parametrize("ending", ENDINGS)
def test_status_is_true_and_exit_code_unchanged(ending: str, place) -> None:
    code, exit_code, status, says = ENDINGS[ending]
    if exit_code == 130:
        exit_code = -signal.SIGINT
    place.run(place.script(BEGIN + "    " + code + "\n"), code=exit_code)
    # The sender outlives the process where only the exit code says how it ended.
    place.wait_for(lambda: not place.spools())
    (run,) = place.runs()
    assert run.info.status == status
    assert place.history(run, "loss") == [(1, 0.5)]
    text = traceback_of(place, run)
    assert (says in text) if says else text == ""


def test_os_exit_is_a_death(place) -> None:
    place.run(place.script(BEGIN + "    time.sleep(0.5); os._exit(7)\n"), code=7)
    place.wait_for(lambda: place.runs() and place.runs()[0].info.status == "FAILED", 15)
    (run,) = place.runs()
    assert place.history(run, "loss") == [(1, 0.5)]
    assert run.data.tags["autolog.ended"] == "the training process died"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_native_code_at_once_and_the_run_is_killed(sent: signal.Signals, place) -> None:
    # A square root of a huge integer holds the interpreter for many seconds, as native training does.
    busy = "    time.sleep(0.3); print('going', flush=True); import math; math.isqrt(7 ** 40_000_000)\n"
    process = place.start(place.script(BEGIN + busy))
    assert process.stdout.readline() == "going\n"
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(sent)
    assert process.wait(20) == -sent
    assert time.monotonic() - began < 2.0
    place.wait_for(lambda: place.runs() and place.runs()[0].info.status == "KILLED", 15)
    (run,) = place.runs()
    assert run.data.tags["autolog.ended"] == sent.name
    assert "train.py" in traceback_of(place, run)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_signal_ends_a_process_whose_threads_are_busy_by_that_signal(place) -> None:
    """Not by a segmentation fault, as looking at the frames of threads that run meanwhile would in one of thirty."""
    code = """
    import os, random, signal, threading, time
    from collections import Counter
    from pathlib import Path
    from autolog import endings

    def calls(depth):
        return calls(depth - 1) + (lambda x: x)(1) if depth else 0

    def busy():
        while True:
            calls(60)
            eval("calls(5)")

    random.seed(0)
    ends = Counter()
    for turn in range(100):
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            endings.watch_signals(Path("."))
            for _ in range(3):
                threading.Thread(target=busy, daemon=True).start()
            os.write(writable, b"!")
            time.sleep(30)
        os.read(readable, 1)
        os.close(readable), os.close(writable)
        time.sleep(random.random() / 50)
        os.kill(child, signal.SIGTERM)
        ends[os.WTERMSIG(os.waitpid(child, 0)[1])] += 1
        assert "in <module>" in Path("SIGTERM.txt").read_text()
    assert ends == {signal.SIGTERM: 100}, ends
"""
    place.run(place.script(code))


def test_a_program_that_handles_sigterm_itself_ends_as_it_says(place) -> None:
    code = """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("going", flush=True)
    time.sleep(30)
"""
    process = place.start(place.script(BEGIN + code))
    assert process.stdout.readline() == "going\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    (run,) = place.runs()
    assert run.info.status == "FINISHED"


def test_a_signal_that_is_ignored_stays_ignored_in_children(place) -> None:
    code = """
    import signal, subprocess
    run.end()
    autolog.flush()
    print(subprocess.run([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGHUP).name)"],
                         capture_output=True, text=True).stdout.strip())
"""
    place.script(
        """
        import os, signal, sys
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, "train.py"])
    """,
        "nohup.py",
    )
    place.script(BEGIN + code)
    out, _ = place.run("nohup.py")
    assert out == "SIG_IGN\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_terminated_child_says_nothing_of_its_parent(place) -> None:
    code = """
    import signal
    time.sleep(0.5)
    child = os.fork()
    if child == 0:
        time.sleep(30)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGKILL)
"""
    place.run(place.script(BEGIN + code), code=-signal.SIGKILL)
    place.wait_for(lambda: place.runs() and place.runs()[0].info.status == "FAILED", 15)


@pytest.mark.parametrize(("leave", "code"), [("sys.exit(3)", 3), ("raise SystemExit(4)", 4)])
def test_autolog_run_sees_how_the_script_ended(leave: str, code: int, place) -> None:
    script = f"""
    import sys
    from sklearn.cluster import MiniBatchKMeans
    model = MiniBatchKMeans(2, random_state=0)  # Held: a loop of partial_fit is over when its estimator is gone.
    model.partial_fit([[0.0], [1.0], [2.0]])
    {leave}
"""
    place.run("-m", "autolog", "run", place.script(script), code=code)
    place.wait_for(lambda: not place.spools())
    (run,) = place.runs()
    assert run.info.status == "FAILED"
