"""Forks, spawns, pools, coroutines, finalizers: no deadlock, no record from strangers, no doubled run.

Every script must end within the time that :meth:`Place.run` gives it, and say nothing on stderr.
"""

from __future__ import annotations

import pytest

FIT = """
    import os, sys, time, warnings
    warnings.simplefilter("ignore")
    import autolog
    autolog.autolog()
    from sklearn.linear_model import Ridge
    def fit(alpha):
        return float(Ridge(alpha=alpha).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]).coef_[0])
"""

#: Name -> (script, alphas of the runs that are to be there).
SCRIPTS = {
    "os.fork in a tight loop, while records are written": (
        """
    fit(1.0)
    for i in range(20):
        child = os.fork()
        if child == 0:
            fit(100.0 + i)
            os._exit(0)
        fit(2.0 + i)
        assert os.waitpid(child, 0)[1] == 0
    """,
        [1.0, *(2.0 + i for i in range(20))],
    ),
    "a forked child ends by itself": (
        """
    fit(1.0)
    child = os.fork()
    if child == 0:
        fit(100.0)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    fit(2.0)
    """,
        [1.0, 2.0],
    ),
    "a forked child switches on anew": (
        """
    fit(1.0)
    child = os.fork()
    if child == 0:
        autolog.autolog()
        fit(3.0)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    fit(2.0)
    """,
        [1.0, 3.0, 2.0],
    ),
    "multiprocessing by fork": (
        """
    import multiprocessing
    fit(1.0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert len(pool.map(fit, [100.0] * 8)) == 8
    """,
        [1.0],
    ),
    "joblib's processes and threads": (
        """
    from joblib import Parallel, delayed
    from sklearn.model_selection import cross_val_score
    Parallel(n_jobs=2, backend="threading")(delayed(fit)(a) for a in [1.0, 2.0, 3.0, 4.0])
    Parallel(n_jobs=2, backend="loky")(delayed(pow)(a, 2) for a in range(8))
    """,
        [1.0, 2.0, 3.0, 4.0],
    ),
    "coroutines and their threads": (
        """
    import asyncio
    async def train(alpha):
        await asyncio.sleep(0)
        here = fit(alpha)
        await asyncio.sleep(0)
        return here + await asyncio.to_thread(fit, alpha + 10)
    async def main():
        await asyncio.gather(*(train(float(a)) for a in range(1, 5)))
    asyncio.run(main())
    """,
        [*(float(a) for a in range(1, 5)), *(float(a + 10) for a in range(1, 5))],
    ),
    "a pool of threads that is still at work at exit": (
        """
    from concurrent.futures import ThreadPoolExecutor
    pool = ThreadPoolExecutor(2)
    for a in range(1, 7):
        pool.submit(fit, float(a))
    """,
        [float(a) for a in range(1, 7)],
    ),
    "finalizers that fit, and a garbage collection at every allocation": (
        """
    import gc, weakref
    gc.set_threshold(1)
    class Model: pass
    model = Model()
    model.itself = model
    weakref.finalize(model, fit, 2.0)
    fit(1.0)
    del model
    gc.collect()
    """,
        [1.0, 2.0],
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_deadlock_no_strangers_no_doubles(name: str, place) -> None:
    code, alphas = SCRIPTS[name]
    _, err = place.run(place.script(FIT + code), AUTOLOG_EXIT_TIMEOUT="60")
    assert err == ""
    place.wait_for(lambda: not place.spools())
    runs = place.runs()
    assert sorted(float(run.data.params["alpha"]) for run in runs) == sorted(alphas)
    for run in runs:
        assert run.info.status == "FINISHED"
        assert len(place.history(run, "training_r2_score")) == 1


def test_workers_of_a_loader_say_nothing(place) -> None:
    out, err = place.run(
        place.script("""
            import autolog
            autolog.autolog()
            import torch
            from torch.utils.data import DataLoader, TensorDataset
            torch.manual_seed(0)
            data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            seen = 0
            for epoch in range(2):
                for inputs, target in DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="fork"):
                    loss = ((model(inputs) - target) ** 2).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    seen += 1
            print(seen)
        """),
        AUTOLOG_EXIT_TIMEOUT="60",
    )
    assert (out, err) == ("8\n", "")
    place.wait_for(lambda: not place.spools())
    (run,) = place.runs()
    assert [step for step, _ in place.history(run, "loss")] == list(range(8))
