"""Whole processes: killed, forked, cut off from the server, run by the command line; nothing lost, nothing doubled."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from mlflow import MlflowClient

SKLEARN = """
    import autolog
    autolog.autolog()
    from sklearn.linear_model import Ridge
    Ridge(alpha=2.0).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    print("trained")
"""

LOOP = """
    import sys, time
    import autolog
    autolog.autolog()
    from autolog import runtime
    run = runtime.open_run("torch")
    for step in range(100_000):
        run.metrics({"loss": step / 2}, step=step)
        if step == 300:
            print("going", flush=True)
        time.sleep(0.001)
"""


def test_a_script_leaves_only_its_record(place) -> None:
    out, err = place.run(place.script(SKLEARN))
    assert (out, err) == ("trained\n", "")
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["alpha"] == "2.0"
    place.wait_for(lambda: not place.spools())


def test_thread_sender_delivers_as_well(place) -> None:
    out, err = place.run(place.script(SKLEARN), AUTOLOG_SENDER="thread")
    assert (out, err) == ("trained\n", "")
    (run,) = place.runs()
    assert (run.info.status, run.data.metrics["training_r2_score"] > 0) == ("FINISHED", True)


def test_sigkill_of_the_training_loses_at_most_the_last_moment(place) -> None:
    process = place.start(place.script(LOOP))
    assert process.stdout.readline() == "going\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    place.wait_for(lambda: place.runs() and place.runs()[0].info.status == "FAILED", 15)
    (run,) = place.runs()
    points = place.history(run, "loss")
    assert points == [(step, step / 2) for step in range(len(points))]
    assert len(points) >= 300 - 100
    assert run.data.tags["autolog.ended"]
    place.wait_for(lambda: not place.spools())


def test_a_run_is_closed_though_its_training_is_killed_with_its_first_transaction(place) -> None:
    """What is on disk has a sender from its first record on: the training dies as soon as that is written."""
    killed = """
    import os, signal
    from autolog.spool import Spool

    append = Spool.append

    def append_and_die(*args):
        append(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    Spool.append = append_and_die
    """
    process = place.start(place.script(killed + LOOP))
    assert process.wait(60) == -signal.SIGKILL
    place.wait_for(lambda: place.runs() and place.runs()[0].info.status == "FAILED", 15)
    (run,) = place.runs()
    points = place.history(run, "loss")
    assert points == [(step, step / 2) for step in range(len(points))]
    assert points
    place.wait_for(lambda: not place.spools())


def test_sigkill_of_the_sender_doubles_nothing(place) -> None:
    code = LOOP.replace("100_000", "3000") + "    run.end()\n"
    process = place.start(place.script(code))
    assert process.stdout.readline() == "going\n"
    for _ in range(3):
        sender = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "autolog.sender"], capture_output=True, text=True, check=False
        ).stdout.split()
        assert sender
        for pid in sender:
            os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.8)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (run,) = place.runs()
    assert place.history(run, "loss") == [(step, step / 2) for step in range(3000)]
    assert run.info.status == "FINISHED"


def test_sigkill_of_both_is_mended_by_sync(place) -> None:
    process = place.start(place.script(LOOP))
    assert process.stdout.readline() == "going\n"
    time.sleep(0.3)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    process.send_signal(signal.SIGKILL)
    for pid in children.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    process.wait()
    assert len(place.spools()) == 1
    # Twice at once: one of them delivers.
    both = [place.start("-m", "autolog", "sync") for _ in range(2)]
    assert [process.wait(60) for process in both].count(0) >= 1
    (run,) = place.runs()
    points = place.history(run, "loss")
    assert points == [(step, step / 2) for step in range(len(points))]
    assert len(points) >= 200
    assert run.info.status == "FAILED"
    assert not place.spools()


def test_unreachable_server_harms_nothing_and_sync_delivers_later(place, store_uri: str) -> None:
    nowhere = "http://127.0.0.1:9"
    start = time.monotonic()
    out, err = place.run(
        # Long enough for the sender to begin, import MLflow and find nobody there, also where the machine is busy.
        place.script(SKLEARN),
        AUTOLOG_TRACKING_URI=nowhere,
        AUTOLOG_EXIT_TIMEOUT="10",
        MLFLOW_HTTP_REQUEST_TIMEOUT="1",
    )
    assert time.monotonic() - start < 27
    assert out == "trained\n"
    assert err.count("cannot be reached") == 1
    assert "autolog sync" in err.splitlines()[-1] and len(err.splitlines()) <= 2
    place.wait_for(lambda: len(place.spools()) == 1)
    # The server comes up where the training looked for it: here, the same records with a store that answers.
    (spool,) = place.spools()
    place.stop_senders(spool.parent)
    place.redirect(spool, nowhere, store_uri)
    place.run("-m", "autolog", "sync")
    place.run("-m", "autolog", "sync")
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    assert run.data.params["alpha"] == "2.0"
    assert len(place.history(run, "training_r2_score")) == 1
    assert not place.spools()


class Refuses(http.server.BaseHTTPRequestHandler):
    """A server that knows nobody."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


def test_refused_credentials_are_said_and_kept(place) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    try:
        _, err = place.run(place.script(SKLEARN), AUTOLOG_TRACKING_URI=uri, AUTOLOG_EXIT_TIMEOUT="4")
    finally:
        server.shutdown()
        server.server_close()
    assert err.count("refuses the credentials") == 1
    assert "autolog sync" in err.splitlines()[-1]
    assert len(place.spools()) == 1
    place.stop_senders(place.spools()[0].parent)


def test_refused_credentials_are_said_while_the_training_goes_on(place) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    try:
        process = place.start(place.script(SKLEARN + "    import time; time.sleep(600)\n"), AUTOLOG_TRACKING_URI=uri)
        said = process.stderr.readline()
        assert process.poll() is None
    finally:
        server.shutdown()
        server.server_close()
    assert "refuses the credentials" in said and "Training is not affected" in said
    process.kill()
    process.wait()
    for spool in place.spools():
        place.stop_senders(spool.parent)


def test_a_model_that_is_still_being_saved_at_exit_costs_the_run_nothing(place) -> None:
    code = """
        import threading
        import autolog
        autolog.autolog()
        from autolog import runtime
        from autolog.models import ModelSnapshot
        run = runtime.open_run("sklearn")
        run.metrics({"score": 0.5})
        forever = threading.Event()
        run.model(lambda: forever.wait() and ModelSnapshot("sklearn", {}, {}))
        run.end()
        runtime.closed(run)
    """
    _, err = place.run(place.script(code), AUTOLOG_EXIT_TIMEOUT="1")
    (line,) = err.splitlines()
    assert "delivery takes longer than 1 s" in line
    place.wait_for(lambda: place.runs() and place.runs()[0].info.status != "RUNNING")
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    client = MlflowClient(tracking_uri=place.store)
    place.wait_for(lambda: not place.spools())
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == "FAILED"


def test_uncaught_exception_is_failed_with_its_traceback(place) -> None:
    code = LOOP.replace("100_000", "50") + "    raise ValueError('the user erred')\n"
    _, err = place.run(place.script(code), code=1)
    assert err.rstrip().endswith("ValueError: the user erred")
    (run,) = place.runs()
    assert run.info.status == "FAILED"
    client = MlflowClient(tracking_uri=place.store)
    text = Path(client.download_artifacts(run.info.run_id, "traceback.txt", str(place.folder))).read_text()
    assert text.rstrip().endswith("ValueError: the user erred")


def test_forked_children_neither_record_nor_hang(place) -> None:
    code = """
        import os, sys, multiprocessing
        import autolog
        autolog.autolog()
        from sklearn.linear_model import Ridge

        def train(alpha):
            Ridge(alpha=alpha).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
            return alpha

        train(1.0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(train, [10.0, 20.0]))
        pid = os.fork()
        if pid == 0:
            train(30.0)
            sys.exit(0)  # With all finalizers, unlike a pool's worker.
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        train(2.0)
    """
    out, err = place.run(place.script(code))
    assert out == "[10.0, 20.0]\n0\n"
    assert err == ""
    assert sorted(run.data.params["alpha"] for run in place.runs()) == ["1.0", "2.0"]
    assert {run.info.status for run in place.runs()} == {"FINISHED"}


def test_bare_and_recorded_training_are_bit_identical(place) -> None:
    code = """
        import pickle, random, sys
        import numpy as np
        from sklearn.datasets import load_breast_cancer
        from sklearn.ensemble import RandomForestClassifier
        X, y = load_breast_cancer(return_X_y=True)
        np.random.seed(0); random.seed(0)
        model = RandomForestClassifier(n_estimators=10).fit(X, y)
        print(hash(pickle.dumps(model)) and __import__("hashlib").sha256(pickle.dumps(model)).hexdigest())
        print(np.random.random(), random.random(), model.predict(X).sum())
    """
    script = place.script(code)
    bare = place.run(script)
    recorded = place.run("-m", "autolog", "run", script)
    assert recorded == bare
    assert len(place.runs()) == 1


def test_autolog_run_is_python(place) -> None:
    code = """
        import sys, os, pickle
        class Mine: pass
        if __name__ == "__main__":
            print(sys.argv, os.getcwd(), pickle.loads(pickle.dumps(Mine())).__class__.__module__)
            print("PYTHONPATH" in os.environ, [p for p in sys.path if "bootstrap" in p])
            from sklearn.linear_model import Ridge
            Ridge(alpha=3.0).fit([[0.0], [1.0]], [0.0, 1.0])
            def fails(): raise SystemExit(7) if len(sys.argv) > 2 else KeyError("x")
            fails()
    """
    script = place.script(code)
    bare = place.run(script, "a", code=1)
    assert place.run("-m", "autolog", "run", script, "a", code=1) == bare
    place.run("-m", "autolog", "run", script, "a", "b", code=7)
    assert place.run("-m", "autolog", "run", "-m", "train", "a", code=1)[1].endswith("KeyError: 'x'\n")
    assert [run.data.params["alpha"] for run in place.runs()] == ["3.0"] * 3


def test_autolog_run_refuses_what_it_does_not_know(place) -> None:
    _, err = place.run("-m", "autolog", "run", "--sender", "pigeon", "x.py", code=2)
    assert 'sender must be "process" or "thread"' in err


def test_status_says_what_is_supported_and_what_waits(place) -> None:
    out, _ = place.run("-m", "autolog", "status")
    assert "scikit-learn" in out
    assert "none" in out
