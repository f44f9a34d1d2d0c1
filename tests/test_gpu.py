"Training and metering on an NVIDIA GPU; skipped where there is none."
import math

import pytest
import torch

from pareto_energy.models.data import load_dataset
from pareto_energy.energy.meter import measure
from pareto_energy.energy.counters import get_meter
from pareto_energy.models.custom import train_loop
from pareto_energy.models.families import DEFAULTS
from pareto_energy.run.study import FamilyStudy, run_study
from pareto_energy.models.run import TrainingFailed
from pareto_energy.models.training import train
from pareto_energy.models.families import FAMILIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no NVIDIA GPU')
DEVICE = 'cuda'
NETS = [f for f in FAMILIES if f not in ('gbdt', 'gru')]


@pytest.fixture(scope='module')
def meter(): return get_meter('codecarbon', DEVICE)


def run(meter, family='mlp', device=DEVICE, **changes):
    return train(family, DEFAULTS[family] | changes, load_dataset('digits'), 3, 0, meter, repeats=1, device=device)


def test_the_counter_of_the_gpu_is_read(meter):
    a = torch.randn(2048, 2048, device=DEVICE)
    reading = measure(lambda: a @ a, meter, target_rel_se=.05)
    assert meter.sources['gpu'] == 'nvml' and torch.cuda.get_device_name() in meter.machine_id
    assert 0 < reading.se < .1*reading.joules and reading.parts['gpu'].joules > reading.parts['cpu'].joules


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('family', NETS)
def test_every_family_trains(meter, family, dtype):
    r = run(meter, family, dtype=dtype)
    assert len(r.utility) == 3 and r.utility[-1] > .2 and all(b > a > 0 for a, b in zip(r.joules, r.joules[1:]))
    assert r.sources['gpu'] == 'nvml' and math.isclose(r.parts['cpu'] + r.parts['gpu'], r.joules[-1], rel_tol=1e-6)


def test_the_gpu_learns_what_the_cpu_learns(meter):
    utilities = [run(get_meter('codecarbon', device), device=device).utility[-1] for device in ('cpu', DEVICE)]
    assert abs(utilities[0] - utilities[1]) < .05


def greedy(configuration, report):
    if configuration['greedy']: torch.empty(10**13, device=DEVICE)
    report(torch.ones(9, device=DEVICE).mean())


def test_too_little_memory_is_a_failed_training_and_the_next_one_runs(meter):
    with pytest.raises(TrainingFailed, match='OutOfMemoryError') as error: train_loop(greedy, dict(greedy=True), 1, 0, meter)
    assert error.value.spent > 0
    assert train_loop(greedy, dict(greedy=False), 1, 0, meter).utility == [1.]


def test_a_study_on_the_gpu(home, smoke):
    study = FamilyStudy('gpu', **smoke | dict(families=['mlp'], strategies=['trajectory'], seeds=[0], meter='codecarbon', device=DEVICE, deadline=60., max_seconds=1., front_points=1, fresh_seeds=1, ref_joules=1e4))
    trials = run_study(study)
    assert [t.status for t in trials] == ['finished']*4 and {s for t in trials for s in t.run['sources'].values()} == {'nvml', 'cpu_time', 'constant'}
    assert 'NVIDIA' in trials[0].machine_id and sum(len(t.retrained) for t in trials) == 1
    assert run_study(study) == trials
