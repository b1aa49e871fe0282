"""The commit that a run is tagged with is the one that git itself names, whatever git keeps it in, and whenever."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from autolog import beside, commits, guard

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "commit", "--allow-empty", "--quiet", "-m", "more")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "src" / "deep").mkdir(parents=True)
    git(folder, "init", "--quiet")
    return folder


def test_the_commit_is_gits_own_and_follows_it(repository):
    script = str(repository / "src" / "deep" / "train.py")
    assert commits.commit_at(script) is None  # Nothing committed yet.
    first = commit(repository)
    assert commits.commit_at(script) == first
    second = commit(repository)
    assert second != first
    assert commits.commit_at(script) == second
    git(repository, "checkout", "--quiet", "--detach", first)
    assert commits.commit_at(script) == first
    git(repository, "checkout", "--quiet", "-")
    assert commits.commit_at(script) == second
    git(repository, "pack-refs", "--all")
    assert commits.commit_at(script) == second
    third = commit(repository)
    assert commits.commit_at(script) == third


def test_a_branch_that_is_packed_from_the_start(repository):
    head = commit(repository)
    git(repository, "pack-refs", "--all")
    script = str(repository / "train.py")
    assert commits.commit_at(script) == head
    assert commits.commit_at(script) == head
    after = commit(repository)
    assert commits.commit_at(script) == after


def test_a_worktree_has_a_commit_of_its_own(repository, tmp_path):
    head = commit(repository)
    tree = tmp_path / "tree"
    git(repository, "worktree", "add", "--quiet", "-b", "other", str(tree))
    assert commits.commit_at(str(tree / "train.py")) == head
    ahead = commit(tree)
    assert commits.commit_at(str(tree / "train.py")) == ahead
    assert commits.commit_at(str(repository / "train.py")) == head


def test_repositories_that_come_and_go(tmp_path, repository):
    outer = commit(repository)
    inner = repository / "src"
    script = str(inner / "deep" / "train.py")
    assert commits.commit_at(script) == outer
    git(inner, "init", "--quiet")
    assert commits.commit_at(script) is None
    nearer = commit(inner)
    assert commits.commit_at(script) == nearer
    shutil.rmtree(inner / ".git")
    assert commits.commit_at(script) == outer
    shutil.rmtree(repository / ".git")
    assert commits.commit_at(script) is None


def test_what_has_been_read_is_only_looked_at(repository, monkeypatch):
    head = commit(repository)
    script = str(repository / "train.py")
    assert commits.commit_at(script) == head
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("read again"))
    assert commits.commit_at(script) == head


def test_a_run_is_tagged_with_the_commit_of_its_script(recorder, repository, monkeypatch):
    from sklearn.linear_model import Ridge

    head = commit(repository)
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", ["src/train.py"])
    recorder.start()
    Ridge().fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    assert recorder.run().data.tags["mlflow.source.git.commit"] == head
    assert recorder.run().data.tags["mlflow.source.name"] == "src/train.py"


def test_a_repository_that_cannot_be_read_costs_its_tag_alone(recorder, monkeypatch):
    from sklearn.linear_model import Ridge

    def fail(script: str) -> dict[str, str]:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(beside, "context_tags", fail)
    recorder.start()
    Ridge().fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.autologging"] == "sklearn"
    assert run.data.metrics["training_r2_score"] > 0.5
    assert "mlflow.source.git.commit" not in run.data.tags
    (reported,) = guard.swallowed
    assert (reported[0], str(reported[1])) == ("read the git commit", "the disk is on fire")
    guard.swallowed.clear()
