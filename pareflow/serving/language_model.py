"""A causal language model as it is packaged and opened: token ids in, the tokens that follow out.

The package is a folder of plain files, made by `pack`:

    model.json    name, requirements, sha256 of every other file
    checkpoint/   what transformers loads: config, safetensors, and `tokenizer.json` where there is one
    golden.json   prompts, and the tokens that followed them when it was packaged
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pareflow.catalog import installed_version
from pareflow.errors import BadOutputError, InputError
from pareflow.huggingface.checkpoint import quiet
from pareflow.huggingface.hub import summary
from pareflow.measurement import Ran
from pareflow.runtime.decoding import Decoding, Generation
from pareflow.runtime.endpoint import Endpoint
from pareflow.serving.executable import Release, Tensor
from pareflow.serving.model import verified, write_manifest
from pareflow.serving.output import new_folder
from pareflow.variant import digest, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KIND = "language_model"
"""What `model.json` says of the package's kind; that of others says nothing."""
FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
)
GOLDEN_TOKENS = 16
INPUTS = (
    Tensor("input_ids", "INT64", (-1, -1)),
    Tensor("attention_mask", "INT64", (-1, -1), optional=True),
    Tensor("max_new_tokens", "INT64", (-1,), optional=True),
    Tensor("temperature", "FP32", (-1,), optional=True),
    Tensor("top_k", "INT64", (-1,), optional=True),
    Tensor("top_p", "FP32", (-1,), optional=True),
    Tensor("seed", "INT64", (-1,), optional=True),
)
OUTPUTS = (Tensor("tokens", "INT64", (-1, -1)), Tensor("lengths", "INT64", (-1,)))


class LanguageModel:
    """A packaged language model, opened. Making it blocks.

    `drafts` are other opened ones by name, for `decoding.draft`. Raises: InputError where a file is not what
    was packaged, BadOutputError where it answers otherwise here; SpecError and UnsuitableError where the
    draft is not there, or of another vocabulary.
    """

    apart, sessions = False, 1
    processing = None
    """It takes no raw samples: texts are `generate`'s, by the tokenizer."""
    inputs, outputs = INPUTS, OUTPUTS

    def __init__(
        self, release: Release, decoding: Decoding, drafts: "Mapping[str, LanguageModel] | None" = None
    ) -> None:
        self.release, self._decoding = release, decoding
        self._document = verified(release.package)
        self.network = loaded(release.package / "checkpoint")
        self._check_golden()
        self.tokenizer = _tokenizer(release.package / "checkpoint" / "tokenizer.json")
        others = {name: draft.network for name, draft in (drafts or {}).items()}
        self._generation = Generation(self.network, decoding, others)

    @property
    def ran(self) -> Ran:
        import torch

        precision = str(self.network.dtype).removeprefix("torch.")
        version, device = installed_version("transformers") or "", str(self.network.device).upper()
        return Ran("transformers", version, precision, device, torch.get_num_threads())

    @property
    def identity(self) -> str:
        """Names what answers: the version, its files, what runs, and how long an answer is by default."""
        content, ran = digest(self._document["files"])[:16], self.ran
        named = f"{self.release.name}/{self.release.version} {content}"
        return f"{named} {ran.runtime} {ran.version} {ran.precision} {self._decoding.max_new_tokens}"

    @property
    def endpoint(self) -> Endpoint:
        return self._generation.endpoint(self.identity)

    def aside(self, wanted: bool) -> None:
        """It is computed in a thread, always."""

    def close(self) -> None:
        """Let what runs end, and take no more."""
        self._generation.close()

    def _check_golden(self) -> None:
        golden = json.loads((self.release.package / "golden.json").read_text())
        for prompt, expected in zip(golden["prompts"], golden["tokens"], strict=True):
            found = _answer(self.network, prompt)
            if found != expected:
                raise BadOutputError(
                    "a packaged language model must repeat its golden tokens",
                    f"behind {prompt} it answers {found}, not {expected}",
                    "It runs differently here: pack it again in this environment",
                )


def pack(checkpoint: Path, name: str, into: Path) -> dict[str, Any]:
    """Write the package of a checkpoint's folder into the new folder `into`; what `model.json` says.

    Raises: InputError where transformers cannot load it as a causal language model of safetensors, or `into`
    is there already or cannot be written; StoreError, MissingExtraError.
    """
    network = loaded(checkpoint)
    with new_folder(into) as made:
        return _packed(checkpoint, network, name, made)


def _packed(checkpoint: Path, network: "PreTrainedModel", name: str, into: Path) -> dict[str, Any]:
    (into / "checkpoint").mkdir()
    for pattern in FILES:
        for file in sorted(checkpoint.glob(pattern)):
            shutil.copy2(file, into / "checkpoint")
    start = network.config.bos_token_id or 0
    first = _answer(network, [start])
    prompts = [[start], [start, *first[:4]]]
    golden = {"prompts": prompts, "tokens": [_answer(network, prompt) for prompt in prompts]}
    (into / "golden.json").write_text(json.dumps(golden))
    needed = ("torch", "transformers", "safetensors", "tokenizers", "cachetools")
    files = {file.name: file_digest(file) for file in sorted((into / "checkpoint").iterdir())}
    document = {
        "pipeline": name,
        "kind": KIND,
        "variant": digest(KIND, files),
        "requirements": [f"{one}=={installed_version(one)}" for one in needed],
    }
    write_manifest(into, document)
    return {**document, "files": sorted(files), "parameters": network.num_parameters()}


def loaded(folder: Path) -> "PreTrainedModel":
    """The network in float32, for inference. Raises: InputError, MissingExtraError."""
    import torch

    with quiet() as transformers:
        try:
            network, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,  # a pickle runs whatever it says
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise _refused(folder, f"transformers raised {summary(error)}") from error
    if found["missing_keys"]:
        raise _refused(folder, f"it has no weights for {', '.join(sorted(found['missing_keys'])[:3])}")
    return network.eval()


def _refused(folder: Path, found: str) -> InputError:
    return InputError(
        f"{folder} must hold a causal language model, as `save_pretrained` writes it, in safetensors",
        found,
        "Name its folder",
    )


def _answer(network: "PreTrainedModel", prompt: list[int]) -> list[int]:
    """The likeliest tokens behind a prompt, without drafts and kept prefixes."""
    generation = Generation(network, Decoding(prefix_mib=0, max_new_tokens=GOLDEN_TOKENS))
    (found,) = generation.tokens({"input_ids": np.array([prompt])})
    generation.close()
    tokens: list[int] = found.tolist()
    return tokens


def _tokenizer(path: Path) -> Any:
    """The tokenizer, or None where the checkpoint brings none that needs no code. Raises: InputError."""
    if not path.exists():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{path} must be a tokenizer", str(error), "Save it again by `save_pretrained`"
        ) from error
    tokenizer.no_padding()  # a prompt is the text: nothing is filled up or cut off as it was for training
    tokenizer.no_truncation()
    return tokenizer
