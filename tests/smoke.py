"""The installed wheel, by itself: train, read back with plain MLflow, load the model. Run with ``python -I``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        os.environ["AUTOLOG_SPOOL_DIR"] = str(Path(place) / "spool")
        import autolog

        assert "site-packages" in autolog.__file__, f"not the installed one: {autolog.__file__}"
        autolog.autolog()
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression

        X, y = load_iris(return_X_y=True)
        model = LogisticRegression(max_iter=200).fit(X, y)
        import mlflow

        run = mlflow.last_active_run()
        assert run.info.status == "FINISHED"
        assert run.data.metrics["training_accuracy_score"] == model.score(X, y)
        (logged,) = mlflow.search_logged_models(output_format="list")
        assert (mlflow.pyfunc.load_model(logged.model_uri).predict(X) == model.predict(X)).all()
        assert (Path(autolog.__file__).parent / "py.typed").exists()
        command = Path(sys.executable).with_name("autolog")
        said = subprocess.run([command, "status"], capture_output=True, text=True, check=True).stdout
        assert "scikit-learn  1." in said, said
        print("smoke test passed:", run.info.run_id)


if __name__ == "__main__":
    main()
