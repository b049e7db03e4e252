"""Ranks in trouble: killed at random, on two hosts, on a full disk, unlike each other.

    python benchmarks/python/rank_trouble.py [kills|hosts|disk|versions ...] [--kills 20]

``kills`` kills a random rank of two or three at random moments, and goes on with another number of
them, until as many were killed as asked; the checkpoint is then that of a run nobody disturbed.
``hosts`` runs two ranks in network namespaces of their own, where they meet through torchrun's
rendezvous, and once more with the link between them cut. ``disk`` fills a small disk of rank 0.
``versions`` gives one rank another model. ``hosts`` and ``disk`` need root.
"""

import argparse
import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from mlcalib.models.loading import find_smollm2, load_tokenizer

LAYERS = 60
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def make_model(folder: Path, seed: int = 0) -> Path:
    """Save a random model with many small blocks and a real tokenizer."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(str(find_smollm2()))
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked(model: Path, out: Path) -> list[str]:
    """Return the command of each rank."""
    given = ["-m", "mlcalib", "quantize", str(model), "--out", str(out), "--group-size", "32"]
    text = ["--languages", "en,sw,fr", "--tokens", "6144", "--seq-len", "128"]
    return [*given, *text, "--hidden-states", "disk"]


def torchrun(
    ranks: int, command: Sequence[str], *options: str, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a run."""
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [*before, *start, *options, *command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rank_of(parent: int, rank: int) -> int | None:
    """Return the process of a rank below torchrun's."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and f"RANK={rank}".encode() in variables:
                return int(folder.name)
    return None


def runs(process: int) -> bool:
    """Return whether a process runs; its torchrun may not have noticed that it has ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def kill_at_random(
    process: subprocess.Popen[str], victim: int, blocks: Path, chance: random.Random
) -> bool:
    """Kill a rank when some more blocks are finished, or after a while; False if all has ended."""
    before = len(list(blocks.glob("*.safetensors")))
    while (found := rank_of(process.pid, victim)) is None and process.poll() is None:
        time.sleep(0.1)
    wanted, limit = before + chance.randrange(3), time.monotonic() + chance.uniform(0, 60)
    while process.poll() is None and time.monotonic() < limit:
        if len(list(blocks.glob("*.safetensors"))) > wanted:
            break
        time.sleep(0.005)
    if found is None or process.poll() is not None:
        return False
    os.kill(found, signal.SIGKILL)
    return True


def kills(folder: Path, count: int) -> None:
    """Kill random ranks until enough were killed, then let the run end, and compare."""
    model, chance = make_model(folder / "model"), random.Random(0)
    whole = torchrun(1, asked(model, folder / "whole"))
    printed = whole.communicate()[0]
    assert whole.returncode == 0, printed
    killed, longest, starts, blocks = 0, 0.0, 0, folder / ".out.parts/blocks"
    while not (folder / "out/mlcalib.json").is_file():
        ranks = chance.choice([2, 3])
        process = torchrun(ranks, asked(model, folder / "out"))
        starts += 1
        before = len(list(blocks.glob("*.safetensors")))
        victim = chance.randrange(ranks)
        if killed < count and kill_at_random(process, victim, blocks, chance):
            start, killed = time.monotonic(), killed + 1
            printed = process.communicate(timeout=60)[0]
            longest = max(longest, time.monotonic() - start)
            assert f"rank      : {victim} (" in printed, printed  # of torchrun's summary
            assert "Signal 9 (SIGKILL)" in printed, printed
        else:
            printed = process.communicate()[0]
        print(
            f"start {starts}: {ranks} ranks, {before} blocks before, "
            f"{len(list(blocks.glob('*.safetensors')))} after, exit {process.returncode}",
            flush=True,
        )
    made = json.loads((folder / "out/mlcalib.json").read_text())["made_with"]
    of = {ranks: sum(each["ranks"] == ranks for each in made.values()) for ranks in (2, 3)}
    file = "model.safetensors"
    same = filecmp.cmp(folder / "whole" / file, folder / "out" / file, shallow=False)
    print(
        f"{killed} kills in {starts} starts; others ended within {longest:.1f} s; blocks made by "
        f"2 ranks {of[2]}, by 3 {of[3]}; same bytes as one undisturbed rank: {same}"
    )
    assert same, printed


@contextlib.contextmanager
def two_hosts() -> Iterator[list[list[str]]]:
    """Make two network namespaces with a link between them; give what runs a command in each."""
    names = ["mlcalib-a", "mlcalib-b"]

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check)

    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", "ra", "netns", names[0], "type", "veth", "peer", "rb", "netns", names[1])
        for name, link, last in zip(names, ("ra", "rb"), (1, 2), strict=True):
            ip("-n", name, "addr", "add", f"10.77.0.{last}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def hosts(folder: Path) -> None:
    """Run one rank on each of two hosts; then cut the link between them."""
    model = make_model(folder / "model")
    meet = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29400"]
    with two_hosts() as inside:
        for cut in (False, True):
            out = folder / f"out-{cut}"
            started = [
                torchrun(
                    1,
                    # Each host has a folder of its own, of which rank 0's gets the checkpoint.
                    asked(model, out / f"host-{host}"),
                    *meet,
                    f"--local-addr=10.77.0.{host + 1}",
                    f"--rdzv-conf=is_host={1 - host}",  # names of hosts say nothing here
                    before=[*before, "env", f"GLOO_SOCKET_IFNAME={('ra', 'rb')[host]}"],
                )
                for host, before in enumerate(inside)
            ]
            if cut:
                while len(list(out.glob(".*.parts/blocks/*"))) < 5:
                    assert started[0].poll() is None, started[0].communicate()[0]
                    time.sleep(0.05)
                subprocess.run(["ip", "-n", "mlcalib-b", "link", "set", "rb", "down"], check=True)
            start = time.monotonic()
            ranks = [rank_of(each.pid, host) for host, each in enumerate(started)] if cut else []
            for rank in filter(None, ranks):
                while runs(rank) and time.monotonic() - start < 120:
                    time.sleep(0.1)
            if cut:
                print(f"ranks had ended {time.monotonic() - start:.0f} s after the link was cut")
                assert time.monotonic() - start < 60
                time.sleep(5)
                for each in started:  # torchrun itself waits longer for the other host
                    each.terminate()
            printed = [each.communicate()[0] for each in started]
            for host, (each, text) in enumerate(zip(started, printed, strict=True)):
                said = [line for line in text.splitlines() if "RankLost" in line]
                print(f"cut {cut}, host {host}: exit {each.returncode} {said[:1]}", flush=True)
            if cut:
                assert all(each.returncode for each in started)
            else:
                print(f"checkpoints: {[str(path) for path in out.glob('*/mlcalib.json')]}")
                assert all(each.returncode == 0 for each in started), printed[0][-2000:]


def disk(folder: Path) -> None:
    """Let the disk of rank 0 be full in the middle; then let the run go on elsewhere."""
    model, small = make_model(folder / "model"), folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(small)], check=True)
    try:
        start = time.monotonic()
        process = torchrun(2, asked(model, small / "out"))
        printed = process.communicate()[0]
        said = [line for line in printed.splitlines() if "No space" in line]
        blocks = len(list(small.glob(".out.parts/blocks/*")))
        print(f"exit {process.returncode} after {time.monotonic() - start:.0f} s, {blocks} blocks")
        print("\n".join(dict.fromkeys(said)))
        assert process.returncode
        assert said
        subprocess.run(["mount", "-o", "remount,size=500m", str(small)], check=True)
        process = torchrun(2, asked(model, small / "out"))
        printed = process.communicate()[0]
        assert process.returncode == 0, printed
        print("with room it went on to the end")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def versions(folder: Path) -> None:
    """Give one rank another model of the same name."""
    for host in range(2):
        make_model(folder / f"host-{host}", seed=0)
    config = folder / "host-1/config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    script = folder / "rank.sh"
    words = " ".join(asked(Path("$MODEL"), folder / "out"))
    script.write_text(f"MODEL={folder}/host-$RANK\nexec {sys.executable} {words}\n")
    process = torchrun(2, ["bash", str(script)], "--no-python")
    printed = process.communicate()[0]
    said = [line for line in printed.splitlines() if "do not do the same" in line]
    print(f"exit {process.returncode}: {said[0] if said else printed}")
    assert process.returncode
    assert said


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="*", default=["kills", "hosts", "disk", "versions"])
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for what in given.what:
        folder = Path(tempfile.mkdtemp(prefix=f"ranks-{what}-"))
        print(f"== {what}", flush=True)
        if what == "kills":
            kills(folder, given.kills)
        else:
            {"hosts": hosts, "disk": disk, "versions": versions}[what](folder)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
