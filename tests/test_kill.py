"""SIGKILL at chosen and at random moments: the run that is resumed each time ends as the one that was left alone."""

import json
import subprocess
import sys
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

MOMENTS = [
    ("ingest train", 1),  # while decoding
    ("seconds", 0.5),     # wherever that is; early, when the run still needs seconds
    ("train", 2),         # in the middle of round 0's training
    ("fsync", 7),         # in the middle of writing an artefact
    ("half a line", 0),   # in the middle of the line that ends a round
    ("score", 1),         # while scoring the pool
]


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

    def lines(out: Path) -> list[dict]:
        text = (out / "seed-0" / "rounds.jsonl").read_text()
        assert text.endswith("\n")
        return [{key: value for key, value in json.loads(line).items() if key not in ("seconds", "peak_bytes")}
                for line in text.splitlines()]

    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    left = [path.name for path in (tmp_path / "killed").rglob(".*") if path.name != ".lock"]
    assert len(left) <= len(MOMENTS), f"at most one unfinished temporary file per kill: {left}"
