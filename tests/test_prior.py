"Published studies as an earlier study, and as an expectation: from Python, a study's file and the command line."
import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pareto_energy import Study
from pareto_energy.cli import app
from pareto_energy.front.log import ALL_FAMILIES
from pareto_energy.run.study import FamilyStudy, run_study
from pareto_energy.search.prior import read_published

JOINT = dict(search='joint', strategies=['sobol'], seeds=[0], trials=5, epochs=2, repeats=1, front_points=1, fresh_seeds=1,
    min_gain_per_cost=0., warm='published')


def table(n=120):
    rng = np.random.default_rng(0)
    income, age = rng.normal(size=n), rng.normal(size=n)
    return pd.DataFrame(dict(income=income, age=age, buys=np.where(income + .3*age > 0, 'yes', 'no')))


def answer(*words): return CliRunner().invoke(app, [*words])


@pytest.fixture
def here(home, monkeypatch):
    "The project folder, as the working folder, with a table."
    monkeypatch.chdir(home)
    table().to_csv('shop.csv', index=False)
    table().assign(spent=lambda t: t.income + t.age).to_csv('amounts.csv', index=False)
    return home


def test_a_joint_search_begins_with_the_portfolio_and_goes_on_where_it_stopped(home, smoke):
    settings = smoke | JOINT
    task = FamilyStudy('warm', **settings).search_task('digits', ALL_FAMILIES)
    few = run_study(FamilyStudy('warm', **settings | dict(trials=2)))
    trials = run_study(FamilyStudy('warm', **settings))
    first = [(t.family, t.configuration, t.origin.epochs) for t in trials if t.origin.source == 'portfolio']
    assert first == [(s.configuration['family'], s.configuration['configuration'], s.epochs) for s in task.enqueued][:5]
    assert 1 < len(first) <= smoke['n_initial'] and trials[:2] == few and len(trials) == 5
    assert {t.dataset.partition(': ')[0] for ts in task.prior_trials for t in ts} == {'published'}


def test_a_separate_search_takes_the_runs_of_its_family(home, smoke):
    study = FamilyStudy('alone', **smoke | JOINT | dict(search='separate', energy='lifetime', predictions=1e4))
    for family in ('logistic', 'mlp'):
        task = study.search_task('digits', family)
        assert task.enqueued and all({*s.configuration} >= {*study.spaces['digits', family]} for s in task.enqueued)
        assert {t.family for ts in task.prior_trials for t in ts} == {family}


def test_what_nothing_is_known_of_is_refused(here, smoke):
    with pytest.raises(ValueError, match='warm: published knows of classification, and amounts is a regression'):
        Study(data='amounts.csv', target='spent', models=['mlp'], warm='published', meter='simulated')
    def loop(configuration, epochs): yield configuration['lr']
    with pytest.raises(ValueError, match='this study has loops of your own: leave warm out'):
        Study(loop, dict(lr=(.1, 1.)), warm='published', meter='simulated')
    with pytest.raises(ValueError, match='The earlier study publsihed has no trials'): FamilyStudy('typo', **smoke | dict(warm='publsihed'))


def test_own_data_and_own_configurations_come_first(here):
    study = Study(data='shop.csv', target='buys', models=['logistic', 'gbdt'], warm='published', meter='simulated', study='shop')
    task = study.search_task('shop', ALL_FAMILIES)
    assert task.enqueued and {s.configuration['family'] for s in task.enqueued} <= {'logistic', 'gbdt'}
    own = dict(study.spaces['shop', 'logistic'].decode(np.full(len(study.spaces['shop', 'logistic']), .5)))
    alone = Study(data='shop.csv', target='buys', models=['logistic'], warm='published', meter='simulated', study='one', enqueued=[own])
    sources = [s.source for s in alone.search_task('shop', 'logistic').enqueued]
    assert sources[0] == 'given' and {*sources[1:]} == {'portfolio'}


def test_expect_trains_nothing_and_says_so(here):
    before = {path.name for path in here.iterdir()}
    found = answer('expect', 'shop.csv', '--target', 'buys')
    assert found.exit_code == 0 and 'shop: expected, nothing was trained' in found.stdout, found.output
    assert '1 of them of the same modality (adult). Nothing was trained.' in found.stdout and 'not of this one' in found.stdout
    assert {path.name for path in here.iterdir()} == before
    rows = json.loads(answer('expect', 'shop.csv', '--target', 'buys', '--json').stdout)['front']
    assert all(r['joules_low'] < r['joules'] < r['joules_high'] and r['utility_low'] < r['utility'] < r['utility_high'] for r in rows)
    life = json.loads(answer('expect', 'shop.csv', '--target', 'buys', '--predictions', '1e9', '--json').stdout)['front']
    assert all(a['joules'] < b['joules'] for a, b in zip(rows, life))


@pytest.mark.parametrize('words, why', [
    (('shop.csv',), 'target does not say which column'), (('shop.csv', '--target', 'bys'), 'Did you mean buys'),
    (('amounts.csv', '--target', 'spent'), 'no datasets for a regression of table data'), (('none.csv', '--target', 'x'), 'No data at'),
    (('shop.csv', '--target', 'buys', '--energy', 'trainig'), 'Did you mean training'),
    (('shop.csv', '--target', 'buys', '--energy', 'lifetime'), 'needs the number of predictions')])
def test_expect_answers_what_is_wrong(here, words, why):
    refused = answer('expect', *words)
    assert refused.exit_code == 2 and why in refused.stderr, refused.output


def test_the_summary_is_small_and_of_the_published_study():
    summary = read_published()
    assert summary.study == 'published/thesis' and len(summary.datasets) == 6
    assert 400 < sum(len(d.trials) for d in summary.datasets) < 500
