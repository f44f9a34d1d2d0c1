import importlib.util
import os
import subprocess
import tempfile
import time

import pytest

# a study that runs on this machine meanwhile keeps its lock, and the tests have one of their own
os.environ['PARETO_ENERGY_LOCK'] = f'{tempfile.gettempdir()}/pareto_energy-test-{os.getpid()}.lock'

from pareto_energy.energy.meter import SimulatedMeter # after the lock is set

SMOKE = dict(datasets=['digits'], families=['logistic', 'mlp'], strategies=['trajectory', 'random'], seeds=[0, 1], trials=4, n_initial=3,
             epochs=3, repeats=2, ref_joules=10., front_points=3, fresh_seeds=2, meter='simulated', deadline=None, ranges=dict(all=dict(threads=1)))


class CountingMeter(SimulatedMeter):
    "Reads the joules that a test adds to it."
    joules = 0.
    def begin(self): self.start = self.joules
    def finish(self, work): pass
    def end(self): return dict(cpu=self.joules - self.start)


def wait_until(condition, what, seconds=120., every=.01):
    "Wait for a condition; fail when it does not hold in time."
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline: pytest.fail(f'Waited {seconds:g} s in vain for {what}.')
        time.sleep(every)


def errors_of(process, seconds=600.):
    "Wait for a process to end and give its standard error; kill it, and fail, when it does not end in time."
    try: return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f'{process.args} did not end within {seconds:g} s; it wrote: {process.communicate()[1]}')


def need(*names):
    "Skip a test whose packages are missing; in CI they must be there."
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing: return
    reason = f"{', '.join(missing)}: not installed (pip install -c constraints.txt -e '.[integrations,keep,pretrained]')"
    if os.environ.get('CI') == 'true': pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope='session', autouse=True)
def no_compiler():
    "BoTorch 0.18 would compile a kernel of its own for Ax, which takes minutes and changes no number."
    from pareto_energy.search.strategies import _multi_objective
    _multi_objective()


@pytest.fixture
def offline(monkeypatch):
    "Other libraries ask no server."
    for name in ('HF_HUB_OFFLINE', 'HF_HUB_DISABLE_TELEMETRY', 'MLFLOW_DISABLE_TELEMETRY', 'DO_NOT_TRACK'): monkeypatch.setenv(name, '1')


@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty project folder for data, figures and runs."
    monkeypatch.setenv('PARETO_ENERGY_HOME', str(tmp_path))
    return tmp_path


@pytest.fixture
def smoke(): return dict(SMOKE)


def pytest_collection_modifyitems(items):
    "The whole book comes first: nothing else takes as long, and two processes share the tests."
    items.sort(key=lambda test: test.name != 'test_the_book_runs_and_resumes')
