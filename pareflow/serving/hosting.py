"""A served model: what answers now, with its policies in place, its processing before and after."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pareflow.errors import InputError, PareflowError, StepFailedError, StoreError, TransientError
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.calibration import Calibration, VariantBound
from pareflow.runtime.decoding import heard_by
from pareflow.runtime.endpoint import Endpoint, Figures
from pareflow.runtime.pipelining import Pipeline
from pareflow.runtime.rows import row_count
from pareflow.runtime.tiers import named_after
from pareflow.serving import agreement, protocol
from pareflow.serving.executable import Opened, Release, Tensor, seconds
from pareflow.serving.generate import Asked, Spelling, encoded, spelled
from pareflow.serving.language_model import LanguageModel
from pareflow.serving.model import PackagedModel
from pareflow.serving.names import check_alike, check_names, only_encoders
from pareflow.serving.plan import ServingPlan
from pareflow.workload import Arrays, as_lists, as_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES, PREDICTIONS = "samples", "predictions"
"""The input that holds raw samples, rather than what the network takes; and the output that answers it.

A network may use these names itself. Its own input goes before raw samples: `/invocations` takes those. Its
own output is hidden by the predictions in answers to raw samples, and nowhere else.
"""
Standing = Literal["here", "inconclusive", "elsewhere", "unknown", "rejected"]
"""How the gate judged a version: promoted in this environment; in doubt here; judged in another one alone, or
nowhere that is known; rejected here, which one is only while it answers already."""


class Predicted(Arrays):
    """An answer to raw samples: the predictions, and the outputs that they come from, by name.

    It is told from an answer to tensors by its type, whatever the network calls its outputs.
    """

    def __init__(self, predictions: np.ndarray, outputs: Arrays) -> None:
        super().__init__({PREDICTIONS: predictions} | outputs)
        self[PREDICTIONS] = predictions


class Hosted:
    """A release that answers, and its tiers: other variants of the same model, by name.

    Made by `opening.opened`, which blocks; then `started` in the event loop. Raises: InputError where a tier
    is not of this model, SpecError where the plan names a tensor that is not there, CalibrationError where a
    threshold is for other versions.
    """

    def __init__(self, main: Opened, tiers: Mapping[str, Opened], plan: ServingPlan) -> None:
        self.main, self.tiers, self.plan = main, dict(tiers), plan
        self.standing: Standing = "unknown"
        check_alike(plan, main, tiers)
        check_names(plan, main, tiers)
        self._check_calibrations()
        self._processing = main.processing
        own = {tensor.name for tensor in main.inputs}
        self._takes_samples = self._processing is not None and SAMPLES not in own
        self._pipeline = Pipeline(plan.pipelining)
        if self._processing is not None:
            _measure(self._pipeline, self._processing)
        self._asked = 0
        self._idle = asyncio.Event()

    @property
    def releases(self) -> dict[str, Release]:
        """What answers, by the name of the tier; the main one's is empty."""
        return {"": self.main.release, **{name: tier.release for name, tier in self.tiers.items()}}

    @property
    def release(self) -> Release:
        return self.main.release

    @property
    def in_demand(self) -> bool:
        """Whether more requests are there than sessions compute."""
        return self._asked > self.main.sessions

    @property
    def figures(self) -> Mapping[str, Figures]:
        """What its policies count, and its processing, once it is started."""
        processing = {} if self._processing is None else {"pipelining": self._pipeline.figures}
        return {**self.endpoint.figures, **processing}

    def started(self) -> "Hosted":
        """With its policies in place; call it in the event loop."""
        self._idle.set()
        tiers = {name: tier.endpoint for name, tier in self.tiers.items()}
        encoders, endpoint, chosen = only_encoders(self.plan), self.main.endpoint, False
        for policy in reversed(self.plan.chosen()):
            chosen = chosen or policy.chooses
            if not chosen:  # what stands below the choice stands before every tier
                tiers = {name: policy.wrap(tier) for name, tier in tiers.items()}
            embeds = isinstance(policy, SemanticCache)
            seen = {name: tier for name, tier in tiers.items() if embeds or name not in encoders}
            endpoint = policy.wrap(replace(endpoint, tiers=seen))
        self.endpoint: Endpoint = replace(endpoint, tiers=tiers)
        return self

    @asynccontextmanager
    async def asked(self) -> AsyncIterator["Hosted"]:
        """While inside, it is not closed."""
        self._asked += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._asked -= 1
            if not self._asked:
                self._idle.set()

    @property
    def identities(self) -> set[str]:
        """Under which its answers are kept, once it is started."""
        endpoints = (self.endpoint, *self.endpoint.tiers.values())
        return {self.main.identity, *(endpoint.identity for endpoint in endpoints)}

    async def retire(self, others: "Callable[[], Iterable[Hosted]] | None" = None) -> None:
        """Close it, whatever its stores do, once nobody waits for an answer of it any more.

        Where it goes for good, `others` gives those that stay: what it kept is removed, unless one of them
        answers from that too. In a store that is away it stays: no other version finds it.
        """
        await self._idle.wait()
        try:
            for endpoint in (self.endpoint, *self.endpoint.tiers.values()):
                if others is not None and not any(endpoint.identity in one.identities for one in others()):
                    with suppress(StoreError):
                        await endpoint.flush()
                with suppress(StoreError):
                    await endpoint.close()
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close what was opened: for one that was never started. It blocks."""
        for executable in (self.main, *self.tiers.values()):
            executable.close()
        self._pipeline.close()

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs for the network's inputs, or the predictions for raw samples and all outputs besides.

        The network gets its inputs in its own order: a torch module takes them by position.
        Raises: InputError where a name, type or rank is not the model's; what the policies raise.
        """
        if self._are_samples(feeds):
            return await self.predicted(self._as_samples(feeds[SAMPLES]))
        self._check(feeds)
        if isinstance(self.main, LanguageModel):  # what a policy fills rows up with is no prompt
            feeds = {"attention_mask": np.ones_like(feeds["input_ids"]), **feeds}
        return await self._outputs(
            {tensor.name: feeds[tensor.name] for tensor in self.main.inputs if tensor.name in feeds}
        )

    async def predict(self, samples: Any) -> tuple[np.ndarray, Arrays]:
        """One prediction per raw sample, and the outputs that they come from. Raises: InputError."""
        processing = self._processing
        if processing is None:
            raise self._refused("it holds raw samples")
        with self._pipeline.request():
            feeds = await self._preprocessed(processing, samples)
            began = time.perf_counter()
            outputs = await self._outputs(feeds)
            predictions = await self._postprocessed(processing, outputs)
            self._pipeline.learn_rest(time.perf_counter() - began)
            return predictions, outputs

    async def _outputs(self, feeds: Arrays) -> Arrays:
        """What the network gives. Raises: InputError where it cannot take their sizes; as the policies do."""
        try:
            return await self.endpoint.answer(feeds)
        except Exception as error:
            by_itself = isinstance(error, PareflowError) and not isinstance(error, StepFailedError)
            unusual = None if by_itself else self._unusual(feeds)
            if unusual is None:
                raise
            raise self._refused(unusual) from error

    async def _preprocessed(self, processing: PackagedModel, samples: Any) -> Arrays:
        """Raises: InputError."""
        try:
            count = len(samples)
            if not count:
                raise self._refused("it holds no sample")
            work = partial(processing.preprocess, samples, finite=True)
            return await self._pipeline.run("preprocess", count, work)
        except (TypeError, ValueError, OverflowError, LookupError, AttributeError) as error:
            raise InputError(
                f"samples must be what {self.release.name} takes: {self.sample_kind}",
                f"its preprocessing says {type(error).__name__}: {error}",
                "Mend the samples",
            ) from error

    async def generate(self, asked: Asked) -> str:
        """The text that follows a text. Raises: InputError where there is no tokenizer, as of `answer`."""
        tokenizer = self._tokenizer()
        prompt = await encoded(tokenizer, asked.text)
        return spelled(tokenizer, prompt, await self._tokens_behind(prompt, asked))

    async def pieces(self, asked: Asked) -> AsyncGenerator[str, None]:
        """The same piece by piece, as it is decoded; who closes it early is not decoded for any longer.

        Raises: as `generate`, and TransientError where what was heard is not the answer: one tier began it,
        and another one gave it.
        """
        tokenizer = self._tokenizer()
        prompt = await encoded(tokenizer, asked.text)
        spelling, heard, told = Spelling(tokenizer, prompt), list[int](), False
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[int | None]()
        with heard_by(lambda token: loop.call_soon_threadsafe(arrived.put_nowait, token)):
            answering = asyncio.create_task(self._tokens_behind(prompt, asked))
        answering.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (token := await arrived.get()) is not None:
                heard.append(token)
                if piece := spelling.piece(token):
                    told = True
                    yield piece
            tokens = await answering
            if heard != tokens[: len(heard)]:
                raise TransientError(
                    "a stream must be the answer", "another variant answered than had begun to", "Ask again"
                )
            rest = "".join(map(spelling.piece, tokens[len(heard) :])) + spelling.rest()
            if rest or not told:
                yield rest
        finally:
            answering.cancel()

    async def _tokens_behind(self, prompt: list[int], asked: Asked) -> list[int]:
        answer = await self.answer({"input_ids": np.array([prompt], np.int64), **asked.options})
        tokens: list[int] = answer["tokens"][0, : answer["lengths"][0]].tolist()
        return tokens

    def _tokenizer(self) -> "Tokenizer":
        """Raises: InputError where there is none."""
        tokenizer = self.main.tokenizer if isinstance(self.main, LanguageModel) else None
        if tokenizer is None:
            raise InputError(
                "`generate` needs a language model that was packed with a tokenizer.json",
                f"{self.release.name} is none",
                "Ask `infer`, with token ids where it is a language model",
            )
        return tokenizer

    async def predicted(self, samples: Any) -> Arrays:
        """The predictions for raw samples, and the outputs. Raises: InputError."""
        return Predicted(*await self.predict(samples))

    async def predictions(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One prediction per row of the network's outputs; of those that `answer` gave, the same again."""
        if isinstance(outputs, Predicted):
            return outputs[PREDICTIONS]
        if self._processing is None:
            raise self._refused("it holds raw samples")
        return await self._postprocessed(self._processing, dict(outputs))

    @cached_property
    def spread(self) -> np.ndarray:
        """How far its golden predictions lie apart, as `agreement.spread` says; they are read once."""
        assert self._processing is not None  # it has predicted
        return agreement.spread([as_rows(self._processing.golden()["predictions"])])

    async def _postprocessed(self, processing: PackagedModel, outputs: Arrays) -> np.ndarray:
        """Rows that differ in shape are lists, though by chance those of one request do not differ."""

        def made() -> np.ndarray:
            predictions = processing.postprocess(outputs)
            return as_lists(predictions) if processing.gives_lists else predictions

        return await self._pipeline.run("postprocess", row_count(outputs, otherwise=1), made)

    @property
    def sample_fields(self) -> tuple[str, ...] | None:
        """The names of a raw sample's values, where it is a record."""
        return None if self._processing is None else self._processing.fields

    @property
    def takes_missing(self) -> bool:
        """Whether NaN stands for what is missing in a request."""
        return self._processing is not None and self._processing.takes_missing

    def gives(self, feeds: Mapping[str, np.ndarray]) -> set[str]:
        """The names of what `answer` gives for these."""
        outputs = {tensor.name for tensor in self.main.outputs}
        return outputs | {PREDICTIONS} if self._are_samples(feeds) else outputs

    @property
    def sample_kind(self) -> str:
        """`text`, or the numpy type of a raw sample's values."""
        assert self._processing is not None  # it was asked for samples
        return str(self._processing.document["samples"])

    def metadata(self) -> dict[str, Any]:
        """What the protocol's model metadata says."""
        return {
            "name": self.release.name,
            "versions": [self.release.version],
            "platform": f"{self.main.ran.runtime}_{self.main.ran.precision}",
            "inputs": [tensor.to_json() for tensor in self.main.inputs],
            "outputs": [tensor.to_json() for tensor in self.main.outputs],
        }

    def _check_calibrations(self) -> None:
        """Before anything is switched: a threshold that another version earned is refused."""
        tiers = {name: tier.endpoint for name, tier in self.tiers.items()}
        endpoint = replace(self.main.endpoint, tiers=tiers)
        for policy in reversed(self.plan.chosen()):
            calibration = getattr(policy, "calibration", None)
            if isinstance(calibration, VariantBound):
                calibration.require(endpoint)
            if isinstance(calibration, Calibration):  # tiers answer: what stands before sees another
                endpoint = named_after(endpoint, calibration)

    def _are_samples(self, feeds: Mapping[str, np.ndarray]) -> bool:
        return self._takes_samples and feeds.keys() == {SAMPLES}

    def _as_samples(self, array: np.ndarray) -> Any:
        if self.sample_kind == "text":
            return [str(text) for text in array.ravel()]
        return array

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Raises: InputError. Sizes are the runtime's to refuse: golden samples show what it is given."""
        counts = set()
        for tensor in self.main.inputs:
            array = feeds.get(tensor.name)
            if array is None:
                if tensor.optional:
                    continue
                raise self._refused(f"`{tensor.name}` is missing")
            if protocol.datatype(array.dtype) != tensor.datatype:
                raise self._refused(f"`{tensor.name}` is {protocol.datatype(array.dtype)}")
            if array.ndim != len(tensor.shape):
                raise self._refused(f"`{tensor.name}` has shape {array.shape}")
            counts.add(len(array))
        unknown = feeds.keys() - {tensor.name for tensor in self.main.inputs}
        if unknown:
            raise self._refused(f"there is no `{min(unknown)}`")
        if len(counts) > 1:
            raise self._refused(f"its inputs hold {' and '.join(map(str, sorted(counts)))} samples")
        if counts == {0}:
            raise self._refused("it holds no sample")

    def _unusual(self, feeds: Mapping[str, np.ndarray]) -> str | None:
        """An input of another size or rank than those that the runtime was seen to take, in words."""
        for tensor in self.main.inputs:
            if tensor.name not in feeds:
                continue
            shape = feeds[tensor.name].shape
            pairs = zip(tensor.shape, shape, strict=False)
            if len(tensor.shape) != len(shape) or any(usual not in (-1, size) for usual, size in pairs):
                return f"`{tensor.name}` has shape {shape}"
        return None

    def _refused(self, found: str) -> InputError:
        takes = ", ".join(_takes(tensor) for tensor in self.main.inputs)
        samples = f", or `{SAMPLES}` alone" if self._takes_samples else ""
        return InputError(
            f"a request to {self.release.name} must hold {takes}{samples}",
            found,
            f"See GET /v2/models/{self.release.name}",
        )


def _measure(pipeline: Pipeline, processing: PackagedModel) -> None:
    """What the stages take for one golden sample."""
    samples = processing.golden_samples[:1]
    pipeline.learn("preprocess", seconds(lambda: processing.preprocess(samples)))
    outputs = processing.outputs(samples)
    pipeline.learn("postprocess", seconds(lambda: processing.postprocess(outputs)))


def _takes(tensor: Tensor) -> str:
    said = f"`{tensor.name}` {tensor.datatype} {list(tensor.shape)}"
    return f"{said} (optional)" if tensor.optional else said
