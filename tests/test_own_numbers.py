"Numbers of a loop of one's own: searched and trained again, whoever does the work, wherever the program stands."
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from pareto_energy import Study
from pareto_energy.energy.counters import open_meter
from pareto_energy.front.log import read_trials
from pareto_energy.models.custom import train_loop

ROOT = Path(__file__).parents[1]

FEW = dict(trials=4, n_initial=3, epochs=10, fresh_seeds=2, front_points=2, meter='simulated', min_gain_per_cost=0.)


def good(epoch, x): return 1 - .9**epoch - .01*x


def each(configuration, epochs):
    for epoch in range(1, epochs + 1): yield good(epoch, configuration['x'])


def every_second(configuration, report, epochs):
    for epoch in range(1, epochs + 1):
        if epoch % 2 == 0: report(good(epoch, configuration['x']), epoch=epoch)


def irregular(configuration, report, epochs):
    for epoch in (1, 2, 5, 9): report(good(epoch, configuration['x']), epoch=epoch)


def once(configuration, epochs): return good(epochs, configuration['x'])


def early(configuration, epochs):
    for epoch in range(1, 4): yield good(epoch, configuration['x'])


@pytest.mark.parametrize('loop', [each, every_second, irregular, once, early])
def test_a_point_trained_again_is_the_point_that_was_searched(home, loop):
    "Whether a loop reports each epoch, every second one, irregularly, once or ends early."
    study = Study(loop, dict(x=(0., 1.)), 'epochs', strategies=['random'], **FEW).run()
    points = [(t, r) for t in study.trials_so_far for r in t.retrained]
    assert points
    for trial, again in points:
        n = trial.epochs.index(again['epoch'])
        assert again['utility'] == pytest.approx(trial.run['utility'][n])
        assert again['joules'] == pytest.approx(trial.run['joules'][n])
    assert ('ended by themselves before the 10 epochs that they were handed' in str(study)) == (loop in (once, early))


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass


def with_a_pool(configuration, epochs):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    with ProcessPoolExecutor(1, mp_context=get_context('fork')) as pool:
        for epoch in range(epochs):
            if epoch < 2: spin(.5)
            else: pool.submit(spin, .5).result()
            yield .5 + .01*epoch


def with_a_pool_that_evaluates(configuration, epochs):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    with ProcessPoolExecutor(1, mp_context=get_context('fork')) as pool:
        def evaluate():
            pool.submit(spin, 1.).result()
            return .5
        for _ in range(epochs):
            spin(.25)
            yield evaluate


@pytest.mark.parametrize('loop, seconds', [(with_a_pool, .5), (with_a_pool_that_evaluates, .25)])
def test_work_of_other_processes_counts_in_the_epoch_that_it_was_done_in(loop, seconds):
    meter = open_meter()
    run = train_loop(loop, {}, 4, 0, meter)
    epochs = [b - a for a, b in zip([0., *run.joules], run.joules)]
    assert epochs == pytest.approx([meter.watts*seconds]*4, rel=.3)


def test_a_process_that_ends_while_it_is_looked_for_is_counted(monkeypatch):
    from pareto_energy.energy import meter
    ended = iter([0., .5, .5, .5]) # a thread waits for it between the first reading and the search for it
    monkeypatch.setattr(meter, '_ended_seconds', lambda: next(ended))
    monkeypatch.setattr(meter, 'has_children', lambda: False)
    assert meter.descendants_seconds() == .5


BURNS = 'import time\nwhile time.process_time() < .3: pass\nprint(flush=True)\ninput()'


@pytest.mark.skipif(sys.platform != 'linux', reason='lists of children are of Linux')
def test_a_thread_that_ends_while_children_are_looked_for_hides_none(monkeypatch):
    from pareto_energy.energy import meter
    list_folder = os.listdir
    ended_thread = lambda path: ['4194305', *list_folder(path)] if str(path).endswith('/task') else list_folder(path)
    monkeypatch.setattr(meter.os, 'listdir', ended_thread)
    before = meter.descendants_seconds()
    with subprocess.Popen([sys.executable, '-c', BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert meter.descendants_seconds() - before > .25
        child.communicate(b'\n')
    assert meter.descendants_seconds() - before > .25


def test_a_process_that_changes_its_parent_meanwhile_is_counted(monkeypatch):
    from pareto_energy.energy import meter
    child = SimpleNamespace(cpu_times=lambda: (.5, .25, 0., 0.))
    found = iter([[], [child], [child], [child]]) # the first search missed it
    monkeypatch.setattr(meter, '_ended_seconds', lambda: 1.)
    monkeypatch.setattr(meter, '_descendants', lambda: next(found))
    assert meter.descendants_seconds() == 1.75


WANDERS = '''
import os, tempfile
from pareto_energy import Study
def train(configuration, epochs):
    os.chdir(tempfile.mkdtemp())
    for epoch in range(epochs): yield .5 + configuration['x']/10
study = Study(train, dict(x=(0., 1.)), 'wanders', trials=3, n_initial=3, epochs=2, fresh_seeds=1, meter='simulated', min_gain_per_cost=0.).run()
print(len(study.trials_so_far), len(study.front), sorted(p.name for p in study.folder.iterdir() if p.is_file()))
'''


def test_a_training_that_changes_the_working_folder_loses_nothing(tmp_path):
    environment = os.environ | dict(HOME=str(tmp_path), PARETO_ENERGY_HOME='~/here')
    done = subprocess.run([sys.executable, '-c', WANDERS], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.startswith("3 1 ['front.csv', 'reference.json', 'study.json', 'trials.jsonl']"), done.stderr
    assert (tmp_path/'here/data/wanders/trials.jsonl').exists()


EXITS = '''
import os, sys
from pareto_energy import Study
def train(configuration, epochs):
    for epoch in range(epochs):
        if configuration['how'] == 'sys.exit': sys.exit(0)
        if configuration['how'] == 'os._exit': os._exit(3)
        if configuration['how'] == 'SystemExit': raise SystemExit
        yield .5 + epoch/100
ways = ['not at all', 'sys.exit', 'os._exit', 'SystemExit']
study = Study(train, dict(how=ways), 'exits', strategies=['grid'], trials=4, n_initial=1, epochs=2, fresh_seeds=1, meter='simulated', min_gain_per_cost=0., enqueued=[dict(how=w) for w in ways], deadline=20., max_seconds=1.).run()
for t in study.trials_so_far: print(t.configuration['how'], t.status, t.reason)
'''


def test_an_isolated_loop_that_ends_the_program_is_a_failed_trial(tmp_path):
    environment = os.environ | dict(PARETO_ENERGY_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', EXITS], env=environment, capture_output=True, text=True, timeout=600)
    reason = 'failed SystemExit in epoch 1: the training ended the program with status'
    assert done.stdout.splitlines() == ['not at all finished ', f'sys.exit {reason} 0', f'os._exit {reason} 3', f'SystemExit {reason} None'], done.stderr


def test_data_loaders_and_processes_work_in_an_isolated_child(tmp_path):
    script = '''
from pareto_energy import Study
def train(configuration, epochs):
    import multiprocessing, torch
    for epoch in range(epochs):
        for batch in torch.utils.data.DataLoader(list(range(8)), 4, num_workers=1): pass
        child = multiprocessing.Process(target=print)
        child.start()
        child.join()
        yield .5 + .01*epoch + configuration['x']/10
study = Study(train, dict(x=(0., 1.)), 'loader', trials=2, n_initial=2, epochs=2, fresh_seeds=1, front_points=1, meter='simulated', deadline=60., max_seconds=1.).run()
print([(t.status, t.reason) for t in study.trials_so_far])
'''
    environment = os.environ | dict(PARETO_ENERGY_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().endswith("[('finished', ''), ('finished', '')]"), done.stderr


def test_a_loop_that_cannot_be_sent_is_refused_before_the_first_trial(home):
    import threading
    guard = threading.Lock()

    def guarded(configuration):
        with guard: yield configuration['x']
    study = Study(guarded, dict(x=(0., 1.)), 'guarded', deadline=20., **FEW)
    with pytest.raises(ValueError, match=r"guarded cannot be sent to another process.*guard \(cannot pickle '_thread.lock' object\)"): study.run()
    assert not read_trials(study.log_path)
    study = Study(guarded, dict(x=(0., 1.)), 'guarded', **FEW).run()
    assert {t.status for t in study.trials_so_far} == {'finished'}


def patient(configuration, seed, epochs):
    "Fresh seeds from 1001 on end after two epochs, as a loop with patience would."
    for epoch in range(1, 3 if seed > 1000 else epochs + 1): yield good(epoch, configuration['x'])


def test_fresh_seeds_that_end_early_count_with_what_they_reached(home):
    study = Study(patient, dict(x=(0., 1.)), 'patient', strategies=['random'], **FEW | dict(fresh_seeds=3)).run()
    longest = study.front[study.front.epochs > 2]
    assert len(longest) and (longest[['seeds', 'failed', 'shorter']] == [3, 0, 2]).all(axis=None)
    assert 'ended by themselves' not in str(study), 'no run of the search ended early'
    assert 'fresh seeds, of which ' in str(study) and ' ended before.' in str(study)


def diverges(configuration, epochs):
    for epoch in range(1, epochs + 1): yield float('nan') if epoch == 4 and configuration['x'] > .3 else good(epoch, configuration['x'])


def test_good_epochs_of_a_run_that_diverges_stay(home):
    study = Study(diverges, dict(x=(0., 1.)), 'diverges', strategies=['random'], **FEW).run()
    trials = study.trials_so_far
    assert {t.status for t in trials} == {'finished'}
    lengths = {t.configuration['x'] > .3: (len(t.run['utility']), t.run['diverged'], round(t.spent)) for t in trials}
    assert lengths == {True: (3, 'the utility became nan in epoch 4', 4), False: (10, None, 10)}
    assert len(study.front)


def test_state_of_the_process_is_as_before(home):
    import random
    import signal

    import numpy as np
    import torch
    threads = torch.get_num_threads()

    def state(): return torch.get_num_threads(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), warnings.filters[:], [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], os.getcwd()
    try:
        torch.set_num_threads(2)
        before = state()
        Study(each, dict(x=(0., 1.)), 'state', threads=1, **FEW | dict(trials=6)).run()
        assert state() == before
    finally: torch.set_num_threads(threads)


def test_options_that_json_changes_reach_the_loop_as_they_were_given(home):
    seen = []

    def layered(configuration, epochs):
        seen.append((configuration['layers'], configuration['kind'], configuration['clip']))
        yield .5 + configuration['lr']/10 + .01*len(configuration['layers'])
    space = dict(lr=(.1, 1.), layers=[(8,), (8, 8)], kind=[int, float], clip=float('inf'), wandb=dict(project='x'))
    study = Study(layered, space, 'layers', **FEW | dict(epochs=1)).run()
    assert {type(layers) for layers, *_ in seen} == {tuple} and {kind for _, kind, _ in seen} <= {int, float} and {clip for *_, clip in seen} == {float('inf')}
    assert all(json.loads(json.dumps(t.configuration)) == t.configuration for t in study.trials_so_far)
    assert Study(layered, space, 'layers', **FEW | dict(epochs=1)).run().trials_so_far == study.trials_so_far
    assert len(study.front) and study.chart and study.conclusions


def test_a_loop_may_change_its_configuration(home):
    def pops(configuration, epochs):
        lr = configuration.pop('lr')
        configuration['layers'].insert(0, 64)
        yield from (.5 + lr/10 + .01*len(configuration['layers']) for _ in range(epochs))
    study = Study(pops, dict(lr=(.1, 1.), layers=[[8], [8, 8]]), 'pops', **FEW | dict(repeats=2)).run()
    for t in study.trials_so_far: assert t.run['utility'][0] == pytest.approx(.5 + t.configuration['lr']/10 + .01*(1 + len(t.configuration['layers']))), t.reason


def test_a_setting_that_was_wrong_before_the_first_trial_can_be_corrected(home):
    with pytest.raises(RuntimeError): Study(each, dict(x=(0., 1.)), 'first', **FEW | dict(meter='zeus')).run()
    assert len(Study(each, dict(x=(0., 1.)), 'first', **FEW).run().trials_so_far) == 4


def test_a_configuration_that_is_enqueued_later_is_trained_next(home):
    Study(each, dict(x=(0., 1.)), 'later', **FEW).run()
    study = Study(each, dict(x=(0., 1.)), 'later', enqueued=[dict(x=.777)], **FEW | dict(trials=6)).run()
    assert [t.configuration['x'] for t in study.trials_so_far].index(.777) == 4


def test_a_study_that_runs_can_be_loaded(home):
    from pareto_energy import load_study
    seen = []

    def looks(configuration, epochs):
        if Study.__name__ and (home/'data/looked/trials.jsonl').exists(): seen.append(str(load_study('looked')))
        yield from each(configuration, epochs)
    Study(looks, dict(x=(0., 1.)), 'looked', **FEW).run()
    assert '1 trials are recorded. The front is reported when the study is done.' in seen


def test_two_threads_do_not_run_studies_at_once(home):
    import threading
    inside, errors = threading.Event(), []

    def waits(configuration, epochs):
        if not inside.is_set():
            inside.set()
            other = threading.Thread(target=run_other)
            other.start()
            other.join()
        yield configuration['x']

    def run_other():
        try: Study(each, dict(x=(0., 1.)), 'other', **FEW).run()
        except RuntimeError as e: errors.append(str(e))
    Study(waits, dict(x=(0., 1.)), 'waits', **FEW).run()
    assert len(errors) == 1 and 'Another thread of this process runs a study' in errors[0]


PREEMPTED = '''
import os, signal
from pareto_energy import Study
runs = []
def train(configuration, epochs):
    runs.append(configuration)
    if os.environ.get('PREEMPT') and len(runs) == 3: os.kill(os.getpid(), signal.SIGTERM)
    for epoch in range(epochs): yield .5 + configuration['x']/10
study = Study(train, dict(x=(0., 1.)), 'preempted', trials=3, n_initial=2, epochs=2, fresh_seeds=1, front_points=1, meter='simulated', min_gain_per_cost=0.).run()
print([(t.status, t.attempts) for t in study.trials_so_far])
'''


def test_a_trial_is_not_to_blame_for_the_end_of_its_machine(tmp_path):
    environment = os.environ | dict(PARETO_ENERGY_HOME=str(tmp_path))
    ends = [subprocess.run([sys.executable, '-c', PREEMPTED], env=environment | more, capture_output=True, text=True, timeout=600) for more in (dict(PREEMPT='1'), {})]
    assert ends[0].returncode and 'asked to end (SIGTERM)' in ends[0].stderr
    assert ends[1].stdout.strip() == str([('finished', 1)]*3), ends[1].stderr


def test_a_module_that_is_edited_while_its_study_runs_stops_it(tmp_path):
    "Children import the loop anew, and must not train another version of it."
    (tmp_path/'mine.py').write_text('def loop(configuration, epochs):\n    for e in range(epochs): yield .5 + configuration["x"]/10\n')
    script = """
import sys
from pathlib import Path
from types import SimpleNamespace
from pareto_energy import Study
import mine
study = Study(mine.loop, dict(x=(0., 1.)), 'edited', trials=3, n_initial=3, epochs=1, fresh_seeds=1, meter='simulated', deadline=60., max_seconds=1.)
Path('mine.py').write_text(Path('mine.py').read_text().replace('.5', '.7'))
try: study.run()
except ValueError as e: print(e)
print(len([t for t in study.trials_so_far if t.status == 'finished']))
"""
    environment = os.environ | dict(PARETO_ENERGY_HOME=str(tmp_path), PYTHONPATH=f'{tmp_path}:{ROOT}', PYTHONDONTWRITEBYTECODE='1')
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines() == ['The loop loop was edited while its study runs: start the study again.', '0'], done.stderr
