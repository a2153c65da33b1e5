"""What `pysidecar exec` gives to a command, and which commands it cannot reach."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pysidecar import hook_path
from pysidecar.config.values import WhenAway
from pysidecar.interception.preload import hooked_environment, unreachable_because, without_hook

HOOK = hook_path()


def environment(**variables: str) -> dict[str, str]:
    return hooked_environment(
        variables, hook=Path("/x/libmosnhook.so"), policy=Path("/r/p"), when_away=WhenAway()
    )


def test_the_environment_names_hook_and_page() -> None:
    assert environment(HOME="/h") == {
        "HOME": "/h",
        "LD_PRELOAD": "/x/libmosnhook.so",
        "MOSNHOOK_POLICY": "/r/p",
        "MOSNHOOK_WHEN_AWAY": "refuse",
    }


def test_the_sidecars_own_interfaces_are_waited_for() -> None:
    found = hooked_environment(
        {},
        hook=Path("/x/libmosnhook.so"),
        policy=Path("/r/p"),
        when_away=WhenAway(),
        awaited=[13330, 22222],
    )
    assert found["MOSNHOOK_AWAIT"] == "13330,22222"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "/x/libmosnhook.so"),
        ("/a.so", "/x/libmosnhook.so:/a.so"),
        ("/a.so /b.so:", "/x/libmosnhook.so:/a.so:/b.so"),
        ("/old/libmosnhook.so:/a.so", "/x/libmosnhook.so:/a.so"),
    ],
)
def test_other_preloaded_libraries_stay(before: str, after: str) -> None:
    assert environment(LD_PRELOAD=before)["LD_PRELOAD"] == after


def test_a_choice_of_the_user_stays() -> None:
    assert environment(MOSNHOOK_WHEN_AWAY="direct")["MOSNHOOK_WHEN_AWAY"] == "direct"


def test_a_path_that_cannot_be_preloaded_is_an_error() -> None:
    with pytest.raises(ValueError, match="must not contain any"):
        hooked_environment(
            {}, hook=Path("/a b/libmosnhook.so"), policy=Path("/p"), when_away=WhenAway()
        )


def test_the_hook_can_be_taken_out() -> None:
    assert without_hook("/a.so:/x/libmosnhook.so /b.so") == "/a.so:/b.so"


def compile_c(path: Path, *options: str, source: str = "int main(void) { return 0; }") -> Path:
    subprocess.run(["gcc", "-x", "c", "-", "-o", path, *options], input=source.encode(), check=True)
    return path


def reasons(command: Path | str, search_path: str | None = None) -> str:
    return "\n".join(unreachable_because(str(command), hook=HOOK, search_path=search_path))


def test_ordinary_programs_are_reached(tmp_path: Path) -> None:
    assert reasons(sys.executable) == ""
    assert reasons("sh") == ""
    assert reasons(compile_c(tmp_path / "dynamic")) == ""


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="has it preloaded")
def test_a_program_with_asan_starts_as_told(tmp_path: Path) -> None:
    program = compile_c(tmp_path / "sanitized", "-fsanitize=address")
    hooked = os.environ | {"LD_PRELOAD": str(HOOK)}
    assert subprocess.run([program], env=hooked, capture_output=True, check=False).returncode != 0
    said = reasons(program)
    assert "built with AddressSanitizer" in said
    name, _, value = said.rpartition("; set ")[2].partition("=")
    subprocess.run([program], env=hooked | {name: value}, check=True)
    assert unreachable_because(str(program), hook=HOOK, asan_options=f"abort=1:{value}") == []


@pytest.mark.parametrize("name", ["systemd-run", "docker", "at"])
def test_who_has_somebody_else_start_the_program_is_named(tmp_path: Path, name: str) -> None:
    said = reasons(name, str(launcher(tmp_path, name)))
    assert said.startswith(f"{name} has the program started by somebody else")
    assert f"LD_PRELOAD={HOOK}" in said


@pytest.mark.parametrize("name", ["unshare", "chroot", "bwrap"])
def test_who_may_hide_the_hook_is_named(tmp_path: Path, name: str) -> None:
    search_path = str(launcher(tmp_path, name))
    said = reasons(name, search_path)
    assert said.startswith(f"{name} may show the program other files: if {HOOK} is not")
    below_tmp = Path("/tmp/venv/libmosnhook.so")
    (said,) = unreachable_because(name, hook=below_tmp, search_path=search_path)
    assert "as is often so below /tmp/venv" in said


def launcher(directory: Path, name: str) -> Path:
    """A directory with such a command, which this host need not have."""
    shutil.copy(shutil.which("true") or "", directory / name)
    return directory


def test_what_cannot_be_found_or_read_is_not_judged(tmp_path: Path) -> None:
    assert reasons("no-such-command") == ""
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF" + b"\xff" * 100)
    garbage.chmod(0o755)
    assert reasons(garbage) == ""


@pytest.mark.parametrize("option", ["-static", "-static-pie"])
def test_a_static_program_is_warned_of(tmp_path: Path, option: str) -> None:
    program = compile_c(tmp_path / "program", option)
    assert f"{program} is statically linked: LD_PRELOAD does not apply to it" in reasons(program)


GO_SECTION = (
    '__attribute__((section(".note.go.buildid"), used)) static const char id[] = "id";'
    "int main(void) { return 0; }"
)


def test_a_go_program_is_warned_of(tmp_path: Path) -> None:
    dynamic = compile_c(tmp_path / "dynamic", source=GO_SECTION)
    assert "only connections made by C code (cgo)" in reasons(dynamic)
    static = compile_c(tmp_path / "static", "-static", source=GO_SECTION)
    assert "is a static Go program" in reasons(static)


@pytest.mark.skipif(shutil.which("go") is None, reason="needs the Go compiler")
def test_a_real_go_program_is_warned_of(tmp_path: Path) -> None:
    source = tmp_path / "main.go"
    program = tmp_path / "program"
    for cgo, text in ((False, "is a static Go program"), (True, "is a Go program")):
        source.write_text("package main\n" + 'import "C"\n' * cgo + "func main() {}\n")
        subprocess.run(
            ["go", "build", "-o", program, source],
            env={**os.environ, "CGO_ENABLED": str(int(cgo))},
            check=True,
        )
        assert text in reasons(program)


def test_another_architecture_is_warned_of(tmp_path: Path) -> None:
    program = compile_c(tmp_path / "program")
    image = bytearray(program.read_bytes())
    image[18:20] = b"\xf3\0"  # e_machine: EM_RISCV
    program.write_bytes(image)
    assert "another architecture" in reasons(program)


def test_a_script_is_judged_by_its_interpreter(tmp_path: Path) -> None:
    interpreter = compile_c(tmp_path / "interpreter", "-static")
    script = tmp_path / "script"
    for shebang in (
        f"#!{interpreter} -x",
        f"#! {interpreter}",
        "#!/usr/bin/env interpreter",
        "#!/usr/bin/env -S A=b interpreter -x",
    ):
        script.write_text(f"{shebang}\n")
        script.chmod(0o755)
        found = reasons(script, f"{tmp_path}:{os.environ['PATH']}")
        assert f"{interpreter} is statically linked" in found, shebang


def test_a_script_that_runs_itself_ends(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    assert reasons(script) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another user's program")
def test_set_id_programs_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile_c(tmp_path / "program")
    os.chown(program, 12345, 12345)
    program.chmod(0o755 | stat.S_ISUID)
    assert "is setuid: the system ignores LD_PRELOAD" in reasons(program)
    program.chmod(0o755 | stat.S_ISGID)
    assert "is setgid: the system ignores LD_PRELOAD" in reasons(program)
    program.chmod(0o755)
    capabilities = bytes.fromhex("0100000200040000000000000000000000000000")  # CAP_NET_BIND_SERVICE
    os.setxattr(program, "security.capability", capabilities)
    assert reasons(program) == "", "root keeps LD_PRELOAD"
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "has file capabilities: the system ignores LD_PRELOAD" in reasons(program)
