"""The commit that is checked out around a script, read from git's own files; see gitrepository-layout(5).

Each system call of a thread lets go of the interpreter and waits for it again, which the training beside it pays for.
So a commit is read once, and from then on only looked at: two or three files, whether they are still the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from autolog import guard

#: What tells two states of a file apart: git replaces its files, it does not write into them. None where there is none.
_State = tuple[int, int, int] | None


class _Known(NamedTuple):
    """A commit, and the states of the files that say so."""

    commit: str
    files: tuple[tuple[Path, _State], ...]


#: By script.
_known: dict[str, _Known] = {}


def commit_at(script: str) -> str | None:
    """Return the commit that is checked out in the repository around the file `script`, an absolute path.

    None where there is no repository, or no commit in it yet.

    Raises: OSError for a repository that cannot be read.
    """
    known = _known.get(script)
    if known is None or any(_state(path) != state for path, state in known.files):
        known = _read(Path(script).resolve().parent)
        if known is None:
            _known.pop(script, None)
            return None
        _known[script] = known
    return known.commit


def _state(path: Path) -> _State:
    seen = guard.attempt(path.stat).value
    return None if seen is None else (seen.st_ino, seen.st_size, seen.st_mtime_ns)


def _read(folder: Path) -> _Known | None:
    # States are taken in front of reading: what changes meanwhile is read again the next time.
    files: list[tuple[Path, _State]] = []
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        if git.is_dir():
            break
        files.append((git, _state(git)))
        if files[-1][1] is not None:  # A worktree or submodule: "gitdir: <path>".
            git = (parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
            break
    else:
        return None
    head = git / "HEAD"
    files.append((head, _state(head)))
    name = head.read_text().strip()
    if not name.startswith("ref:"):
        return _Known(name, tuple(files))
    name = name.removeprefix("ref:").strip()
    common = git
    if (git / "commondir").exists():
        common = (git / (git / "commondir").read_text().strip()).resolve()
    for base in dict.fromkeys((git, common)):
        ref = base / name
        files.append((ref, _state(ref)))
        if files[-1][1] is not None:
            return _Known(ref.read_text().strip(), tuple(files))
    packed = common / "packed-refs"
    files.append((packed, _state(packed)))
    if files[-1][1] is not None:
        for line in packed.read_text().splitlines():
            if line.endswith(f" {name}"):
                return _Known(line.split()[0], tuple(files))
    return None


__all__ = ["commit_at"]
