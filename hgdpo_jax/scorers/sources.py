"""Scorers as a config names them.

pick_score:yuvalkirstain/PickScore_v1                         a kind of this package, and the source of its weights
pick_score:checkpoints/pick_score,processor=checkpoints/clip  with a further source that this kind reads
checkpoints/pick_score                                        a PickScore, because no kind is given
my_scorers:count_fingers                                      your own function: (images, prompts) -> numbers
fingers                                                       a scorer that a plugin names
judge=checkpoints/other_scorer                                with a name for reports
"""

import dataclasses
import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

from hgdpo_jax import plugins
from hgdpo_jax.errors import UserError, naming
from hgdpo_jax.scorers.scorer import Scorer
from hgdpo_jax.scorers.user_function import UserFunction
from hgdpo_jax.user_functions import load_function
from hgdpo_jax.weights import folders
from hgdpo_jax.weights.sources import resolve_source

FUNCTION = "function"
# Module and class, imported at first use.
KINDS = {
    "pick_score": "hgdpo_jax.scorers.pick_score:PickScore",
    "image_reward": "hgdpo_jax.scorers.image_reward:ImageReward",
    "clip_score": "hgdpo_jax.scorers.clip_score:CLIPScore",
    "hps_v2": "hgdpo_jax.scorers.hps_v2:HPSv2",
    "aesthetic": "hgdpo_jax.scorers.aesthetic:Aesthetic",
}

_NAMED = re.compile(r"(?:(?P<name>\w+)=)?(?P<target>.+)")
_FUNCTION = re.compile(r"[\w.]+:\w+")


@dataclasses.dataclass(frozen=True)
class ScorerSource:
    """A scorer as a text names it: kind ("function" for the user's own), source, and further sources by name."""

    text: str
    name: str
    label: str
    kind: str
    source: str
    options: Mapping[str, str]
    setting: str = ""

    @classmethod
    def parse(cls, text: str, setting: str = "") -> "ScorerSource":
        """Reads a text as above, which `setting` has, for messages; raises UserError where it names no scorer."""
        with naming(setting):
            return dataclasses.replace(cls._parse(text), setting=setting)

    @classmethod
    def _parse(cls, text: str) -> "ScorerSource":
        match = _NAMED.fullmatch(text)
        if not match:
            raise UserError(f"{text!r} names no scorer, expected KIND:SOURCE, a kind being {', '.join(KINDS)}")
        name = match["name"]
        target: str = plugins.named("scorers", KINDS).get(match["target"]) or match["target"]
        kind, _, rest = target.partition(":")
        if rest and kind not in KINDS and (near := difflib.get_close_matches(kind, KINDS, 1, 0.8)):
            raise UserError(f"{text!r} names no kind of scorer: did you mean {near[0]}:{rest}?")
        if kind not in KINDS and _FUNCTION.fullmatch(target):
            return cls(text, name or rest, name or rest, FUNCTION, target, {})
        kind, rest = (kind, rest) if kind in KINDS else ("pick_score", target)
        source, *pairs = rest.split(",")
        known = _class_of(kind).options
        given = dict(pair.partition("=")[::2] for pair in pairs)
        if unknown := given.keys() - known.keys():
            expected = f"expected {' or '.join(known)}" if known else "this kind has none"
            raise UserError(f"the scorer {text!r} has the option {', '.join(sorted(unknown))}, {expected}")
        options = {option: given.get(option, what.default) for option, what in known.items()}
        return cls(text, name or kind, name or _class_of(kind).label, kind, source, options)

    def fingerprint(self) -> str:
        """Identifies what decides the scores, independent of the scorer's name and location."""
        with naming(self.setting):
            return self._fingerprint()

    def _fingerprint(self) -> str:
        if self.kind == FUNCTION:
            return load_function(self.source, self.setting or "the scorer")[1]
        prints = [folders.content_fingerprint(resolve_source(self.source))]
        for name, option in _class_of(self.kind).options.items():
            if source := self.options[name]:
                weights = folders.MODEL if option.weights else ()
                prints.append(folders.content_fingerprint(resolve_source(source, weights), weights))
        return f"{self.kind} {_class_of(self.kind).revision} {' '.join(prints)}"

    def load(self, dtype: str = "float32", framing: str = "crop") -> Scorer | UserFunction:
        """The scorer in `dtype`; `framing` ("crop" or "pad") applies to kinds that make images square."""
        if self.kind == FUNCTION:
            return UserFunction(load_function(self.source, self.setting or "the scorer")[0], self.source)
        return _class_of(self.kind).load(self.source, dtype=dtype, framing=framing, **self.options)


def _class_of(kind: str) -> Any:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
