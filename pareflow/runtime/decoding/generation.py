"""A causal language model as an endpoint: prompts in, the tokens that follow out."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from pareflow.errors import DeadlineError, OverloadedError
from pareflow.runtime.decoding.drafts import named, require_cuttable
from pareflow.runtime.decoding.listening import Listener, take_listener
from pareflow.runtime.decoding.prefixes import PrefixCache
from pareflow.runtime.decoding.request import Limits, Prompt, prompts
from pareflow.runtime.decoding.rounds import Rounds
from pareflow.runtime.decoding.sampling import chosen_by
from pareflow.runtime.decoding.settings import Decoding
from pareflow.runtime.decoding.speculation import Speculation
from pareflow.runtime.endpoint import Endpoint, deadline
from pareflow.runtime.service_time import ServiceTime
from pareflow.workload import Arrays

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Generation:
    """A model of transformers that answers prompts, by these settings.

    Request: `input_ids` (n, tokens) and, if wanted, `attention_mask` (n, tokens), 0 where a row is filled up.
    For each row, if wanted: `max_new_tokens` (n,); `temperature` (n,), 0 by default: the likeliest token;
    `top_k` (n,), 0 by default: of all; `top_p` (n,), 1 by default; `seed` (n,), 0 by default. Answer:
    `tokens` (n, longest), new ones only, filled up with the token that ends a text, and `lengths` (n,). A row
    ends with the model's `eos_token_id`, where it has one.

    The answer is the same whatever came before, however it was batched, and whether or not tokens were
    drafted; a sample is fixed by its seed. (Where two tokens tie within rounding, a pass over more tokens at
    once may choose the other one.) Rows are decoded one after the other, in a thread of their own.
    """

    def __init__(
        self,
        target: "PreTrainedModel",
        settings: Decoding | None = None,
        drafts: Mapping[str, "PreTrainedModel"] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Raises: SpecError where no draft has the name, UnsuitableError where a model does not suit."""
        settings = settings or Decoding()
        self._target = target
        config = target.config
        self._limits = Limits(config.vocab_size, config.max_position_embeddings, settings.max_new_tokens)
        self._prefixes = PrefixCache(int(settings.prefix_mib * 2**20)) if settings.prefix_mib else None
        self._speculation: Speculation | None = None
        self._loop: Rounds | None = None
        if settings.draft is not None:
            self._speculation = Speculation(
                settings.draft_length, automatic=settings.automatic, max_loss=settings.max_loss
            )
            self._loop = Rounds(named(settings.draft, drafts or {}, config), self._speculation, clock)
        if self._prefixes or self._loop:
            require_cuttable(config)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="generation")
        self._requests = self._tokens = self._refused = 0
        self._most_waiting, self._asked, self._time = settings.max_waiting, 0, ServiceTime()

    def endpoint(self, identity: str) -> Endpoint:
        """The model as an endpoint. `identity` names what answers."""
        return Endpoint(self.answer, identity, figures={"generation": self.figures})

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: InputError, OverloadedError, DeadlineError. Who is cancelled is not decoded any longer."""
        rows = prompts(feeds, self._limits)
        self._admit()
        watch = _Watch(deadline(), take_listener() if len(rows) == 1 else None)
        self._asked += 1
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._threads, self._all, rows, watch)
        except asyncio.CancelledError:
            watch.gone.set()
            raise
        finally:
            self._asked -= 1
        lengths = np.array([len(answer) for answer in answers], np.int64)
        tokens = np.full((len(answers), max(lengths, default=0)), self._filler)
        for row, answer in zip(tokens, answers, strict=True):
            row[: len(answer)] = answer
        return {"tokens": tokens, "lengths": lengths}

    def tokens(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The tokens behind each row, decoded in the caller's thread, before anything was asked of `answer`.

        Raises: InputError.
        """
        return self._all(prompts(feeds, self._limits), _Watch(None, None))

    def figures(self) -> Mapping[str, float]:
        found: dict[str, float] = {
            "requests": self._requests,
            "tokens": self._tokens,
            "waiting": max(0, self._asked - 1),
            "refused": self._refused,
        }
        if self._prefixes is not None:
            found |= {f"prefix_{name}": value for name, value in self._prefixes.figures().items()}
        if self._speculation is not None:
            found |= self._speculation.figures()
        return found

    def close(self) -> None:
        """Let what runs end, and take no more."""
        self._threads.shutdown(wait=True)

    def _admit(self) -> None:
        """Raises: OverloadedError. One is decoded, the others wait."""
        if self._asked > self._most_waiting:
            self._refused += 1
            line_s = self._time.predict(self._asked)
            raise OverloadedError(
                f"at most {self._most_waiting} requests may wait",
                "the line is full",
                retry_after_s=1.0 if math.isnan(line_s) else line_s,
            )

    def _all(self, rows: list[Prompt], watch: "_Watch") -> list[np.ndarray]:
        answers, began = list[np.ndarray](), time.monotonic()
        for row in rows:
            if watch.gone.is_set():
                break
            watch.check("waiting")  # who waited too long costs no pass over his prompt
            answers.append(self._decoded(row, watch))
        self._time.observe(1, time.monotonic() - began)
        return answers

    def _decoded(self, prompt: Prompt, watch: "_Watch") -> np.ndarray:
        """The tokens behind a prompt."""
        import torch
        from transformers import DynamicCache, GenerationConfig

        past = DynamicCache() if self._prefixes is None else self._prefixes.longest(prompt.tokens)
        reused = past.get_seq_length()
        watch.begin()
        ids = torch.from_numpy(prompt.tokens)[None].to(self._target.device)
        text: torch.Tensor = self._target.generate(
            ids,
            GenerationConfig(
                max_new_tokens=prompt.max_new_tokens,
                eos_token_id=self._target.generation_config.eos_token_id,
                pad_token_id=self._filler,
            ),
            use_model_defaults=False,  # what is decoded is said by the request alone
            attention_mask=torch.ones_like(ids),
            past_key_values=past,
            logits_processor=chosen_by(prompt),
            stopping_criteria=[watch],
            **({"custom_generate": self._loop} if self._loop else {}),
        )
        tokens = text[0].cpu().numpy()
        if self._prefixes is not None:
            self._prefixes.keep(tokens, past)
            computed = len(prompt.tokens) - reused
            if watch.prompt_s is not None and computed >= reused:  # else the pass itself is most of it
                self._prefixes.computed(computed, watch.prompt_s)
        self._requests += 1
        self._tokens += len(tokens) - len(prompt.tokens)
        return tokens[len(prompt.tokens) :]

    @property
    def _filler(self) -> int:
        end = self._target.generation_config.eos_token_id
        return (end[0] if isinstance(end, list) else end) or 0


class _Watch:
    """Ends the decoding of a request that nobody waits for, or whose time is over; tells who hears it."""

    def __init__(self, limit: float | None, hears: Listener | None) -> None:
        self._limit, self._hears, self.gone = limit, hears, Event()
        self._began = 0.0
        self.prompt_s: float | None = None
        """How long the prompt of a row took: until its first token."""

    def begin(self) -> None:
        """With another row."""
        self._began, self.prompt_s = time.perf_counter(), None

    def check(self, meanwhile: str) -> None:
        """Raises: DeadlineError."""
        if self._limit is not None and time.monotonic() > self._limit:
            raise DeadlineError(
                "a request must be answered before its deadline", f"it came while {meanwhile}"
            )

    def __call__(self, text: "torch.Tensor", scores: Any) -> "torch.Tensor":
        """Asked for each token. Raises: DeadlineError."""
        import torch

        if self.prompt_s is None:
            self.prompt_s = time.perf_counter() - self._began
        self.check("decoding")
        if self._hears is not None:
            self._hears(int(text[0, -1]))
        return torch.full((len(text),), self.gone.is_set(), device=text.device)
