"""What all fuzzers share: the promise that readers make, and how its breaches are kept."""

import argparse
import contextlib
import hashlib
import importlib.abc
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

import atheris

CONSTANT = 128 * 2**20
"""Bytes that a reader may take beside twice the size of its file."""

SHOWN = (ValueError, OSError, NotImplementedError)
"""Errors that a user is meant to see, where their message names the file."""

_ADDRESS_SPACE = 2 * 2**30  # bytes beside what is taken at the start: what asks for more gets none
_LONGEST = 64 * 2**10  # bytes of an input
_SLOW = 20  # seconds of the processor that one input may take
_ENDLESS = 600  # seconds by the clock after which libFuzzer ends an input that does not return

Read = Callable[[Path, bytes], None]
"""Writes bytes as a file in an empty folder, and reads it; gives the folder back empty."""

Mutate = Callable[[bytes, int], bytes]
"""An input and a number to draw from → another input."""


class _BrokenPromiseError(Exception):
    """What a reader did that it should not."""


class _Sources(importlib.abc.MetaPathFinder):
    """Loads the modules of mlcalib from their files, with the loader that atheris can instrument.

    That of an editable install runs a module without asking for the code that atheris changed.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Return where another finder found a module of mlcalib."""
        if fullname.partition(".")[0] != "mlcalib":
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if (spec.origin or "").endswith(".py"):
                    spec.loader = SourceFileLoader(fullname, spec.origin)
                return spec
        return None


@contextlib.contextmanager
def instrumented() -> Iterator[None]:
    """Let libFuzzer see which code of mlcalib runs, in the modules that are imported here."""
    sources = _Sources()
    sys.meta_path.insert(0, sources)
    try:
        with atheris.instrument_imports(include=["mlcalib"]):
            yield
    finally:
        sys.meta_path.remove(sources)


def fuzz(read: Read, seeds: Sequence[bytes], mutate: Mutate, words: Sequence[str]) -> None:
    """Run libFuzzer on a reader; findings are kept, and it goes on.

    The arguments of the command line are the folder where it works and the seconds of the processor
    that it takes once what it needs is loaded.

    Args:
        read: what is tried.
        seeds: valid files.
        mutate: gets past what random bytes would stop at.
        words: what files contain, for libFuzzer's own mutations.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("seconds", type=int)
    given = parser.parse_args()
    corpus, findings = given.out / "corpus", given.out / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    for old in findings.glob("*.input"):  # to be tried again first
        shutil.copyfile(old, corpus / hashlib.sha1(old.read_bytes()).hexdigest())
    shutil.rmtree(findings, ignore_errors=True)
    findings.mkdir()
    for seed in seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    dictionary = given.out / "dictionary"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in words), encoding="ascii")
    options = [
        f"-max_len={_LONGEST}",
        f"-timeout={_ENDLESS}",
        "-rss_limit_mb=0",  # memory is measured here, by input
        "-print_final_stats=1",
        f"-artifact_prefix={findings}/",
        f"-dict={dictionary}",
    ]
    trial = _Trial(read, Path(tempfile.mkdtemp()), findings)
    with instrumented():
        trial.warm_up(seeds)
    trial.end = time.process_time() + given.seconds
    atheris.Setup(
        [sys.argv[0], *options, str(corpus)],
        trial,
        custom_mutator=lambda data, size, seed: mutate(data, seed)[:size],
    )
    atheris.Fuzz()


class _Trial:
    """Tries inputs and keeps one of each kind that breaks the promise.

    Attributes:
        end: by `time.process_time`, when it has tried enough.
    """

    end = math.inf

    def __init__(self, read: Read, folder: Path, findings: Path) -> None:
        self._read = read
        self._folder = folder
        self._findings = findings
        self._seen: set[str] = set()

    def warm_up(self, seeds: Iterable[bytes]) -> None:
        """Let libraries be loaded, and what asks for very much memory fail from now on."""
        for seed in seeds:
            with contextlib.suppress(Exception):
                self._read(self._folder, seed)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def __call__(self, data: bytes) -> None:
        before, peak, start = _resident(), _peak(), time.process_time()
        try:
            self._read(self._folder, data)
        except Exception as error:
            self._judge(error, data)
        taken = _peak() - before
        if _peak() > peak and taken > 2 * len(data) + CONSTANT:
            self._keep("memory", data, f"{taken:,} bytes for a file of {len(data):,}")
        now = time.process_time()
        if now - start > _SLOW:
            self._keep("slow", data, f"{now - start:.0f} seconds of the processor")
        if now > self.end:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer says what it did, and ends

    def _judge(self, error: Exception, data: bytes) -> None:
        where = traceback.extract_tb(error.__traceback__)
        known = [frame for frame in where if frame.filename != __file__]
        ours = [frame for frame in known if "/mlcalib/" in frame.filename] or known
        place = f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].lineno}"
        said = str(error)
        story = "".join(traceback.format_exception(error))
        if not isinstance(error, SHOWN):
            self._keep(place, data, story)
        elif str(self._folder) not in said:
            self._keep(f"unnamed-{place}", data, story)
        elif not _encodes(said):
            self._keep(f"unprintable-{place}", data, story)

    def _keep(self, kind: str, data: bytes, story: str) -> None:
        if kind in self._seen:
            return
        self._seen.add(kind)
        (self._findings / f"{kind}.input").write_bytes(data)
        (self._findings / f"{kind}.txt").write_text(story, "utf-8", errors="backslashreplace")
        print(f"FINDING {kind}", file=sys.stderr)


def promise(kept: bool, what: str) -> None:
    """Raise an error, which is a finding, if something does not hold."""
    if not kept:
        raise _BrokenPromiseError(what)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode("utf-8", "surrogatepass"))
