"""The machine's clock is set while a run goes on: nothing is cut short, lost or done twice."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.tracking import KEY, Tracker
from tests.orchestration.conftest import CHECKOUT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
PATIENCE_SECONDS = 400.0
DAY_MS = 86_400_000
MOVED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long moved(void) {  /* seconds, as the file says now */
    char said[32] = "";
    int file = open(getenv("CLOCK"), O_RDONLY);
    if (file >= 0) {
        ssize_t length = read(file, said, sizeof said - 1);
        said[length > 0 ? length : 0] = 0;
        close(file);
    }
    return atol(said);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)
        now->tv_sec += moved();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(now, zone);
    now->tv_sec += moved();
    return failed;
}

time_t time(time_t *now) {
    time_t (*real)(time_t *) = dlsym(RTLD_NEXT, "time");
    time_t found = real(NULL) + moved();
    if (now)
        *now = found;
    return found;
}
"""


@pytest.fixture(scope="module")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What moves the wall clock of who loads it, as `CLOCK` says; libfaketime breaks its `sleep`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed: `cc`")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(MOVED)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "clock.so"), str(folder / "clock.c")]
    subprocess.run([*command, "-ldl"], check=True)
    return folder / "clock.so"


@pytest.mark.parametrize("days", [2, -2])
def test_a_run_whose_clock_is_set_ends_as_any(
    days: int,
    clock_library: Path,
    pipeline_file: Callable[..., Path],
    command: Callable[..., list[str]],
    entries: Callable[[Path], dict[str, tuple[int, int]]],
    tmp_path: Path,
) -> None:
    """By two days, where the budget is an hour, amid the run; asked again, nothing is made anew."""
    config = pipeline_file()
    data_dir, clock = tmp_path / "data", tmp_path / "clock"
    clock.write_text("0")
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "LD_PRELOAD": str(clock_library),
        "CLOCK": str(clock),
    }
    words = command("optimize", config, "--data-dir", data_dir, "--json")
    with (
        (tmp_path / "said").open("wb") as said,
        subprocess.Popen(words, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=said) as run,
    ):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(entries(data_dir)) < 3:
            assert run.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        clock.write_text(str(days * 86_400))
        printed, _ = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, (tmp_path / "said").read_text()
    document: dict[str, Any] = json.loads(printed)
    assert {variant["status"] for variant in document["variants"]} == {"ok"}
    assert document["registered"]["alias"] == "champion"
    finished = entries(data_dir)
    environment.pop("LD_PRELOAD")
    again = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=540)
    assert json.loads(again.stdout)["winner"] == document["winner"]
    assert entries(data_dir) == finished
    tracker = Tracker.open(data_dir)
    experiment = tracker.client.get_experiment_by_name("images")
    assert experiment is not None
    runs = tracker.client.search_runs([experiment.experiment_id])
    assert max(abs(run.info.end_time - run.info.start_time) for run in runs) > DAY_MS  # the clock was set
    keys = [run.data.tags[KEY] for run in runs]
    assert len(keys) == len(set(keys)) == 1 + len(document["variants"])
