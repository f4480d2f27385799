"""Runs that would not fit the memory are refused before they begin; lost memory loses no step."""

import math
import subprocess
import sys

import pytest
import torch
from learning.trainers import make_trainer
from smc.toys import differing, eos_target

import tsmc_widgets as tw
from tsmc_widgets.errors import MemoryLimitError
from tsmc_widgets.evaluation import log_z_bounds
from tsmc_widgets.evaluation.baselines import run_baseline
from tsmc_widgets.smc import memory

HUGE = 10**12
CALLS = {
    "run": lambda target: tw.run_smc(target, num_particles=HUGE),
    "runs": lambda target: tw.run_smc(target, num_particles=10**5, num_runs=10**7),
    "conditional": lambda target: tw.run_conditional_smc(
        target, retained=torch.tensor([[0, 1, 0, 1]]), num_particles=HUGE
    ),
    "bounds": lambda target: log_z_bounds(target, num_particles=HUGE, num_runs=2),
    "oracle": lambda target: tw.exact(target).trace(HUGE),
    "sampler": lambda target: run_baseline("p0, SIS", target, num_samples=HUGE),
    "beam": lambda target: run_baseline("beam", target, num_samples=HUGE),
    "training": lambda target: make_trainer(batch_size=HUGE),
    "spec": lambda target: tw.execute(tw.RunSpec(problem="rainy-week", num_particles=HUGE)),
}


@pytest.mark.parametrize("name", CALLS)
def test_too_much_is_refused(name):
    with pytest.raises(MemoryLimitError, match=r"This may take [\d,.]+ GB .*Lower .* allow more"):
        CALLS[name](eos_target(4))


def test_limits_that_are_given():
    def run(**options):
        return tw.run_smc(eos_target(4), num_particles=5, **options)

    with pytest.raises(MemoryLimitError, match=r"may take 0\.0 MB, the limit that was given"):
        run(memory_limit=1000)
    with tw.allow_memory(1000), pytest.raises(MemoryLimitError):
        tw.run_smc(eos_target(4), num_particles=10**5)
    with tw.allow_memory(1000):
        assert differing(run(memory_limit=math.inf), run()) == []
    session = tw.start_smc(eos_target(4), num_particles=5, memory_limit=10**8)
    whole = session.run()
    session.rewind(2)
    assert differing(session.run(), whole) == []
    spec = tw.RunSpec(problem="rainy-week", memory_limit=5)
    assert spec.key == spec.with_(memory_limit=None).key
    assert tw.RunSpec.from_json(spec.to_json()).memory_limit == 5


def test_what_a_control_group_leaves(tmp_path):
    own, group = tmp_path / "own", tmp_path / "a" / "b"
    group.mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert memory.cgroup_free(tmp_path, own) == math.inf
    for folder, most in ((group, "max"), (group.parent, "1000")):
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text("900")
        (folder / "memory.stat").write_text("file 700\ninactive_file 600\n")
    assert memory.cgroup_free(tmp_path, own) == 700


ENDS = """
import torch, tsmc_widgets as tw
from tsmc_widgets.smc.trace import TraceColumns

lm = tw.TabularLM.markov([0.7, 0.3], [[0.7, 0.3], [0.5, 0.5]], symbols="ab")
target = tw.Target(lm, tw.ContainsToken("b"), prompt="a", num_steps=5)
whole = tw.run_smc(target, num_particles=4)
advance, stack, calls = tw.TabularLM.advance, TraceColumns.stack, []

def fails(*args):
    if len(args) == 2 or calls.append(1) or len(calls) == 3:
        raise MemoryError
    return advance(*args)

tw.TabularLM.advance = TraceColumns.stack = fails
try:
    tw.run_smc(target, num_particles=4)
except MemoryError as error:
    trace = error.trace
try:
    trace.columns.tokens
except MemoryError:
    print("no room")
TraceColumns.stack = stack
print(trace.steps_done)
print(torch.equal(trace.columns.log_weights, whole.columns.log_weights[:, :2]))
"""


def test_memory_that_ends_within_a_run_costs_no_step():
    # In a process of its own: the runtime type checks of tests look into every trace.
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["no room", "2", "True"], done.stderr


MEASURE = """
import pathlib, sys, torch, transformers
import tsmc_widgets as tw
from tsmc_widgets.smc import memory

def most():
    # Of getrusage, the largest resident size begins with the parent's.
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

particles, runs, steps, kind = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.manual_seed(0)
if kind == "storybook":
    lm, prompt = tw.load_language_model("storybook"), "one day"
else:
    config = transformers.LlamaConfig(
        vocab_size=50_000, hidden_size=96, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, intermediate_size=128, tie_word_embeddings=True,
    )
    lm, prompt = tw.HuggingFaceLM(transformers.LlamaForCausalLM(config)), [5, 6, 7]
target = tw.Target(lm, tw.Constant(), prompt=prompt, num_steps=steps)
twist = tw.LinearHeadTwist(lm) if kind == "twist" else None
options = {"twist": twist, "proposal": tw.TwistInduced() if twist else None}
tw.run_smc(target, num_particles=4, **options)
before = most()
session = tw.start_smc(target, num_particles=particles, num_runs=runs, **options)
needs, check = [], memory.check
memory.check = lambda need, *rest: needs.append(sum(need.values()))
session.run()
print(max(needs), most() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("particles", "runs", "steps", "kind"),
    [
        (2048, 1, 6, "storybook"),
        (64, 100, 12, "storybook"),
        (512, 1, 6, "llama"),
        (1500, 1, 20, "llama"),
        (512, 1, 6, "twist"),
    ],
)
def test_the_estimate_is_above_what_is_taken_and_not_far(particles, runs, steps, kind):
    given = [str(each) for each in (particles, runs, steps, kind)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *given], capture_output=True, text=True, check=True
    )
    need, taken = map(float, done.stdout.split())
    assert 0.8 * taken <= need <= 4 * taken + 2**28
