"""Sequential Monte Carlo: forward, conditional and exact."""

from tsmc_widgets.smc.api import SMCSession, run_conditional_smc, run_smc, start_smc
from tsmc_widgets.smc.exact import ChainOracle, EnumeratedOracle, Oracle, exact
from tsmc_widgets.smc.memory import allow_memory
from tsmc_widgets.smc.noise import AddressedNoise, Noise
from tsmc_widgets.smc.proposals import Base, ModelProposal, Proposal, ProposalStep, TwistInduced
from tsmc_widgets.smc.resampling import Always, ESSBelow, EveryNSteps, Never, ResampleRule
from tsmc_widgets.smc.sampler import init, step
from tsmc_widgets.smc.state import SMCConfig, SMCState, StepRecord
from tsmc_widgets.smc.trace import SMCTrace, TraceColumns, TraceInfo

__all__ = [
    "AddressedNoise",
    "Always",
    "Base",
    "ChainOracle",
    "ESSBelow",
    "EnumeratedOracle",
    "EveryNSteps",
    "ModelProposal",
    "Never",
    "Noise",
    "Oracle",
    "Proposal",
    "ProposalStep",
    "ResampleRule",
    "SMCConfig",
    "SMCSession",
    "SMCState",
    "SMCTrace",
    "StepRecord",
    "TraceColumns",
    "TraceInfo",
    "TwistInduced",
    "allow_memory",
    "exact",
    "init",
    "run_conditional_smc",
    "run_smc",
    "start_smc",
    "step",
]
