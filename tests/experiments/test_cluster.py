"""The same call on a Dask cluster: a real scheduler and two worker processes over TCP."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from experiments.test_runs import QUICK, contents, toy

import tsmc_widgets as tw

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.slow,
    # The cluster's own threads and sockets are closed by its processes' end.
    pytest.mark.filterwarnings("default"),
]


def specs(count):
    kinds = [toy(seed=seed, measures=("bounds", "kl")) for seed in range(count)]
    kinds[0] = kinds[0].with_(method="ctl", training=QUICK)
    return kinds


@pytest.fixture
def cluster(tmp_path):
    """A client, and the processes of scheduler and workers."""
    address_file = str(tmp_path / "scheduler.json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    dask = [sys.executable, "-m", "dask"]
    local = ["--scheduler-file", address_file, "--no-dashboard"]
    processes = [
        subprocess.Popen(
            [*dask, "scheduler", "--host", "tcp://127.0.0.1", "--port", "0", *local], **quiet
        )
    ]
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        one = ["--nthreads", "1", "--no-nanny", "--name", name, "--local-directory", str(folder)]
        worker = [*dask, "worker", *one, "--host", "127.0.0.1", *local]
        processes.append(subprocess.Popen(worker, **quiet))
    client = distributed.Client(scheduler_file=address_file, timeout="60s")
    client.wait_for_workers(2, timeout=120)
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close()
        for process in reversed(processes):
            process.kill()
            process.wait()


def test_a_cluster_gives_the_same_bytes(cluster, tmp_path):
    assert all(address.startswith("tcp://127.0.0.1") for address in cluster.nthreads())
    for result in tw.map_runs(specs(4), cluster.get_executor(), tmp_path / "cluster"):
        result.raise_error()
    for result in tw.map_runs(specs(4), None, tmp_path / "serial"):
        result.raise_error()
    assert contents(tmp_path / "cluster") == contents(tmp_path / "serial")


def test_islands_on_a_cluster_are_one_batch(cluster):
    target = tw.load_problem("rainy-week").target()
    whole = tw.run_smc(target, num_particles=64, num_runs=5, rule="never", seed=1)
    spec = tw.RunSpec(problem="rainy-week", num_particles=64, num_runs=5, rule="never", seed=1)
    pooled = tw.run_islands(spec, 4, cluster.get_executor())
    assert (pooled.log_z - whole.log_z).abs().max() < 1e-12


def test_a_worker_killed_in_mid_sweep_loses_nothing(cluster, tmp_path):
    asked = specs(40)
    stream = tw.map_runs(asked, cluster.get_executor(), tmp_path / "runs")
    first = next(stream).raise_error()
    pids = cluster.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    # What the dead worker had begun is begun again by the other one.
    rest = [result.raise_error() for result in stream]
    assert {first.spec.key, *(result.spec.key for result in rest)} == {s.key for s in asked}
    assert len(cluster.nthreads()) == 1
    again = list(tw.map_runs(asked, None, tmp_path / "runs"))
    assert all(result.stored for result in again)


def test_cancel_on_a_cluster_keeps_what_is_done(cluster, tmp_path):
    stream = tw.map_runs(specs(40), cluster.get_executor(), tmp_path / "runs")
    first = next(stream)
    stream.cancel()
    rest = list(stream)
    stored = tw.ResultTable(tmp_path / "runs")
    assert {first.spec.key, *(result.spec.key for result in rest)} == set(stored.results)
    assert len(stored) < 40
