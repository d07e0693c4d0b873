"""SIGTERM, as Slurm, Kubernetes and `kill` send it: as Ctrl-C, with the exit code that shells give it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_config

from meal_gpu import cli, endings


def heeds() -> None:
    """Ctrl-C counts: a shell script starts what it puts into the background with it ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("words", [[], ["--workers", "1"]])
@pytest.mark.parametrize(("number", "code", "what"), [(signal.SIGTERM, 143, "Terminated."),
                                                      (signal.SIGINT, 130, "Interrupted.")])
def test_a_run_that_is_ended_says_how_to_go_on(tmp_path, number, code, what, words):
    if words and number == signal.SIGINT:
        pytest.skip("the same way out; each start of workers takes seconds")
    config = tmp_path / "tiny.yaml"
    # A last round that does not end before the signal comes, however late that is on a busy machine.
    values = {"query.strategy": "random", "query.rounds": 3, "train.epochs": 4, "train.final_epochs": 400}
    config.write_text(tiny_config(tmp_path, **values).dump())
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-m", "meal_gpu.cli", "run", str(config), "--out", str(out), *words],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heeds) as process:
        rounds = out / "seed-0" / "rounds.jsonl"
        while not (rounds.exists() and rounds.read_bytes().endswith(b"\n")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        assert process.stderr is not None
        text = process.stderr.read()
        assert process.wait() == code, text
    said = [line for line in text.splitlines() if line.startswith(what)]
    assert said == [f"{what} Finished rounds are kept; go on with: meal-gpu run --resume {out}"]
    for trouble in ("Traceback", "leaked", "Error"):
        assert trouble not in text
    lines = rounds.read_bytes().splitlines()
    assert [json.loads(line)["round"] for line in lines] == list(range(len(lines)))
    assert len(lines) < 4, "it ended by itself"
    assert not [file for file in Path(out).rglob(".*") if file.name != ".lock"]


def test_a_second_signal_does_not_break_what_is_being_put_away(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(endings.Terminated):
            endings._terminated(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_that_keeps_nothing_ends_too(monkeypatch, capsys):
    """Typer has a message and a code of its own for an interrupt, and none for this."""
    def terminated(*arguments):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("meal_gpu.report.load_runs", terminated)
    monkeypatch.setattr(sys, "argv", ["meal-gpu", "report", "."])
    monkeypatch.setattr(cli, "errors", cli.Console(stderr=True))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 143
    assert capsys.readouterr().err == "Terminated.\n"
    assert signal.getsignal(signal.SIGTERM) is before
