"""Transformers' Trainer: every number is that of its own log, whether it logs to MLflow itself or not."""

from __future__ import annotations

import mlflow
import pytest
import torch

import autolog

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
if not transformers.is_torch_available():
    pytest.skip("this version of Transformers takes a newer torch", allow_module_level=True)


class Tokens(torch.utils.data.Dataset):
    """Random tokens, of which the model is to say the next, or to which of two classes they belong."""

    def __init__(self, rows, *, classes=False, ignored=0):
        generator = torch.Generator().manual_seed(rows)
        self.tokens = torch.randint(0, 30, (rows, 8), generator=generator)
        self.labels = (self.tokens[:, 0] > 15).long() if classes else self.tokens.clone()
        if ignored:
            self.labels[::2, :ignored] = -100

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


def language_model():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )


def classifier():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )


def trained(folder, model, rows, eval_rows, *, compute_metrics=None, **settings):
    """Return the Trainer, when it is through."""
    usual = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = transformers.TrainingArguments(str(folder), **{**usual, **settings})
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, eval_dataset=eval_rows, compute_metrics=compute_metrics
    )
    trainer.train()
    return trainer


def train(*args, **settings):
    """Train and return what the Trainer has logged."""
    return trained(*args, **settings).state.log_history


@pytest.mark.parametrize(("accumulated", "rows", "ignored"), [(1, 16, 0), (2, 24, 0), (3, 20, 5)])
def test_every_number_is_the_trainers(recorder, tmp_path, accumulated, rows, ignored):
    recorder.start(log_models=False)
    logged = train(
        tmp_path,
        language_model(),
        Tokens(rows, ignored=ignored),
        Tokens(10),
        gradient_accumulation_steps=accumulated,
    )
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    losses = [each["loss"] for each in logged if "loss" in each]
    assert recorder.history(run, "loss") == [(i, pytest.approx(loss, rel=1e-5)) for i, loss in enumerate(losses)]
    norms = [each["grad_norm"] for each in logged if "loss" in each]
    assert recorder.history(run, "grad_norm") == [(i, pytest.approx(norm, rel=1e-6)) for i, norm in enumerate(norms)]
    ends = [len(losses) // 2 - 1, len(losses) - 1]
    assert recorder.history(run, "epoch") == [(end, float(i)) for i, end in enumerate(ends)]
    halves = [losses[: len(losses) // 2], losses[len(losses) // 2 :]]
    assert recorder.history(run, "loss_epoch") == [
        (end, pytest.approx(sum(half) / len(half), rel=1e-5)) for end, half in zip(ends, halves, strict=True)
    ]
    evaluated = [each["eval_loss"] for each in logged if "eval_loss" in each]
    assert recorder.history(run, "eval_loss") == list(zip(ends, evaluated, strict=True))
    found = [(end, pytest.approx(loss, rel=1e-5)) for end, loss in zip(ends, evaluated, strict=True)]
    assert recorder.history(run, "val_loss") == found
    assert run.data.metrics["train_loss"] == logged[-1]["train_loss"]


def test_what_compute_metrics_returns_is_recorded_and_ranks_checkpoints(recorder, tmp_path):
    recorder.start(checkpoints=autolog.Checkpoints(every="epoch"))
    calls = []

    def compute_metrics(predicted):
        calls.append((predicted.predictions.argmax(-1) == predicted.label_ids).mean() + len(calls))
        return {"right": calls[-1]}

    train(tmp_path, classifier(), Tokens(16, classes=True), Tokens(8, classes=True), compute_metrics=compute_metrics)
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "eval_right") == list(zip([3, 7], calls, strict=True))
    of_models = {
        model.name: {metric.key: metric.value for metric in model.metrics or []} for model in recorder.models()
    }
    assert of_models["checkpoint-3"]["eval_right"] == calls[0]
    assert of_models["checkpoint-7"]["eval_right"] == calls[1]


def test_where_the_trainer_logs_to_mlflow_its_names_are_left_to_it(recorder, tmp_path, monkeypatch):
    """Its curves are not mixed with ours of the same names, from the first update to the last."""
    mlflow.set_tracking_uri(recorder.store_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", recorder.experiment)
    recorder.start(log_models=False)
    logged = train(tmp_path, classifier(), Tokens(16, classes=True), Tokens(8, classes=True), report_to="mlflow")
    autolog.disable()
    while mlflow.active_run():
        mlflow.end_run()
    run = recorder.run()
    for name in ("loss", "grad_norm", "learning_rate"):
        expected = [(each["step"], each[name]) for each in logged if "loss" in each]
        assert recorder.history(run, name) == [(step, pytest.approx(value)) for step, value in expected], name
    # Ours beside them, at our steps.
    assert [step for step, _ in recorder.history(run, "loss_epoch")] == [3, 7]
    assert [step for step, _ in recorder.history(run, "eval_loss")] == [4, 8]
    assert run.info.status == "FINISHED"
    recorder.take_problems()  # A parameter that both have, with different values: theirs stays.


def test_the_best_model_again_and_a_test_of_it(recorder, tmp_path):
    """The last model is what was tested, not what the last update made; and no number gets into another's curve."""
    recorder.start()
    rows, eval_rows = Tokens(16, classes=True), Tokens(16, classes=True)
    eval_rows.labels = 1 - eval_rows.labels  # The more is learnt, the worse.
    trainer = trained(
        tmp_path,
        classifier(),
        rows,
        eval_rows,
        num_train_epochs=3,
        learning_rate=0.05,
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    tested = trainer.evaluate(Tokens(12, classes=True), metric_key_prefix="test")
    evaluated = [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]
    best = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.state.best_metric == min(evaluated) < evaluated[-1], "the last is to be none of the best"
    del trainer
    autolog.disable()
    run = recorder.run()
    assert [value for _, value in recorder.history(run, "eval_loss")] == evaluated
    assert recorder.history(run, "test_loss") == [(11, tested["test_loss"])]
    (last,) = (one for one in recorder.models() if one.name == "model")
    linked = {metric.key: metric.value for metric in last.metrics}
    assert "loss" not in linked
    assert (linked["eval_loss"], linked["test_loss"]) == (min(evaluated), tested["test_loss"])
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.pytorch.load_model(f"models:/{last.model_id}").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in best.items())
