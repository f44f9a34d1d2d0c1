"A model of one's own, from a script, a notebook and other libraries' loops."
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat

from pareto_energy.front.log import read_trials

ROOT = Path(__file__).parents[1]
TOY = '''
import time
from pareto_energy import Study

def train(configuration):
    for epoch in range(1, 9):
        if configuration['lr'] > .6 and configuration['hangs']: time.sleep(60)
        yield 1 - configuration['lr']/epoch

study = Study(train, dict(lr=(.1, 1.), hangs=%s), 'toy', trials=6, n_initial=4, fresh_seeds=2, min_gain_per_cost=0., meter='simulated', %s)
'''


def python(script, home):
    return subprocess.run([sys.executable, '-c', script], cwd=home, env=os.environ | {'PARETO_ENERGY_HOME': str(home)}, capture_output=True, text=True, timeout=600)


def ten_lines():
    return next(block for block in re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S) if 'def mlp' in block)


def test_the_ten_lines_of_the_readme(tmp_path):
    script, log = ten_lines(), tmp_path/'data/my-mlp/trials.jsonl'
    assert sum(bool(line.strip()) for line in script.splitlines()) <= 10
    first = python(script, tmp_path)
    assert first.returncode == 0 and 'On my-mlp the best model found' in first.stdout and 'accuracy (validation part) (%)' in first.stdout, first.stderr
    before = log.read_bytes()
    assert python(script, tmp_path).stdout == first.stdout and log.read_bytes() == before
    shown = subprocess.run([Path(sys.executable).parent/'pareto-energy', 'front', 'my-mlp'], cwd=ROOT, env=os.environ | {'PARETO_ENERGY_HOME': str(tmp_path)}, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0 and 'On my-mlp the best model found' in shown.stdout


def test_a_loop_that_hangs_is_a_failed_trial(tmp_path):
    done = python(TOY.replace('trials=6', 'trials=4') % (True, 'deadline=.5, cap=.5') + 'study.run()', tmp_path)
    assert done.returncode == 0, done.stderr
    trials = read_trials(tmp_path/'data/toy/trials.jsonl').values()
    assert len(trials) == 4 and all((t.configuration['lr'] > .6) == (t.status == 'failed') for t in trials)
    assert all('stopped in train' in t.reason for t in trials if t.status == 'failed') and any(t.status == 'failed' for t in trials)


def test_a_notebook_keeps_one_sentence_and_the_results(tmp_path):
    cells = [nbformat.v4.new_code_cell(TOY % (False, '') + source) for source in ('study.run();', 'study')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'mine.ipynb')
    subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', tmp_path/'mine.ipynb'], check=True, env=os.environ | {'PARETO_ENERGY_HOME': str(tmp_path)}, capture_output=True, timeout=600)
    (live,), results = (cell.outputs for cell in nbformat.read(tmp_path/'mine.ipynb', 4).cells)
    assert live.output_type == 'display_data' and live.data['text/markdown'].startswith('6 of 6 trials, ')
    assert [next(m for m in ('image/png', 'text/html', 'text/markdown') if m in o.data) for o in results] == ['image/png', 'text/html', 'text/markdown']


def test_a_hyperparameter_of_ones_own_keeps_its_name(home):
    from pareto_energy.run.settings import read_settings, save_settings, check_unchanged, StudySettings
    ranges = dict(all=dict(precision='float32'), mlp=dict(precision='float32'), my_loop=dict(precision=[8, 32]))
    mine = StudySettings(study='mine', datasets=['mine'], families=['my_loop'], strategies=['random'], seeds=[0], trials=1, n_initial=1,
                         epochs=1, ranges=dict(my_loop=ranges['my_loop']))
    save_settings(mine)
    check_unchanged(mine)
    mine.ranges, mine.study = ranges, 'former'
    save_settings(mine)
    assert read_settings('former')['ranges'] == dict(all=dict(dtype='float32'), mlp=dict(dtype='float32'), my_loop=dict(precision=[8, 32]))
