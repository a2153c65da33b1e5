#!/usr/bin/env python3
"""Fuzzes the C code that reads what others wrote:
``python -m scripts.fuzz [--seconds N] [TARGET …]``.

A target is ``tests/fuzz/NAME.c``, for libFuzzer with AddressSanitizer and UBSan. Its corpus,
``tests/fuzz/corpus/NAME.zip``, is where fuzzing begins. What is new is kept in ``build/fuzz``, to
go on from there; ``--keep`` stores the smallest set of inputs that reaches as much.

When a target fails, its input is in ``build/fuzz``: the target is run with that as its argument.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts import fuzz_seeds

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"
_FLAGS = (
    "-std=gnu11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Werror -Ihook -Ipysidecar/dataplane -pthread"
    " -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
).split()
_SECONDS_FOR_ONE_INPUT = 10
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of a ZIP file: the same inputs make the same file


def _sources(pattern: str) -> list[Path]:
    directories = ("hook", "pysidecar/dataplane", "tests/fuzz", "tests/unit")
    return sorted(path for each in directories for path in (ROOT / each).rglob(pattern))


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run_if_changed(command: Sequence[str], read: str, product: Path) -> None:
    """``read`` is the digest of what the command reads."""
    digest = hashlib.sha256("\0".join([*command, read]).encode()).hexdigest()
    stamp = product.with_suffix(".stamp")
    if product.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    subprocess.run(command, cwd=ROOT, check=True)
    stamp.write_text(digest)


def _compile(source: Path, headers: str) -> Path:
    """The object; of the headers it may read any."""
    name = "-".join(source.relative_to(ROOT).with_suffix(".o").parts)
    product = BUILD / "objects" / name
    product.parent.mkdir(exist_ok=True)
    command = ["clang", *_FLAGS, "-c", str(source), "-o", str(product)]
    _run_if_changed(command, headers + _digest([source]), product)
    return product


@dataclass(frozen=True)
class Target:
    """``linked`` are patterns of sources, except for one that the target ``includes`` itself."""

    name: str
    linked: str = ""
    includes: str = ""
    longest: int = 1024  # bytes of an input
    runs: int = 10000  # of the short run that the tests make: about two seconds
    counters: bool = True  # how often a line is reached is a reason to keep an input
    seeds: Callable[[], Sequence[bytes]] | None = None  # made, beside what is stored

    @property
    def program(self) -> Path:
        """The compiled target."""
        return BUILD / self.name

    @property
    def stored_corpus(self) -> Path:
        """In the repository."""
        return SOURCES / "corpus" / f"{self.name}.zip"

    @property
    def found_corpus(self) -> Path:
        """Where fuzzing goes on."""
        return BUILD / "corpus" / self.name

    def build(self) -> None:
        """Compiles it if anything has changed: what targets have in common once for all of them."""
        linked = {
            path
            for pattern in self.linked.split()
            for path in ROOT.glob(pattern)
            if not path.name.endswith(".bpf.c")
        }
        BUILD.mkdir(parents=True, exist_ok=True)
        with (BUILD / "lock").open("w") as lock, ThreadPoolExecutor(os.cpu_count()) as executor:
            fcntl.flock(lock, fcntl.LOCK_EX)  # targets may be built at the same time
            headers = _digest(_sources("*.h"))
            objects = list(
                executor.map(lambda path: _compile(path, headers), linked - {ROOT / self.includes})
            )
        sources = [SOURCES / f"{self.name}.c", *sorted(objects)]
        command = [
            "clang",
            *_FLAGS,
            *map(str, sources),
            "-ldl",
            "-lm",
            "-lnghttp2",
            "-lcmocka",
            "-o",
            str(self.program),
        ]
        _run_if_changed(command, _digest(_sources("*.[ch]")), self.program)

    def run(self, corpus: Path, *options: str) -> None:
        """Raises CalledProcessError where it failed; what it says is for the terminal."""
        subprocess.run(
            [
                # Addresses at random are more than this ASan can always take.
                *("setarch", "--addr-no-randomize", str(self.program)),
                *(f"-timeout={_SECONDS_FOR_ONE_INPUT}", f"-max_len={self.longest}"),
                *("-len_control=0", f"-artifact_prefix={BUILD}/{self.name}-", *options),
                str(corpus),
            ],
            cwd=ROOT,
            check=True,
        )

    def unpack(self, directory: Path) -> Path:
        """The stored corpus, as files, and the seeds."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.stored_corpus.exists():
            with zipfile.ZipFile(self.stored_corpus) as archive:
                archive.extractall(directory)
        for seed in self.seeds() if self.seeds else ():
            (directory / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
        return directory

    def keep(self) -> None:
        """What fuzzing has found becomes the stored corpus, as far as it is worth it."""
        smallest = self.found_corpus.with_name(f"{self.name}-smallest")
        shutil.rmtree(smallest, ignore_errors=True)
        smallest.mkdir()
        merge = ["setarch", "--addr-no-randomize", str(self.program), "-set_cover_merge=1"]
        merge.append(f"-use_counters={int(self.counters)}")
        subprocess.run([*merge, str(smallest), str(self.found_corpus)], cwd=ROOT, check=True)
        with zipfile.ZipFile(self.stored_corpus, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(smallest.iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name, _EPOCH), path.read_bytes())


_DATA_PLANE = "pysidecar/dataplane/**/*.c"
_TRACES = "pysidecar/dataplane/l7/trace_context.c"
TARGETS = {
    target.name: target
    for target in (
        Target("header", _DATA_PLANE, "pysidecar/dataplane/intercept/header.c", runs=200_000),
        Target("control", _DATA_PLANE, longest=256, runs=1000),
        Target("http1", f"pysidecar/dataplane/l7/http1*.c {_TRACES}", longest=2048, runs=8000),
        Target(
            "http2",
            f"{_DATA_PLANE} tests/unit/unit.c",
            runs=500,
            seeds=fuzz_seeds.http2,
        ),
        Target("log_line", longest=512, runs=50_000),
        Target("bolt", _TRACES, longest=384, runs=20_000, counters=False),
        Target("dubbo", _TRACES, longest=384, runs=20_000, counters=False),
        Target("trace_context", longest=512, runs=50_000),
        Target("page", "hook/address.c", "hook/page.c", longest=4096, runs=5000),
        Target("rules", longest=512, runs=5000),
    )
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="also store what was found")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args(arguments)
    for name in options.targets or TARGETS:
        if name not in TARGETS:
            parser.error(f"no target {name!r}; there are: {', '.join(TARGETS)}")
        target = TARGETS[name]
        target.build()
        corpus = target.found_corpus
        corpus.mkdir(parents=True, exist_ok=True)
        target.unpack(corpus)
        target.run(corpus, f"-max_total_time={options.seconds}", "-print_final_stats=1")
        if options.keep:
            target.keep()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"fuzz: failed with status {error.returncode}; see above, and {BUILD}")
