"A person's own data: from a file to a front, in an empty folder, by the package and by the command line."
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import need

from pareto_energy import Study, load_study
from pareto_energy.models.own_data import DataSource, prepare_data

FEW = dict(trials=3, n_initial=2, epochs=2, fresh_seeds=1, front_points=2, meter='simulated', min_gain_per_cost=0.)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('PARETO_ENERGY_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ugly_table(n=300, seed=0):
    "A table as people have them."
    rng = np.random.default_rng(seed)
    income = rng.normal(30, 8, n)
    table = pd.DataFrame({
        'Customer ID': [f'K-{i:05}' for i in range(n)], 'age (years)': np.where(rng.random(n) < .1, np.nan, rng.integers(18, 90, n)),
        'joined': pd.date_range('2019-03-01', periods=n, freq='D').strftime('%d/%m/%Y'), 'is member': rng.random(n) < .5,
        'Straße': rng.choice(['Hauptstraße', 'Rue de la Paix', 'N/A', ''], n), 'postcode': rng.integers(10_000, 99_999, n).astype(str),
        'remark': [f'called on day {i} and said "yes, maybe", again' if i % 3 else None for i in range(n)],
        'currency': 'EUR', 'empty': np.nan, 'income, k€': income})
    table['buys'] = np.where(income + rng.normal(0, 4, n) > 30, 'yes', 'no')
    table.loc[:4, 'buys'] = None
    return table


def test_a_dataset_of_the_package_is_used_whole(home):
    with pytest.raises(ValueError, match='digits is used whole, and rows takes a sample of data of your own: leave rows out'):
        Study(data=dict(data='digits', rows=100), models=['logistic'], study='sample')


def test_an_ugly_table_becomes_a_front(home):
    ugly_table().to_csv('customers.csv', index=False)
    study = Study(data='customers.csv', target='buys', models=['logistic', 'gbdt'], study='customers', **FEW).run()
    details = study.own_data.details
    assert 'Customer ID (differs in nearly each row)' in details['left out'] and 'currency (the same in all rows)' in details['left out']
    assert details['rows without a target'] == '5, left out'
    assert {t.status for t in study.trials_so_far} == {'finished'}
    assert study.tables['customers'].shape[0] >= 1 and study.front.test.max() > .7
    recorded = json.loads((home/'data'/'customers'/'study.json').read_text())['data']
    assert recorded['file'] == 'customers.csv' and recorded['target'] == 'buys' and len(recorded['content']) == 16


def test_other_data_under_the_same_name_are_refused_and_the_file_may_be_gone(home):
    how = dict(data='customers.csv', target='buys', models=['logistic'], study='customers', **FEW)
    ugly_table().to_csv('customers.csv', index=False)
    first = Study(**how).run()
    ugly_table(seed=1).to_csv('customers.csv', index=False)
    with pytest.raises(ValueError, match='its content differs'): Study(**how)
    anew = Study(restart=True, **how).run()
    assert anew.data_record['content'] != first.data_record['content']
    assert len(load_study('customers.before-1').trials_so_far) == 3
    os.remove('customers.csv')
    more = Study(**how | dict(trials=4)).run()
    assert len(more.trials_so_far) == 4
    assert load_study('customers').tables['customers'].shape[0] >= 1


def test_families_and_a_loop_share_a_study_and_its_data(home):
    def majority(configuration, data):
        targets = data.parts['validation'][1]
        return float((targets == configuration['answer']).mean())
    table = ugly_table()
    study = Study(data=table, target='buys', models=['logistic', majority], space=dict(majority=dict(answer=[0, 1])), study='both', **FEW).run()
    assert {t.family for t in study.trials_so_far} == {'logistic', 'majority'}
    assert {t.status for t in study.trials_so_far} == {'finished'}
    isolated = Study(data=table, target='buys', models=['logistic'], study='isolated', deadline=60., **FEW).run()
    assert {t.status for t in isolated.trials_so_far} == {'finished'}


def test_groups_and_time_decide_the_parts():
    table = ugly_table().dropna(subset='buys').assign(shop=lambda t: np.arange(len(t))//10)
    grouped = prepare_data(DataSource(table, target='buys', groups='shop'))
    assert grouped.card.split == 'shop held out, 60/20/20'
    timed = prepare_data(DataSource(table.assign(day=range(len(table))), target='buys', time='day'))
    assert timed.card.split == 'in order of day, 60/20/20'


def mixed_table():
    "Numbers with a gap, texts with a gap, dates, and a target."
    colours = np.array(['red', 'blue', None])[np.arange(120) % 3]
    return pd.DataFrame(dict(x=np.where(np.arange(120) % 7 == 0, np.nan, np.arange(120.)), colour=colours,
        day=pd.date_range('2024-01-01', periods=120, freq='D'), n=np.arange(120) % 5, y=['a', 'b']*60))


def hold(table, kind, path):
    "A table in another container."
    if kind in ('parquet', 'feather'):
        need('pyarrow')
        getattr(table, f'to_{kind}')(path)
    if kind == 'xlsx':
        need('openpyxl')
        table.to_excel(path, index=False)
    if kind == 'polars':
        need('polars', 'pyarrow')
        import polars
        return polars.from_pandas(table)
    if kind == 'datasets':
        need('datasets')
        import datasets
        return datasets.Dataset.from_pandas(table)
    return path


def are_same_parts(found, expected):
    for part, (features, targets) in expected.parts.items():
        np.testing.assert_allclose(found.parts[part][0], features, rtol=1e-5)
        assert (found.parts[part][1] == targets).all()


@pytest.mark.parametrize('kind', ['parquet', 'feather', 'polars', 'datasets', 'xlsx'])
def test_other_containers_hold_the_same_data(tmp_path, kind):
    table = mixed_table()
    source = hold(table, kind, tmp_path/f'table.{kind}')
    found, expected = prepare_data(DataSource(source, target='y')), prepare_data(DataSource(table, target='y'))
    are_same_parts(found, expected)
    assert (found.columns, found.details['missing']) == (expected.columns, expected.details['missing'])


def test_a_dataset_of_torch_holds_the_same_data():
    import torch
    table = pd.DataFrame(dict(x=np.arange(100.), y=['a', 'b']*50))
    source = torch.utils.data.TensorDataset(torch.arange(100.)[:, None], torch.arange(100) % 2)
    are_same_parts(prepare_data(DataSource(source)), prepare_data(DataSource(table, target='y')))


@pytest.mark.parametrize('kind', ['polars', 'datasets', 'xlsx'])
def test_a_study_of_another_container_goes_on_only_with_the_same_data(home, kind):
    table = mixed_table()
    made = lambda table: Study(data=hold(table, kind, home/f'table.{kind}'), target='y', models=['logistic'], study='mine', **FEW)
    study = made(table).run()
    assert study.done and len(made(table).trials_so_far) == 3
    with pytest.raises(ValueError, match='is not what the study in .* was made with'): made(table.assign(n=1))


def program(*arguments):
    from typer.testing import CliRunner
    from pareto_energy.bench.commands import app
    return CliRunner().invoke(app, arguments)


def test_one_command_finds_a_front(home):
    ugly_table().to_csv('customers.csv', index=False)
    command = [os.path.join(os.path.dirname(sys.executable), 'pareto-energy'), 'find', 'customers.csv', '--minutes', '.1', '--meter', 'simulated']
    wrong = subprocess.run([*command, '--target', 'bys'], capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and 'Did you mean buys?' in wrong.stderr
    need('safetensors', 'skops')
    done = subprocess.run([*command, '--target', 'buys', '--model', 'logistic', '--epochs', '2', '--keep'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('Reading customers.csv.') and 'The study customers runs; a line says how far it is' in done.stderr
    assert 'The test part has 59 rows: with other rows, an accuracy of' in done.stdout and [*(home/'data/customers/models').glob('*/model.json')]
    assert 'left out: Customer ID' in done.stdout and 'the best model found is of family logistic' in done.stdout
    assert (home/'figures'/'customers'/'front.png').stat().st_size > 1000


def survey(n=300, seed=0):
    "A table of which half says the opposite of the other half, and only one half counts."
    rng = np.random.default_rng(seed)
    counts = np.where(rng.random(n) < .5, 4., 0.)
    income = rng.normal(size=n)
    says = (income > 0) == (counts > 0)
    return pd.DataFrame(dict(income=income, age=rng.normal(size=n), counts=counts, buys=np.where(says, 'yes', 'no'), spent=np.where(says, 1., -1.)*abs(income)))


def test_weights_serve_training_and_utility_and_other_weights_are_refused(home):
    table = survey().drop(columns='spent')
    table.to_csv('survey.csv', index=False)
    made = lambda **parts: Study(data=dict(path='survey.csv', target='buys') | parts, models=['mlp', 'gbdt'], study='mine', **FEW | dict(search='separate', epochs=15))
    study = made(weights='counts').run()
    assert study.metric.name == 'weighted accuracy' and 'with weighted accuracy' in str(study)
    assert max(max(t.run['utility']) for t in study.trials_so_far if t.family == 'gbdt') > .9
    assert json.loads((home/'data/mine/study.json').read_text())['data']['weights'] == 'counts'
    assert load_study('mine').front.family.tolist() == study.front.family.tolist() and made(weights='counts').done
    with pytest.raises(ValueError, match='weights|metric was'): made().run()
    table.assign(counts=1).to_csv('survey.csv', index=False)
    with pytest.raises(ValueError, match='is not what the study in .* was made with'): made(weights='counts')


@pytest.mark.parametrize('target, metric', [('buys', 'balanced_accuracy'), ('buys', 'macro_f1'), ('buys', 'roc_auc'), ('spent', 'r2')])
def test_weighted_data_are_data_with_rows_that_come_more_than_once(target, metric):
    "Each metric, and the best constant prediction, of rows of weight 2 is that of rows that are there twice."
    from pareto_energy.models.data import METRICS, constant_utility
    others = dict(buys='spent', spent='buys')
    data = prepare_data(DataSource(survey().assign(counts=np.arange(300) % 3), target=target, weights='counts', drop=(others[target],)))
    rng, n = np.random.default_rng(0), len(data.parts['validation'][1])
    scores, targets, weights = rng.normal(size=(n, data.outputs)), data.parts['validation'][1], data.weights['validation']
    times = np.round(weights/weights[weights > 0].min()).astype(int)
    repeated = np.repeat(np.arange(n), times)
    assert METRICS[metric](scores, targets, weights) == pytest.approx(METRICS[metric](scores[repeated], targets[repeated]))
    same = {p: np.repeat(np.arange(len(t)), np.round(2*data.weights[p]/data.weights[p].max()).astype(int)) for p, (_, t) in data.parts.items()}
    train, validation = (data.parts[p][1][same[p]] for p in ('train', 'validation'))
    constant = [train.mean()] if target == 'spent' else np.bincount(train)/len(train)
    best = METRICS[metric](np.tile(constant, (len(validation), 1)), validation)
    assert constant_utility(data, metric) == pytest.approx(best)


def test_a_loop_that_leaves_the_weights_out_is_warned_of(home):
    def careless(configuration, data, epochs): yield from [configuration['x']]*epochs
    def careful(configuration, data, epochs): yield from [configuration['x']*data.weights['train'].mean()]*epochs
    made = lambda loop: Study(data=DataSource(survey(), target='buys', weights='counts'), models=[loop], space={loop.__name__: dict(x=(0., 1.))}, study=loop.__name__, **FEW)
    with pytest.warns(UserWarning, match='careless does not read data.weights'): made(careless)
    study = made(careful).run()
    assert {t.status for t in study.trials_so_far} == {'finished'}


def test_weights_by_the_command_line_and_in_a_file(home):
    survey().drop(columns='spent').to_csv('survey.csv', index=False)
    done = program('find', 'survey.csv', '--target', 'buys', '--weights', 'counts', '--model', 'gbdt', '--minutes', '.1', '--meter', 'simulated', '--epochs', '2')
    assert done.exit_code == 0 and 'weights: counts, from 0 to 4' in done.stdout and 'with weighted accuracy' in done.stdout, done.stderr
    assert program('new', 'polled', '--data', 'survey.csv', '--target', 'buys', '--weights', 'counts').exit_code == 0
    import yaml
    settings = yaml.safe_load((home/'polled.yaml').read_text())
    assert settings['data']['weights'] == 'counts'
    from pareto_energy.run.study import FamilyStudy
    study = FamilyStudy(**settings | dict(families=['gbdt'], meter='simulated'))
    assert study.own_data.weights and study.ref_points['survey'].metric.name == 'weighted accuracy'
    wrong = program('find', 'survey.csv', '--target', 'buys', '--weights', 'count', '--meter', 'simulated')
    assert wrong.exit_code == 2 and 'Did you mean counts?' in wrong.stderr
    assert program('find', 'digits', '--weights', 'count', '--meter', 'simulated').exit_code == 2


def test_a_kept_model_answers_rows_of_the_table_in_another_process(home):
    need('safetensors', 'skops')
    ugly_table().to_csv('customers.csv', index=False)
    study = Study(data='customers.csv', target='buys', models=['logistic', 'gbdt'], study='customers', keep='front', **FEW).run()
    best, (features, _) = study.best(), study.own_data.parts['test']
    assert repr(best).startswith('KeptModel(family=') and len(repr(best)) < 200
    rows = pd.read_csv('customers.csv').drop(columns='buys').assign(new='a column that the training did not have')
    code = ('import pandas as pd; from pareto_energy import load_study; '
            'print(*load_study("customers").best().predict(pd.read_csv("customers.csv").drop(columns="buys")))')
    answers = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert answers == best.predict(rows).tolist() and {*answers} == {'yes', 'no'}
    assert {*map(tuple, features.round(4))} <= {*map(tuple, best._encode(rows).round(4))} # of the same rows, the same numbers
    for wrong, message in ((rows.drop(columns='Straße'), "no column 'Straße'"), (rows.assign(**{'age (years)': 'old'}), "holds 'old' in row 1")):
        with pytest.raises(ValueError, match=message): best.predict(wrong)
