"""Monitoring: a week without a false rollback, and from a breach to the rollback in under a minute.

The breach is real: a server, a registry and `pareflow monitor` as processes, and a champion that answers
otherwise than its original, at 20 requests a second.
"""

import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, main
from monitoring_week import CONFIG, weeks
from serving_load import ask, free_port, running

from flows.environment import set_environment
from pareflow.errors import EnvironmentUnfitError
from pareflow.serving import protocol
from pareflow.serving.load import Post
from pareflow.stages import jobs
from pareflow.stages.building import variant_of
from pareflow.stages.registration import content_digest
from pareflow.store import Store
from pareflow.variant import Recipe, Step
from pareflow.workload import load

NAME = "digits-linear"
PER_S = 20.0
WARM_S = 30.0
"""Before the bad version comes: the monitor imports, and makes what it compares with."""
MOST_S = 60.0
WRONG = 1.05
"""The noise on the weights of the bad version, in their own spreads: a third of its answers are others."""
SEEDS, DAYS = 20, 7.0
QUICK_SEEDS, QUICK_DAYS = 4, 0.5
BREACHES = 5


def false_alarms(quick: bool) -> Iterator[Claim]:
    """Simulated weeks of a model that keeps all its limits; quickly, half days of it."""
    days = QUICK_DAYS if quick else DAYS
    found = list(weeks(QUICK_SEEDS if quick else SEEDS, days))
    back = [breach for week in found for breach in week.breaches if "rollback" in breach.then]
    every = [breach for week in found for breach in week.breaches]
    naive, looks = sum(week.naive for week in found), sum(week.looks for week in found)
    note = f"{days:g} days each, {looks} looks; a 95 % interval per look would have alarmed {naive} times"
    yield Claim("false rollbacks in A/A weeks", 0, len(back), "rollbacks", len(found), "at most", note=note)
    note = "; ".join(breach.reason for breach in every[:1])
    yield Claim("false alarms in A/A weeks", 0, len(every), "alarms", len(found), "at most", note=note)


def rollbacks(quick: bool) -> Iterator[Claim]:
    """A bad champion behind a real server, watched under the rules that come with pareflow."""
    set_environment()
    times = [_breach() for _ in range(1 if quick else BREACHES)]
    taken = [one.rolled_back_s for one in times]
    shown = ", ".join(f"{seconds:.1f}" for seconds in taken)
    note = f"the slowest; {times[0].said}; seconds: {shown}"
    yield Claim(
        f"from the first bad answer to the rollback, {PER_S:g} requests/s",
        MOST_S,
        max(taken),
        "s",
        len(taken),
        "at most",
        note=note,
    )
    answered = [one.answered_s for one in times]
    yield Claim(
        "from the first bad answer to the first good one",
        MOST_S,
        max(answered),
        "s",
        len(answered),
        "at most",
        note=f"the slowest; the quickest took {min(answered):.1f} s",
    )
    failed = [error for one in times for error in one.failed]
    count, note = sum(one.requests for one in times), "; ".join(failed[:1])
    yield Claim(
        "failed requests, before, during and after the rollback",
        0,
        len(failed),
        "requests",
        count,
        "at most",
        note=note,
    )


@dataclass
class Breached:
    """One breach: seconds from the first answer of the bad version."""

    rolled_back_s: float
    answered_s: float
    said: str
    requests: int
    failed: list[str]


@dataclass
class Traffic:
    """Requests at random, by the clock and not by the answers; which version gave each answer, and when."""

    posts: list[Post]
    seen: list[tuple[float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        chance, due = np.random.default_rng(0), time.monotonic()
        while not self._stop.is_set():
            due += chance.exponential(1 / PER_S)
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                answer = ask(self.posts[int(chance.integers(len(self.posts)))])
                self.seen.append((time.monotonic(), str(json.loads(answer)["model_version"])))
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                self.failed.append(f"{type(error).__name__}: {error}")

    @contextmanager
    def flowing(self) -> Iterator["Traffic"]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def first(self, version: str, after_s: float = 0.0) -> float | None:
        """When this version answered first, after a time."""
        return next((at for at, one in list(self.seen) if one == version and at > after_s), None)


def _breach() -> Breached:
    """Serve the good version, make the bad one champion, and wait for the monitor to go back."""
    from tasks.tracking import Tracker

    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        posts, tracker = _registered(data_dir), Tracker.open(data_dir)
        port = free_port()
        url, kept = f"http://127.0.0.1:{port}", data_dir / "requests.yaml"
        kept.write_text("share: 0.5\n")
        serve = [sys.executable, "-m", "flows.cli", "serve", f"models:/{NAME}@champion", "--port", port]
        serve += ["--data-dir", data_dir, "--poll-s", 1, "--request-log", kept]
        asked = [Post(f"{url}/v2/models/{NAME}/infer", body, {}) for body in posts]
        watch = [sys.executable, "-m", "flows.cli", "monitor", NAME, "--url", url, "--rules", CONFIG]
        watch += ["--data-dir", data_dir]
        with (
            running(serve, url, asked),
            Traffic(asked).flowing() as traffic,
            _logged(watch, data_dir / "monitor.txt"),
        ):
            time.sleep(WARM_S)
            tracker.set_alias(NAME, "previous", "1")
            tracker.set_alias(NAME, "champion", "2")
            back = _awaited(tracker)
            bad = traffic.first("2")
            time.sleep(3)
            last = max((at for at, one in traffic.seen if one == "2"), default=0.0)
            good = traffic.first("1", last)
        (said,) = (line for line in (data_dir / "monitor.txt").read_text().splitlines() if "breach" in line)
        assert bad is not None and good is not None
        requests = len(traffic.seen) + len(traffic.failed)
        return Breached(back - bad, good - bad, said, requests, traffic.failed)


@contextmanager
def _logged(command: list[Any], path: Path) -> Iterator[None]:
    """The command, running, what it says in a file."""
    with path.open("w") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def _awaited(tracker: Any) -> float:
    """When the alias was back. Raises: EnvironmentUnfitError where that takes too long."""
    until = time.monotonic() + 2 * MOST_S
    while True:
        champion = tracker.alias(NAME, "champion")
        if champion is not None and str(champion.version) == "1":
            return time.monotonic()
        if time.monotonic() > until:
            raise EnvironmentUnfitError(
                "the monitor must go back", f"it has not within {2 * MOST_S:g} s", "Look at what it printed"
            )
        time.sleep(0.1)


def _registered(data_dir: Path) -> list[bytes]:
    """A pipeline, a good version and a bad one of it in a registry of their own; requests to ask them."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from tasks.tracking import CONFIG as WHERE
    from tasks.tracking import CONTENT, FORMAT, FORMAT_TAG, Tracker

    images, targets = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    fitted = LogisticRegression(max_iter=500).fit(images, targets)
    weights, bias = fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(weights.shape).astype(np.float32)
    versions = {"1": weights, "2": weights + WRONG * weights.std() * noise}
    tracker = Tracker.open(data_dir)
    tracker.client.create_registered_model(NAME)
    for number, values in versions.items():
        folder = data_dir / f"pipeline-{number}"
        package = _packaged(folder, values, bias, images, targets)
        placed = data_dir / f"model-{number}" / "data" / "package"
        placed.parent.mkdir(parents=True)
        shutil.copytree(package, placed)
        config = str(data_dir / "pipeline-1" / "pipeline.yaml")
        content = content_digest(placed, FORMAT)
        tags = {CONTENT: content, FORMAT_TAG: str(FORMAT), WHERE: config}
        tracker.client.create_model_version(NAME, placed.parents[1].as_uri(), tags=tags)
    tracker.set_alias(NAME, "champion", "1")
    return [_body(image) for image in images[:256]]


def _body(image: np.ndarray) -> bytes:
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": image.tolist()}
    return protocol.dumps({"inputs": [tensor]})


def _packaged(
    folder: Path, weights: np.ndarray, bias: np.ndarray, images: np.ndarray, targets: np.ndarray
) -> Path:
    """The package of one linear network, and its pipeline beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["pixels", "weights", "bias"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "arrays.npz", samples=images, targets=targets.astype(np.int64))
    sizes = {"training": 8, "calibration": 500, "search": 200}
    reference = {"onnx": {"model": "model.onnx", "arrays": "arrays.npz", **sizes}}
    pipeline = {"name": NAME, "workload": reference, "sla": {"quality": {"max_drop": 0.02}}}
    (folder / "pipeline.yaml").write_text(json.dumps({**pipeline, "target": {"threads": [1]}}))
    recipe = Recipe((), Step("onnxruntime", {"threads": 1}))
    about = (reference, str(folder), str(folder.parent / "store"))  # the monitor finds the original there
    jobs.train(*about)
    jobs.build(*about, recipe.to_json())
    variant = variant_of(recipe, load(reference, folder).digest).id
    of = load(reference, folder.parent / "pipeline-1").digest  # the bad one is a variant of the same original
    lineage = {"pipeline": NAME, "variant": variant, "recipe": recipe.to_json(), "requirements": []}
    key = f"package-{folder.name}"
    jobs.package(*about, key, variant, {**lineage, "workload_digest": of})
    found = Store(Path(about[2])).find(key)
    assert found is not None  # it has just been made
    return found


if __name__ == "__main__":
    main("monitoring", {"breaches": rollbacks, "weeks": false_alarms})
