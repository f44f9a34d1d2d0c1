"The energy that a study weighs: of training, of inference, or of a life."
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import SMOKE

LIFE = SMOKE | dict(families=['mlp'], seeds=[0], trials=5, fresh_seeds=2, ranges=dict(mlp=dict(width=[4, 128])))


def study_of(name, **changes):
    from pareto_energy.run.study import FamilyStudy, run_study
    study = FamilyStudy(name, **LIFE | dict(ref_joules=None) | changes)
    return study, run_study(study)


@pytest.mark.parametrize('strategy, energy', [
    ('trajectory', dict(energy='inference')), ('trajectory', dict(energy='lifetime', predictions=1e6)),
    ('qlognehvi', dict(energy='lifetime', predictions=1e6)), ('grid', dict(energy='inference'))])
def test_strategies_search_each_energy(home, strategy, energy):
    from pareto_energy.api import load_study
    from pareto_energy.front.log import EnergyObjective
    study, trials = study_of('life', strategies=[strategy], **energy)
    assert [t.status for t in trials] == ['finished']*5
    front = load_study('life').front
    objective = EnergyObjective(energy['energy'], energy.get('predictions'))
    assert study.ref_points['digits'].energy == objective
    assert ((front.joules - objective.joules(front.training, front.inference)).abs() < 1e-9*front.joules).all()
    assert json.loads((study.folder/'study.json').read_text())['energy'] == energy['energy']
    retrained = {(t.number, r['epoch']) for t in trials for r in t.retrained}
    assert retrained # the points of this energy's front were trained again
    from pareto_energy.front.pareto import select_for_retraining
    assert retrained == {(t.number, epoch) for t, epoch in select_for_retraining(trials, 3, study.ref_points['digits'])}


def test_longer_training_costs_nothing_where_answers_count(home):
    "In the energy of inference, all epochs of a run lie above one another; in that of training, they do not."
    from pareto_energy.models.space import sobol_points
    from pareto_energy.search.acquisition import build_acquisition
    from pareto_energy.search.strategies import seeded_fit
    study, trials = study_of('life', strategies=['trajectory'], energy='training', trials=4)
    search = study.search_task('digits', 'mlp')
    from pareto_energy.front.log import EnergyObjective
    used = replace(search, energy=EnergyObjective('inference'), ref_point=replace(search.ref_point, energy=EnergyObjective('inference'), joules=1.))
    points = torch.tensor(np.array([search.space.encode(c) for c in sobol_points(search.space, 16, 5)]))
    rises = {}
    for name, task in dict(training=search, inference=used).items():
        with seeded_fit(0): acquisition = build_acquisition(task, trials)
        with torch.no_grad(): [(energy, _)] = acquisition.samples.models(points)
        rises[name] = (energy[..., -1] - energy[..., 0]).mean()
    assert rises['inference'] == 0 < rises['training'] # longer training costs nothing on the axis


def test_a_finished_study_is_read_again_without_training(home):
    from pareto_energy.api import load_study
    study, _ = study_of('life', strategies=['trajectory'])
    files = lambda: {p.name: p.read_bytes() for p in study.folder.iterdir() if p.is_file()}
    before = files()
    trained, used = load_study('life'), load_study('life', 'lifetime', 1e6)
    assert used.front.joules.min() > trained.front.joules.min()
    assert 'J over 10⁶ predictions' in str(used) and 'training energy (J), and is read here in J over 10⁶' in used.conclusions[-1]
    assert 'lifetime energy (J over 10⁶ predictions, simulated)' in json.dumps(used.chart.to_dict(), ensure_ascii=False)
    assert load_study('life', 'lifetime', 0).front.joules.tolist() == pytest.approx(trained.front.joules.tolist())
    assert files() == before


def test_another_life_is_another_study(home):
    study_of('life', strategies=['random'], energy='lifetime', predictions=1e6)
    with pytest.raises(ValueError, match='predictions was 1000000.0 and is now 1000'):
        study_of('life', strategies=['random'], energy='lifetime', predictions=1000, trials=6)
    with pytest.raises(ValueError, match="energy was 'lifetime' and is now 'training'"):
        study_of('life', strategies=['random'], trials=6)


@pytest.mark.parametrize('settings, said', [
    (dict(energy='lifetime'), 'needs the number of predictions'),
    (dict(energy='lifetime', predictions=-1), 'predictions must be a number from 0, not -1'),
    (dict(energy='lifetime', predictions=math.inf), 'predictions must be a number from 0, not inf'),
    (dict(energy='lifetime', predictions='1e6'), "predictions must be a number from 0, not '1e6'"),
    (dict(energy='use'), "Unknown energy 'use': expected one of training, inference, lifetime")])
def test_a_wrong_energy_is_said_before_any_training(home, settings, said):
    with pytest.raises(ValueError, match=said): study_of('wrong', **settings)
    assert not (home/'data/wrong').exists()


def test_a_loop_that_does_not_say_how_it_predicts_fails_with_the_reason(home):
    from pareto_energy import Study

    def silent(configuration, epochs, seed):
        for epoch in range(epochs): yield 1 - configuration['lr']/(epoch + 1)

    def answering(configuration, epochs, seed):
        for epoch in range(epochs): yield dict(utility=1 - configuration['lr']/(epoch + 1), predict=(lambda: sum(range(1000)), 10))
    how = dict(meter='simulated', trials=3, epochs=2, fresh_seeds=2, front_points=2, energy='inference')
    study = Study(silent, dict(lr=(.01, .1)), 'silent', **how).run()
    assert {t.reason for t in study.trials_so_far} == {'the energy of inference counts, and was not read: the loop has to say '
        'how it predicts, with report(utility, predict=(function, examples))'}
    study = Study(answering, dict(lr=(.01, .1)), 'answering', **how).run()
    assert {t.status for t in study.trials_so_far} == {'finished'} and 'J per 1,000 predictions' in str(study)


@pytest.mark.filterwarnings('error::RuntimeWarning')
@pytest.mark.parametrize('energy', [dict(), dict(energy='inference'), dict(energy='lifetime', predictions=1e5)])
def test_a_model_that_is_not_trained_is_searched_like_any_other(home, energy):
    from pareto_energy import Study

    def pretrained(configuration, epochs, seed):
        layers = configuration['layers']
        work = lambda: sum(range(1000*layers))
        yield dict(utility=1 - 1/(1 + layers), epoch=0, predict=work, answers=10)
    study = Study(pretrained, dict(layers=(1, 12)), 'pretrained', trials=6, n_initial=3, epochs=4, fresh_seeds=2,
        front_points=2, repeats=1, target_rel_se=.5, max_seconds=.1, **energy).run()
    trials = study.trials_so_far
    assert [t.status for t in trials] == ['finished']*len(trials) and len(trials) > 3
    assert {t.run['joules'][0] for t in trials} == {0.} and {tuple(t.epochs) for t in trials} == {(0,)}
    front = study.front
    assert (front.joules > 0).all() == bool(energy) and front.on_front.any()
    assert str(study) and study.chart.to_dict()


def test_no_epochs_are_refused_with_the_way_to_go(home):
    from pareto_energy import Study
    with pytest.raises(ValueError, match=r'a loop of your own that reports once, with epoch=0\), not 0'):
        Study(lambda configuration: dict(utility=.5, epoch=0), dict(width=(1, 9)), 'none', trials=3, epochs=0).run()


def test_half_a_stated_threshold_reaches_the_search_of_a_loop(home):
    "Of what is not stated, the trials tell; before the first, the search infers both."
    from pareto_energy.api import Study

    def loop(configuration):
        for epoch in range(3): yield configuration['lr']*(epoch + 1)/3
    search = lambda study: study.search_task(study.datasets[0], next(iter(study.loops))).ref_point
    stated = Study(loop, space=dict(lr=(.1, .9)), study='half', meter='simulated', trials=3, n_initial=2, epochs=3, fresh_seeds=1, repeats=1, ref_utility=.2)
    assert search(stated) is None
    stated.run()
    joules = max(max(t.run['joules']) for t in stated.trials_so_far)
    assert (search(stated).utility, search(stated).joules) == (.2, pytest.approx(1.1*joules))
    unstated = Study(loop, space=dict(lr=(.1, .9)), study='half', meter='simulated', trials=3, n_initial=2, epochs=3, fresh_seeds=1, repeats=1)
    assert search(unstated) is None


def test_thresholds_of_the_command_line_reach_the_search(home, monkeypatch):
    from typer.testing import CliRunner
    from pareto_energy.cli import app
    begun = []
    def stop(study, minutes):
        begun.append(study)
        raise ValueError('enough')
    monkeypatch.setattr('pareto_energy.cli._find_within', stop)
    words = ('find', 'digits', '--model', 'logistic', '--meter', 'simulated')
    assert 'enough' in CliRunner().invoke(app, [*words, '--utility-at-least', '.5', '--energy-at-most', '3']).stderr
    search = begun[0].search_task('digits', 'logistic')
    assert (search.ref_point.utility, search.ref_point.joules) == (.5, 3.)
    wrong = CliRunner().invoke(app, [*words, '--energy-at-most', '0'])
    assert wrong.exit_code == 2 and 'number above 0' in wrong.stderr


def test_the_unit_of_the_answers_reaches_axis_and_sentences(home):
    from pareto_energy.api import Study, load_study

    def speaking(configuration):
        yield dict(utility=configuration['width'], predict=lambda: sum(range(2000)), answers=100, unit='tokens')
    study = Study(speaking, dict(width=(.1, .9)), 'speaking', trials=4, n_initial=2, epochs=1, fresh_seeds=2, repeats=1, target_rel_se=.5,
        max_seconds=.1, energy='inference').run()
    for read in (study, load_study('speaking')):
        assert 'J per 1,000 tokens' in str(read) and 'J per 1,000 tokens' in json.dumps(read.chart.to_dict())
    life = load_study('speaking', 'lifetime', 1e6)
    assert 'over 10⁶ tokens' in str(life)
    assert 'predictions' not in str(life)


def test_a_model_card_states_one_training_whatever_the_front_weighs():
    from pareto_energy.api import load_study
    from pareto_energy.report.export import emissions_block
    trained, used = (load_study('published/quick', *energy).front for energy in (('training',), ('lifetime', 1e8)))
    best = used[used.on_front].iloc[-1]
    same = trained[(trained.trial == best.trial) & (trained.epochs == best.epochs)].iloc[0]
    card = emissions_block(best, 'estimated', 'a machine', 'DEU')
    assert f'{same.joules:.3g} ± ' in card and best.joules > 2*same.joules
