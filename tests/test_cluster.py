"A study on the processes of a local dask cluster."
import os
import signal
import threading

import pytest
from conftest import wait_until
from typer.testing import CliRunner

from pareto_energy.energy.meter import MeterError
from pareto_energy.run.study import FamilyStudy, run_study
from pareto_energy.front.log import read_log, read_trials

distributed = pytest.importorskip('distributed')


@pytest.fixture(scope='module')
def client():
    with distributed.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, resources=dict(meter=1), dashboard_address=None) as cluster, distributed.Client(cluster) as client: yield client


def outcome(trials): return {t.key: (t.configuration, t.status, t.run['utility'], t.run['joules']) for t in trials}


def test_a_cluster_finds_what_one_machine_finds_although_a_worker_is_killed(home, smoke, client):
    parameters = smoke | dict(strategies=['random', 'sobol'])
    alone, study = run_study(FamilyStudy('alone', **parameters)), FamilyStudy('shared', **parameters)
    pids, killed = client.run(os.getpid), []

    def kill():
        wait_until(lambda: study.log_path.exists() and study.log_path.read_text().count('"finished"') >= 4, 'four trials in the log')
        killed.append(next(iter(pids.values())))
        os.kill(killed[0], signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()
    together = run_study(study, client=client)
    assert killed and outcome(together) == outcome(alone) and len(together) == 32 and not read_log(study.log_path).damage
    assert sum(len(t.retrained) for t in together) == sum(len(t.retrained) for t in alone)


def test_what_kills_two_workers_is_a_failed_trial(home, smoke, client, monkeypatch):
    def deadly(name, family, configuration, epochs, seed, *args, **kwargs):
        import os
        from pareto_energy.run.tasks import train_family
        return os._exit(1) if seed == 0 else train_family(name, family, configuration, epochs, seed, *args, **kwargs)
    monkeypatch.setattr('pareto_energy.run.study.FamilyStudy.training', staticmethod(deadly))
    study = FamilyStudy('deadly', **smoke | dict(strategies=['random'], families=['logistic'], trials=1, n_initial=1))
    first, second = run_study(study, client=client)
    assert (first.status, first.reason, second.status) == ('failed', 'two workers died of it, one after the other', 'finished')


def test_trials_that_run_at_once_are_told_apart(home, smoke, client):
    study = FamilyStudy('asked', **smoke | dict(strategies=['trajectory', 'qlognehvi'], families=['logistic'], seeds=[0], trials=6))
    trials = run_study(study, client=client)
    for strategy in study.strategies:
        mine = [str(t.configuration) for t in trials if t.strategy == strategy]
        assert len(mine) == len(set(mine)) == 6


def test_workers_of_different_machines_are_refused(home, smoke, client, monkeypatch):
    def source(protocol): return 'simulated', f'machine {os.getpid()}'
    monkeypatch.setattr('pareto_energy.run.study.label_and_machine', source)
    study = FamilyStudy('mixed', **smoke)
    with pytest.raises(ValueError, match='The workers of the cluster differ'): run_study(study, client=client)
    assert not read_trials(study.log_path)


@pytest.fixture
def two_kinds(client):
    """Makes one of the workers another machine, which takes twice the joules."""
    def make(kind):
        from pareto_energy.energy.meter import SimulatedMeter
        from pareto_energy.energy.calibration import calibrated_meter
        calibrated_meter.cache_clear()
        SimulatedMeter.machine_id, joules = dict(thrifty=('a thrifty machine', 1e-8), hungry=('a hungry machine', 2e-8), simulated=('simulated', 1e-8))[kind]
        SimulatedMeter.end = lambda self: dict(cpu=joules*self.work)
    first, *others = client.scheduler_info(n_workers=-1)['workers']
    client.run(make, 'hungry', workers=[first]), client.run(make, 'thrifty', workers=others)
    yield
    client.run(make, 'simulated')


def test_machines_that_are_kept_apart_have_a_study_each(home, smoke, client, two_kinds):
    parameters = smoke | dict(strategies=['random'], families=['logistic'], seeds=[0])
    hungry, thrifty = sorted(FamilyStudy('apart', **parameters, machine_policy='per-machine').run(client=client), key=lambda study: study.study)
    assert (hungry.study, thrifty.study) == ('apart/a-hungry-machine', 'apart/a-thrifty-machine')
    twice, once = (read_trials(study.log_path) for study in (hungry, thrifty))
    assert list(twice) == list(once) and {t.machine_id for t in twice.values()} == {'a hungry machine'}
    for key, t in once.items(): assert twice[key].run['joules'] == pytest.approx([2*j for j in t.run['joules']])


def test_machines_that_are_calibrated_find_what_one_finds(home, smoke, client, two_kinds):
    parameters = smoke | dict(strategies=['random', 'trajectory'])
    alone, study = run_study(FamilyStudy('alone', **parameters)), FamilyStudy('calibrated', **parameters, machine_policy='calibrated')
    together = read_trials(study.run(client=client).log_path)
    factor = {'a thrifty machine': 1., 'a hungry machine': 2.}[study.base.machine_id]
    assert {(t.label, t.machine_id) for t in together.values()} == {('simulated, calibrated', study.base.machine_id)}
    for t in alone: assert together[t.key].run['joules'] == pytest.approx([factor*j for j in t.run['joules']]) if t.strategy == 'random' else together[t.key].status == 'finished'


@pytest.fixture
def limited_workers(client):
    "Gives each worker a GPU by formula, whose driver takes 200 to 700 W; one of them refuses, where that is asked for."
    def make(refuses, home):
        import sys
        import types
        from pathlib import Path
        from pareto_energy.energy.counters import METERS, get_meter
        from pareto_energy.energy.meter import SimulatedMeter

        class Driver:
            class NVMLError(Exception): pass
            watts = 700.
            def nvmlDeviceGetPowerManagementLimit(self, handle): return round(1000*self.watts)
            def nvmlDeviceSetPowerManagementLimit(self, handle, milliwatts):
                if refuses or milliwatts < 200_000: raise self.NVMLError('Insufficient Permissions')
                self.watts = milliwatts/1000
                with (Path(home)/'watts.txt').open('a') as file: file.write(f'{self.watts:g}\n')

        class OnGpu(SimulatedMeter):
            counters = [types.SimpleNamespace(source='nvml', device=types.SimpleNamespace(gpu_index=0, handle=0))]
        sys.modules['pynvml'], METERS['limited'] = Driver(), lambda device: OnGpu()
        get_meter.cache_clear()
    yield make
    client.run(lambda: __import__('sys').modules.pop('pynvml', None))


def watts_of_workers(client): return [*client.run(lambda: __import__('sys').modules['pynvml'].watts).values()]


def test_power_limits_are_tried_on_each_worker_first_and_put_back(home, smoke, client, limited_workers, monkeypatch):
    from pareto_energy.energy.counters import METERS
    from pareto_energy.energy.meter import SimulatedMeter
    monkeypatch.setitem(METERS, 'limited', lambda device: SimulatedMeter()) # this process trains nothing
    client.run(limited_workers, False, str(home))
    limited = smoke | dict(meter='limited', families=['logistic'], strategies=['random'], seeds=[0], ranges=dict(logistic=dict(gpu_power_limit=[300, 500])))
    trials = run_study(FamilyStudy('limits', **limited), client=client)
    told = (home/'watts.txt').read_text().split()
    assert [t.status for t in trials] == ['finished']*4 and watts_of_workers(client) == [700.]*3
    assert sorted(told[:12]) == ['300']*3 + ['500']*3 + ['700']*6 and len(told) >= 12 + 2*4
    last = list(client.scheduler_info(n_workers=-1)['workers'])[-1]
    client.run(limited_workers, True, str(home), workers=[last])
    study = FamilyStudy('refused', **limited)
    with pytest.raises(MeterError, match=r'On .*: NVML refuses SetPowerManagementLimit\(700000\) on GPU 0 \(Insufficient Permissions\)'): run_study(study, client=client)
    assert not read_trials(study.log_path) and watts_of_workers(client)[:2] == [700.]*2


def test_a_cluster_without_a_meter_is_refused(home):
    from pareto_energy.run.executors import DaskExecutor
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        with pytest.raises(RuntimeError, match='No worker of the cluster offers a meter'): DaskExecutor(client)


def test_the_command_line_trains_on_a_cluster(home, smoke, client):
    from pareto_energy.cli import train_on_cluster
    study = FamilyStudy('commanded', **smoke | dict(families=['logistic'], strategies=['random'], seeds=[0]))
    train_on_cluster(study, client.scheduler.address)
    trials = read_trials(study.log_path)
    assert len(trials) == 4 and all(t.status == 'finished' for t in trials.values()) and any(t.retrained for t in trials.values())


def test_a_scheduler_that_is_not_there_is_named(home):
    from pareto_energy.cli import app
    answer = CliRunner().invoke(app, ['run', 'smoke', '--cluster', 'tcp://127.0.0.1:9'])
    assert answer.exit_code == 1 and answer.stderr.startswith('Error: ') and 'tcp://127.0.0.1:9' in answer.stderr and 'Traceback' not in answer.output
