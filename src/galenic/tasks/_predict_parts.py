"""What differs between the tasks whose runs are classifiers, once their data are gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from galenic.core.run import Run
from galenic.language import verbalizer
from galenic.models.backbone import Backbone
from galenic.objectives.classification import Classifier, TargetKind
from galenic.objectives.distillation import Distiller, TwoHeads
from galenic.pipeline.encoder import PooledEncoder, TokenPairEncoder
from galenic.pipeline.levels import LevelEncoder
from galenic.pipeline.opening import Opener, open_inputs
from galenic.tasks import (
    _classify_config,
    _federate_config,
    _federate_models,
    _heads,
    _noise_mask_config,
    cloze,
    distill,
    probe,
)
from galenic.tasks._predict_opening import Put, put_tuned


def _opener(own: _classify_config.Config, finished: Run) -> Opener:
    del own, finished
    return open_inputs


def _pooled(
    finished: Run, own: _classify_config.Config, backbone: Backbone, kind: TargetKind
) -> Classifier:
    return Classifier(PooledEncoder(backbone), _heads.restored(own.head, _head(finished)), kind)


@dataclass(frozen=True)
class Parts:
    """How the classifier of a finished run is put together again; the defaults are of `classify`.

    Attributes:
        config: What the config of the run is parsed as.
        opener: From config and run, what opens the network and the new samples.
        put: Puts what was trained below the head into the network.
        objective: From the run, its config, its network and the kind of its label, all of it.
    """

    config: type[_classify_config.Config] = _classify_config.Config
    opener: Callable[[Any, Run], Opener] = _opener
    put: Put = put_tuned
    objective: Callable[[Run, Any, Backbone, TargetKind], Classifier] = _pooled


def _head(finished: Run) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_file(finished.path / "head.safetensors")
    return state


def _probed(finished: Run, own: probe.Config, backbone: Backbone, kind: TargetKind) -> Classifier:
    chosen = probe.Choice(**finished.read_json("probe.json")["chosen"])
    levels = LevelEncoder(backbone, max(own.probe.blocks))
    return Classifier(levels, probe.restored(levels, chosen, _head(finished)), kind)


def _student(
    finished: Run, own: distill.Config, backbone: Backbone, kind: TargetKind
) -> Classifier:
    del own
    heads = TwoHeads.of(_head(finished))
    return Distiller(Classifier(TokenPairEncoder(backbone), heads, kind))


def _prompted(finished: Run, own: cloze.Config, backbone: Backbone, kind: TargetKind) -> Classifier:
    del own
    return Classifier(PooledEncoder(backbone), verbalizer.restored(_head(finished)), kind)


def _template(own: cloze.Config, finished: Run) -> Opener:
    return partial(cloze.open_prompted, cloze=own, heads=[], trained=finished)


def _shared(own: _federate_config.Config, finished: Run) -> Opener:
    _federate_models.require_one(own, finished)
    return open_inputs


def _put_shared(backbone: Backbone, finished: Run, own: Any) -> None:
    # A stack may have more rank than its narrowest layer has room for, which no tuner attaches.
    _federate_models.put(backbone, _federate_models.saved(finished), own)


PARTS = {
    "classify": Parts(),
    "probe": Parts(probe.Config, objective=_probed),
    "noise_mask": Parts(_noise_mask_config.Config),
    "distill": Parts(distill.Config, lambda *_: distill.open_student, objective=_student),
    "cloze": Parts(cloze.Config, _template, objective=_prompted),
    "federate": Parts(_federate_config.Config, _shared, _put_shared),
}
