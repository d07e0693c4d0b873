"""Dockerfile, compose.yaml and the blocks of docs/containers.md, as far as they can be held without a container engine.

They name each other's paths, users and commands, and pyproject.toml's lists: each of these could go stale in silence.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from meal_gpu.cli import app
from meal_gpu.config import Config

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "containers.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def instructions(text: str) -> list[tuple[str, str]]:
    """(keyword, rest) of each instruction of a Dockerfile, lines joined as Docker does, without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split()[0], " ".join(line.split()[1:])) for line in joined.splitlines()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages by name, in order, each from its FROM on."""
    found: dict[str, list[tuple[str, str]]] = {}
    for keyword, rest in instructions((ROOT / "Dockerfile").read_text()):
        if keyword == "FROM":
            found[rest.split(" AS ")[1]] = []
        list(found.values())[-1].append((keyword, rest))
    return found


STAGES = stages()
FINAL = ("cpu", "cuda")


def all_of(stage: str, keyword: str) -> list[str]:
    return [rest for key, rest in STAGES[stage] if key == keyword]


def block(start: str) -> str:
    """The page's one code block that begins so."""
    found = [body for body in re.findall(r"^```\w*[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
             if body.startswith(start)]
    assert len(found) == 1, f"{len(found)} blocks begin with {start!r}"
    return found[0]


JOB = yaml.safe_load(block("apiVersion: batch/v1"))
POD = JOB["spec"]["template"]["spec"]
SLURM = block("#!/bin/bash\n#SBATCH")
COMPOSE_TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", COMPOSE_TEXT))  # with the defaults that compose would take


def parse(arguments: list[str]) -> None:
    """Parse a call of meal-gpu as the command line does, and load the config that it names."""
    command = typer.main.get_command(app)
    with command.make_context("meal-gpu", arguments[:1]) as context:
        name, child, rest = command.resolve_command(context, arguments)
        with child.make_context(name, rest, parent=context) as inner:
            if inner.params.get("config"):
                Config.load(inner.params["config"], inner.params.get("set_"))


def test_bases_are_pinned_and_the_default_is_cuda():
    assert list(STAGES) == ["build", "cpu", "cuda"]
    for stage in STAGES:
        base = STAGES[stage][0][1].split(" AS ")[0]
        assert re.fullmatch(r"ubuntu:noble-\d{8}|nvidia/cuda:13\.\d+\.\d+-base-ubuntu24\.04", base), base


def test_both_images_behave_alike():
    """They differ in the base, in the dependencies, and in nothing that a user sees."""
    differ = {"FROM", "ARG"}
    cpu, cuda = ([step for step in STAGES[stage] if step[0] not in differ and "/requirements" not in step[1]]
                 for stage in FINAL)
    assert cpu == cuda


def test_the_lists_of_dependencies_are_those_of_pyproject(tmp_path):
    """Runs the line of the Dockerfile that writes them."""
    line = next(run for run in all_of("build", "RUN") if "tomllib" in run)
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    where = tmp_path / "requirements"
    subprocess.run(["sh", "-ec", line.replace("/requirements", str(where))], cwd=tmp_path, check=True)
    lists = {file.stem: file.read_text().splitlines() for file in where.iterdir()}
    core, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    assert lists == {"torch": core[:2], "cpu": core + extras["dask"],
                     "cuda": core + extras["cuda"] + extras["dask-cuda"]}
    assert [re.match(r"\w+", line)[0] for line in lists["torch"]] == ["torch", "torchvision"]


@pytest.mark.parametrize("stage", FINAL)
def test_a_change_of_the_source_keeps_the_dependencies(stage):
    """Nothing of the source comes before the dependencies, and what comes after installs none."""
    steps = STAGES[stage]
    wheel = next(i for i, (key, rest) in enumerate(steps) if key == "COPY" and "/wheel" in rest)
    before = [rest for key, rest in steps[:wheel] if key == "COPY"]
    assert before
    assert all(rest.startswith("--from=build /requirements/") for rest in before)
    assert any("pip install -r" in rest or "-r /requirements" in rest for key, rest in steps[:wheel] if key == "RUN")
    after = [rest for key, rest in steps[wheel + 1:] if key == "RUN"]
    assert after == ["pip install --no-cache-dir --no-deps /wheel/*.whl"]


def test_what_is_copied_exists_and_is_all_that_the_wheel_needs():
    sent = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = {source for rest in all_of("build", "COPY") for source in rest.split()[:-1]}
    assert {line[1:] for line in sent} == copied
    assert all((ROOT / source).exists() for source in copied)
    setuptools = PYPROJECT["tool"]["setuptools"]
    needed = {*setuptools["package-dir"].values(), PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"}
    assert copied == needed


@pytest.mark.parametrize("stage", FINAL)
def test_the_image_runs_as_a_user_with_caches_that_it_may_write(stage):
    user, group = all_of(stage, "USER")[0].split(":")
    assert int(user) > 0  # a number, or Kubernetes' runAsNonRoot cannot tell
    assert int(group) > 0
    assert [key for key, _ in STAGES[stage]].index("USER") > max(
        i for i, (key, _) in enumerate(STAGES[stage]) if key == "RUN")
    variables = dict(pair.split("=", 1) for rest in all_of(stage, "ENV") for pair in shlex.split(rest))
    for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "CUPY_CACHE_DIR"):
        assert Path(variables[name]).is_relative_to("/cache")
    assert any("install -d -m 1777 /cache /data /runs" in rest for rest in all_of(stage, "RUN"))
    assert json.loads(all_of(stage, "VOLUME")[0]) == ["/cache", "/runs"]
    assert all_of(stage, "STOPSIGNAL") == ["SIGINT"]


@pytest.mark.parametrize("stage", FINAL)
def test_the_image_is_the_command_line(stage):
    assert json.loads(all_of(stage, "ENTRYPOINT")[0]) == ["meal-gpu"]
    assert "meal-gpu" in PROJECT["scripts"]
    program, *arguments = json.loads(all_of(stage, "HEALTHCHECK")[0].partition("CMD ")[2])
    assert (program, arguments) == ("meal-gpu", ["--version"])


def test_the_health_check_touches_no_gpu():
    """It comes every ten minutes, beside a run: no CUDA context of its own, no cuML, not even PyTorch."""
    code = ("import sys; from meal_gpu.cli import main\nsys.argv[1:] = ['--version']\ntry: main()\n"
            "except SystemExit as stop: assert not stop.code\n"
            "assert not {'torch', 'cuml', 'cupy', 'numba'} & set(sys.modules), sorted(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.strip() == PROJECT["version"]


def test_shipped_paths_are_the_mounts(monkeypatch):
    """WORKDIR / makes data/... and runs/... of the shipped configs and of the default --out lie on the mounts."""
    from meal_gpu.launch import default_directory

    assert all(all_of(stage, "WORKDIR") == ["/"] for stage in FINAL)
    config = Config.load("cityscapes")
    assert (Path("/") / config.data.root).is_relative_to("/data")
    assert (Path("/") / default_directory(config)).is_relative_to("/runs")


def test_compose():
    assert set(COMPOSE["services"]) == {"gpu", "cpu"}
    for service in COMPOSE["services"].values():
        assert service["build"]["target"] in FINAL
        assert set(service["build"].get("args", {})) <= {name.split("=")[0] for name in all_of("cpu", "ARG")}
        assert service["user"] == all_of("cpu", "USER")[0]
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert set(mounts) == {"/data", "/runs", "/cache"}
        assert mounts["/data"]["read_only"]
        assert mounts["/cache"]["source"] in COMPOSE["volumes"]
    (device,) = COMPOSE["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    for name in set(re.findall(r"\$\{(\w+):-", COMPOSE_TEXT)):
        assert name in PAGE


def test_kubernetes_job():
    (container,) = POD["containers"]
    user, group = map(int, all_of("cuda", "USER")[0].split(":"))
    security = POD["securityContext"]
    assert security["runAsNonRoot"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, group, group)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {"/data", "/runs", "/cache"}
    assert mounts["/data"]["readOnly"]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in POD["volumes"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert JOB["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert POD["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert container["image"].endswith(f"/meal-gpu:{PROJECT['version']}")


def calls_of(script: str, directory: Path, code: int = 0, **environment: str) -> list[list[str]]:
    """What a shell script calls meal-gpu, srun and scontrol with. They are stand-ins here, which end with ``code``."""
    bin_, log = directory / "bin", directory / "calls"
    bin_.mkdir(exist_ok=True)
    log.write_text("")
    for name in ("meal-gpu", "srun", "scontrol"):
        (bin_ / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" "" >> {log}\nexit {code}\n')
        (bin_ / name).chmod(0o755)
    ended = subprocess.run(["bash", "-c", script], env={"PATH": f"{bin_}:/usr/bin:/bin", **environment}, check=False)
    assert ended.returncode == code
    return [call.splitlines() for call in log.read_text().split("\n\n") if call]


def test_the_kubernetes_job_starts_a_run_and_then_goes_on_with_it(tmp_path):
    (container,) = POD["containers"]
    assert container["command"] == ["sh", "-c"]
    (script,) = container["args"]
    script = script.replace("/runs", str(tmp_path / "runs"))
    ((program, *first),) = calls_of(script, tmp_path)
    assert program == "meal-gpu"
    parse(first)
    out = Path(first[first.index("--out") + 1])
    out.mkdir(parents=True)
    (out / "config.yaml").write_text("")
    ((_, *second),) = calls_of(script, tmp_path)
    parse(second)
    assert second == ["run", "--resume", str(out)]


def test_the_slurm_job_starts_a_run_goes_on_with_it_and_queues_itself_again(tmp_path):
    settings = {"SCRATCH": str(tmp_path), "HOME": "/home/me", "SLURM_JOB_ID": "7"}
    image = "/home/me/meal-gpu.sif"

    ((_, *first),) = calls_of(SLURM, tmp_path, **settings)
    assert first[:3] == ["apptainer", "run", "--nv"]
    binds = [bind.split(":") for bind in first[first.index("--bind") + 1].split(",")]
    assert {inside: Path(outside) for outside, inside, *_ in binds} == {
        "/data": Path("/datasets"), "/runs": tmp_path / "meal-gpu/runs", "/cache": tmp_path / "meal-gpu/cache"}
    arguments = first[first.index(image) + 1:]
    parse(arguments)
    out = Path(arguments[arguments.index("--out") + 1])
    assert out.is_relative_to("/runs")

    run = tmp_path / "meal-gpu" / out.relative_to("/")
    run.mkdir(parents=True)  # the job has made its parents
    (run / "config.yaml").write_text("")
    second, third = calls_of(SLURM, tmp_path, code=130, **settings)  # the time was up
    arguments = second[second.index(image) + 1:]
    parse(arguments)
    assert arguments == ["run", "--resume", str(out)]
    assert third == ["scontrol", "requeue", "7"]


def test_the_pages_commands_of_docker():
    """Every ``docker run`` and ``docker compose run``: the image is one that is built here, its arguments parse."""
    text = re.sub(r"\\\n\s*", "", PAGE)
    calls = [shlex.split(line, comments=True) for line in text.splitlines()
             if re.match(r"(\w+=\S+ )*docker (run|compose run|build)", line)]
    builds = [call for call in calls if "build" in call]
    assert {call[call.index("--target") + 1] if "--target" in call else "cuda" for call in builds} == set(FINAL)
    tags = {call[call.index("-t") + 1] for call in builds}
    assert tags == {service["image"] for service in COMPOSE["services"].values()}
    runs = [call for call in calls if "build" not in call]
    assert runs
    for call in runs:
        names = set(COMPOSE["services"]) if "compose" in call else tags
        image = next(i for i, word in enumerate(call) if word in names)
        parse(call[image + 1:])
        mounts = [call[i + 1].split(":")[1] for i, word in enumerate(call) if word == "-v"]
        assert set(mounts) <= {"/data", "/runs", "/cache"}
