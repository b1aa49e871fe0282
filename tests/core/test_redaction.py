"""Secrets are recorded nowhere: neither in the store nor on disk."""

from __future__ import annotations

import time

import pytest

from autolog import datasets, redaction, runtime

SECRET = "hunter2XYZ"


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_password", "dbPassword", "passwd", "token", "auth_token", "hf_token", "api_key", "apikey",
        "openai_api_key", "secret", "client_secret", "aws_secret_access_key", "access_key", "private_key", "key",
        "clf__password", "spark.jdbc.password", "storage_key", "credentials", "sas", "PASSWORD", "account_key",
    ],
)  # fmt: skip
def test_names_that_say_secret(name: str) -> None:
    assert redaction.value(name, SECRET) == "[redacted]"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_tokens", "128"), ("token", "5"), ("n_tokens", "abc"), ("key", "3.5"), ("password", "None"),
        ("monkey", "see"), ("passes", "best"), ("passthrough", "passthrough"), ("tokenizer", "<function split>"),
        ("keys", "['a', 'b']"), ("random_state", "7"), ("sass", "x"), ("compass", "north"), ("use_secret", "True"),
    ],
)  # fmt: skip
def test_names_that_do_not(name: str, text: str) -> None:
    assert redaction.value(name, text) == text


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{SECRET}@host:5432/db",
        f"https://{SECRET}@github.com/me/repo.git",
        f"jdbc:sqlserver://host;user=me;password={SECRET};encrypt=true",
        f"jdbc:postgresql://host/db?user=me&password={SECRET}",
        f"{{'user': 'me', 'password': '{SECRET}'}}",
        f'{{"api_key": "{SECRET}"}}',
        f"Client(url='x', token='{SECRET}')",
        f"abfss://c@acc.dfs.core.windows.net/p?sig=1&sas={SECRET}",
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_" + "a1B2" * 9,
        "dapi" + "0123456789abcdef" * 2,
        f"Authorization: Bearer {SECRET}{SECRET}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    ],
)
def test_forms_in_texts(text: str) -> None:
    cleaned = redaction.clean(text)
    assert "[redacted]" in cleaned and SECRET not in cleaned and cleaned != text
    assert redaction.clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key/part-0.parquet", "https://example.org/a?b=c", "CountVectorizer(tokenizer=None)",
        "Pipeline(steps=[('a', A(token_pattern='(?u)\\\\b\\\\w\\\\w+\\\\b'))])", "user@example.org", "key: value", "",
        "dbfs:/mnt/table@v3", "passthrough=True", "penguins.csv", "{'password': None}", "max_token=5", "sig=0.05",
    ],
)  # fmt: skip
def test_texts_without_secrets_are_unchanged(text: str) -> None:
    assert redaction.clean(text) == text


def test_a_long_text_costs_little() -> None:
    text = "<div>estimator with a token and a key</div>\n" * 2000
    began = time.perf_counter()
    assert redaction.clean(text) == text
    assert time.perf_counter() - began < 0.5


def test_nothing_of_a_run_holds_them(recorder) -> None:
    recorder.start()
    run = runtime.open_run("sklearn")
    url = f"postgresql://me:{SECRET}@host/db"
    run.params({"password": SECRET, "url": url, "options": {"token": SECRET}, "C": 1.0})
    run.tags({"source": url, "my_token": SECRET})
    run.text("notes.txt", f"connect to {url}")
    run.dataset(datasets.Dataset("d", "1", "jdbc", f'{{"url": "{url}"}}', None, None), "train")
    folder = runtime.get_writer().folder
    run.end("FAILED", ValueError(f"cannot connect to {url}"))
    stored = recorder.run()
    assert stored.data.params["C"] == "1.0"
    held = [str(stored.data), str(stored.inputs)]
    for path in ("notes.txt", "traceback.txt"):
        with open(recorder.client.download_artifacts(stored.info.run_id, path)) as file:
            held.append(file.read())
    assert all("[redacted]" in each for each in held)
    assert not any(SECRET in each for each in held)
    folder = folder or runtime.get_writer().folder
    assert folder is not None
    for path in folder.rglob("*"):
        # Closing a lock file that this process holds would give up the lock: so POSIX has it.
        if path.is_file() and path.suffix != ".lock":
            assert SECRET.encode() not in path.read_bytes(), path
