"""SIGKILL at chosen and at random moments: the run that is resumed each time ends as the one that was left alone.

The random moments are drawn by a seed, which is printed; ``MEAL_GPU_TEST_SEED`` repeats it. ``MEAL_GPU_TEST_KILLS``
says how many of them there are: `make test-kills` takes 200.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tiny import tiny_config

PROGRAM = """
import os, signal, sys, threading
import meal_gpu.files, meal_gpu.records
from meal_gpu.config import Config
from meal_gpu.launch import resume, run

# A process for each line, forked when everything is imported and nothing runs yet: importing takes longer than a run.
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
config, out, moment, number = line.rstrip("\\n").split("\\t")
number = float(number)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

count = {"fsync": 0}
def progress(stage, done, total):
    count[stage] = count.get(stage, 0) + 1
    if stage == moment and count[stage] == number:
        die()

real_fsync = os.fsync
def fsync(handle):  # between a file's content and its rename: everything durable passes through here
    count["fsync"] += 1
    if moment == "fsync" and count["fsync"] == number:
        die()
    real_fsync(handle)
os.fsync = fsync

real_append = meal_gpu.records.append_durably
def append(path, line):
    if moment == "half a line":
        path.open("ab").write(line[: len(line) // 2])
        die()
    real_append(path, line)
meal_gpu.records.append_durably = append

if moment == "seconds":
    threading.Timer(number, die).start()
if os.path.exists(out + "/config.yaml"):
    resume(out, progress=progress)
else:
    run(Config.load(config), out, progress=progress)
os._exit(0)
"""

SEED = int(os.environ.get("MEAL_GPU_TEST_SEED", random.SystemRandom().randrange(10**6)))
KILLS = int(os.environ.get("MEAL_GPU_TEST_KILLS", 6))

MOMENTS = [
    ("ingest train", 1),  # while decoding
    ("seconds", 0.5),     # wherever that is; early, when the run still needs seconds
    ("train", 2),         # in the middle of round 0's training
    ("fsync", 7),         # in the middle of writing an artefact
    ("half a line", 0),   # in the middle of the line that ends a round
    ("score", 1),         # while scoring the pool
]


def lines(out: Path) -> list[dict]:
    text = (out / "seed-0" / "rounds.jsonl").read_text()
    assert text.endswith("\n")
    return [{key: value for key, value in json.loads(line).items() if key not in ("seconds", "peak_bytes", "check")}
            for line in text.splitlines()]


def test_killed_again_and_again(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(tmp_path, **{"query.strategy": "entropy"}).dump())

    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          bufsize=1) as runs:

        def start(out: Path, moment: str, number: float) -> int:
            print(config, out, moment, number, sep="\t", file=runs.stdin, flush=True)
            return int(runs.stdout.readline())

        for moment, number in MOMENTS:
            assert start(tmp_path / "killed", moment, number) == -9, f"not killed at {moment}: the run ended before"
        assert start(tmp_path / "killed", "never", 0) == 0
        assert start(tmp_path / "whole", "never", 0) == 0

    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed").rglob(".*")] == [".lock"], "leftovers are removed"


def test_killed_at_random_moments(tmp_path):
    """Runs that are each killed up to five times, after a random time or a random number of writes made durable."""
    print(f"\nMEAL_GPU_TEST_SEED={SEED}")
    draw = random.Random(SEED)
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(tmp_path, **{"query.strategy": "entropy"}).dump())
    kills, runs = 0, 0
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          bufsize=1) as program:

        def start(out: Path, moment: str, number: float) -> int:
            print(config, out, moment, number, sep="\t", file=program.stdin, flush=True)
            return int(program.stdout.readline())

        began = time.monotonic()
        assert start(tmp_path / "whole", "never", 0) == 0
        seconds = time.monotonic() - began
        while kills < KILLS:
            out = tmp_path / f"killed-{runs}"
            for _ in range(min(5, KILLS - kills)):
                moment, number = draw.choice([("seconds", draw.uniform(0, seconds)), ("fsync", draw.randint(1, 40))])
                code = start(out, moment, number)
                assert code in (0, -9), f"seed {SEED}, run {runs}, {moment} {number}"
                kills += code == -9
            assert start(out, "never", 0) == 0, f"seed {SEED}, run {runs}"
            assert lines(out) == lines(tmp_path / "whole"), f"seed {SEED}, run {runs}"
            assert [path.name for path in out.rglob(".*")] == [".lock"]
            runs += 1
    print(f"{kills} kills in {runs} runs")
