"Other libraries that stop runs, LCBench, and the measures that are made of their searches."
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pareto_energy.bench.rivals import LCBENCH_SPACE, LCBENCH_TASKS, RIVALS, anytime_record, lcbench_table
from pareto_energy.bench.searches import TabularBenchmark, own_table, search_table
from pareto_energy.models.space import Categorical, Ordinal, Space

SEARCHED = Path(__file__).parents[1]/'data/published/search'
NEEDS = {'moasha': 'syne_tune', 'smac': 'smac', 'optuna': 'optuna', 'ax': 'ax', 'nsga2': 'pymoo'}


def small_table():
    keys = [(w, kind) for w in (4, 8, 16, 32, 64) for kind in ('a', 'b', 'c')]
    curve = lambda w, kind: (1 - .6/w**.5 - .1*(kind == 'b'))*(1 - np.exp(-np.arange(1, 10)/3))
    return TabularBenchmark('small', Space(width=Ordinal([4, 8, 16, 32, 64]), kind=Categorical(['a', 'b', 'c'])), 9,
                            {k: float(k[0]) for k in keys}, {k: curve(*k)[None] + [[0.], [.01]] for k in keys}, .1)


def need(name):
    "Skip a search whose library is missing: the extra bench is larger than what CI installs."
    for word, module in NEEDS.items():
        if name.startswith(word): pytest.importorskip(module)


@pytest.mark.parametrize('name', RIVALS)
def test_the_same_seed_gives_the_same_search(name):
    need(name)
    def found(seed): return {k: v for k, v in search_table(small_table(), name, seed, 7).items() if k != 'ask_seconds'}
    first = found(3)
    np.random.rand(7) # what other code draws from NumPy's global generator changes nothing
    assert found(3) == first
    assert found(4)['chosen'] != first['chosen']


@pytest.mark.parametrize('name', ['moasha-3', 'smac'])
def test_numpys_random_numbers_are_left_as_they_were(name):
    need(name)
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    search_table(small_table(), name, 0, 6)
    assert np.random.rand() == expected


def test_moasha_ends_runs_at_its_rungs():
    need('moasha')
    epochs = search_table(small_table(), 'moasha-3', 0, 30)['epochs']
    assert epochs[0] == 9, 'the first run of MOASHA goes to its end'
    assert set(epochs) <= {1, 3, 9} and epochs.count(1) > 10


def test_a_search_without_a_library_names_the_extra(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'syne_tune', None)
    monkeypatch.setitem(sys.modules, 'syne_tune.optimizer.schedulers.multiobjective.moasha', None)
    with pytest.raises(ImportError, match=r"syne_tune is not installed: pip install 'pareto_energy\[bench\]'"):
        search_table(small_table(), 'moasha-3', 0, 3)


def lcbench():
    folder = Path(os.environ.get('PARETO_ENERGY_CACHE', ''))/'lcbench'
    if not (folder/'model.onnx').exists(): pytest.skip('LCBench is not in PARETO_ENERGY_CACHE')
    pytest.importorskip('onnxruntime')
    return folder


def test_lcbench_gives_curves_of_any_configuration():
    table = lcbench_table(lcbench(), LCBENCH_TASKS[0])
    rows = {p['name']: p for p in json.loads((lcbench()/'config_space.json').read_text())['hyperparameters']}
    assert {n: (p.low, p.high) for n, p in LCBENCH_SPACE.items()} == {n: pytest.approx((rows[n]['lower'], rows[n]['upper'])) for n in LCBENCH_SPACE}
    assert all(getattr(p, 'log') == rows[n]['log'] for n, p in LCBENCH_SPACE.items())
    key = table.nearest({n: p.decode(.3) for n, p in LCBENCH_SPACE.items()})
    utility, joules = table.draw(key, None)
    assert utility.shape == joules.shape == (52,) and (np.diff(joules) >= 0).all()
    assert ((utility >= -.05) & (utility <= 1.05)).all() and utility[-1] > utility[0]
    with pytest.raises(ValueError, match='Did you mean 167'): lcbench_table(lcbench(), '167105')


def test_the_command_searches_a_task_of_lcbench(tmp_path):
    from typer.testing import CliRunner
    from pareto_energy.bench.commands import app
    lcbench()
    words = ['benchmark', '--data', 'lcbench', '--task', '167104', '--strategy', 'random', '--strategy', 'random-whole', '--seeds', '2', '--runs', '4', '--json', str(tmp_path/'out.json')]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.stderr
    assert '100 W' in answer.stdout and 'random-whole' in answer.stdout
    found = json.loads((tmp_path/'out.json').read_text())
    assert found['table'] == 'LCBench 167104' and len(found['searches']) == 4
    assert all(s['epochs'] == [52]*4 for s in found['searches'] if s['strategy'] == 'random-whole')


@pytest.mark.parametrize('name', ['digits', 'mnist1d'])
def test_anytime_records_are_those_of_the_recorded_searches(name):
    kept = json.loads((SEARCHED/f'own-{name}.json').read_text())['searches']
    record = json.loads((SEARCHED/f'anytime/own-{name}.json').read_text())
    again = anytime_record(own_table(SEARCHED/'tables', name), record['group'], kept)
    assert json.loads(json.dumps(again)) == record


def test_no_task_of_lcbench_was_searched_that_is_not_named():
    assert {p.stem.removeprefix('lcbench-') for p in SEARCHED.glob('lcbench-*.json')} <= set(LCBENCH_TASKS)
