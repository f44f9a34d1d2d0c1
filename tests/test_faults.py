"Faults that are caused: each becomes a record or a clear error, and nothing measured is lost."
import ctypes
import json
import math
import os
import random
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pareto_energy.energy.meter import MeterError, SimulatedMeter
from pareto_energy.run.study import FamilyStudy, run_study
from pareto_energy.front.log import CHECKSUM_SUFFIX, KEY, SCHEMA, Origin, RefPoint, TrialLog, read_log, read_trials, encode_line, decode_line
from pareto_energy.run.tasks import train_family

ONE = dict(families=['logistic'], strategies=['random'], fresh_seeds=1, front_points=1, trials=1, n_initial=1)
CLAIM = dict(configuration=dict(lr=.1), origin=Origin(source='random', joules=0.), label='simulated', machine_id='simulated')


def hang():
    end = time.monotonic() + 120 # without a deadline of its own, the run returns
    while time.monotonic() < end: pass


def leave(): os._exit(3)
def segfault(): ctypes.string_at(0)
def fill(): return [bytearray(10**8) for _ in range(1000)]
def divide(): return 1/0


FAULTS = (divide, hang, leave, segfault, fill)


def faulty(name, family, configuration, epochs, seed, *args, **kwargs):
    "Each seed its own fault; the last one and fresh ones train."
    from pareto_energy.models.run import TrainingFailed
    if seed >= len(FAULTS): return train_family(name, family, configuration, epochs, seed, *args, **kwargs)
    try: FAULTS[seed]()
    except Exception as e: raise TrainingFailed(f'{type(e).__name__}: {e}', 1.) from e


def test_a_training_that_takes_its_process_down_is_a_failed_trial(home, smoke, monkeypatch):
    monkeypatch.setattr('pareto_energy.run.study.FamilyStudy.training', staticmethod(faulty))
    trials = run_study(FamilyStudy('faults', **smoke | ONE | dict(seeds=list(range(6)), deadline=.5, max_seconds=.5, max_memory_gb=.3)))
    assert [t.status for t in trials] == ['failed']*5 + ['finished'], trials[-1].reason
    assert all(t.attempts == 1 for t in trials)
    for t, said in zip(trials, ('ZeroDivisionError', 'took longer than 12 s and was stopped in hang', 'EXIT(3)', 'SIGSEGV', 'MemoryError')): assert said in t.reason


def test_what_a_dead_child_took_is_read_by_its_parent():
    from pareto_energy.energy.counters import open_meter
    from pareto_energy.run.executors import SubprocessExecutor
    with SubprocessExecutor(int, seconds=1, meter=open_meter('codecarbon')) as child:
        child.ready()
        whole = open_meter('codecarbon')
        whole.begin()
        why = child.submit(hang).exception()
        assert 'stopped in hang' in why.reason and 1. < why.spent < sum(whole.end().values())


@pytest.fixture
def forget_meters():
    "Meters that a test puts in their place are opened anew, and forgotten at its end."
    from pareto_energy.energy.counters import get_meter
    yield get_meter.cache_clear
    get_meter.cache_clear()


class Vanishing(SimulatedMeter):
    "A meter that is pulled out while it reads."
    reads = 0

    def end(self):
        Vanishing.reads += 1
        if 20 < Vanishing.reads < 24: raise MeterError('The counter can no longer be read.')
        return super().end()


def test_a_meter_that_disappears_stops_the_study_and_blames_no_configuration(home, smoke, monkeypatch, forget_meters):
    from pareto_energy.energy import counters
    parameters = smoke | dict(families=['logistic'], strategies=['random'])
    whole = run_study(FamilyStudy('whole', **parameters))
    monkeypatch.setitem(counters.METERS, 'simulated', lambda device: Vanishing())
    forget_meters()
    study, stops = FamilyStudy('vanishing', **parameters), 0
    while stops < 10:
        try: trials = run_study(study)
        except MeterError: stops += 1
        else: break
    assert 0 < stops < 10 and b'"interrupted"' in study.log_path.read_bytes()
    same = lambda trials: [(t.key, t.status, t.configuration, t.run['joules'], t.attempts) for t in trials]
    assert same(trials) == same(whole)


def test_a_wall_clock_that_is_set_back_changes_nothing(home, smoke, monkeypatch):
    from pareto_energy.models.data import load_dataset
    from pareto_energy.run.study import StudyStopped
    from pareto_energy.models.training import train
    parameters = smoke | dict(families=['logistic'], strategies=['trajectory'], seeds=[0])
    outcome = lambda name: [(t.status, t.configuration, t.run['joules']) for t in run_study(FamilyStudy(name, **parameters))]
    before, now = outcome('before'), [time.time()]
    configuration = before[0][1]

    def earlier():
        now[0] -= 100
        return now[0]
    monkeypatch.setattr(time, 'time', earlier)
    assert outcome('after') == before
    run = train('logistic', configuration, load_dataset('digits'), 2000, 0, SimulatedMeter(), repeats=1, deadline=.05)
    assert len(run.utility) < 2000, 'the deadline of a run holds'
    assert run.seconds > 0 and run.cpu_seconds > 0
    with pytest.raises(StudyStopped): run_study(FamilyStudy('hours', **parameters, max_hours=1e-9))


class CpuClock:
    "The CPU time of this process, which falls back by 100 s once, at the fifth reading after `countdown` is set."
    def __init__(self): self.read, self.countdown, self.lag = time.process_time, math.inf, 0.

    def __call__(self):
        self.countdown -= 1
        if self.countdown == 0: self.lag = 100.
        return self.read() - self.lag


def test_a_cpu_clock_that_goes_backwards_stops_the_study_and_blames_no_configuration(home, smoke, tmp_path, monkeypatch, forget_meters):
    from pareto_energy.energy import counters
    clock, trained = CpuClock(), []

    def train_while_clock_falls_back(*args, **kwargs):
        trained.append(args[4])
        if len(trained) == 2: clock.countdown = 5
        return train_family(*args, **kwargs)
    monkeypatch.setattr(time, 'process_time', clock)
    monkeypatch.setattr('pareto_energy.run.study.FamilyStudy.training', staticmethod(train_while_clock_falls_back))
    monkeypatch.setitem(counters.METERS, 'simulated', lambda device: counters.CodeCarbonMeter(powercap=tmp_path/'no-counter'))
    forget_meters()
    study = FamilyStudy('fallen', **smoke | ONE | dict(seeds=[0], trials=3))
    with pytest.raises(MeterError, match='The cpu_time counter of the cpu went backwards'): run_study(study)
    assert [t.status for t in read_trials(study.log_path).values()] == ['finished', 'started']
    trials = run_study(study)
    assert [t.status for t in trials] == ['finished']*3 and min(t.run['joules'][0] for t in trials) > 0


FULL = '''
import json, os, sys, warnings
from pareto_energy.run.study import FamilyStudy, run_study
study = FamilyStudy(**json.loads(sys.argv[1]))
folder = study.log_path.parent
folder.mkdir(parents=True)
from pareto_energy.front.log import TrialLog
append, ends = TrialLog.append, []
def filled(self, event, *args, **fields):
    ends.extend([event] if event in ("finished", "failed") else [])
    if len(ends) == 2 and event == "finished":
        with open(folder/"others", "wb", buffering=0) as f:
            try:
                while True: f.write(bytes(4096))
            except OSError: pass
    return append(self, event, *args, **fields)
TrialLog.append = filled
try: run_study(study)
except OSError as e: print(e, flush=True)
os.remove(folder/"others")
TrialLog.append = append
print(len(run_study(study)))
'''


def small_disk(path, script, parameters, size='3m', after='true'):
    "Run a script whose home is a file system of its own."
    words = f'mount -t tmpfs -o size={size} none {path} && {after} && exec "$0" -c "$1" "$2"'
    return subprocess.run(['unshare', '-rm', 'sh', '-c', words, sys.executable, script, json.dumps(parameters)], env=os.environ | {'PARETO_ENERGY_HOME': str(path)}, capture_output=True, text=True, timeout=600)


mountable = pytest.mark.skipif(subprocess.run(['sh', '-c', 'unshare -rm true'], capture_output=True).returncode != 0, reason='no file system can be mounted here')


@mountable
def test_a_full_disk_loses_nothing(tmp_path, smoke):
    done = small_disk(tmp_path, FULL, smoke | dict(study='full', families=['logistic'], strategies=['random'], seeds=[0]))
    said, trials = done.stdout.splitlines()[:2] if done.stdout.count('\n') > 1 else (done.stderr, '')
    assert 'No space left on device). All that was measured is recorded' in said and trials == '4', done.stderr


@mountable
def test_a_read_only_folder_is_named(tmp_path, smoke):
    script = 'import json, sys; from pareto_energy.run.study import FamilyStudy, run_study; run_study(FamilyStudy(**json.loads(sys.argv[1])))'
    done = small_disk(tmp_path, script, smoke | dict(study='ro'), after=f'mount -o remount,ro {tmp_path}')
    assert done.returncode and 'Read-only file system' in done.stderr and 'PARETO_ENERGY_HOME' in done.stderr


def log_of(path, n=4):
    with TrialLog(path) as log:
        for i in range(n):
            key = ('digits', 'mlp', 'random', 0, i)
            log.append('started', key, **CLAIM)
            log.append('finished', key, run=dict(utility=[.5, .6], joules=[1. + i, 2. + i], se=[None, .1], repeats=1), spent=2. + i)
    return path.read_bytes()


def told(trials): return {k: (t.status, t.configuration, t.run.get('joules'), t.spent) for k, t in trials.items()}


def test_every_kind_of_damage_is_named_and_set_aside(tmp_path):
    path = tmp_path/'trials.jsonl'
    raw, truth = log_of(path), told(read_trials(path))
    lines = raw.splitlines(keepends=True)
    flipped = bytes([lines[3][60] ^ 4])
    harm = {'flipped': lines[:3] + [lines[3][:60] + flipped + lines[3][61:]] + lines[4:], 'doubled': lines[:4] + [lines[3]] + lines[4:], 'torn': lines + [lines[0][:50]],
            'cut': lines[:3] + [lines[3][:40] + b'\n'] + lines[4:], 'foreign': lines[:3] + [b'\xff\xfe\n', b'\n'] + lines[3:]}
    for name, parts in harm.items():
        path.write_bytes(b''.join(parts))
        with pytest.warns(UserWarning, match='In .*trials.jsonl, line [459] '), TrialLog(path) as log: kept = told(log.trials)
        assert {k: v for k, v in kept.items() if v[0] == 'finished'}.items() <= truth.items() and len(kept) == 4, name
        assert not read_log(path).damage
    asides = sorted(tmp_path.glob('trials.damaged-*.jsonl'), key=lambda p: int(p.stem.split('-')[1]))
    assert [p.read_bytes() for p in asides] == [b''.join(parts) for parts in harm.values()]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_no_trials(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp('log')/'trials.jsonl'
    assume(not raw.startswith(b'{"schema": 1, ')) # a log of an older version is refused as a whole
    path.write_bytes(raw)
    contents = read_log(path)
    assert not contents.trials and len(contents.damage) == raw.count(b'\n')


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_sealed_line_comes_back_or_is_refused(event):
    line = encode_line(event)
    assert decode_line(line) == event and b'\n' not in line


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries(dict(event=st.sampled_from(['started', 'finished', 'failed', 'retrained', 'search_end', 'interrupted', 'idle', 'x'])), optional={k: JSON for k in (*KEY, 'line', 'configuration', 'origin', 'label', 'machine_id', 'run', 'spent', 'reason', 'epoch', 'fresh_seed', 'joules')}))
def test_events_that_another_program_wrote_never_crash_the_reader(tmp_path_factory, event):
    path = tmp_path_factory.mktemp('log')/'trials.jsonl'
    path.write_bytes(encode_line(event | dict(schema=SCHEMA)) + b'\n')
    contents = read_log(path)
    assert len(contents.damage) + len(contents.trials) + len(contents.machine_events) == 1


def test_a_hundred_thousand_harmed_logs_tell_no_false_trial(tmp_path):
    from pareto_energy.front.log import LogState
    lines, rng, n, harmed = log_of(tmp_path/'trials.jsonl', 1).splitlines(), random.Random(0), 100_000, 0
    truth = told(read_trials(tmp_path/'trials.jsonl'))
    for _ in range(n):
        line = bytearray(rng.choice(lines))
        for _ in range(rng.randint(1, 3)):
            at, kind = rng.randrange(len(line)), rng.randrange(4)
            if kind == 0: line[at] ^= 1 << rng.randrange(8)
            elif kind == 1: del line[at:at + rng.randint(1, 9)]
            elif kind == 2: line[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 9)))
            else: line[at] = rng.randrange(256)
            if not line: line = bytearray(b'?')
        contents = LogState()
        contents.add(bytes(line))
        harmed += bool(contents.damage)
        assert all(told(contents.trials)[k] == truth[k] for k in contents.trials if contents.trials[k].status == 'finished')
    print(f'{harmed} of {n} harmed lines were refused, the others were unharmed')
    assert harmed > .98*n and len(CHECKSUM_SUFFIX % 0) == 22


NUMBERS = st.lists(st.tuples(st.sampled_from([0., .25, .5, .75, 1.]) | st.floats(0, 1), st.sampled_from([1e-6, 1., 10., 1e6]) | st.floats(1e-6, 1e6)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS)
def test_front_and_hypervolume_agree_with_brute_force(points):
    import pandas as pd
    from pareto_energy.front.pareto import pareto_front, hypervolume
    table = pd.DataFrame(points, columns=['utility', 'joules'])
    score = [(u, -math.log10(j)) for u, j in points]
    dominated = lambda a: any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in score)
    best = pareto_front(table)
    assert {(u, -math.log10(j)) for u, j in zip(best.utility, best.joules)} == {a for a in score if not dominated(a)}
    ref_point = RefPoint(utility=0., joules=1e7)
    xs = sorted({0., *(u for u, _ in score)})
    area = sum((right - left)*max((7 + b for u, b in score if u >= right), default=0.) for left, right in zip(xs, xs[1:]))
    assert math.isclose(hypervolume(table, ref_point), area, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(hypervolume(best, ref_point), area, rel_tol=1e-9, abs_tol=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_configurations_survive_encoding(data):
    from pareto_energy.models.space import Categorical, Float, Int, Ordinal, Space, from_unit
    low = data.draw(st.floats(1e-6, 1e3))
    whole = data.draw(st.integers(1, 500))
    space = Space(a=Float(low, low*data.draw(st.floats(1.01, 1e4)), log=data.draw(st.booleans())), b=Int(whole, whole + data.draw(st.integers(1, 500)), log=data.draw(st.booleans())), c=Categorical(data.draw(st.lists(st.text(), min_size=2, max_size=5, unique=True))), d=Ordinal([1, 2, 4]))
    configuration = from_unit(space, data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4)))
    again = space.decode(space.encode(configuration))
    assert (space.encode(configuration) >= 0).all() and (space.encode(configuration) <= space.upper + 1e-9).all()
    assert {k: again[k] for k in 'bcd'} == {k: configuration[k] for k in 'bcd'} and math.isclose(again['a'], configuration['a'], rel_tol=1e-9)


def degenerate():
    "Logs that a surrogate can't be expected to like."
    import numpy as np
    rng = np.random.default_rng(0)
    spread = lambda n: np.geomspace(1e-6, 1e6, n)
    yield 'one trial', [.5], [1.]
    yield 'all equal', [.5]*8, [1.]*8
    yield 'at the ends', [0., 1., 0., 1., 1., 0.], [1., 1., 2., 2., 3., 3.]
    yield 'twelve decades', list(rng.uniform(size=8)), list(spread(8))
    yield 'all failed', [None]*8, [1.]*8
    yield 'the same configuration', [.1, .2, .3, .4, .5, .6], [1.]*6
    yield 'noise that is no number', list(rng.uniform(size=8)), list(rng.uniform(1, 2, size=8))


@pytest.mark.parametrize('strategy', ['trajectory', 'qlognehvi', 'qlogparego', 'nsga2'])
@pytest.mark.parametrize('name, utility, joules', list(degenerate()))
def test_degenerate_logs_never_kill_a_study(strategy, name, utility, joules):
    from pareto_energy.search.strategies import SearchTask
    from pareto_energy.models.space import Categorical, Float, Space, sobol_points
    from pareto_energy.search.trajectory import STRATEGIES
    from pareto_energy.front.log import Trial
    space = Space(lr=Float(1e-4, 1e-1, log=True), optimiser=Categorical(['adam', 'sgd']))
    configurations = sobol_points(space, 8) if name != 'the same configuration' else sobol_points(space, 1)*8
    noise = dict(se=[math.nan]*2, repeats=2) if name == 'noise that is no number' else dict(se=[None]*2, repeats=1)
    trials = [Trial('digits', 'mlp', strategy, 0, n, c, Origin('sobol'), 'simulated', 'simulated', 'failed' if u is None else 'finished', {} if u is None else dict(utility=[u/2, u], joules=[j/2, j], **noise), spent=j)
              for n, (c, u, j) in enumerate(zip(configurations, utility, joules))]
    suggestion = STRATEGIES[strategy](SearchTask(space, 1, 2, RefPoint(utility=0., joules=1e7)), trials, 0)
    assert set(suggestion.configuration) == {'lr', 'optimiser'} and suggestion.source.split(':')[0] in (strategy, 'sobol')
