"""What K texts of a method are worth and cost, samplers and searches in one format."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tsmc_widgets.evaluation.baselines import BaselineRun, run_baseline
from tsmc_widgets.evaluation.spec import RunSpec
from tsmc_widgets.evaluation.ways import Way
from tsmc_widgets.smc.proposals import Base
from tsmc_widgets.smc.resampling import Never
from tsmc_widgets.targets.target import Target

_NAMES = {"best-of-n": "best of n", "beam": "beam search", "rejection": "rejection"}


def text_rows(spec: RunSpec, target: Target, way: Way) -> list[dict[str, Any]]:
    """Rows of mean log phi, ESS, log Z and tokens read, for each K and way of the spec.

    Raises:
        ValueError: the target waits for an observation.
    """
    if target.is_conditional:
        raise ValueError(
            f"{target.potential.describe()} waits for an observation: 'texts' are measured of "
            "targets that wait for none."
        )
    rows = []
    for size in spec.num_particles:
        for name, rule, options in _runs(spec, way):
            found = run_baseline(name, target, num_samples=size, seed=spec.seed, **options)
            about = {"rule": rule, "num_particles": size, "num_runs": _count(found)}
            rows += [about | row for row in _numbers(found)]
    return rows


def _runs(spec: RunSpec, way: Way) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    if spec.method in _NAMES:
        limit = {"max_draws": spec.max_draws} if spec.method == "rejection" else {}
        yield _NAMES[spec.method], None, limit
        return
    options = {"num_runs": spec.num_runs}
    if way.twist is None and isinstance(way.proposal, Base):
        yield "p0, SIS", Never().describe(), options
        return
    twist = way.twist if way.twist is not None else way.proposal.twist
    for rule in way.rules:
        never = isinstance(rule, Never)
        if isinstance(way.proposal, Base):
            yield "p0, SMC", rule.describe(), options | {"twist": twist, "rule": rule}
        else:
            name = "twist, SIS" if never else "twist, SMC"
            more = {} if never else {"rule": rule}
            yield name, rule.describe(), options | {"twist": twist, **more}


def _numbers(found: BaselineRun) -> Iterator[dict[str, Any]]:
    remark = found.note
    yield {"quantity": "mean log φ of texts", "kind": "estimate", "value": found.mean_log_phi,
           "source": found.samples_from, "remark": remark}  # fmt: skip
    yield {"quantity": "ESS of texts", "value": found.ess, "remark": remark}
    yield {
        "quantity": "log Z by texts",
        "kind": found.log_z_kind,
        "value": math.nan if found.log_z is None else found.log_z,
        "standard_error": found.log_z_standard_error,
        "remark": remark,
    }
    yield {"quantity": "forward tokens", "kind": "count", "value": float(found.forward_tokens)}


def _count(found: BaselineRun) -> int:
    return int(found.group.max()) + 1 if len(found.group) else 0
