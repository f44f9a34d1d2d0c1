"A study killed with SIGKILL at any moment ends as one that was never killed."
import json
import os
import random
import signal
import subprocess
import sys
import time

from pareto_energy.trials import read_events, read_trials

SCRIPT = 'import json, sys; from pareto_energy.study import Study, run_study; run_study(Study(**json.loads(sys.argv[1])))'


def start(home, parameters):
    return subprocess.Popen([sys.executable, '-c', SCRIPT, json.dumps(parameters)], env=os.environ | {'PARETO_ENERGY_HOME': str(home)}, stderr=subprocess.PIPE)


def outcome(home):
    "What must not depend on kills: everything but clocks."
    trials = read_trials(home/'data/killed/trials.jsonl')
    return {k: (t.configuration, t.origin['source'], t.status, t.run.get('utility'), t.run.get('joules'), t.retrained) for k, t in trials.items()}


def test_sigkill_changes_nothing(tmp_path, smoke):
    parameters = smoke | dict(study='killed')
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    assert start(whole, parameters).wait() == 0
    log, rng, kills, inside = killed/'data/killed/trials.jsonl', random.Random(0), 0, 0
    lines = lambda: log.read_bytes().count(b'\n') if log.exists() else 0
    while kills < 8:
        process, enough = start(killed, parameters), lines() + rng.randint(1, 6)
        while process.poll() is None and lines() < enough: time.sleep(.005)
        time.sleep(rng.uniform(0, .25))
        if process.poll() is not None: break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        inside += any(t.status == 'started' for t in read_trials(log).values())
    assert start(killed, parameters).wait() == 0
    assert kills >= 3 and inside >= 1, f'{kills} kills, {inside} inside a trial: the test has not tested'
    assert outcome(killed) == outcome(whole)
    ends = [tuple(e[k] for k in ('dataset', 'family', 'strategy', 'seed', 'number')) for e in read_events(log) if e['event'] in ('finished', 'failed')]
    assert len(ends) == len(set(ends)) == len(outcome(whole)) == 32


def test_a_configuration_that_always_kills_is_given_up(home, smoke):
    from pareto_energy.study import Study, run_study
    from pareto_energy.trials import ATTEMPTS, TrialLog
    study = Study('suspect', **smoke | dict(families=['logistic'], strategies=['random'], seeds=[0], trials=1))
    study.log_path.parent.mkdir(parents=True)
    with TrialLog(study.log_path) as log:
        for _ in range(ATTEMPTS):
            log.append('started', ('digits', 'logistic', 'random', 0, 0), configuration=dict(lr=.1), origin={}, label='simulated', machine='simulated')
    trial, = run_study(study)
    assert (trial.status, trial.attempts) == ('failed', ATTEMPTS) and 'process died' in trial.reason
