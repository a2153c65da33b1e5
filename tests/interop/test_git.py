"""git over HTTP, whose connections are made by a helper program that git starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.interop.mesh import WEB, Mesh
from tests.interop.servers import Nginx, plain_environment, program

_AS_NOBODY_IN_PARTICULAR = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Interop",
    "GIT_AUTHOR_EMAIL": "interop@interop.test",
    "GIT_COMMITTER_NAME": "Interop",
    "GIT_COMMITTER_EMAIL": "interop@interop.test",
}


def _git(directory: Path, *words: str | Path) -> str:
    """git without the hook."""
    return subprocess.run(
        [program("git"), "-C", directory, *words],
        check=True,
        capture_output=True,
        text=True,
        env=plain_environment(**_AS_NOBODY_IN_PARTICULAR),
    ).stdout.strip()


@pytest.fixture
def repository(web: Nginx, mesh: Mesh, tmp_path: Path) -> Path:
    """A bare repository with one commit, on the server."""
    seed = tmp_path / "seed"
    bare = web.repositories / f"{tmp_path.name}-{mesh.transport}.git"
    _git(tmp_path, "init", "--quiet", "--initial-branch=main", seed)
    (seed / "numbers").write_text("\n".join(map(str, range(50_000))))
    _git(seed, "add", "numbers")
    _git(seed, "commit", "--quiet", "-m", "Count")
    _git(tmp_path, "clone", "--quiet", "--bare", seed, bare)
    _git(bare, "config", "http.receivepack", "true")
    return bare


def test_git_clones_and_pushes(mesh: Mesh, repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    url = f"http://{WEB}/git/{repository.name}"
    environment: dict[str, str | None] = {**_AS_NOBODY_IN_PARTICULAR}
    cloned, _ = mesh.run([program("git"), "clone", "--quiet", url, clone], env=environment)
    cloned.check()
    assert _git(clone, "rev-parse", "HEAD") == _git(repository, "rev-parse", "main")
    assert len((clone / "numbers").read_text().splitlines()) == 50_000

    (clone / "numbers").write_text("none")
    _git(clone, "commit", "--quiet", "-am", "Forget")
    pushed, _ = mesh.run([program("git"), "push", "--quiet"], cwd=clone, env=environment)
    pushed.check()
    assert _git(clone, "rev-parse", "HEAD") == _git(repository, "rev-parse", "main")

    for result in (cloned, pushed):
        assert result.connections
        for connection in result.connections:
            mesh.check(connection, f"{WEB}:80", "git-remote-http")
