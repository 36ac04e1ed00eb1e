# SPDX-License-Identifier: Apache-2.0
"""The two trees of a comparison, copied into a folder: the user's own is only read."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

# Of files that git does not track these count, as the package may need them; a data set in the
# tree is not copied.
_UNTRACKED = {".py", ".yml", ".yaml"}


class TreeError(Exception):
    """The trees cannot be had; one line says why."""


def git(root, *arguments):
    """What git prints, as bytes.

    Raises:
        TreeError: git is missing, or it fails.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=False
        )
    except OSError as error:
        raise TreeError(f"git cannot be run: {error.strerror}") from error
    if done.returncode:
        raise TreeError(f"git {arguments[0]} failed: {done.stderr.decode().strip()}")
    return done.stdout


def commit_of(root, revision):
    """The commit's hash.

    Raises:
        TreeError: There is no such commit, or ``root`` is in no git repository.
    """
    git(root, "rev-parse", "--git-dir")
    try:
        found = git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except TreeError:
        raise TreeError(
            f"{revision!r} is no commit of the repository in {root}: give a branch, a tag or a hash"
        ) from None
    return found.decode().strip()


def short(commit):
    return commit[:10]


def write_commit(root, commit, folder):
    """Writes the files of a commit into ``folder``."""
    archive = git(root, "archive", "--format=tar", commit)
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, **safe)


def changes(root):
    """Paths in ``root`` that differ from HEAD and are copied, sorted."""
    changed = git(root, "diff", "--name-only", "--relative", "-z", "HEAD").decode()
    return sorted({*changed.split("\0"), *_untracked(root)} - {""})


def _untracked(root):
    found = git(root, "ls-files", "-z", "--others", "--exclude-standard").decode().split("\0")
    return [path for path in found if Path(path).suffix in _UNTRACKED]


def write_working_tree(root, folder):
    """Copies the files as they are now, so that an edit meanwhile changes nothing."""
    tracked = git(root, "ls-files", "-z", "--cached").decode().split("\0")
    for path in {*tracked, *_untracked(root)} - {""}:
        source, target = Path(root, path), Path(folder, path)
        if source.is_file() or source.is_symlink():  # else it is deleted
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def label(root):
    """The working tree in words: its commit, and how many files differ."""
    head, changed = short(commit_of(root, "HEAD")), changes(root)
    if not changed:
        return f"the working tree, {head}"
    files = f"{len(changed)} file" + "s" * (len(changed) > 1)
    return f"the working tree, {head} with changes in {files} ({', '.join(changed[:3])}" + (
        ", ...)" if len(changed) > 3 else ")"
    )
