"""The benchmark runs, measures all contenders alike, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

from benchmarks.images import Timing
from benchmarks.images import table as unpacking_table
from benchmarks.measure import Block
from benchmarks.spawn import table
from benchmarks.top import Watch
from tests.support import archives, host
from tests.support.command import ROOT


@pytest.mark.kernel
def test_every_contender_ends_its_jobs() -> None:
    """Whichever peers are installed; a job that fails ends the benchmark."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.spawn", "--rounds", "1", "--jobs", "3", "--json"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    blocks = json.loads(done.stdout)["blocks"]
    assert {"container 1", "container 8"} <= set(blocks)
    for (block,) in blocks.values():
        assert block["jobs"] == 3
        assert block["wall"] >= block["latency"] > 0 < block["cpu"]


def test_ratios_are_to_the_first_contender() -> None:
    slow, quick = Block(jobs=10, wall=1.0, latency=0.1, cpu=0.08), Block(10, 0.5, 0.05, 0.02)
    blocks = {("a", 1): [slow], ("a", 8): [slow], ("b", 1): [quick], ("b", 8): [quick]}
    last = table(["a", "b"], blocks).splitlines()[-1].split()
    assert last == ["b", "50.00", "(0.50)", "20.00", "(2.00)", "20.00", "(2.00)", "20.00", "(0.25)"]


@host.outside("the speed of images")
@pytest.mark.kernel
def test_starts_in_an_image_are_compared_with_a_directory() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.image_start", "--rounds", "1", "--jobs", "2"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert [" ".join(row[:-3]) for row in rows] == [
        "overlay", "overlay userns", "read-only", "read-only userns",
    ]  # fmt: skip
    assert all(float(number) > 0 for row in rows for number in row[-3:])


@host.outside("the speed of images")
@pytest.mark.kernel
def test_layers_and_images_are_unpacked_by_all(tmp_path: Path) -> None:
    """Whoever is installed; one that fails ends the benchmark."""
    layer = tmp_path / "layer.tar"
    layer.write_bytes(archives.archive(archives.file(b"f", b"data"), archives.directory(b"d")))
    options = ["--rounds", "1", "--archive", str(layer), "--work", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.images", *options],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout)["seconds"]
    for compression in ("none", "gzip", "zstd"):
        assert set(seconds[f"a layer, {compression}"]) == {"tar -x", "supervise"}
    if shutil.which("umoci"):
        assert "supervise" in seconds["an image"]
    assert [path.name for path in tmp_path.iterdir()] == ["layer.tar"]


def test_a_ratio_above_one_is_faster_than_the_first() -> None:
    results = {"a": [Timing(2.0, 1.0)], "b": [Timing(1.0, 1.0)]}
    assert unpacking_table("title", results).splitlines()[-1].split()[1:4] == [
        "1.00", "1.00", "2.00"
    ]  # fmt: skip


def test_a_clock_of_cpu_time_that_steps_widely_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for step, unit, now in (
        (0.01, "ms that passed (CPU ticks: 10)", time.perf_counter),
        (1e-6, "ms of CPU", None),
    ):
        clock = chain(repeat(0.5, 3), repeat(0.5 + step)).__next__
        monkeypatch.setattr(time, "process_time", clock)
        assert Watch.best() == Watch(now or clock, unit)


@pytest.mark.kernel
def test_a_reading_of_jobs_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.top", "--rounds", "3", "--jobs", "20", "--json"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)
    assert 0 < costs["idle"] < costs["first"] and costs["active"] > 0
    assert costs["kept"] >= 20 * 5
