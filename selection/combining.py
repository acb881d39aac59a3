"""One answer from those of several models, by weighted vote, weighted average or median, and its confidence.

Confidence is the share of the models *asked* that answered and agree with the combined answer, so a missing one lowers
it (Clipper, section 5.2). Of several rows, the one with the lowest confidence counts.
"""

from collections.abc import Mapping

import numpy as np

from mesh.wire import TensorSpec
from selection.base import Answers, Array, Combined, Kind, Outputs

TIE_SHARE = 0.01  # of the vote is decided by mean probability, so that a tie goes to the class with the higher one


def kind_of(spec: TensorSpec) -> Kind:
    """The kind of an output. Floats [-1, classes]: scores; integers [-1] or [-1, 1]: labels; else numeric."""
    floating = spec.dtype.startswith("float")
    if floating and len(spec.shape) == 2 and spec.shape[1] >= 2:
        return "scores"
    if not floating and spec.shape[1:] in ((), (1,)):
        return "labels"
    return "numeric"


def predictions(kind: Kind, outputs: Outputs) -> Array:
    """What feedback is compared with: classes int64 [rows], or the numbers float64 [rows, ...]."""
    first = outputs[0]
    if kind == "scores":
        return np.asarray(first.argmax(axis=1), np.int64)
    if kind == "labels":
        return first.reshape(len(first)).astype(np.int64)
    return first.astype(np.float64)


def pass_on(answers: Answers) -> Combined:
    """The answer of the one model that was asked; of several, the first that arrived."""
    model = next(model for model in answers.asked if model in answers.came)
    return _judged(answers, list(answers.came[model]), {model: 1.0})


def vote(answers: Answers, weights: Mapping[str, float]) -> Combined:
    """Classes by weighted vote (the first output becomes the share of votes per class); numbers by weighted average."""
    if answers.kind == "numeric":
        return average(answers, weights)
    shares = _shares(answers, weights)
    first = next(iter(answers.came.values()))[0]
    if answers.kind == "scores":
        outputs = [_vote_shares(answers, shares).astype(first.dtype)]
    else:
        outputs = [_winner(answers, shares).reshape(first.shape).astype(first.dtype)]
    return _judged(answers, outputs + _others(answers, shares), shares)


def average(answers: Answers, weights: Mapping[str, float]) -> Combined:
    """The weighted average of each output over the models that answered; labels are decided by weighted vote."""
    if answers.kind == "labels":
        return vote(answers, weights)
    shares = _shares(answers, weights)
    return _judged(answers, [_average(answers, shares, 0), *_others(answers, shares)], shares)


def median(answers: Answers) -> Combined:
    """Classes by unweighted vote; numbers by their median, which a single outlier cannot move."""
    even = dict.fromkeys(answers.asked, 1.0)
    if answers.kind != "numeric":
        return vote(answers, even)
    shares = _shares(answers, even)
    first = np.median(np.stack([outputs[0] for outputs in answers.came.values()]), axis=0)
    dtype = next(iter(answers.came.values()))[0].dtype
    return _judged(answers, [first.astype(dtype), *_others(answers, shares)], shares)


def softmax(scores: Array) -> Array:
    """Probabilities float64 [rows, classes] from scores; probabilities are returned as they are."""
    wide = scores.astype(np.float64)
    if bool((wide >= 0).all()) and np.allclose(wide.sum(axis=1), 1.0, atol=1e-3):
        return wide
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    normal: Array = powers / powers.sum(axis=1, keepdims=True)
    return normal


def _shares(answers: Answers, weights: Mapping[str, float]) -> dict[str, float]:
    """{model that answered: weight}, summing to 1."""
    total = sum([weights.get(model, 0.0) for model in answers.came], 0.0)
    if total <= 0:
        return dict.fromkeys(answers.came, 1 / len(answers.came))
    return {model: weights.get(model, 0.0) / total for model in answers.came}


def _vote_shares(answers: Answers, shares: Mapping[str, float]) -> Array:
    """Share of the votes per class, float64 [rows, classes]; each row sums to 1."""
    first = next(iter(answers.came.values()))[0]
    votes = np.zeros(first.shape, np.float64)
    rows = np.arange(len(first))
    for model, outputs in answers.came.items():
        votes[rows, outputs[0].argmax(axis=1)] += shares[model] * (1 - TIE_SHARE)
        votes += softmax(outputs[0]) * (shares[model] * TIE_SHARE)
    return votes


def _winner(answers: Answers, shares: Mapping[str, float]) -> Array:
    """The class with most votes, int64 [rows]; the smallest of equals."""
    stacked = np.stack([outputs[0].reshape(-1).astype(np.int64) for outputs in answers.came.values()])
    heavy = np.array([shares[model] for model in answers.came])
    winners = []
    for column in stacked.T:
        classes, places = np.unique(column, return_inverse=True)
        winners.append(classes[np.bincount(places, heavy).argmax()])
    return np.array(winners)


def _average(answers: Answers, shares: Mapping[str, float], place: int) -> Array:
    arrays = {model: outputs[place] for model, outputs in answers.came.items()}
    dtype = next(iter(arrays.values())).dtype
    if dtype.kind != "f":
        return arrays[max(shares, key=lambda model: shares[model])]
    total: Array = sum(array.astype(np.float64) * shares[model] for model, array in arrays.items())  # type: ignore[assignment]
    return total.astype(dtype)


def _others(answers: Answers, shares: Mapping[str, float]) -> list[Array]:
    """All outputs but the first: weighted averages of floats; of other dtypes those of the heaviest model."""
    count = len(next(iter(answers.came.values())))
    return [_average(answers, shares, place) for place in range(1, count)]


def _judged(answers: Answers, outputs: list[Array], shares: Mapping[str, float]) -> Combined:
    said = predictions(answers.kind, outputs)
    agree = np.zeros(len(said))
    votes = []
    for member in answers.came.values():
        theirs = predictions(answers.kind, member)
        if answers.kind == "numeric":
            same = (np.abs(theirs - said) <= answers.agree_within).reshape(len(said), -1).all(axis=1)
        else:
            same = theirs == said
        votes.append(same)
        agree += same
    agreement = float((agree / len(answers.asked)).min())
    disagreement = float(1 - (agree / len(answers.came)).min())
    margin = _margin(answers, shares)
    confidence = agreement
    if answers.confidence == "margin" and margin is not None:
        confidence = margin * len(answers.came) / len(answers.asked)
    return Combined(outputs, confidence, margin, disagreement)


def _margin(answers: Answers, shares: Mapping[str, float]) -> float | None:
    if answers.kind != "scores":
        return None
    likely: Array = sum(softmax(outputs[0]) * shares.get(model, 0.0) for model, outputs in answers.came.items())  # type: ignore[assignment]
    best = np.partition(likely, -2, axis=1)[:, -2:]
    return float(np.clip((best[:, 1] - best[:, 0]).min(), 0.0, 1.0))
