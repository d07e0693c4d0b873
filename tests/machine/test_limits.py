"""What a container may use, read from trees like those that the two versions of control groups show."""

from pathlib import Path

import pytest
import torch

from meal_gpu.machine import card, limits

GB = 10**9
UNIFIED = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
SPLIT = ("32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
         "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
CPU = torch.device("cpu")


def tree(root: Path, groups: str, mounts: str, files: dict[str, str], available_gb: int = 20) -> Path:
    """A root whose process is in ``groups``; ``files`` lie below ``/sys/fs/cgroup``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("22 27 0:21 / /proc rw - proc proc rw\n" + mounts)
    (root / "proc/meminfo").write_text(f"MemTotal: 25000000 kB\nMemAvailable: {available_gb * GB // 1024} kB\n")
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    return root


def memory_2(limit: object, used: int = 0, files: int = 0, at: str = "") -> dict[str, str]:
    return {f"{at}memory.max": str(limit), f"{at}memory.current": str(used),
            f"{at}memory.stat": f"anon {used - files}\nfile {files}\ninactive_file {files}\nactive_file 0"}


def memory_1(limit: object, used: int = 0, files: int = 0, at: str = "") -> dict[str, str]:
    return {f"memory/{at}memory.limit_in_bytes": str(limit), f"memory/{at}memory.usage_in_bytes": str(used),
            f"memory/{at}memory.stat": f"inactive_file 0\nhierarchical_memory_limit 1\ntotal_inactive_file {files}"}


def test_version_2_in_a_namespace_of_its_own(tmp_path):
    root = tree(tmp_path, "0::/\n", UNIFIED.format(top="/"),
                {**memory_2(2 * GB, int(1.5 * GB), GB), "cpu.max": "150000 100000"})
    assert limits.memory(root) == limits.Memory(2 * GB, int(1.5 * GB))
    assert limits.cores(root) == 1.5
    assert card.free_bytes(CPU, root) == int(1.5 * GB)
    assert card.total_bytes(root) == 2 * GB
    assert card.host_memory(root) == "1.5 GB free of the 2.0 GB that the container may take"
    assert limits.usable_cores(root) == 1


def test_version_2_nested_the_tightest_wins(tmp_path):
    files = {**memory_2("max", 9 * GB), **memory_2(4 * GB, 3 * GB, at="jobs/"), **memory_2("max", GB, at="jobs/mine/"),
             "cpu.max": "max 100000", "jobs/cpu.max": "400000 100000", "jobs/mine/cpu.max": "800000 100000"}
    root = tree(tmp_path, "0::/jobs/mine\n", UNIFIED.format(top="/"), files)
    assert limits.memory(root) == limits.Memory(4 * GB, GB)
    assert limits.cores(root) == 4


def test_version_2_with_the_machines_names(tmp_path):
    """Without a namespace of groups the container sees its own group mounted, and its name on the machine."""
    root = tree(tmp_path, "0::/docker/abc/worker\n", UNIFIED.format(top="/docker/abc"),
                {**memory_2(3 * GB), **memory_2(2 * GB, GB, at="worker/")})
    assert limits.memory(root) == limits.Memory(2 * GB, GB)


@pytest.mark.parametrize("place", ["/docker/abc", "/../../elsewhere", "/kubepods/burstable"])
def test_a_group_that_is_not_below_the_mount(tmp_path, place):
    root = tree(tmp_path, f"0::{place}\n", UNIFIED.format(top="/docker/xyz"), memory_2(3 * GB, GB))
    assert limits.memory(root) == limits.Memory(3 * GB, 2 * GB)


def test_version_1(tmp_path):
    groups = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/system.slice\n"
    files = {**memory_1(2 * GB, 2 * GB, GB), "cpu,cpuacct/cpu.cfs_quota_us": "200000",
             "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    root = tree(tmp_path, groups, SPLIT.format(top="/docker/abc"), files)
    assert limits.memory(root) == limits.Memory(2 * GB, GB)
    assert limits.cores(root) == 2
    assert card.free_bytes(CPU, root) == GB


def test_version_1_nested_on_the_machine_itself(tmp_path):
    files = {**memory_1(2**63 - 4096), **memory_1(8 * GB, 5 * GB, at="slurm/"), **memory_1(6 * GB, GB, at="slurm/job/")}
    root = tree(tmp_path, "11:memory:/slurm/job\n", SPLIT.format(top="/"), files)
    assert limits.memory(root) == limits.Memory(6 * GB, 3 * GB)


@pytest.mark.parametrize(("groups", "mounts", "files"), [
    ("", "", {}),
    ("0::/\n", UNIFIED.format(top="/"), {}),
    ("0::/\n", UNIFIED.format(top="/"), {**memory_2("max", GB), "cpu.max": "max 100000"}),
    ("11:memory:/\n4:cpu,cpuacct:/\n", SPLIT.format(top="/"),
     {**memory_1(2**63 - 4096, GB), "cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}),
    ("nonsense\n\n::\n", "nonsense\n - \n", {}),
], ids=["no groups", "no controller", "max", "version 1", "nonsense"])
def test_no_limit(tmp_path, groups, mounts, files):
    root = tree(tmp_path, groups, mounts, files, available_gb=5)
    assert limits.memory(root) is None
    assert limits.cores(root) is None
    assert card.free_bytes(CPU, root) == 5 * GB // 1024 * 1024
    assert "container" not in card.host_memory(root)


def test_the_machine_may_have_less_than_the_container_may_take(tmp_path):
    root = tree(tmp_path, "0::/\n", UNIFIED.format(top="/"), memory_2(10**15, GB), available_gb=3)
    assert card.free_bytes(CPU, root) == 3 * GB // 1024 * 1024
    assert "container" not in card.host_memory(root)


def test_a_container_that_is_over_its_limit_has_nothing_free(tmp_path):
    root = tree(tmp_path, "0::/\n", UNIFIED.format(top="/"), memory_2(GB, 2 * GB))
    assert card.free_bytes(CPU, root) == 0


def test_threads_are_no_more_than_the_container_has_time_for(tmp_path, monkeypatch):
    root = tree(tmp_path, "0::/\n", UNIFIED.format(top="/"), {"cpu.max": "100000 100000"})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        card.settle_threads(root)
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        card.settle_threads(root)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
