"""`result.json` as one model: what `nextrl demo` and `nextrl run` write, and what the report page is made from.

A result that is written is checked strictly. A file that is read may come from a stopped run, an older version or
another hand: what does not fit is left out there, in `parse_result` and nowhere else, and only a file without arms is
refused. Keys that this version does not know are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from nextrl.checkpoints.atomic import write_json
from nextrl.errors import InputError
from nextrl.files import NoSuchFile, read_json
from nextrl.runs.layout import CONFIG, DEMO, TRAJECTORY

FORMAT = 2
"""Version of the files written now.

1: the first; a file without a version is one of these. 2: `regime` follows the bounds and the measure of
`nextrl.judge.regime`, which `nextrl advise` uses too; version 1 called a run "signal" above .5 and "noise" below .15.
The keys are the same, so both are read alike, and a page repeats what its file says.
"""

_FORGIVING = "what does not fit is left out"
T = TypeVar("T")


def _forgiving(info: ValidationInfo) -> bool:
    return info.context == _FORGIVING


def _or_none(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """One entry of a list or a mapping: None in place of what does not fit."""
    try:
        return handler(value)
    except ValidationError:
        if _forgiving(info):
            return None
        raise


def _objects(value: Any, info: ValidationInfo) -> Any:
    """name -> object, an empty object in place of what is none."""
    if not _forgiving(info) or not isinstance(value, Mapping):
        return value
    return {str(name): item if isinstance(item, Mapping) else {} for name, item in value.items()}


def _object_list(value: Any, info: ValidationInfo) -> Any:
    """A list without the entries that are no objects."""
    if not _forgiving(info):
        return value
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


_Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Figure = Annotated[StrictInt | _Finite | None, WrapValidator(_or_none)]
"""A finite number, or None where there is none; whole numbers stay whole."""

Named = Annotated[dict[str, T], BeforeValidator(_objects)]
Listed = Annotated[list[T], BeforeValidator(_object_list)]


class _Part(BaseModel):
    """A part of a result: every field may be missing, and a file's other keys are kept."""

    model_config = ConfigDict(extra="allow")

    @field_validator("*", mode="wrap")
    @classmethod
    def _default_where_it_does_not_fit(
        cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if not _forgiving(info) or info.field_name is None:
                raise
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)

    def as_dict(self) -> dict[str, Any]:
        """The object as `result.json` holds it: what was set, and a file's other keys."""
        return self.model_dump(mode="json", exclude_unset=True)


class ArmSeries(_Part):
    """One arm, every list but the last two with one entry per evaluation; costs are the arm's so far.

    Attributes:
        kind: "plain", "control", "leap" or "auto".
        label: how a reader is told of it.
        steps: optimizer steps.
        accuracy, se: sampled accuracy on the test prompts and its standard error.
        greedy, greedy_se: the same of greedy answers.
        completions: generated so far, for training and for searches.
        seconds: of training, fits and searches so far.
        learning_rate: as that step left it, in a cooldown the share that the step was taken at.
        rate_steps, rates: the steps that were taken at another rate than the step before, and that rate; empty in files
            of earlier versions.
    """

    kind: StrictStr | None = None
    label: StrictStr | None = None
    steps: list[Figure] = []
    accuracy: list[Figure] = []
    se: list[Figure] = []
    greedy: list[Figure] = []
    greedy_se: list[Figure] = []
    completions: list[Figure] = []
    seconds: list[Figure] = []
    learning_rate: list[Figure] = []
    rate_steps: list[Figure] = []
    rates: list[Figure] = []


class Spent(_Part):
    """What an arm had spent when it reached the target."""

    steps: Figure = None
    completions: Figure = None
    seconds: Figure = None


class Saved(_Part):
    """Fractions that an arm saved of what the plain run had paid when it first was at the target; None: never there."""

    steps: Figure = None
    completions: Figure = None
    seconds: Figure = None


class AccuracyAfter(_Part):
    """Accuracy at the step of the single leaps, and 50 and 100 steps on."""

    leap: Figure = None
    plus50: Figure = None
    plus100: Figure = None


class SearchCosts(_Part):
    """What fits and searches took; `step_equivalents` are the search's completions over those of a training step."""

    fit_seconds: Figure = None
    search_completions: Figure = None
    search_seconds: Figure = None
    step_equivalents: Figure = None


class LeapEntry(_Part):
    """A decision: each one of `auto`; of a named method one on a leap that was due, or that changed something.

    Attributes:
        step: where it was taken.
        alpha: how far the adapter moved; 0 stayed put.
        horizon: steps that alpha = 1 stands for, of a named method.
        learning_rate: after it.
        rate_factor: what it multiplied the rate by; None in files of earlier versions.
        back: what was taken back, "step", "window" or "run"; empty where nothing was.
        rolled_back: the step of a leap that was.
        divergence: what the window, or the step, moved the policy by, nats per token.
        reason: one clause.
        scores: candidate -> mean reward or accuracy on validation prompts.
        accepted: whether a leap was made; what was taken back is none.
    """

    step: Figure = None
    alpha: Figure = None
    horizon: Figure = None
    learning_rate: Figure = None
    rate_factor: Figure = None
    back: StrictStr | None = None
    rolled_back: Figure = None
    divergence: Figure = None
    reason: StrictStr | None = None
    scores: dict[str, Figure] = {}
    accepted: bool | None = None

    @property
    def taken(self) -> bool:
        """Whether a leap was made. What took something back is none, though older files call it accepted."""
        return not self.back and (bool(self.alpha) if self.accepted is None else self.accepted)


class Recommendation(_Part):
    """What `nextrl advise` says of the plain arm, or of a plain run, from its checkpoints.

    Attributes:
        advice: the action.
        method, horizon: of the leap that is worth a test; "none" and None where none is.
        factor, factor_range: of the learning rate, the cautious end and the whole range that has been seen.
        confidence: "low", "medium" or "high".
        answer: the whole of it in words.
    """

    advice: StrictStr | None = None
    method: StrictStr | None = None
    horizon: Figure = None
    factor: Figure = None
    factor_range: list[Figure] = []
    confidence: StrictStr | None = None
    answer: StrictStr | None = None


class TrajectoryFigures(_Part):
    """What the checkpoints alone show.

    Attributes:
        steps: of the checkpoints.
        sigma: module -> top singular value of its global delta, one entry per checkpoint.
        persistence: window length -> step -> cosine of the two windows that end there.
        excess: the same, as the excess over `zero`.
        zero: window length -> cosine that Adam's momentum alone gives.
    """

    steps: list[Figure] = []
    sigma: dict[str, list[Figure]] = {}
    persistence: dict[str, dict[str, Figure]] = {}
    excess: dict[str, dict[str, Figure]] = {}
    zero: dict[str, Figure] = {}


class Result(_Part):
    """What a comparison of arms found, or what one run did ("run" is its only arm then).

    Attributes:
        version: of the format, see `FORMAT`.
        seed, task, config, provenance: what was run, and by what.
        target: the plain arm's accuracy at its end; None of a single run, which has nothing to be compared with.
        arms: name -> curves.
        saved: name -> what it saved; "tuned" and "tuned-with-sweep" stand for the best rate of the sweep.
        tuned: name of the arm that stands for the tuned learning rate.
        after, costs, leaps: by arm.
        reach: arm -> what it had spent at the target, None where it never got there; None for a single run.
        trajectory: of the plain arm, or of the run.
        resumed: steps from which a stopped run went on.
        regime: "signal", "mixed" or "noise", see `nextrl.judge.regime`; None where nothing could be measured.
        advice: the action that `nextrl advise` names for the plain arm; all that it says is in `recommendation`.
        recommendation: None where the checkpoints say too little, or of a run whose rate changed as it went.
        verdict: plain sentences.
    """

    version: Figure = None
    seed: Figure = None
    task: StrictStr | None = None
    config: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    target: Figure = None
    arms: Named[ArmSeries]
    saved: Named[Saved] = {}
    tuned: StrictStr | None = None
    after: Named[AccuracyAfter] = {}
    costs: Named[SearchCosts] = {}
    leaps: dict[str, Listed[LeapEntry]] = {}
    reach: dict[str, Annotated[Spent | None, WrapValidator(_or_none)]] | None = None
    trajectory: TrajectoryFigures = TrajectoryFigures()
    resumed: list[Figure] = []
    regime: StrictStr | None = None
    advice: StrictStr | None = None
    recommendation: Recommendation | None = None
    verdict: StrictStr | None = None

    _read_digest: str | None = PrivateAttr(None)

    @property
    def single(self) -> bool:
        """Whether this is one run with nothing beside it: it was given no target, so nothing can have been saved."""
        return len(self.arms) == 1 and self.target is None and "target" in self.model_fields_set

    @property
    def digest(self) -> str:
        """SHA-256 of the result's canonical JSON: it names the result, however its file is laid out."""
        return self._read_digest or _digest(self.as_dict())


def parse_result(value: object) -> Result:
    """A result from the object in a file, whatever version or run left it.

    Raises:
        InputError: it is no object, or has no arms.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("arms"), Mapping) or not value["arms"]:
        raise InputError(
            "the result holds no arms: is this the result.json of `nextrl demo` or `nextrl run`?"
        )
    result = Result.model_validate(dict(value), context=_FORGIVING)
    result._read_digest = _digest(value)
    return result


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        InputError: the file is not there, cannot be read, is not JSON, or holds no result.
    """
    try:
        value = read_json(path)
    except NoSuchFile:
        raise InputError(f"{path.parent} holds no {path.name}{_why_no_result(path.parent)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not an object: it is no result of nextrl")
    try:
        return parse_result(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _why_no_result(folder: Path) -> str:
    """Whether a run of ours has not finished there, or there was none."""
    # What they leave first; other trainers have a config.yaml, too, and no such folder beside it.
    run, demo = (folder / CONFIG).is_file() and (folder / TRAJECTORY).is_dir(), folder / DEMO
    if run or demo.is_file():
        return ": its run has not finished; run the same command again"
    return (
        ": a report is of a folder that `nextrl demo` or `nextrl run` wrote; of checkpoints of a trainer of your own "
        "`nextrl advise` and `nextrl analyze` say what there is to say"
    )


def write_result(path: Path, result: Result) -> None:
    """Write a result, whole or not at all."""
    write_json(path, result.as_dict())


def _digest(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
