"""What a loss reads: recorded sequences, and their one teacher-forced pass under a twist."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from tsmc_widgets import numerics
from tsmc_widgets.errors import NoSignalError
from tsmc_widgets.models.protocol import LAZY_CELLS, TeacherForced
from tsmc_widgets.smc.api import start_smc
from tsmc_widgets.smc.prefixes import PrefixSteps
from tsmc_widgets.smc.proposals import tilt
from tsmc_widgets.smc.sampler import init, step
from tsmc_widgets.smc.trace import SMCTrace
from tsmc_widgets.targets.target import Target
from tsmc_widgets.twists.protocol import as_twist

# Log weights this near to zero are those of equally weighted draws, rounded.
EQUAL = 1e-3


@dataclass(frozen=True, slots=True)
class Samples:
    """Sequences with the log probabilities they were drawn with and their weights.

    Attributes:
        tokens: s_{1:T}, the prompt left out.
        log_q: log q(s_t | s_{<t}) of the distribution that drew them; 0 after an absorbing EOS.
        log_weights: log weights for sigma; zeros for exact samples, phi-weights for others.
        log_phi: log phi of each text, in nats; NaN where it was not computed as no loss reads it.
        group: which observation each text belongs to; weights are never pooled across groups.
        observed: what was observed with each text, for conditional twists; None for others.
        base: the base model's answers along each text, where they are at hand.
        sums: what losses read of them for a twist with a tied head, in place of ``base``.
        places: each text's row in the pool that it comes from, where it comes from one.
    """

    tokens: Int[Tensor, "n steps"]
    log_q: Float64[Tensor, "n steps"]
    log_weights: Float64[Tensor, " n"]
    log_phi: Float64[Tensor, " n"]
    group: Int[Tensor, " n"]
    observed: Int[Tensor, "n width"] | None = None
    base: TeacherForced | None = None
    sums: TokenSums | None = None
    places: Int[Tensor, " n"] | None = None

    @classmethod
    def exact(
        cls,
        target: Target,
        tokens: Int[Tensor, "n steps"],
        *,
        observed: Int[Tensor, "n width"] | None = None,
    ) -> Samples:
        """Exact samples of sigma (each for its own observation)."""
        if observed is None:
            return cls.equal(tokens, target.log_phi(tokens))
        group = torch.unique(observed, dim=0, return_inverse=True)[1]
        log_phi = target.log_phi_given(tokens, observed)
        return cls.equal(tokens, log_phi, group=group, observed=observed)

    @classmethod
    def equal(
        cls, tokens: Int[Tensor, "n steps"], log_phi: Float64[Tensor, " n"], **columns: Any
    ) -> Samples:
        """Texts of weight one, whose log q no loss reads; one group unless it is given."""
        log_q = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        columns = {"group": torch.zeros_like(tokens[:, 0]), **columns}
        return cls(tokens, log_q, log_q[:, 0], log_phi, **columns)

    @classmethod
    def of_trace(cls, trace: SMCTrace) -> Samples:
        """Particles of a finished sweep without resampling, weighted for sigma.

        Runs under different observations are groups apart; others are pooled.

        Raises:
            ValueError: the sweep is not done or has resampled, so that paths share prefixes and
                weights are no longer those of independent draws.
        """
        if not trace.done or bool(trace.columns.resampled.any()):
            raise ValueError(
                "samples for learning come from a finished sweep without resampling: "
                f"rule='never'; got {trace.info.rule!r} with {trace.steps_done} of "
                f"{trace.num_steps} steps."
            )
        return cls.of_paths(trace)

    @classmethod
    def of_paths(cls, trace: SMCTrace) -> Samples:
        """Final particles of a sweep with their final weights, which resampling makes dependent."""
        runs, size = trace.num_runs, trace.num_particles
        group, observed = torch.zeros(runs * size, dtype=torch.int64), None
        if trace.info.observed is not None:
            group = torch.arange(runs).repeat_interleave(size)
            observed = torch.tensor(trace.info.observed)[group]
        return cls(
            tokens=trace.paths("tokens").reshape(runs * size, -1),
            log_q=trace.paths("log_q").reshape(runs * size, -1),
            log_weights=trace.columns.log_weights[:, -1].reshape(-1),
            log_phi=trace.columns.log_psi[:, -1].reshape(-1),
            group=group,
            observed=observed,
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def has_hits(self) -> bool:
        """Whether each group has a text of positive weight: without one there is no signal."""
        alive = self.log_weights > -math.inf
        return bool(torch.isin(self.group, self.group[alive]).all())

    @property
    def log_weights_by_group(self) -> Float64[Tensor, "groups size"]:
        """Log weights of each group in a row, those of groups that were weighted.

        Groups must be of one size.
        """
        order = torch.argsort(self.group, stable=True)
        rows = self.log_weights[order].reshape(len(torch.unique(self.group)), -1)
        return rows[~rows.isnan().any(1)]

    def to(self, device: torch.device) -> Samples:
        """The same on another device."""
        fields: dict[str, Any] = {
            name: value.to(device)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **fields)


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Base model and tied head along texts, sums over the vocabulary taken.

    Attributes:
        inputs: what the head reads before each token.
        log_p: log p0 of each token, times the target's power.
        log_q: log of the twist-induced q of each token, at the twist as it was.
        was: the head's ``direction`` then.
        mean: ``mean_embedding`` of that q: the gradient of log sum_v p0 psi_t, whose value is log
            p0 + log psi - log q of any token. None where the texts are of p0.
        others: tokens drawn from that q, of which the sum is read once steps have moved the twist.
    """

    inputs: Float[Tensor, "n steps width"]
    log_p: Float64[Tensor, "n steps"]
    log_q: Float64[Tensor, "n steps"]
    was: Float[Tensor, "n steps width1"]
    mean: Float[Tensor, "n steps width1"] | None = None
    others: Int[Tensor, "n steps some"] | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Samples under a twist: one teacher-forced pass that every loss can share.

    After an absorbing EOS ``log_psi`` stays what it was at the EOS, as the weights do in a sweep.

    Attributes:
        samples: the texts.
        live: positions up to the end of the text.
        log_p: log p0(s_t | s_{<t}), times the target's power; 0 after the end; NaN where p0 was
            not asked for.
        log_psi: log psi_t(s_{1:t}), with gradients.
        log_norm: log sum_v p0(v | s_{<t}) psi_t(s_{<t}, v), with gradients; 0 after the end; NaN
            where p0 was not asked for.
        level: of the twist, in nats: losses that read phi read it in units of exp(level).
        log_bound: of the twist, in nats.
    """

    samples: Samples
    live: Bool[Tensor, "n steps"]
    log_p: Float64[Tensor, "n steps"]
    log_psi: Float64[Tensor, "n steps"]
    log_norm: Float64[Tensor, "n steps"]
    level: float = 0.0
    log_bound: float = 0.0

    @property
    def log_q_psi(self) -> Float64[Tensor, "n steps"]:
        """Log of the twist-induced proposal at each token, with gradients; 0 after the end."""
        return torch.where(self.live, self.log_p + self.log_psi - self.log_norm, 0.0)

    def weights_for_sigma(self) -> Float64[Tensor, " n"]:
        """Normalised weights for sigma, each group's summing to one over the number of groups."""
        self._check_group_sizes(self.samples.log_weights.unsqueeze(1))
        return self._normalise(self.samples.log_weights.unsqueeze(1)).squeeze(1)

    def weights_for_base(self) -> Float64[Tensor, "n steps"]:
        """Normalised weights of each prefix for p0, whatever the texts were drawn from."""
        ratio = (self.log_p - self.samples.log_q).cumsum(1)
        self._check_group_sizes(ratio)
        return self._normalise(ratio)

    def weights_for_twist(self) -> Float64[Tensor, "n steps"]:
        """Normalised weights of each prefix for pi_t, proportional to p0 psi_t, psi_T included."""
        ratio = (self.log_p - self.samples.log_q).cumsum(1)
        self._check_group_sizes(None)
        return self._normalise(ratio + self.log_psi.detach())

    def log_mean_psi(self, *, last_token: bool) -> Float64[Tensor, "groups steps"]:
        """Log of each group's estimate of E_p0[psi_t], whose gradient is E_{pi_t}[grad log psi_t].

        Args:
            last_token: whether s_t is the one that was drawn; else it is summed out.
        """
        self._check_group_sizes(None)
        steps = self.log_p - self.samples.log_q
        ratio = steps.cumsum(1)
        if last_token:
            log_weights = ratio + self.log_psi
        else:
            # After the end nothing is drawn, and psi stays what it was.
            ahead = torch.where(self.live, self.log_norm, self.log_psi)
            log_weights = ratio - steps + ahead
        _, counts, total = self._total(log_weights)
        return total - counts.log().unsqueeze(1)

    def _check_group_sizes(self, log_weights: Float64[Tensor, "n columns"] | None) -> None:
        """Refuse a group of one text, unless its weight is one to begin with.

        Self-normalised it would count as an exact draw, whatever it was drawn from.
        """
        group, counts = self._groups()
        alone = counts[group] == 1
        if log_weights is not None:
            alone = alone & (log_weights.abs() > EQUAL).any(1) & (log_weights > -math.inf).any(1)
        if bool(alone.any()):
            raise ValueError(
                f"group {int(self.samples.group[alone][0])} has one text, and weights that are "
                "normalised within a group need at least 2: draw more texts for each observation."
            )

    def _groups(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " groups"]]:
        """Each text's group, counted from 0, and how many texts each group has."""
        _, group, counts = torch.unique(self.samples.group, return_inverse=True, return_counts=True)
        return group, counts

    def _normalise(self, log_weights: Float64[Tensor, "n columns"]) -> Float64[Tensor, "n columns"]:
        group, counts, total = self._total(log_weights)
        return (log_weights - total[group]).exp() / len(counts)

    def _total(
        self, log_weights: Float64[Tensor, "n columns"]
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " groups"], Float64[Tensor, "groups columns"]]:
        """Each text's group, how many texts a group has, and the log of its weights' sum."""
        group, counts = self._groups()
        total = numerics.group_logsumexp(log_weights, group)
        if bool((total == -math.inf).any()):
            raise NoSignalError(
                "every text of a group has weight zero, so there is nothing to learn from: draw "
                "more texts, soften the potential, or give exact samples."
            )
        return group, counts, total


@torch.no_grad()
def read(target: Target, tokens: Int[Tensor, "n steps"]) -> TeacherForced:
    """The base model's answers along texts, ``measured``, in one teacher-forced pass."""
    answer = target.lm.teacher_force(target.after_prompt(tokens), len(target.prompt_tokens))
    return target.measured(answer)


def score(target: Target, twist: Any, samples: Samples, *, p0: bool = True) -> Scored:
    """Read samples with the twist, and with the base model where they have not been read by it.

    Args:
        target: gives model, prompt and EOS rule.
        twist: a ``TrainableTwist``; gradients go to its parameters.
        samples: the texts.
        p0: whether the loss reads more of them than log psi; else a twist with a body of its own
            needs no base model here.
    """
    terms = _tied_terms if as_twist(twist).is_tied else _terms
    log_psi, log_p, log_norm = terms(target, twist, samples, p0)
    live = torch.ones_like(samples.tokens, dtype=torch.bool)
    if target.ending is not None:
        live = ~target.ending.after(samples.tokens)
        last = (live.sum(1, keepdim=True) - 1).expand_as(live)
        steps = torch.arange(live.shape[1], device=live.device)
        log_psi = log_psi.gather(1, torch.minimum(steps, last))
    return Scored(
        samples=samples,
        live=live,
        log_p=torch.where(live, log_p, 0.0),
        log_psi=log_psi,
        log_norm=torch.where(live, log_norm, 0.0),
        level=as_twist(twist).level,
        log_bound=as_twist(twist).log_bound,
    )


Terms = tuple[Float64[Tensor, "n steps"], Float64[Tensor, "n steps"], Float64[Tensor, "n steps"]]


def _terms(target: Target, twist: Any, samples: Samples, p0: bool) -> Terms:
    """Log psi, log p0 and log sum_v p0 psi_t, from tables of all tokens."""
    tokens = target.after_prompt(samples.tokens)
    base = read(target, samples.tokens) if p0 and samples.base is None else samples.base
    extra = {} if samples.observed is None else {"observed": samples.observed}
    log_psi_next = twist.log_psi_next(tokens, len(target.prompt_tokens), base, **extra)
    chosen = samples.tokens.unsqueeze(-1)
    log_psi = log_psi_next.gather(-1, chosen).squeeze(-1).double()
    if not p0:
        nothing = torch.full_like(log_psi, math.nan, requires_grad=False)
        return log_psi, nothing, nothing
    log_p = base.log_probs.gather(-1, chosen).squeeze(-1).double()
    return log_psi, log_p, _log_norm(base.log_probs, log_psi_next)


def _tied_terms(target: Target, twist: Any, samples: Samples, p0: bool) -> Terms:
    """The same for a tied head, without a table: log sum_v p0 psi_t was known to the sweep.

    It has moved since by log E_q[exp d(v)], with d(v) = <dg, e_v> + db the change of log psi and q
    as it was: E_q[d] is exact, and what is beyond it comes from a few tokens of q. Before the
    first step d = 0, and value and gradient are exact.
    """
    sums = samples.sums
    if sums is None:
        sums = read_sums(target, twist, samples.tokens)
    head, chosen = twist.head, samples.tokens
    direction = head.direction(sums.inputs)
    log_psi = twist.log_psi_of(direction, chosen).double()
    if not p0 or sums.mean is None:
        return log_psi, sums.log_p, torch.full_like(sums.log_p, math.nan)
    change = direction - sums.was
    moved = (change * sums.mean).sum(-1).double()
    if sums.others is not None:
        beyond = head.values(change.unsqueeze(-2), sums.others).double()
        moved = moved + torch.logsumexp(beyond, -1) - math.log(beyond.shape[-1]) - beyond.mean(-1)
    was = sums.log_p + twist.log_psi_of(sums.was, chosen).double() - sums.log_q
    return log_psi, sums.log_p, was + moved


@torch.no_grad()
def read_sums(target: Target, twist: Any, tokens: Int[Tensor, "n steps"]) -> TokenSums:
    """Sums along texts, as few texts at a time as make tables of bounded size."""
    each = max(1, LAZY_CELLS // (tokens.shape[1] * target.lm.vocab_size))
    parts = []
    for part in tokens.split(each):
        base, length = read(target, part), len(target.prompt_tokens)
        inputs = twist.inputs(target.after_prompt(part), length, base.hidden).flatten(0, 1)
        was = twist.head.direction(inputs)
        log_p, log_psi = base.log_probs.flatten(0, 1), twist.value_given(inputs, None)
        log_q, chosen = tilt(log_p, log_psi), part.reshape(-1, 1)
        p, q = (each.gather(1, chosen).double() for each in (log_p, log_q))
        weights = log_q.exp()
        if twist.link == "sigmoid":  # d log psi / d raw = 1 - psi / bound.
            weights *= -torch.expm1(log_psi - twist.log_bound)
        columns = (inputs, p, q, was, twist.head.mean_embedding(weights))
        parts.append([each.reshape(*part.shape, -1) for each in columns])
    inputs, log_p, log_q, was, mean = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenSums(inputs, log_p.squeeze(-1), log_q.squeeze(-1), was, mean)


def _log_norm(
    log_probs: Float[Tensor, "n steps vocab"], log_psi_next: Float[Tensor, "n steps vocab"]
) -> Float64[Tensor, "n steps"]:
    """Log sum_v p0 psi_t, summed in float64; terms stay as narrow as they come."""
    # A large log psi leaves few digits to a rounded sum, so its scale goes first, as in ``tilt``.
    lowest = torch.finfo(log_psi_next.dtype).min
    highest = log_psi_next.detach().amax(-1, keepdim=True).clamp(min=lowest)
    terms = (log_psi_next - highest + log_probs).exp()
    return highest.squeeze(-1).double() + terms.sum(-1, dtype=torch.float64).log()


CHUNK = 100
MOST_BYTES = 2**28
# Training has addresses of its own, so that no run by which a twist is measured has noise that it
# was trained on, whatever the seeds.
TRAINING_RUNS = 2**48


def draw_samples(
    target: Target,
    *,
    num_particles: int,
    proposal: Any,
    seed: int,
    run: int,
    observed: Int[Tensor, "runs width"] | None = None,
    keep_answers: bool = True,
    twist: Any = None,
    others: int = 0,
) -> Samples:
    """Independent weighted texts of a sweep without resampling, with the base model's answers.

    Args:
        target: what they are weighted for.
        num_particles: texts, or texts for each observation.
        proposal: where they are drawn from.
        seed: of the noise.
        run: address of the sweep among those of training, or of its first run where there are
            several.
        observed: one observation for each run, where the target waits for one; or None.
        keep_answers: whether the samples bring the base model's answers with them, which take
            room for the vocabulary at every token.
        twist: what learns from them; one with a tied head needs no more of these than their sums.
        others: tokens of q at each prefix that such sums keep, for steps after the first.
    """
    # Of the sigmoid the gradient also takes psi of all tokens: it is read when it is wanted.
    tied = twist if twist is not None and as_twist(twist).is_tied and twist.link == "log" else None
    session = start_smc(
        target,
        num_particles=num_particles,
        proposal=proposal,
        rule="never",
        seed=seed,
        first_run=TRAINING_RUNS + run,
        dead_runs="keep",
        observed=observed,
    )
    config = session.config
    state, records, answers = init(target, config), [], []
    generator = torch.Generator(target.prompt_tokens.device)
    generator.manual_seed((seed * 1_000_003 + run) % 2**63)
    while state.t < target.num_steps:
        if keep_answers:
            # Without resampling particle k at step t is particle k of every later step.
            rows = state.rows.reshape(-1)
            answers.append(_answers(state.steps, rows, tied, others, generator))
        state, record = step(state, target, config)
        records.append(record)
    trace = SMCTrace.from_records(tuple(records), target, config)
    samples = Samples.of_trace(trace).to(target.prompt_tokens.device)
    if not keep_answers:
        return samples
    columns = [
        None if parts[0] is None else torch.stack(parts, dim=1)
        for parts in zip(*answers, strict=True)
    ]
    hidden = columns[0]
    if tied is None:
        return replace(samples, base=TeacherForced(columns[1], hidden))
    log_p = trace.paths("log_p").reshape(samples.tokens.shape).to(samples.tokens.device)
    inputs = twist.inputs(target.after_prompt(samples.tokens), len(target.prompt_tokens), hidden)
    with torch.no_grad():
        was = twist.head.direction(inputs)
    return replace(samples, sums=TokenSums(inputs, log_p, samples.log_q, was, *columns[1:]))


@torch.no_grad()
def _answers(
    steps: PrefixSteps, rows: Int[Tensor, " n"], tied: Any, others: int, generator: torch.Generator
) -> tuple[Tensor | None, ...]:
    """Hidden state of each sequence; and log p0 of all tokens, or of a tied q mean and tokens."""
    hidden = None if steps.lm.hidden is None else steps.lm.hidden[rows]
    if tied is None:
        return hidden, steps.lm.log_probs[rows]
    if steps.proposal.log_q_next is steps.lm.log_probs:
        return hidden, None, None
    means, drawn = [], []
    for _, _, log_q, _ in steps.parts():
        q = log_q.exp()
        means.append(tied.head.mean_embedding(q))
        if others:
            drawn.append(torch.multinomial(q, others, replacement=True, generator=generator))
    return hidden, torch.cat(means)[rows], torch.cat(drawn)[rows] if others else None


class PoolReader:
    """Cache of the base model's answers along the texts of a pool, in chunks of fixed rows.

    An answer depends on the pool alone and not on earlier requests, so that resumed training finds
    the same bytes.

    Args:
        target: gives model and prompt.
        most_bytes: a pool whose answers would take more is read again each time.
    """

    def __init__(self, target: Target, *, most_bytes: int = MOST_BYTES) -> None:
        self.target, self.most_bytes = target, most_bytes
        self._chunks: dict[int, tuple[Tensor, TeacherForced]] = {}

    def answers(self, samples: Samples, pool: Int[Tensor, "size steps"]) -> Samples:
        """The samples with the base model's answers, where they come from rows of the pool."""
        if samples.base is not None or samples.places is None or not self._fits(pool):
            return samples
        places = samples.places.to(pool.device)
        chunks, chunk = torch.unique(places // CHUNK, return_inverse=True)
        found = [self._chunk(index, pool) for index in chunks.tolist()]

        def gather(parts: list[Tensor]) -> Tensor:
            gathered = parts[0].new_empty(len(places), *parts[0].shape[1:])
            for index, part in enumerate(parts):
                rows = (chunk == index).nonzero().squeeze(1)
                gathered[rows] = part[places[rows] % CHUNK]
            return gathered

        hidden = None if found[0].hidden is None else gather([each.hidden for each in found])
        base = TeacherForced(gather([each.log_probs for each in found]), hidden)
        return replace(samples, base=base)

    def _chunk(self, index: int, pool: Tensor) -> TeacherForced:
        tokens = pool[index * CHUNK : (index + 1) * CHUNK]
        known, answers = self._chunks.get(index, (None, None))
        if answers is None or not torch.equal(known, tokens):
            answers = read(self.target, tokens)
            self._chunks[index] = (tokens, answers)
        return answers

    def _fits(self, pool: Tensor) -> bool:
        return 4 * pool.numel() * self.target.lm.vocab_size <= self.most_bytes
