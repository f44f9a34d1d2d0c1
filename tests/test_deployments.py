"Deployments along the whole way: from the setting to the log and to the retrained points; models that are not trained at all."
import json

import pytest
from typer.testing import CliRunner

from pareto_energy.front.log import read_study, read_trials
from pareto_energy.run.study import FamilyStudy, total_joules

SETTINGS = dict(families=['logistic', 'gbdt'], strategies=['random'], seeds=[0], trials=2, n_initial=2, epochs=3, datasets=['breast-cancer'],
    meter='simulated', repeats=1, front_points=2, fresh_seeds=1)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('PARETO_ENERGY_HOME', str(tmp_path))
    return tmp_path


def test_a_study_reads_each_deployment_of_each_trial_and_of_each_retrained_point():
    asked = ['float32', dict(name='int8', batch=[1, 256])]
    FamilyStudy('used', deployments=asked, **SETTINGS).run()
    trials, _, record = read_study('used')
    assert record['deployments'] == asked
    for t in trials:
        found = t.run['deployments']
        assert [(d['deployment'], d['batch']) for d in found] == [('float32', 256), ('int8', 1), ('int8', 256)]
        assert [d['epochs'] for d in found if 'skipped' not in d] == [t.epochs]*(1 if t.family == 'gbdt' else 3)
        assert t.run['inference'] == dict(joules=found[0]['joules'][-1], se=found[0]['se'][-1], spent=found[0]['spent'])
        assert t.reading_joules == sum(d['spent'] for d in found)
    assert {d['skipped'] for t in trials for d in t.run['deployments'] if 'skipped' in d} == {'int8 serves networks; scikit-learn serves boosted trees in float32 alone'}
    again = [r for t in trials for r in t.retrained]
    assert again and all([d['epochs'] for d in r['deployments'] if 'skipped' not in d][0] == [r['epoch']] for r in again)
    assert total_joules(trials) == pytest.approx(sum(t.spent + t.suggestion_joules + t.reading_joules + sum(r['spent'] for r in t.retrained) for t in trials))


def test_by_default_one_deployment_is_read():
    FamilyStudy('plain', ranges=dict(all=dict(dtype='float32')), **SETTINGS | dict(families=['logistic'], trials=1, n_initial=1)).run()
    (trial,) = read_study('plain')[0]
    (only,) = trial.run['deployments']
    assert (only['deployment'], only['batch'], only['utility']) == ('float32', 256, trial.run['utility'])


def test_trials_of_a_study_have_the_same_deployments():
    FamilyStudy('fixed', **SETTINGS | dict(families=['logistic'], trials=1, n_initial=1)).run()
    with pytest.raises(ValueError, match=r"deployments was \['float32'\] and is now \['onnx'\]"):
        FamilyStudy('fixed', **SETTINGS | dict(families=['logistic'], trials=2, n_initial=1, deployments=['onnx'])).run()


@pytest.mark.parametrize(('wrong', 'text'), [(['int9'], 'Did you mean int8'), ([{'name': 'onnx', 'batch': 0}], 'whole number of at least 1'), (['onnx', 'onnx'], 'listed twice')])
def test_a_wrong_deployment_is_refused_before_the_first_trial(wrong, text, tmp_path):
    from pareto_energy.cli import app
    with pytest.raises(ValueError, match=text): FamilyStudy('wrong', deployments=wrong, **SETTINGS)
    file = tmp_path/'wrong.yaml'
    file.write_text(json.dumps(dict(study='wrong', **SETTINGS)))
    done = CliRunner().invoke(app, ['run', str(file), '-p', f'deployments={json.dumps(wrong)}'])
    assert done.exit_code and text in done.output + str(done.exception)


def test_a_pretrained_model_is_a_trial_of_0_joules(home):
    from pareto_energy import Study
    study = Study(lambda configuration: dict(utility=.5 + configuration['width']/100, epoch=0, predict=(lambda: sum(range(1000)), 10)),
        dict(width=(1, 9)), 'pretrained', trials=3, n_initial=3, strategies=['random'], meter='codecarbon', min_gain_per_cost=0., fresh_seeds=1)
    try: study.run()
    finally: trials = [*read_trials(home/'data/pretrained/trials.jsonl').values()]
    assert {t.status for t in trials} == {'finished'}
    assert all(t.run['joules'] == [0.] and t.epochs == [0] and t.spent > 0 and t.run['deployments'][0]['joules'][0] > 0 for t in trials)
