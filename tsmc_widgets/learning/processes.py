"""Training on several processes (GPUs): each draws its own sequences, gradients are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Shared = TypeVar("Shared")


class Processes:
    """The processes of an ``accelerate.Accelerator``, or this one alone where there is none.

    Noise is keyed by address: process r of P takes the runs whose address is r modulo P. Weights
    are normalised within each process and gradients averaged over those with a signal, so that P
    processes learn what one would from a batch of P groups.

    Attributes:
        rank: of this process.
        count: of processes.
        is_main: whether this process writes files and bars.
    """

    rank, count, is_main = 0, 1, True

    def __init__(self, accelerator: Any = None) -> None:
        """Take an accelerator, whose mixed precision must be off: weights need all their digits."""
        self.accelerator = accelerator
        if accelerator is None:
            return
        names = ("process_index", "num_processes", "is_main_process", "device", "reduce")
        missing = [name for name in names if not hasattr(accelerator, name)]
        if missing:
            raise TypeError(
                f"accelerator must be an accelerate.Accelerator; got {type(accelerator).__name__}, "
                f"which lacks {', '.join(missing)}."
            )
        precision = getattr(accelerator, "mixed_precision", "no")
        if precision != "no":
            raise ValueError(
                f"mixed_precision must be 'no', as log weights need all their digits; got "
                f"{precision!r}. If the base model must be small, load it in half precision."
            )
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process

    def place(self, modules: nn.Module, device: torch.device) -> None:
        """Move the modules to this process's device, with the main process's values.

        Raises:
            ValueError: the base model is on another device.
        """
        if self.accelerator is None:
            return
        ours = self.accelerator.device
        if (device.type, device.index or 0) != (ours.type, ours.index or 0):
            raise ValueError(
                f"the base model is on {device} and this process of accelerate has {ours}: load it "
                "with device=accelerator.device."
            )
        modules.to(ours)
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in (*modules.parameters(), *modules.buffers()):
                tensor.copy_(broadcast(tensor.detach().clone()))

    def prepare(self, optimiser: Any) -> Any:
        """The optimiser, placed and wrapped by accelerate."""
        return optimiser if self.accelerator is None else self.accelerator.prepare(optimiser)

    def average_gradients(
        self, parameters: Iterable[nn.Parameter], *, signal: bool, finite: bool
    ) -> tuple[bool, bool]:
        """Average gradients over the processes that found a signal.

        Every process must call this as often as the others.

        Returns:
            Whether any process found a signal, and whether all losses are finite.
        """
        if self.count == 1:
            return signal, finite
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in learned:
            if not signal or not finite or parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flags = torch.tensor([float(signal), float(not finite)], dtype=torch.float64)
        flags = self._sum(flags.to(learned[0].device))
        num_with_signal, broken = float(flags[0]), bool(flags[1] > 0)
        # In the same order on every process: reductions are matched by order.
        for kind in sorted({parameter.dtype for parameter in learned}, key=str):
            self._average([p for p in learned if p.dtype == kind], max(1.0, num_with_signal))
        return num_with_signal > 0, not broken

    def mean(self, value: float) -> float:
        """Mean over processes."""
        if self.accelerator is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return float(self._sum(tensor)) / self.count

    def merge(self, update: Any) -> Any:
        """One update of all processes' own: means, hits added up."""
        updates = self.gather(update)
        if len(updates) == 1:
            return update
        losses = [each.losses for each in updates if each.losses]
        names = losses[0] if losses else ()
        return replace(
            update,
            losses={name: _mean(each[name] for each in losses) for name in names},
            ess=_mean(each.ess for each in updates),
            log_z=_mean(each.log_z for each in updates),
            hits=sum(each.hits for each in updates),
            skipped=all(each.skipped for each in updates),
            seconds=max(each.seconds for each in updates),
        )

    def gather(self, value: Shared) -> list[Shared]:
        """The values of all processes, by rank."""
        if self.accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def from_main(self, make: Any) -> Any:
        """What ``make()`` gives on the main process."""
        if self.accelerator is None:
            return make()
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([make() if self.is_main else None])[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _average(self, parameters: list[nn.Parameter], num_with_signal: float) -> None:
        # All at once: one message for each step and not one for each tensor.
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])
        parts = (self._sum(flat) / num_with_signal).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad.copy_(part.reshape(parameter.shape))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)
