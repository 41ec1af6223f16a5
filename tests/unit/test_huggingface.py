"""The `huggingface` workload on tiny random checkpoints, made here: no hub, real components."""

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pareflow import network
from pareflow.errors import WorkloadError
from pareflow.huggingface import HuggingFace, checkpoint, labelled
from pareflow.huggingface.image import ImageEncoder
from pareflow.huggingface.text import longest, places
from pareflow.stages.exporting import export
from pareflow.variant import Step
from pareflow.workload import Split, Workload, define, load

CLASSES = ["animal", "plant", "stone"]
SIZES = ("a", "big", "old", "")
WORDS = ["cat", "dog", "fish", "oak", "fern", "moss", "gneiss", "flint", "marl"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "big", "old", *WORDS]
PAD, CLS, SEP, BIG, CAT = 0, 2, 3, 5, 7
NOWHERE = "http://hub.invalid"
"""Never resolves (RFC 2606)."""
BERT_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT for three classes, with a WordPiece tokenizer of 16 words, at most 12 tokens."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "[PAD]"}))
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT for three classes, images of 8×8."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[tuple[str, Any]], columns: tuple[str, str] = ("text", "label")) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """train.csv with 27 distinct texts, test.csv with 9 others."""
    said = [(f"{size} {word}", CLASSES[i // 3]) for i, word in enumerate(WORDS) for size in SIZES]
    write_rows(tmp_path / "train.csv", [row for i, row in enumerate(said) if i % 4])
    write_rows(tmp_path / "test.csv", said[::4])
    return tmp_path


def test_a_bundle_takes_the_tokenizer_and_the_labels_and_neither_torch_nor_transformers(
    bert: Path, texts: Path, make_package: Callable[..., Path], tmp_path: Path
) -> None:
    reference = settings(bert)
    step = Step("onnxruntime", {"threads": 1})
    package = make_package(reference, texts, tmp_path / "store", step, "checkpoint")
    document = export(package, tmp_path / "bundle.zip", tmp_path)
    names = {pin.partition("==")[0] for pin in document["requirements"]}
    assert {"tokenizers", "onnxruntime", "numpy"} <= names
    assert not {"torch", "transformers", "pydantic", "datasets"} & names
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        archive.extractall(tmp_path)
    golden = json.loads((package / "golden.json").read_text())
    (tmp_path / "texts.txt").write_text("\n".join(golden["samples"]))
    command = [sys.executable, "-I", str(tmp_path / "checkpoint" / "run.py"), str(tmp_path / "texts.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    labels = [CLASSES[prediction] for prediction in golden["predictions"]]
    assert json.loads(done.stdout) == {"predictions": golden["predictions"], "labels": labels}


def settings(checkpoint: Path | str, **others: Any) -> dict[str, Any]:
    given = {
        "checkpoint": str(checkpoint),
        "files": {"train": "train.csv", "test": "test.csv"},
        "text_column": "text",
        "calibration_samples": 5,
        "search_samples": 7,
    }
    return {"huggingface": {key: value for key, value in {**given, **others}.items() if value is not None}}


def defined(checkpoint: Path, folder: Path, **others: Any) -> HuggingFace:
    workload = define(settings(checkpoint, **others), folder)
    assert isinstance(workload, HuggingFace)
    return workload


def png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# Data


def test_the_test_split_is_the_verdict_and_the_rest_is_cut_from_train(bert: Path, texts: Path) -> None:
    splits = load(settings(bert), texts).splits
    sizes = [len(split) for split in (splits.verdict, splits.search, splits.calibration, splits.train)]
    assert sizes == [9, 7, 5, 27 - 7 - 5]
    assert splits.verdict.samples[0] == "a cat"
    assert splits.verdict.labels().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_without_a_test_split_a_third_decides(bert: Path, texts: Path) -> None:
    splits = load(settings(bert, files={"train": "train.csv"}), texts).splits
    assert len(splits.verdict) == 9


def test_no_more_than_verdict_samples_decide(bert: Path, texts: Path) -> None:
    assert len(load(settings(bert, verdict_samples=4), texts).splits.verdict) == 4


def test_a_text_of_the_test_split_leaves_train_whatever_its_case_and_spaces(bert: Path, texts: Path) -> None:
    with (texts / "train.csv").open("a") as file:
        file.write("a cat,animal\nA  Cat ,animal\n")
    splits = load(settings(bert), texts).splits
    others = (splits.train, splits.search, splits.calibration)
    assert not any(text.casefold().split() == ["a", "cat"] for split in others for text in split.samples)


def test_texts_that_pandas_takes_for_missing_values_are_texts(bert: Path, texts: Path) -> None:
    with (texts / "test.csv").open("a") as file:
        file.write("NA,animal\n")
    assert load(settings(bert), texts).splits.verdict.samples[-1] == "NA"


def test_tsv_in_latin_1_is_read_with_its_encoding(bert: Path, texts: Path) -> None:
    for name in ("train", "test"):
        content = (texts / f"{name}.csv").read_text().replace(",", "\t").replace("moss", "möss")
        (texts / f"{name}.tsv").write_bytes(content.encode("iso-8859-1"))
    files = {"train": "train.tsv", "test": "test.tsv"}
    splits = load(settings(bert, files=files, encoding="iso-8859-1"), texts).splits
    assert "a möss" in splits.verdict.samples
    with pytest.raises(WorkloadError, match=r"UnicodeDecodeError.* Mend the files, or `encoding:`"):
        defined(bert, texts, files=files).data()


def test_json_lines_and_a_local_dataset_folder_give_the_same_splits(bert: Path, texts: Path) -> None:
    for name in ("train", "test"):
        with (texts / f"{name}.csv").open() as file:
            lines = [json.dumps(row) for row in csv.DictReader(file)]
        (texts / f"{name}.jsonl").write_text("\n".join(lines))
    of_lines = load(settings(bert, files={"train": "train.jsonl", "test": "test.jsonl"}), texts)
    folder = texts / "dataset"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copy(texts / name, folder)
    of_folder = load(settings(bert, files=None, dataset="./dataset"), texts)
    assert of_lines.data_digest == of_folder.data_digest == load(settings(bert), texts).data_digest


def test_label_names_give_the_order_of_the_classes(bert: Path, texts: Path) -> None:
    (texts / "names.txt").write_text("stone\nplant\nanimal\n")
    assert defined(bert, texts, label_names="names.txt").data().verdict.labels()[0] == 2


def test_a_checkpoint_that_names_no_classes_has_two(bert: Path, texts: Path) -> None:
    folder = shutil.copytree(bert, texts / "unnamed")
    (folder / "config.json").write_text("{}")
    assert defined(folder, texts).classes == ["LABEL_0", "LABEL_1"]


def test_names_decide_where_dataset_and_network_number_their_labels_differently() -> None:
    assert labelled.class_ids([0, 1], ["NEGATIVE", "POSITIVE"], ["positive", "negative"]).tolist() == [1, 0]
    assert labelled.class_ids([0, 1], ["LABEL_0", "LABEL_1"], ["positive", "negative"]).tolist() == [0, 1]
    assert labelled.class_ids([0, 1], ["POSITIVE", "NEGATIVE"], ["0", "1"]).tolist() == [0, 1]


def test_names_that_disagree_are_no_numbers_to_trust() -> None:
    """`neg` is 0 there, and `POSITIVE` here: every label would be taken for its opposite."""
    with pytest.raises(WorkloadError, match="has neg, pos, and the network POSITIVE, NEGATIVE") as caught:
        labelled.class_ids([0, 1], ["POSITIVE", "NEGATIVE"], ["neg", "pos"])
    assert "label_names" in caught.value.remedy
    assert labelled.class_ids([0, 1], ["pos", "neg"], ["neg", "pos"]).tolist() == [1, 0]


@pytest.mark.parametrize("label", [-1, 3, None, "mineral"])
def test_a_label_that_is_no_class_is_an_error(label: Any) -> None:
    with pytest.raises(WorkloadError, match=r"network's 3 classes, but 1 of 2 are not.*label_names"):
        labelled.class_ids([0, label], CLASSES)


def test_distinct_keeps_the_first_of_equal_samples() -> None:
    data = Split(["b", "a", "B ", "c"], np.array([0, 1, 2, 3]))
    kept = labelled.distinct(data, labelled.text_key, without=Split(["C"], np.array([0])))
    assert (kept.samples, kept.labels().tolist()) == (["b", "a"], [0, 1])


def test_a_text_that_a_given_test_split_holds_twice_is_judged_once() -> None:
    """Intervals take samples for independent."""
    rows = Split(["one", "two", "three"], np.array([0, 1, 2]))
    test = Split(["four", " FOUR", "five", "one"], np.array([0, 1, 2, 0]))
    sizes = labelled.Sizes(calibration=1, search=0, verdict=None)
    splits = labelled.split_rows(rows, test, sizes, 0, labelled.text_key)
    assert (splits.verdict.samples, splits.verdict.labels().tolist()) == (["four", "five", "one"], [0, 2, 0])
    assert len(splits.train) + len(splits.calibration) == 2


# Texts


def test_a_batch_is_padded_to_its_longest_text(bert: Path, texts: Path) -> None:
    feeds = defined(bert, texts).preprocess(["big CAT", "cat"])
    assert list(feeds) == BERT_INPUTS
    assert feeds["input_ids"].tolist() == [[CLS, BIG, CAT, SEP], [CLS, CAT, SEP, PAD]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int64)}


def test_lengths_cut_and_pad_texts_to_just_that(bert: Path, texts: Path) -> None:
    workload = defined(bert, texts)
    before = workload.preprocess(["cat", "cat " * 30])["input_ids"].shape  # its encoder is made now
    for length in (2, 5, 12):
        feeds = workload.at_length(length).preprocess(["cat", "cat " * 30])
        assert {array.shape for array in feeds.values()} == {(2, length)}
    assert workload.preprocess(["cat", "cat " * 30])["input_ids"].shape == before


@pytest.mark.parametrize(("settings", "length"), [({}, 1), ({}, 13), ({"pad_to_length": 6}, 5)])
def test_lengths_that_the_network_does_not_take_are_an_error(
    settings: dict[str, Any], length: int, bert: Path, texts: Path
) -> None:
    with pytest.raises(WorkloadError, match=f"that the network takes, but {length} is not from"):
        defined(bert, texts, **settings).at_length(length)


def test_images_have_no_length(vit: Path, texts: Path) -> None:
    with pytest.raises(WorkloadError, match="has no sequence axis"):
        defined(vit, texts, text_column=None, image_column="text").at_length(8)


def test_pad_to_length_gives_every_batch_one_shape(bert: Path, texts: Path) -> None:
    workload = defined(bert, texts, pad_to_length=6)
    assert workload.preprocess(["cat"])["input_ids"].tolist() == [[CLS, CAT, SEP, PAD, PAD, PAD]]
    assert workload.preprocess(["cat " * 50])["input_ids"].shape == (1, 6)
    assert workload.dynamic_axes()["input_ids"] == {0: "batch"}


def test_texts_are_cut_at_max_length_or_at_what_the_checkpoint_takes(bert: Path, texts: Path) -> None:
    long = ["cat " * 50]
    assert defined(bert, texts, max_length=4).preprocess(long)["input_ids"].tolist() == [[CLS, CAT, CAT, SEP]]
    assert defined(bert, texts).preprocess(long)["input_ids"].shape == (1, 12)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert", "mpnet"])
@pytest.mark.parametrize("stated", [None, 15, 12, 10])
def test_the_longest_text_has_a_position_for_each_token(
    model_type: str, stated: int | None, tmp_path: Path
) -> None:
    """RoBERTa's positions start behind that of the padding: of 12 it takes 10 tokens, and fails at 11."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        model_type,
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
        pad_token_id=1,
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": stated or 10**30}))
    most = longest(tmp_path)
    assert places(tmp_path) == (12 if model_type == "bert" else 10)
    assert most == (min(stated or 12, 12) if model_type == "bert" else 10)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    network(torch.full((1, most), 5))
    if stated != 10:
        with pytest.raises((IndexError, RuntimeError)):
            network(torch.full((1, most + 1), 5))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": 17}, "`max_length` must be at most 16,.* but it is 17"),
        ({"pad_to_length": 17}, "`pad_to_length` must be at most 16"),
        ({"max_length": 4, "pad_to_length": 17}, "`pad_to_length` must be at most 16"),
        ({"max_length": 16}, None),  # more than the tokenizer's own 12
        ({"max_length": 17, "pad_to_length": 16}, None),
    ],
)
def test_more_tokens_than_positions_are_told_before_anything_runs(
    settings: dict[str, Any], said: str | None, bert: Path, texts: Path
) -> None:
    workload = defined(bert, texts, **settings)
    told = pytest.raises(WorkloadError, match=said) if said else nullcontext()
    with told:
        workload.check(workload.preprocess(["cat"]))


@pytest.mark.parametrize(
    "others", [{"rope_theta": 1e4}, {"position_biased_input": False}, {"max_position_embeddings": None}]
)
def test_positions_that_are_not_looked_up_have_no_most(
    others: dict[str, Any], bert: Path, texts: Path
) -> None:
    """Rotary or relative: a network takes more tokens than it was trained on."""
    folder = shutil.copytree(bert, texts / "relative")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | others))
    workload = defined(folder, texts, max_length=100)
    workload.check(workload.preprocess(["cat"]))


def test_token_types_are_left_out_where_the_model_takes_none(bert: Path, texts: Path) -> None:
    folder = shutil.copytree(bert, texts / "roberta-like")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"type_vocab_size": 1}))
    assert list(defined(folder, texts).preprocess(["cat"])) == ["input_ids", "attention_mask"]


# Images


def test_pixels_are_resized_scaled_and_normalized(tmp_path: Path) -> None:
    config = {
        "size": {"height": 1, "width": 1},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.0],
        "image_std": [0.5, 0.25, 1.0],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    orange = np.full((4, 6, 3), (255, 51, 102), dtype=np.uint8)
    expected = [(1.0 - 0.5) / 0.5, (0.2 - 0.5) / 0.25, 0.4]
    for image in (png(orange), orange):
        pixels = ImageEncoder(tmp_path)([image] if isinstance(image, str) else image[None])["pixel_values"]
        assert pixels.shape == (1, 3, 1, 1)
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels[0, :, 0, 0], expected, rtol=1e-6)


def test_a_center_crop_takes_the_middle_and_fills_with_black(tmp_path: Path) -> None:
    config = {"do_resize": False, "do_center_crop": True, "do_rescale": False, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(config | {"crop_size": {"height": 2, "width": 6}})
    )
    image = np.arange(4 * 4, dtype=np.uint8).reshape(4, 4)
    pixels = ImageEncoder(tmp_path)(image[None])["pixel_values"]
    assert pixels[0, 0].tolist() == [[0, 4, 5, 6, 7, 0], [0, 8, 9, 10, 11, 0]]


@pytest.mark.parametrize("processor", ["ViTImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor"])
def test_pixels_equal_those_of_transformers(processor: str, tmp_path: Path) -> None:
    import transformers

    size = {"height": 30, "width": 40} if processor == "ViTImageProcessor" else {"shortest_edge": 40}
    getattr(transformers, processor)(size=size).save_pretrained(tmp_path)
    checkpoint.check_encoder(ImageEncoder(tmp_path), tmp_path)


def test_preprocessing_that_differs_from_transformers_is_refused(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps(config | {"do_center_crop": True, "crop_size": 4})
    )
    with pytest.raises(WorkloadError, match="must equal transformers' own, but `pixel_values` differs"):
        checkpoint.check_encoder(ImageEncoder(folder), folder)


def test_images_of_different_sizes_are_read_from_paths_in_a_table(vit: Path, tmp_path: Path) -> None:
    from PIL import Image

    chance = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(30):
        pixels = chance.integers(0, 256, (5 + i, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        rows.append((f"images/{i}.png", i % 3))
    write_rows(tmp_path / "train.csv", rows, ("path", "label"))
    found = load(settings(vit, files={"train": "train.csv"}, text_column=None, image_column="path"), tmp_path)
    assert len(found.splits.verdict) == 10
    assert found.example(3)["pixel_values"].shape == (3, 3, 8, 8)


# The network, its export, and what is packed with it


def test_a_text_checkpoint_exports_and_agrees_with_torch(bert: Path, texts: Path, tmp_path: Path) -> None:
    agrees_after_export(
        load(settings(bert), texts), tmp_path, ["input_ids", "attention_mask", "token_type_ids"]
    )


def test_a_checkpoint_that_says_to_give_tuples_gives_logits(bert: Path, texts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "tuples")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "return_dict": False, "torchscript": True}))
    agrees_after_export(load(settings(folder), texts), tmp_path, BERT_INPUTS)


def test_an_image_checkpoint_exports_and_agrees_with_torch(vit: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    rows = [(png(chance.integers(0, 256, (6, 7, 3), dtype=np.uint8)), i % 3) for i in range(30)]
    for i, (content, _) in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(base64.b64decode(content))
    write_rows(tmp_path / "train.csv", [(f"{i}.png", label) for i, (_, label) in enumerate(rows)])
    reference = settings(vit, files={"train": "train.csv"}, text_column=None, image_column="text")
    agrees_after_export(load(reference, tmp_path), tmp_path, ["pixel_values"])


def test_an_architecture_that_optimum_does_not_know_exports_as_any_torch_module(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pareflow.huggingface.checkpoint.optimum_knows", lambda model, task: False)
    agrees_after_export(load(settings(bert), texts), tmp_path, BERT_INPUTS, optimum=False)


def agrees_after_export(workload: Any, folder: Path, inputs: list[str], optimum: bool = True) -> None:
    """Exports as the pipeline does, checks names and that other batch shapes are taken too."""
    import onnxruntime

    source, into = folder / "torch", folder / "onnx"
    source.mkdir()
    into.mkdir()
    original = workload.definition.network()
    assert checkpoint.optimum_knows(original.model, workload.definition.task) is optimum
    network.save(original, "torch", source)
    network.convert(source, "onnx", workload, into)
    session = onnxruntime.InferenceSession(into / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == inputs
    for feeds in workload.feeds("train", batch_size=4):
        (ours,) = session.run(["logits" if optimum else "output"], feeds)
        theirs = network.run_torch(original, feeds)
        np.testing.assert_allclose(ours, theirs["output"], atol=1e-5)
        predicted = workload.definition.postprocess({"logits": ours})
        assert predicted.tolist() == workload.definition.postprocess(theirs).tolist()


def test_training_leaves_a_fine_tuned_checkpoint_as_it_is(bert: Path, texts: Path) -> None:
    workload = defined(bert, texts)
    assert type(workload).train is Workload.train


SERVING = """
    import json, sys
    from importlib.abc import MetaPathFinder

    class Absent(MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"torch", "transformers", "optimum", "datasets", "huggingface_hub"}:
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Absent())
    from pathlib import Path
    import numpy as np
    import pareflow.huggingface
    from pareflow.workload import define

    step, folder, samples = json.load(sys.stdin)
    workload = define(step, Path(folder))
    feeds = workload.preprocess(samples)
    predicted = workload.postprocess({"logits": np.eye(3)[[2, 0]]})
    print(json.dumps([{k: v.tolist() for k, v in feeds.items()}, [workload.classes[i] for i in predicted]]))
"""


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_is_packed_runs_without_torch_transformers_and_datasets(
    kind: str, bert: Path, vit: Path, texts: Path, tmp_path: Path
) -> None:
    samples = ["a cat", "old oak"] if kind == "text" else [png(np.full((3, 3), i, np.uint8)) for i in (9, 99)]
    columns = (
        {"text_column": "text", "max_length": 7}
        if kind == "text"
        else {"text_column": None, "image_column": "image"}
    )
    workload = defined(bert if kind == "text" else vit, texts, **columns)
    folder = tmp_path / "packed"
    folder.mkdir()
    step = workload.pack(folder)
    assert not list(folder.rglob("*.safetensors"))
    code = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SERVING)],
        input=json.dumps([step.to_json(), str(folder), samples]),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert code.returncode == 0, code.stderr
    feeds, names = json.loads(code.stdout)
    assert names == ["stone", "animal"]
    for name, array in workload.preprocess(samples).items():
        np.testing.assert_array_equal(np.array(feeds[name], dtype=array.dtype), array)


# The digest


def test_other_weights_in_the_same_folder_are_another_original(bert: Path, texts: Path) -> None:
    folder = shutil.copytree(bert, texts / "mine")
    before = load(settings(folder), texts).digest
    assert load(settings(folder), texts).digest == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert load(settings(folder), texts).digest != before


# Errors


def test_settings_need_one_kind_of_sample_and_one_source(bert: Path) -> None:
    with pytest.raises(ValidationError, match="`text_column` and `image_column` must be given, but 0 are"):
        HuggingFace(checkpoint="x", dataset="y")
    with pytest.raises(ValidationError, match="one of `dataset` and `files` must be given, but 2 are"):
        HuggingFace(checkpoint="x", text_column="t", dataset="y", files={"train": "z.csv"})


@pytest.mark.parametrize(
    ("given", "unread"),
    [
        ({"image_column": "i", "dataset": "y"}, {"max_length": 8}),
        ({"image_column": "i", "dataset": "y"}, {"pad_to_length": 8}),
        ({"text_column": "t", "files": {"train": "z.csv"}}, {"dataset_config": "en"}),
        ({"text_column": "t", "files": {"train": "z.csv"}}, {"dataset_revision": "main"}),
        ({"text_column": "t", "dataset": "y"}, {"encoding": "latin-1"}),
    ],
)
def test_settings_that_nothing_would_read_are_refused(given: dict[str, Any], unread: dict[str, Any]) -> None:
    made = HuggingFace.model_validate({"checkpoint": "x", **given})
    assert HuggingFace.model_validate(made.model_dump(mode="json")) == made
    (name,) = unread
    with pytest.raises(ValidationError, match=f"`{name}` must not be given with"):
        HuggingFace.model_validate({"checkpoint": "x", **given, **unread})


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"checkpoint": "./absent"}, r"the model folder must exist, but there is no .*absent. Mend"),
        ({"checkpoint": "x" * 200}, "must be a local folder or a hub repository"),
        ({"files": {"train": "absent.csv"}}, r"every data file must exist, but there is no .*absent.csv"),
        ({"files": {"train": "train.xlsx"}}, r"one format of .csv.*, but they end in .xlsx"),
        (
            {"text_column": "txt"},
            "the columns of the YAML, but unknown column 'txt'; did you mean 'text'",
        ),
        ({"label_column": "class"}, "unknown column 'class'; known are label, text"),
        ({"train_split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
        ({"verdict_split": "dev"}, "unknown split 'dev'; known are test, train"),
        ({"files": None, "dataset": "./absent"}, "the dataset folder must exist"),
        ({"files": None, "dataset": "./empty"}, "the data must be readable by `datasets`"),
        (
            {"search_samples": 25},
            "25 search, 0 verdict samples must leave some, but there are 27",
        ),
        ({"label_names": "absent.txt"}, "the file of `label_names` must exist"),
    ],
)
def test_bad_input_is_a_workload_error(others: dict[str, Any], message: str, bert: Path, texts: Path) -> None:
    (texts / "empty").mkdir()
    (texts / "train.xlsx").touch()
    with pytest.raises(WorkloadError, match=message):
        load(settings(**{"checkpoint": bert, **others}), texts)


def test_a_checkpoint_without_its_tokenizer_is_an_error(bert: Path, texts: Path) -> None:
    folder = shutil.copytree(bert, texts / "bare")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WorkloadError, match=r"must hold its tokenizer as tokenizer.json.*save_pretrained"):
        defined(folder, texts).preprocess(["cat"])


def test_a_checkpoint_of_another_task_is_an_error(bert: Path, vit: Path, texts: Path) -> None:
    folder = shutil.copytree(vit, texts / "vit")
    shutil.copy(bert / "tokenizer.json", folder)
    with pytest.raises(WorkloadError, match=r"for text-classification.*it is a ViTForImageClassification"):
        defined(folder, texts).network()


def with_code(folder: Path, **said: Any) -> Path:
    """The checkpoint, whose config.json names code of its own, and says this besides."""
    config = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.OwnConfig"}}))
    return folder


def test_a_checkpoint_whose_network_is_code_of_its_own_is_told_what_does_help(
    bert: Path, texts: Path
) -> None:
    """At `check` already; and where it is loaded, since nobody may be asked whether to run it."""
    workload = defined(with_code(shutil.copytree(bert, texts / "own"), model_type="own"), texts)
    for fails in (lambda: workload.check({}), workload.network):
        with pytest.raises(WorkloadError, match=r"Write a workload\.py whose `network\(\)` loads it"):
            fails()


def test_a_checkpoint_with_code_that_transformers_has_too_needs_none_of_it(bert: Path, texts: Path) -> None:
    workload = defined(with_code(shutil.copytree(bert, texts / "both")), texts)
    workload.check({})
    assert type(workload.network().model).__name__ == "BertForSequenceClassification"


def test_a_checkpoint_without_a_head_is_an_error(bert: Path, texts: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(bert, texts / "headless")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": None}))
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "classifier" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkloadError, match=r"it has no weights for classifier.bias, classifier.weight"):
        defined(folder, texts).network()


# The hub: a server on loopback that speaks its protocol

ASKING = """
    import sys
    from pathlib import Path
    from pareflow.errors import PareflowError
    from pareflow.huggingface import HuggingFace

    sizes = {"calibration_samples": 5, "search_samples": 7}
    workload = HuggingFace(checkpoint=sys.argv[1], dataset="someone/texts", text_column="text", **sizes)
    try:
        print(len(workload.data().verdict), type(workload.network().model).__name__)
    except PareflowError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def ask(checkpoint: str, endpoint: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """A run of its own: the endpoint is read where huggingface_hub is imported."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(ASKING), checkpoint],
        capture_output=True,
        text=True,
        timeout=120,
        env={"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PATH": os.environ["PATH"]},
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture
def endpoint(bert: Path, texts: Path) -> Iterator[str]:
    """Serves the checkpoint as `someone/bert` and the texts as the dataset `someone/texts`."""
    folders = {"/someone/bert": bert, "/datasets/someone/texts": texts}
    infos = {"/api/models/someone/bert": bert, "/api/datasets/someone/texts": texts}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            repository, _, file = self.path.partition("/resolve/")
            info = infos.get(self.path.partition("/revision/")[0])
            content, headers = b"", {}
            if info is not None:
                siblings = [{"rfilename": path.name} for path in info.iterdir() if path.is_file()]
                content = json.dumps({"id": "someone/any", "sha": "0" * 40, "siblings": siblings}).encode()
            elif repository in folders:
                path = folders[repository] / file.partition("/")[2]
                content = path.read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
            else:
                headers = {"X-Error-Code": "RepoNotFound"}
            self.send_response(200 if content else 404)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_hub_repositories_are_downloaded_once_and_then_used_offline(endpoint: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    online = ask("someone/bert", endpoint, home)
    assert online.stdout.split() == ["9", "BertForSequenceClassification"], online.stderr
    offline = ask("someone/bert", NOWHERE, home)
    assert offline.stdout == online.stdout, offline.stderr


def test_a_repository_that_the_hub_does_not_have_is_a_workload_error(endpoint: str, tmp_path: Path) -> None:
    asked = ask("someone/else", endpoint, tmp_path / "home")
    assert "WorkloadError: the model must be a local folder or a hub repository" in asked.stderr


def test_where_no_hub_is_reachable_the_error_comes_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    asked = ask("someone/bert", NOWHERE, tmp_path)
    assert (
        "EnvironmentUnfitError: a hub must be reachable to download the model `someone/bert`" in asked.stderr
    )
    assert time.monotonic() - began < 60
