"A search that ends, and a run that is stopped, because the rest isn't worth its energy."
from pareto_energy.run.study import FamilyStudy, is_complete, run_study, total_joules, study_status
from pareto_energy.front.log import ExpectedReturn, Origin, read_trials
from pareto_energy.search.trajectory import stopping_rule

import numpy as np
import pytest

ONE = dict(families=['logistic'], strategies=['trajectory'], seeds=[0], trials=9)


def test_a_search_ends_when_its_next_run_is_not_worth_it(home, smoke):
    study = FamilyStudy('search_end', **smoke | ONE, min_gain_per_cost=1e9)
    trials = run_study(study)
    assert len(trials) == study.n_initial and all(t.status == 'finished' for t in trials)
    end = trials[-1].search_end
    assert end.expected.gain < 1e9*end.expected.cost and end.joules > 0 and not any(t.search_end for t in trials[:-1])
    assert is_complete(study, read_trials(study.log_path)) and study_status(study)['datasets']['digits']['of'] == study.n_initial
    before = study.log_path.read_bytes()
    assert total_joules(run_study(study)) == total_joules(trials) and study.log_path.read_bytes() == before


def test_a_search_that_never_ends_uses_all_its_trials(home, smoke):
    study = FamilyStudy('open', **smoke | ONE | dict(trials=5), min_gain_per_cost=0)
    trials = run_study(study)
    n_initial, planned = trials[:study.n_initial], trials[study.n_initial:]
    assert len(planned) == 5 - study.n_initial and all(t.origin.source == 'trajectory' and len(t.run['utility']) <= t.origin.epochs for t in planned)
    assert all(len(t.run['utility']) == study.epochs for t in n_initial), 'where training is quick, an initial run goes on'
    assert n_initial[0].origin.epochs == study.epochs and all(t.origin.epochs < study.epochs for t in n_initial[1:])


def test_a_run_under_way_is_looked_at_only_when_its_rest_costs_more_than_looking(home, smoke):
    from dataclasses import replace
    study = FamilyStudy('looked', **smoke | ONE | dict(trials=4, epochs=60), min_gain_per_cost=1e9)
    *earlier, last = run_study(replace(study, min_gain_per_cost=0, study='all'))
    search = study.search_task('digits', 'logistic')
    flat, unread = dict(utility=[.1]*4, joules=lambda: [1., 2., 3., 4.], epochs=[1, 2, 3, 4]), dict(utility=[.1]*5, joules=lambda: 1/0, epochs=[1, 2, 3, 4, 5])
    planned = lambda joules: replace(last, origin=Origin(source='trajectory', epochs=60, joules=joules, expected=ExpectedReturn(gain=1., cost=1.)))
    assert not stopping_rule(search, planned(1.), earlier)(**flat) and stopping_rule(search, planned(1e6), earlier)(**flat)
    assert stopping_rule(search, planned(1.), earlier)(**unread), 'the meter is read at checkpoints only'
    assert stopping_rule(search, replace(last, origin=Origin(source='sobol', epochs=60)), earlier) is None


def test_benchmark_on_a_folder_never_seen_before(tmp_path):
    import json
    import pandas as pd
    from typer.testing import CliRunner
    from pareto_energy.bench.commands import app
    reached = {4: (1, 3, 6), 8: (2, 4, 9), 16: (3, 7, None)}
    pd.DataFrame([dict(dataset='mine', batch_size=b, optimizer='AdamW', run=r, target_metric=m, target_epoch=e + r if e else None)
                  for b, epochs in reached.items() for r in (0, 1) for m, e in zip((60, 40, 20), epochs)]).to_csv(tmp_path/'summary_train.csv', index=False)
    pd.DataFrame([dict(dataset='mine', batch_size=b, optimizer='adamw', power_limit=p, time_per_epoch=100/b**.5*(200/p)**.5, average_power=.9*p)
                  for b in reached for p in (100, 150, 200)]).to_csv(tmp_path/'summary_power_h100.csv', index=False)
    words = ['benchmark', '--data', str(tmp_path), '--gpu', 'h100', '--workload', 'mine', '--strategy', 'trajectory', '--strategy', 'random', '--seeds', '2', '--runs', '8', '--json', str(tmp_path/'out.json')]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.stderr
    found = json.loads((tmp_path/'out.json').read_text())
    assert {(s['strategy'], s['seed']) for s in found['searches']} == {(n, s) for n in ('trajectory', 'random') for s in (0, 1)} and found['configurations'] == 9
    for s in found['searches']:
        assert all(len(s[k]) == 8 for k in ('share', 'joules', 'ask_seconds')) and s['share'] == sorted(s['share']) and 0 < s['share'][-1] <= 1.00001
    assert min(s['share'][-1] for s in found['searches'] if s['strategy'] == 'trajectory') > .9
    before = (tmp_path/'out.json').read_bytes()
    assert CliRunner().invoke(app, words).exit_code == 0 and (tmp_path/'out.json').read_bytes() == before
    assert 'runs 8, not 9' in CliRunner().invoke(app, [*words[:-4], '--runs', '9', *words[-2:]]).stderr


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    import sys
    import pandas as pd
    from typer.testing import CliRunner
    from pareto_energy.bench.commands import app
    monkeypatch.setitem(sys.modules, 'optuna', None)
    pd.DataFrame([dict(dataset='mine', batch_size=b, optimizer='sgd', run=0, target_metric=m, target_epoch=m) for b in (4, 8) for m in (1, 2)]).to_csv(tmp_path/'summary_train.csv')
    pd.DataFrame([dict(dataset='mine', batch_size=b, optimizer='sgd', power_limit=p, time_per_epoch=1., average_power=p) for b in (4, 8) for p in (100, 200)]).to_csv(tmp_path/'summary_power_h100.csv')
    answer = CliRunner().invoke(app, ['benchmark', '--data', str(tmp_path), '--gpu', 'h100', '--workload', 'mine', '--strategy', 'optuna-tpe'])
    assert answer.exit_code == 2 and "optuna is not installed: pip install 'pareto_energy[bench]'" in answer.stderr


def test_no_suggestion_pays_for_late_imports():
    import subprocess
    import sys
    script = '''
import sys
from types import SimpleNamespace
from pareto_energy.energy.meter import SimulatedMeter
from pareto_energy.models.space import Float, Space
from pareto_energy.run.tasks import suggest
from pareto_energy.search.strategies import SearchTask

class Watched(SimulatedMeter):
    def window(self):
        print({name: name in sys.modules for name in ('torch._refs', 'scipy.stats.qmc')})
        return super().window()
suggest(SimpleNamespace(threads=1, metered=Watched()), SearchTask(Space(x=Float(0., 1.))), 'trajectory', 0, [])
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.stdout.strip() == "{'torch._refs': True, 'scipy.stats.qmc': True}", done.stderr


def made_up_table():
    "A cheap configuration whose runs promise more than they keep, beside dear ones that rise at their end."
    import numpy as np
    from pareto_energy.bench.searches import TabularBenchmark
    from pareto_energy.models.space import Ordinal, Space
    epochs = np.arange(1, 28)
    late = lambda width: .5 + .4*(epochs > 20)*width/8
    runs = {(width, rate): np.array([late(width) - .3*(rate == 2), late(width) - .3*(rate == 2) + .01]) for width in (1, 2, 4, 8) for rate in (1, 2)}
    runs[1, 1] = np.array([np.minimum(.3 + .1*epochs, .6), np.minimum(.32 + .1*epochs, .61)])
    return TabularBenchmark('made up', Space(width=Ordinal([1, 2, 4, 8]), rate=Ordinal([1, 2])), 27, {key: key[0]**1.5 for key in runs}, runs, 0.)


@pytest.mark.parametrize('seed', range(3))
def test_no_configuration_is_trained_again_for_no_more_epochs_than_before(seed):
    from pareto_energy.bench.rivals import repeated_runs
    from pareto_energy.bench.searches import search_table
    table = made_up_table()
    search = search_table(table, 'trajectory', seed, runs=20)
    assert len(search['chosen']) > len(table.keys), 'some configuration is trained again'
    assert repeated_runs(search) == dict(runs=0., joules=0.)


def test_a_run_that_was_refused_is_not_asked_before_it_gets_further():
    from dataclasses import replace
    from pareto_energy.bench.searches import TrajectorySearcher, _trial
    from pareto_energy.search.trajectory import should_continue
    table = made_up_table()
    searcher = TrajectorySearcher(table, 0, 3)
    for number, key in enumerate(table.keys[:4]):
        searcher.trials.append(_trial(number, dict(zip(table.space, key)), *(a[:9].tolist() for a in table.draw(key, np.random.default_rng(0)))))
    again = searcher.trials[0].configuration
    run = lambda epochs: _trial(4, again, [.4]*epochs, [1.]*epochs, expected=ExpectedReturn(gain=1e-9, cost=1.))
    hopeless = replace(searcher.search, min_gain_per_cost=1e9)
    assert [should_continue(hopeless, searcher.trials, run(e), 0) for e in (1, 4, 9, 13)] == [True, True, True, False]
