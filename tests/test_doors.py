"Each block of docs/doors.md runs as it stands, and bills training alone."
import re
from pathlib import Path

import pytest
from conftest import CountingMeter, need

from pareto_energy import api
from pareto_energy.energy.meter import SimulatedMeter
from pareto_energy.models.custom import train_loop

pytestmark = pytest.mark.usefixtures('offline')
PAGE = (Path(__file__).parents[1]/'docs/doors.md').read_text(encoding='utf-8')
FIRST, *SECTIONS = re.split(r'^## ', PAGE, flags=re.M)
PACKAGES = {'scikit-learn Pipeline': [], 'partial_fit with early stopping': [], 'HistGradientBoosting': [], 'XGBoost': ['xgboost'],
    'LightGBM': ['lightgbm'], 'Plain PyTorch': [], 'Lightning': ['lightning'], 'Hugging Face Trainer': ['transformers', 'accelerate'],
    'Keras': ['keras'], 'Optuna': ['optuna'], 'Ax': ['ax'], 'Trainings measured with CodeCarbon': []}
COSTS = { # door -> (owner in the block, what trains, joules of an epoch in which each call takes one, what evaluates)
    'scikit-learn Pipeline': ('SVC', 'fit', 1, ('sklearn.pipeline.Pipeline', 'score')),
    'partial_fit with early stopping': ('MLPClassifier', 'partial_fit', 1, ('MLPClassifier', 'score')),
    'HistGradientBoosting': ('HistGradientBoostingClassifier', 'fit', 1, ('HistGradientBoostingClassifier', 'score')),
    'XGBoost': ('xgboost.Booster', 'update', 10, ('xgboost.Booster', 'inplace_predict')),
    'LightGBM': ('lightgbm.Booster', 'update', 10, ('lightgbm.Booster', 'predict')),
    'Plain PyTorch': ('torch.optim.Adam', 'step', 5, (None, 'accuracy')),
    'Lightning': ('Net', 'training_step', 5, ('Net', 'validation_step')),
    'Hugging Face Trainer': ('Trainer', 'training_step', 5, ('Trainer', 'prediction_step')),
    'Keras': ('keras.Model', 'train_step', 10, ('keras.Model', 'test_step'))}
FEWER = 'random_state=0, train_size=320, test_size=100' # examples
FEW = dict(trials=2, n_initial=2, epochs=2, front_points=1, fresh_seeds=1, meter='simulated', strategies=('random',))


class CallMeter(CountingMeter):
    "A joule for each call that trains, a thousand for each that evaluates."
    def bill(self, monkeypatch, owner, name, joules):
        "Let each call of a method, or of a function of a block, take joules."
        call = owner[name] if isinstance(owner, dict) else getattr(owner, name)
        def billed(*args, **kwargs):
            self.joules += joules
            return call(*args, **kwargs)
        if isinstance(owner, dict): monkeypatch.setitem(owner, name, billed)
        else: monkeypatch.setattr(owner, name, billed)


def block(text): return re.search(r'```python\n(.*?)```', text, re.S)[1]


def run_block(door, home, monkeypatch):
    "What a block leaves behind, run with few trials on fewer examples."
    need(*PACKAGES[door])
    monkeypatch.chdir(home)
    monkeypatch.setenv('KERAS_HOME', str(home))
    monkeypatch.setattr(api, 'OWN_DEFAULTS', api.OWN_DEFAULTS | FEW)
    section = next(s for s in SECTIONS if s.startswith(door + '\n'))
    source = '\n'.join(block(text).replace(', epochs=5', '').replace('random_state=0', FEWER) for text in (FIRST, section))
    found = dict(__name__=f"door_{door.split()[0].lower().replace('-', '_')}")
    exec(compile(source, f'docs/doors.md, {door}', 'exec'), found)
    return found


def find_owner(name, found):
    if name is None: return found
    import importlib
    first, *rest = name.split('.')
    thing = found.get(first) or importlib.import_module(first)
    for part in rest: thing = getattr(thing, part)
    return thing


def test_the_page_has_a_tested_block_for_each_door():
    assert [s.partition('\n')[0] for s in SECTIONS] == list(PACKAGES)
    for door in PACKAGES: # as the site makes anchors of headings
        anchor = door.lower().replace(' ', '-')
        assert f'](#{anchor})' in FIRST
    assert re.findall(r'^\| \[(.+?)\]', FIRST, re.M) == [*COSTS]


@pytest.mark.parametrize('door', COSTS)
def test_each_report_of_a_door_has_the_joules_of_its_training_alone(door, home, monkeypatch):
    found = run_block(door, home, monkeypatch)
    study = found['study']
    assert study.done and {t.status for t in study.trials_so_far} == {'finished'} and len(study.trials_so_far) == 2
    (loop,), trial, meter = study.loops.values(), study.trials_so_far[0], CallMeter()
    owner, trains, joules, (evaluator, evaluates) = COSTS[door]
    meter.bill(monkeypatch, find_owner(owner, found), trains, 1)
    meter.bill(monkeypatch, find_owner(evaluator, found), evaluates, 1000)
    run = train_loop(loop, trial.configuration, 2, 0, meter)
    reports = 1 if 'Pipeline' in door else 2
    assert run.joules == [joules*(n + 1) for n in range(reports)] and len(run.utility) == reports
    assert meter.joules > 1000 and run.spent == run.joules[-1]
    assert run.utility == pytest.approx(trial.run['utility'])


def test_patience_ends_a_run(home, monkeypatch):
    found = run_block('partial_fit with early stopping', home, monkeypatch)
    run = train_loop(found['patient'], dict(hidden_layer_sizes=8, learning_rate_init=1e-9), 50, 0, SimulatedMeter())
    assert len(run.utility) == 4


@pytest.mark.parametrize('door', ['Optuna', 'Ax'])
def test_a_search_comes_in_and_goes_out(door, home, monkeypatch):
    found = run_block(door, home, monkeypatch)
    study = found['study']
    best = found['searched'].best_params if door == 'Optuna' else found['client'].get_best_parameterization(use_model_predictions=False)[0]
    first, last = study.trials_so_far
    assert first.configuration == best and first.origin.source == 'given' and study.done
    values = [[t.run['utility'][-1], t.run['joules'][-1]] for t in (first, last)]
    if door == 'Optuna': assert [t.values for t in found['back'].trials] == values
    else: assert found['back'].summarize()[['utility', 'joules']].to_numpy().tolist() == values


def test_trainings_measured_with_codecarbon_are_a_front(home, monkeypatch):
    found = run_block('Trainings measured with CodeCarbon', home, monkeypatch)
    front, rows = found['found'].front, found['rows']
    assert sorted(front.joules) == pytest.approx(sorted(3.6e6*r['energy_consumed'] for r in rows))
    assert front.on_front.any() and 'width' in front.searched.iloc[0]


# Ax by itself: what a space and an objective may be

def ax_client(objective, minimised=False, **how):
    from ax import ChoiceParameterConfig, Client, RangeParameterConfig
    client = Client()
    client.configure_experiment([
        RangeParameterConfig(name='lr', bounds=(1e-3, 1.), parameter_type='float', scaling='log'),
        RangeParameterConfig(name='width', bounds=(1, 8), parameter_type='int'),
        RangeParameterConfig(name='dropout', bounds=(0., .5), parameter_type='float'),
        RangeParameterConfig(name='batch', bounds=(8, 24), parameter_type='int', step_size=8),
        ChoiceParameterConfig(name='kind', values=['a', 'b'], parameter_type='str', is_ordered=False),
        ChoiceParameterConfig(name='depth', values=[3], parameter_type='int')], **how)
    client.configure_optimization(objective)
    for n in range(4):
        index = client.attach_trial(dict(lr=.1*(n + 1), width=n + 1, dropout=.25, batch=8, kind='ab'[n % 2], depth=3))
        if n < 3: client.complete_trial(index, dict(accuracy=.5 + .1*n, joules=1. + (n > 1)))
    return client


def train(configuration, epochs):
    for _ in range(epochs): yield configuration['lr']


@pytest.mark.parametrize('objective, best', [('accuracy', [3]), ('accuracy, -joules', [2, 3]), ('accuracy - joules', [2])])
def test_ax_gives_its_space_and_its_best_trials(objective, best, home):
    need('ax')
    from pareto_energy.models.space import Categorical, Float, Int, Ordinal
    study = api.Study.from_ax(ax_client(objective), train, 'mine', meter='simulated')
    space = study.own_spaces['train']
    assert dict(space) == dict(lr=Float(1e-3, 1., log=True), width=Int(1, 8), dropout=Float(0., .5), batch=Ordinal([8, 16, 24]), kind=Categorical(['a', 'b']))
    assert space.fixed == dict(depth=3) and sorted(c['width'] for c in study.enqueued) == best


def test_what_ax_has_and_a_study_has_not_is_said(home):
    need('ax')
    with pytest.raises(ValueError, match="The Ax experiment minimises.*say what the loop reports"):
        api.Study.from_ax(ax_client('-joules'), train, 'mine')
    with pytest.warns(UserWarning, match='is no part of this space'):
        api.Study.from_ax(ax_client('accuracy', parameter_constraints=['width <= 10*dropout + 20']), train, 'mine')
    from ax import Client
    empty = Client()
    empty.configure_experiment([])
    with pytest.raises(ValueError, match='no objective, or no trials'): api.Study.from_ax(empty, train, 'mine')
