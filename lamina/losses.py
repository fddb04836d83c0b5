"""Losses: by name, as functions, and what their mean is taken over.

In: a net's output and the truth. Out: a 0-d tensor to minimise. Called by `targets` and the loop; any callable
`(output, truth) -> 0-d tensor` of yours serves as well.

    make("cross_entropy", label_smoothing=0.1)      every loss of torch.nn by name, and the three functions below
    focal(output, truth, gamma=2.0)                 hard examples weigh more
    soft_cross_entropy(output, truth)               truth as class numbers or as probabilities
    arcface(output, truth, margin=0.3)              output as cosines: every class keeps its distance from the others
    count(loss, output, truth, examples)            so that micro-batches add up to exactly the whole batch

Letters: B batch, K classes, T positions (time, or a picture's pixels; any number of further dimensions).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import loss as torch_losses

from lamina.errors import UsageError, near

Loss = Callable[..., Tensor]


def focal(
    output: Tensor,
    truth: Tensor,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Tensor | None = None,
    across: str | None = None,
) -> Tensor:
    """Cross-entropy in which what is already right counts little: the mean of -alpha_t (1 - p_t)^gamma log p_t.

    Lin et al., "Focal loss for dense object detection" (2017); p_t is the probability given to the truth. gamma = 0 is
    cross-entropy. Two forms, chosen by the shapes unless `across` says "classes" or "tags":

    - classes: output (B, K) or (B, K, T) logits, truth (B) or (B, T) class numbers, or probabilities in the output's
      shape (then say across="classes"). Softmax; mean over B and T. `alpha` is a weight for each of the K classes.
    - tags, or one yes-or-no: truth in the output's shape, or without the output's last dimension of size 1. Sigmoid;
      mean over all numbers. `alpha` is the weight of the ones and 1 - alpha that of the zeros, or such a number for
      each tag. Truth between 0 and 1 mixes the two terms.

    `alpha` is not divided out of the mean, unlike the weights of `nn.CrossEntropyLoss`.
    """
    if gamma < 0:
        raise UsageError(f"gamma is {gamma}", expected="0, which is cross-entropy, or more")
    if across not in (None, "classes", "tags"):
        raise UsageError(f"focal loss across {across!r}", expected="classes or tags")
    if across != "classes" and output.shape == truth.shape + (1,):
        output = output.squeeze(-1)
    if across is None:
        across = "tags" if output.shape == truth.shape else "classes"
    if alpha is not None:
        alpha = torch.as_tensor(alpha, dtype=output.dtype, device=output.device)
    if across == "tags":
        truth = truth.to(output.dtype)
        ones = -F.logsigmoid(output) * _power(torch.sigmoid(-output), gamma)
        zeros = -F.logsigmoid(-output) * _power(torch.sigmoid(output), gamma)
        if alpha is not None:
            ones, zeros = alpha * ones, (1 - alpha) * zeros
        return (truth * ones + (1 - truth) * zeros).mean()

    share = output.new_ones(1) if alpha is None else alpha
    share = share.view(-1, *[1] * (output.ndim - 2)).expand_as(output)  # (B, K, T), how much each class's term counts
    log_p = output.log_softmax(1)
    if truth.shape == output.shape:
        share = share * truth
    else:
        truth = truth.long().unsqueeze(1)  # (B, 1, T)
        share, log_p = share.gather(1, truth), log_p.gather(1, truth)
    return -(share * _power(1 - log_p.exp(), gamma) * log_p).sum(1).mean()


def _power(p: Tensor, gamma: float) -> Tensor:
    """p^gamma whose gradient stays finite at p = 0, where that of p^0.5 does not."""
    return p.clamp_min(torch.finfo(p.dtype).tiny) ** gamma


def soft_cross_entropy(output: Tensor, truth: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with truth as class numbers of any integer type, (B) or (B, T), or as probabilities.

    `output` is (B, K) or (B, K, T) logits, and so are the probabilities shaped; the mean is over B and T. `smoothing`
    gives that share of the truth's probability evenly to all classes (Szegedy et al., "Rethinking the inception
    architecture", 2016).
    """
    if not 0 <= smoothing <= 1:
        raise UsageError(f"smoothing is {smoothing}", expected="a share from 0 to 1")
    truth = truth.to(output.dtype) if truth.shape == output.shape else truth.long()
    return F.cross_entropy(output, truth, label_smoothing=smoothing)


def arcface(output: Tensor, truth: Tensor, margin: float = 0.3, scale: float = 16.0) -> Tensor:
    """Cross-entropy of `scale` times the cosines, after the angle to the truth was made `margin` radians larger.

    Deng et al., "ArcFace: additive angular margin loss for deep face recognition" (2019, arXiv:1801.07698): the net is
    right only where it would also be right from further away. output: (B, K) cosines between an embedding and the centre
    of each class, from -1 to 1; truth: (B) class numbers. Where the larger angle would pass pi, the cosine falls on in a
    straight line, cos - margin sin(margin), as in the authors' program. margin = 0 is cross-entropy of scaled cosines.

    A truth of K or more is a class that has no centre (a person nobody trained on): such examples are left out of the
    mean, and of nothing else the mean is 0.
    """
    if not 0 <= margin < math.pi / 2 or not scale > 0:
        raise UsageError(
            f"margin is {margin}, scale {scale}", expected="a margin from 0 to below pi/2, a scale above 0"
        )
    known = (truth < output.shape[1]).to(output.dtype)
    place = truth.clamp(max=output.shape[1] - 1)[:, None]  # (B, 1)
    cosine = output.gather(1, place)
    sine = (1 - cosine.square()).clamp_min(1e-6).sqrt()  # its slope stays finite at 0 and pi
    further = cosine * math.cos(margin) - sine * math.sin(margin)
    further = torch.where(cosine > -math.cos(margin), further, cosine - margin * math.sin(margin))
    each = F.cross_entropy(output.scatter(1, place, further) * scale, place[:, 0], reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)


_OURS: dict[str, Loss] = {"focal": focal, "soft_cross_entropy": soft_cross_entropy, "arcface": arcface}
_ALSO = {"ce": "crossentropy", "mae": "l1"}


def _key(name: str) -> str:
    """ "CrossEntropyLoss", "cross_entropy", "cross-entropy loss" -> "crossentropy" """
    key = name.lower().replace("_", "").replace("-", "").replace(" ", "").replace("loss", "")
    return _ALSO.get(key, key)


def names() -> list[str]:
    """Every name: torch's as torch writes them ("BCELoss", "CTCLoss", ...), and those of the functions here."""
    return sorted([*torch_losses.__all__, *_OURS])


def make(name: str, **arguments: Any) -> Loss:
    """A loss by name: `make("cross_entropy", weight=[1, 5])`, `make("huber", delta=2)`, `make("focal", gamma=1)`.

    Torch's classes are found by looking into `torch.nn.modules.loss`; those that take other things than an output and
    the truth (triplets, CTC) are made all the same and called as torch says. Class weights may be lists. `UsageError`
    for an unknown name and for arguments that the loss does not take.
    """
    known: dict[str, Any] = {_key(known_name): known_name for known_name in names()}
    if _key(name) not in known:
        raise UsageError(f"unknown loss {name!r}", expected=near(_key(name), known))
    full_name = known[_key(name)]
    maker: Any = _OURS.get(full_name) or getattr(torch_losses, full_name)
    try:
        if full_name in _OURS:
            inspect.signature(maker).bind(None, None, **arguments)
            return functools.partial(maker, **arguments)
        for weights in {"weight", "pos_weight"} & arguments.keys():
            if isinstance(arguments[weights], Sequence):
                arguments[weights] = torch.tensor(arguments[weights], dtype=torch.get_default_dtype())
        return maker(**arguments)
    except (TypeError, RuntimeError) as error:
        raise UsageError(
            f"loss {name!r} does not work with the arguments {arguments}: {error}",
            expected=f"{full_name}{inspect.signature(maker)}",
        ) from error


_WEIGHTED_MEANS = (F.cross_entropy, F.nll_loss, soft_cross_entropy)
_WEIGHTED_MEAN_CLASSES = tuple(
    getattr(nn, name) for name in ("CrossEntropyLoss", "NLLLoss", "LinearCrossEntropyLoss") if hasattr(nn, name)
)


def count(loss: Loss, output: Tensor, truth: Tensor, examples: int, *, known: bool = False) -> int | Tensor | None:
    """What the loss's mean is taken over: the c of a micro-batch in  sum(c * loss) / sum(c) = the whole batch's loss.

    - cross-entropy and negative log-likelihood of class numbers: the sum of the class weights of the truths that are
      not ignored, a 0-d tensor on their device (nothing waits for it). Where it is 0 torch's loss is 0/0: leave that
      micro-batch out, or take `torch.where(c > 0, c * loss, 0)`, whose gradient is 0. A plain number where it is `known`
      that no truth is negative, so that none is ignored, and classes have no weights;
    - of probabilities: the number of distributions;
    - a sum (`reduction="sum"`): None, micro-batches simply add;
    - any other callable: `examples`. Right for a mean over examples, and for one over numbers when every example has as
      many of them.

    Modules (subclasses too), `torch.nn.functional`'s and this module's functions and `functools.partial` of them are
    seen through. `UsageError` for a loss of torch's that is not reduced to one number.
    """
    settings: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        settings = {**loss.keywords, **settings}
        loss = loss.func

    def setting(name: str, default: Any) -> Any:
        return settings.get(name, getattr(loss, name, default))

    reduction = setting("reduction", "mean")
    if reduction == "sum":
        return None
    if reduction == "none" and _is_torchs(loss):
        raise UsageError(f"{loss} gives a number for each example", expected="one number", fix='reduction="mean"')
    if reduction == "none" or not (loss in _WEIGHTED_MEANS or isinstance(loss, _WEIGHTED_MEAN_CLASSES)):
        return examples
    if truth.is_floating_point() or truth.shape == output.shape:
        return truth.numel() // truth.shape[min(1, truth.ndim - 1)]  # (B, K, T) -> B T
    ignored = -100 if setting("ignore_index", None) is None else setting("ignore_index", None)
    weight = setting("weight", None)
    if known and weight is None and ignored < 0:
        return truth.numel()
    counted = truth != ignored
    if weight is None:
        return counted.sum()
    return (weight.to(truth.device)[truth.long().where(counted, 0)] * counted).sum()


def _is_torchs(loss: Loss) -> bool:
    """Whether what reduces is torch's own: a subclass with a `forward` of its own may take "none" and reduce itself."""
    function = type(loss).forward if isinstance(loss, nn.Module) else loss
    return getattr(function, "__module__", "").startswith("torch.nn.")
