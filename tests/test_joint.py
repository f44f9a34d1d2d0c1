"A joint search: one search over several families, killed and resumed, by several workers, and from the command line."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_resume import kill_until_done

from pareto_energy import Study
from pareto_energy.front.log import ALL_FAMILIES, is_joint, read_log, read_trials
from pareto_energy.run.study import FamilyStudy, run_study

JOINT = dict(search='joint', strategies=['trajectory'], seeds=[0], trials=6, epochs=2, repeats=1, front_points=1, fresh_seeds=1, min_gain_per_cost=0.)
FEW = dict(trials=4, n_initial=2, epochs=2, fresh_seeds=1, front_points=1, meter='simulated', min_gain_per_cost=0.)


@pytest.fixture
def here(home, monkeypatch):
    "The project folder, as the working folder."
    monkeypatch.chdir(home)
    return home


def small_table(n=90):
    rng = np.random.default_rng(0)
    income, age = rng.normal(size=n), rng.normal(size=n)
    return pd.DataFrame(dict(income=income, age=age, buys=np.where(income + .3*age > 0, 'yes', 'no')))


def outcome(trials): return {t.key: (t.configuration, t.origin.source, t.origin.epochs, t.status, t.run.get('utility'), t.run.get('joules')) for t in trials}
def numbers(trials): return sorted(t.number for t in trials)


def test_a_killed_joint_study_ends_as_one_that_was_not(tmp_path, smoke):
    kills, inside, whole, log = kill_until_done(tmp_path, smoke | JOINT, most=8)
    trials = read_trials(log).values()
    assert kills >= 5 and inside >= 1 and not read_log(log).damage
    assert outcome(trials) == outcome(read_trials(whole).values())
    assert numbers(trials) == [*range(6)] and {t.family for t in trials} == {'logistic', 'mlp'}


def test_workers_of_a_joint_search_share_its_numbers_and_see_what_is_under_way(home, smoke):
    distributed = pytest.importorskip('distributed')
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, resources=dict(meter=1), dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        trials = run_study(FamilyStudy('shared', **smoke | JOINT | dict(trials=8)), client=client)
    assert numbers(trials) == [*range(8)] and {t.status for t in trials} == {'finished'}
    assert len({(t.family, json.dumps(t.configuration, sort_keys=True)) for t in trials}) == 8
    assert len({t.search for t in trials}) == 1 and {t.family for t in trials} == {'logistic', 'mlp'}


def test_a_joint_search_has_its_families_and_its_trials_are_its_own(home, smoke):
    study = FamilyStudy('both', **smoke | JOINT | dict(search='both', strategies=['random'], trials=3))
    trials = run_study(study)
    assert study.searches == [('digits', 'logistic', 'random', 0), ('digits', 'mlp', 'random', 0), ('digits', ALL_FAMILIES, 'joint random', 0)]
    of_search = {search: numbers(t for t in trials if t.search == search) for search in study.searches}
    assert of_search == dict.fromkeys(study.searches, [0, 1, 2])
    fewer = replace(study, families=['logistic'])
    with pytest.raises(ValueError, match=r"families was \['logistic', 'mlp'\] and is now \['logistic'\].*another name"): run_study(fewer)
    more = replace(study, search='separate', families=['logistic'])
    assert len(run_study(more)) == 9, 'separate searches go on with fewer families'


def test_one_family_is_searched_as_itself(home, smoke):
    settings = smoke | JOINT | dict(families=['logistic'], trials=3)
    alone = run_study(FamilyStudy('alone', **settings | dict(search='separate')))
    assert outcome(run_study(FamilyStudy('joint', **settings))) == outcome(alone)


def test_a_joint_search_learns_from_separate_ones(home, smoke):
    run_study(FamilyStudy('separate', **smoke | JOINT | dict(search='separate', strategies=['sobol'], trials=3)))
    warm = FamilyStudy('warm', **smoke | JOINT | dict(warm='separate', strategies=['trajectory', 'random'], trials=4, n_initial=4))
    task = warm.search_task('digits', ALL_FAMILIES)
    prior, = task.prior_trials
    assert len(prior) == 6 and {t.configuration['family'] for t in prior} == {'logistic', 'mlp'}
    assert task.warm_starts and all(task.space.decode(task.space.encode(w.configuration)) for w in task.warm_starts)
    trials = run_study(warm)
    sources = {(t.strategy, t.number): t.origin.source for t in trials}
    assert len(sources) == 8 and {t.status for t in trials} == {'finished'}
    assert sources['joint random', 1] == 'warm start' and 'trajectory' in {sources['joint trajectory', n] for n in range(4)}


def test_a_typing_mistake_in_search_is_answered(smoke):
    with pytest.raises(ValueError, match='Did you mean joint'): FamilyStudy('typo', **smoke | dict(search='jiont'))


def test_a_loop_and_a_family_are_searched_together(here):
    def guess(configuration, data, epochs):
        share = float((data.parts['validation'][1] == 0).mean())
        for epoch in range(1, epochs + 1): yield share*configuration['trust']*epoch/epochs
    how = dict(data=small_table(), target='buys', space=dict(guess=dict(trust=(.1, 1.))), study='mine')
    study = Study(models=['logistic', guess], **how, **FEW | dict(trials=6)).run()
    trials = study.trials_so_far
    assert study.search == 'joint' and numbers(trials) == [*range(6)]
    assert {t.family for t in trials} == {'logistic', 'guess'} and {t.status for t in trials} == {'finished'}
    assert all(('trust' in t.configuration) == (t.family == 'guess') for t in trials)
    with pytest.raises(ValueError, match='the models were logistic, guess and are now logistic, mlp, guess. Give'): Study(models=['logistic', 'mlp', guess], **how, **FEW)
    with pytest.raises(ValueError, match='families was'): Study(models=[guess], **how, **FEW).run()


def test_find_says_where_the_joules_went(here):
    from typer.testing import CliRunner
    from pareto_energy.cli import app
    small_table().to_csv('shop.csv', index=False)
    words = ('--model', 'logistic', '--model', 'mlp', '--minutes', '.2', '--meter', 'simulated', '--epochs', '2')
    done = CliRunner().invoke(app, ['find', 'shop.csv', '--target', 'buys', *words])
    assert done.exit_code == 0, done.output
    printed = ' '.join(done.stdout.split())
    assert 'Of the joules of the joint search on shop,' in printed and '% to the mlp' in printed and '% to the logistic' in printed
    trials = read_trials(here/'data/shop/trials.jsonl').values()
    assert all(is_joint(t.strategy) for t in trials) and numbers(trials) == [*range(len(trials))]


def test_reports_serve_joint_searches(here, smoke):
    from typer.testing import CliRunner
    from pareto_energy.api import live_front_chart, load_study, progress_sentence
    from pareto_energy.cli import app
    settings = smoke | JOINT | dict(strategies=['random'], seeds=[0, 1], trials=3, front_points=2)
    for name, search in dict(one='joint', other='both').items(): run_study(FamilyStudy(name, **settings | dict(search=search)))
    compared = CliRunner().invoke(app, ['compare', 'one', 'other', '--json'])
    assert compared.exit_code == 0, compared.output
    assert {(p['study'], p['other'], p['pairs'], p['mean_difference']) for p in json.loads(compared.stdout)['pairs']} == {('one', 'other', 2, 0.)}
    study = load_study('one')
    trials = study.trials_so_far
    n = {f: sum(t.family == f for t in trials) for f in ('logistic', 'mlp')}
    said = progress_sentence(study, trials)
    assert said.startswith('6 of 6 trials (') and all(f'{f} {count}' in said for f, count in n.items())
    cloud = live_front_chart(study, trials).to_dict()['layer'][0]
    assert cloud['encoding']['color']['field'] == 'family'
