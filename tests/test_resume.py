"A study that is killed or interrupted at any moment ends as one that never was."
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import errors_of, wait_until

from pareto_energy.front.log import read_log, read_trials

KEY = ('dataset', 'family', 'strategy', 'seed', 'number')
SCRIPT = 'import json, sys; from pareto_energy.run.study import FamilyStudy, run_study; run_study(FamilyStudy(**json.loads(sys.argv[1])), join="--join" in sys.argv)'
# imports are paid once: the first study is run by the process itself, the others by forks of it, which can be killed
ZYGOTE = '''
import os, sys, json
from pareto_energy.run.study import FamilyStudy, run_study
run_study(FamilyStudy(**json.loads(sys.stdin.readline())))
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        run_study(FamilyStudy(**json.loads(line)))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
'''


def environment(home): return os.environ | {'PARETO_ENERGY_HOME': str(home), 'OMP_NUM_THREADS': '1'}
def start(home, parameters, *words): return subprocess.Popen([sys.executable, '-c', SCRIPT, json.dumps(parameters), *words], env=environment(home), stderr=subprocess.PIPE, text=True)


class Zygote:
    def __init__(self, home, parameters):
        self.process = subprocess.Popen([sys.executable, '-c', ZYGOTE], env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.send(parameters)

    def send(self, parameters):
        self.process.stdin.write(json.dumps(parameters) + '\n')
        self.process.stdin.flush()

    def run(self, parameters, until, rng):
        "Start a study, and kill it soon after `until` says so; gives its exit status."
        self.send(parameters)
        pid = int(self.process.stdout.readline())
        alive = lambda: os.path.exists(f'/proc/{pid}/exe')
        try: wait_until(lambda: not alive() or until(), 'the study to end, or to come as far as it is killed at', seconds=600., every=.003)
        except pytest.fail.Exception:
            os.kill(pid, signal.SIGKILL)
            raise
        time.sleep(rng.uniform(0, .05))
        if alive(): os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())

    def __enter__(self): return self
    def __exit__(self, *_): self.process.kill()


def outcome(log):
    "What must not depend on kills: everything but clocks."
    return {k: (t.configuration, t.origin.source, t.status, t.run.get('utility'), t.run.get('joules'), t.retrained) for k, t in read_trials(log).items()}


def ends(log):
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [tuple(e[k] for k in KEY) for e in events if e['event'] in ('finished', 'failed')]


def kill_until_done(folder, parameters, most): # kills, those inside a trial, and the logs without and with kills
    "Run a study whole, and once more with kills where a few lines more are written."
    rng, kills, inside = random.Random(0), 0, 0
    whole, log = (folder/f'data/{name}/trials.jsonl' for name in ('whole', 'killed'))
    lines = lambda: log.read_bytes().count(b'\n') if log.exists() else 0
    attempts = lambda: max((t.attempts for t in read_trials(log).values() if t.status == 'started'), default=0)
    with Zygote(folder, parameters | dict(study='whole')) as zygote:
        for _ in range(200):
            enough = lines() + (rng.choice([2, 2, 3]) if attempts() < 3 else 6) # a trial that dies five times is given up
            if zygote.run(parameters | dict(study='killed'), lambda: kills < most and lines() >= enough, rng) == 0: break
            kills += 1
            inside += any(t.status == 'started' for t in read_trials(log).values())
    return kills, inside, whole, log


def test_fifty_kills_change_nothing(tmp_path, smoke):
    kills, inside, whole, log = kill_until_done(tmp_path, smoke | dict(trials=5, n_initial=4), most=54)
    print(f'{kills} kills, {inside} of them inside a trial, {len(ends(log))} trials')
    assert kills >= 50 and inside >= 10
    assert outcome(log) == outcome(whole)
    assert len(ends(log)) == len(set(ends(log))) == len(outcome(log)) == 40


def test_a_killed_parent_takes_its_child_with_it(tmp_path, smoke):
    import psutil
    process = start(tmp_path, smoke | dict(study='s', deadline=60., trials=30, epochs=30))
    log = tmp_path/'data/s/trials.jsonl'
    wait_until(lambda: log.exists() and log.read_text().count('"started"') >= 2, 'two trials that start')
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert children and not psutil.wait_procs(children, timeout=10)[1]


def interrupted(tmp_path, parameters, times, started):
    process, log = start(tmp_path, parameters), tmp_path/'data/s/trials.jsonl'
    wait_until(lambda: log.exists() and log.read_text().count('"started"') >= started, f'trial {started} to start')
    for n in range(times):
        process.send_signal(signal.SIGINT)
        if n + 1 < times: time.sleep(.3)
    began = time.monotonic()
    said = errors_of(process)
    return process.returncode, said, log, time.monotonic() - began


def test_ctrl_c_records_the_trial_under_way(tmp_path, smoke):
    parameters = smoke | dict(study='s', deadline=60., strategies=['random'])
    status, said, log, _ = interrupted(tmp_path, parameters, 1, 2)
    trials = read_trials(log)
    assert status and 'StudyStopped' in said and re.search(r'\d+ of 16 trials are recorded: start the study s again', said)
    assert {t.status for t in trials.values()} == {'finished'} and 1 <= len(trials) < 16
    again = start(tmp_path, parameters)
    errors_of(again)
    assert again.returncode == 0 and len(read_trials(log)) == 16 and all(t.attempts == 1 for t in read_trials(log).values())


def test_ctrl_c_twice_stops_at_once(tmp_path, smoke):
    parameters = smoke | dict(study='s', deadline=600., families=['mlp'], datasets=['mnist1d'], strategies=['random'], trials=2, n_initial=1, epochs=20_000)
    status, said, log, seconds = interrupted(tmp_path, parameters, 2, 1)
    trial = list(read_trials(log).values())[-1]
    assert status and 'KeyboardInterrupt' in said and seconds < 10
    assert trial.status == 'started' and trial.attempts == 0 and '"interrupted"' in log.read_text() and not read_log(log).damage


def test_a_configuration_that_always_kills_is_given_up(home, smoke):
    from pareto_energy.run.study import FamilyStudy, run_study
    from pareto_energy.front.log import MAX_ATTEMPTS, Origin, TrialLog
    study = FamilyStudy('suspect', **smoke | dict(families=['logistic'], strategies=['random'], seeds=[0], trials=1))
    study.log_path.parent.mkdir(parents=True)
    with TrialLog(study.log_path) as log:
        for _ in range(MAX_ATTEMPTS):
            log.append('started', ('digits', 'logistic', 'random', 0, 0), configuration=dict(lr=.1), origin=Origin(), label='simulated', machine_id='simulated')
    trial, = run_study(study)
    assert (trial.status, trial.attempts) == ('failed', MAX_ATTEMPTS) and 'process died' in trial.reason


def test_four_processes_share_a_study(tmp_path, smoke):
    parameters = smoke | dict(study='s', strategies=['random', 'sobol'])
    first = start(tmp_path/'alone', parameters)
    said = errors_of(first)
    assert first.returncode == 0, said
    processes = [start(tmp_path/'shared', parameters, '--join') for _ in range(4)]
    said = [errors_of(p) for p in processes]
    assert [p.returncode for p in processes] == [0]*4, said
    alone, shared = (tmp_path/name/'data/s/trials.jsonl' for name in ('alone', 'shared'))
    contents = read_log(shared)
    lines = [json.loads(line)['line'] for line in shared.read_text().splitlines()]
    assert not contents.damage and lines == list(range(1, len(lines) + 1)) and len(ends(shared)) == len(set(ends(shared))) == 32
    assert outcome(shared) == outcome(alone)


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path, smoke):
    import socket
    first, log = start(tmp_path, smoke | dict(study='s')), tmp_path/'data/s/trials.jsonl'
    wait_until(log.exists, 'the log of the first process')
    second = start(tmp_path, smoke | dict(study='s'))
    assert f'is under way in process {first.pid} on {socket.gethostname()}' in errors_of(second) and second.returncode
    errors_of(first)
    assert first.returncode == 0


def test_budgets_of_hours_and_joules(home, smoke):
    from pareto_energy.run.study import FamilyStudy, StudyStopped, run_study
    smoke |= dict(study='budgets', max_joules=1e-9)
    with pytest.raises(StudyStopped, match='start the study budgets again'): run_study(FamilyStudy(**smoke, max_hours=1e-9))
    searches = {}
    for t in run_study(FamilyStudy(**smoke)): searches.setdefault(t.key[:-1], []).append(t)
    assert {len(ts) for ts in searches.values()} == {1} and len(searches) == 8
    smoke['max_joules'] = None
    assert len(run_study(FamilyStudy(**smoke))) == 32
    warm = FamilyStudy(**smoke | dict(study='warm', warm='budgets', families=['mlp'], seeds=[0], n_initial=4))
    assert 1 <= len(warm.search_task('digits', 'mlp').warm_starts) <= 2 and [len(ts) for ts in warm.search_task('digits', 'mlp').prior_trials] == [16]
    sources = {t.key[2:]: t.origin.source for t in run_study(warm)}
    assert [sources['trajectory', 0, n] for n in range(4)] == ['centre', 'sobol', 'trajectory', 'sobol'] and sources['random', 0, 1] == 'warm start'


def test_a_study_that_goes_on_says_when_the_machine_has_another_pace(home, smoke, recwarn):
    from dataclasses import replace
    from pareto_energy.run.study import FamilyStudy, run_study
    from pareto_energy.front.log import read_machine, encode_line, decode_line
    study = FamilyStudy('moved', **smoke | dict(families=['logistic'], strategies=['random'], seeds=[0], trials=3))
    for n in (3, 4): run_study(replace(study, trials=n))
    assert not any('calibration workload' in str(w.message) for w in recwarn), 'the same machine'
    events = [decode_line(line) for line in study.log_path.read_bytes().splitlines()]
    study.log_path.write_bytes(b''.join(encode_line(e | dict(joules=1.) if e['event'] == 'calibration' else e) + b'\n' for e in events))
    with pytest.warns(UserWarning, match='The calibration workload takes 0.00 times the joules'): run_study(replace(study, trials=5))
    assert [r['joules'] == 1. for r in read_machine(study.log_path, 'calibration')] == [True, True, False], 'at the start, and whenever the study goes on'
