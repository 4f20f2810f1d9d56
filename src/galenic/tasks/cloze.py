"""Classification by cloze: a masked language model fills a template, a verbaliser reads it.

Taylor et al., "Clinical Prompt Learning with Frozen Language Models", 2022, arXiv 2205.05535.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from safetensors.torch import load_file, save
from torch import nn

from galenic.core.config import Config as BaseConfig
from galenic.core.errors import DataError
from galenic.core.files import atomic_write
from galenic.core.progress import tell
from galenic.core.run import Run
from galenic.data.cohort import Cohort
from galenic.language.masked import MaskedHead, open_head
from galenic.language.prompted import Init, PromptedNetwork, PromptTokenizer
from galenic.language.template import Template, parse_template
from galenic.language.verbalizer import (
    Binary,
    ManualVerbalizer,
    MultiToken,
    SoftVerbalizer,
    label_tokens,
)
from galenic.models.backbone import Backbone, Opened, open_backbone
from galenic.objectives.classification import Classifier
from galenic.objectives.masked_language import MaskedLanguage
from galenic.pipeline.config import DEFAULT_BACKBONES, InputConfig
from galenic.pipeline.inputs import Array, Inputs
from galenic.pipeline.opening import open_inputs
from galenic.tasks import classify
from galenic.tasks._heads import HeadConfig
from galenic.tasks._job import carry_out, reopened
from galenic.tasks._words import WordsConfig, require_text, train_words

MASKED = "masked_lm.safetensors"


class VerbalizerConfig(BaseConfig):
    """From the state at the mask to classes."""

    kind: Literal["soft", "manual"] = Field(
        "soft", description="soft: a vector a class that trains. manual: label words, frozen."
    )
    words: dict[str, list[str]] | None = Field(None, description="Label words of each class.")
    multi_token: MultiToken = Field(
        "error", description="What a label word of several tokens becomes."
    )


class AdaptConfig(WordsConfig):
    """Masked-language training on the texts of the training part, without labels."""

    when: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: where the network comes without a head for masked words."
    )


class Config(classify.Config):
    """Everything that `cloze` can be told."""

    template: str = Field(
        "{text} [soft:This is about] {mask}.",
        description="{text}, {mask}, words, [soft:words] that train, [soft*20] without words.",
    )
    init: Init = Field("uniform", description="How soft vectors without words begin.")
    verbalizer: VerbalizerConfig = VerbalizerConfig()
    adapt: AdaptConfig = AdaptConfig()
    tuner: dict[str, Any] = Field(
        {"method": "prompt"}, description="prompt: the language model is frozen; full: all trains."
    )

    @field_validator("head")
    @classmethod
    def _no_head(cls, value: HeadConfig) -> HeadConfig:
        if value != HeadConfig():
            raise ValueError("a cloze has a verbalizer in its place; set verbalizer.kind")
        return value

    @field_validator("template")
    @classmethod
    def _grammar(cls, value: str) -> str:
        parse_template(value)
        return value


def run(config: Config, run: Run) -> None:
    """Open, adapt where that is needed, tune the prompts, predict and score.

    Raises:
        GalenicError: For anything the user can put right.
    """
    carry_out(config, run, make)


def load(run: Run) -> tuple[classify.Job, Classifier]:
    """The fitted objective of a finished run, and the job that knows its data."""
    return classify.restored(reopened(run, Config, make))


def make(config: Config, run: Run) -> classify.Job:
    """The job of a cloze."""
    heads: list[MaskedHead] = []
    job = classify.Job(
        config,
        run,
        opener=partial(open_prompted, cloze=config, heads=heads),
        head=partial(_head, heads),
    )
    if not any(p.requires_grad for p in job.objective.parameters()):
        tell("Template and verbaliser are manual and the model is frozen: zero-shot, no training.")
    return job


def _head(heads: list[MaskedHead], job: classify.Job) -> nn.Module:
    """The verbaliser of a job."""
    config, label = job.config, job.label
    assert isinstance(config, Config)
    if label.kind not in ("binary", "multiclass", "ordinal"):
        raise DataError(
            f"A cloze names one class; the label is {label.kind}.",
            expected="a binary, multi-class or ordinal label",
            next_step="Take another recipe: linear, lora, ...",
        )
    decoder = heads[-1].decoder
    words, tokens = config.verbalizer.words, None
    if words is None and config.verbalizer.kind == "manual":
        words = {name: [name] for name in label.classes}
    if words is not None:
        tokenizer = job.backbone.tokenizer.template.tokenizer
        tokens = label_tokens(words, label.classes, tokenizer, config.verbalizer.multi_token)
    module: nn.Module
    if config.verbalizer.kind == "manual":
        assert tokens is not None
        module = ManualVerbalizer(decoder, tokens)
    else:
        module = SoftVerbalizer(job.backbone.width, len(label.classes), decoder, tokens)
    return Binary(module) if label.kind == "binary" else module


def open_prompted(
    cohort: Cohort,
    train: Array,
    run: Run,
    *,
    backbone: str,
    pool: Any,
    config: InputConfig,
    cloze: Config,
    heads: list[MaskedHead],
    trained: Run | None = None,
) -> tuple[Backbone, Inputs]:
    """As :func:`galenic.pipeline.opening.open_inputs`, with the template around each text.

    Args:
        cohort: One column of text.
        train: Rows whose texts are adapted to.
        run: As there; keeps what the adaptation trained.
        backbone: As there.
        pool: As there.
        config: As there.
        cloze: The template, and whether to adapt.
        heads: Gets the head of the language model.
        trained: Run whose adaptation is taken up; nothing is trained then.
    """
    column = require_text(cohort, "A cloze")
    spec = DEFAULT_BACKBONES["text"] if backbone == "auto" else backbone

    def prompted(spec: str, **options: Any) -> Backbone:
        opened = open_backbone(spec, **options)
        head = open_head(opened)
        held = (run if trained is None else trained).path / MASKED
        asked = cloze.adapt.when == "always" or (cloze.adapt.when == "auto" and head.fresh)
        if held.is_file():
            _take_up(opened, head, held)
        elif asked and trained is None:
            texts = [str(cohort.read(int(row))[column]) for row in train]
            _adapt(opened, head, texts, run, cloze, held)
        heads.append(head)
        template = Template(cloze.template, opened.tokenizer)
        network = PromptedNetwork(
            opened.network, head.transform, template, init=cloze.init, seed=cloze.seed
        )
        return Backbone(
            Opened(network, opened.inputs, PromptTokenizer(template), opened.pool), spec, "auto"
        )

    return open_inputs(
        cohort, train, run, backbone=spec, pool=pool, config=config, open_network=prompted
    )


def _take_up(opened: Backbone, head: MaskedHead, path: Path) -> None:
    """Put what a run trained on masked words into encoder and head."""
    objective = MaskedLanguage(opened.network, head.transform, head.decoder)
    objective.load_state_dict(load_file(path))
    objective.eval()


def _adapt(
    opened: Backbone, head: MaskedHead, texts: Sequence[str], run: Run, config: Config, path: Path
) -> None:
    """Train encoder and head on masked words, and keep them in `path`."""
    tell(f"Masked-language training on {len(texts)} texts of the training part.")
    objective = train_words(
        opened, head, texts, config.adapt, run=run, folder="adapt", seed=config.seed
    )
    state = {n: t.detach().contiguous().clone() for n, t in objective.state_dict().items()}
    atomic_write(path, save(state))
