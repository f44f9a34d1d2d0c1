"The published studies: what they say of themselves is what their logs hold, and reading them writes nothing."
import ast
import hashlib
import json
import shutil
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import yaml

from pareto_energy.run.study import FamilyStudy, run_study, study_status
from pareto_energy.front.log import JOINT, read_study
from pareto_energy.report.comparison import progress_over_families

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT/'data/published'
WRITTEN_BY = dict(quick='quick', cheap='cheap', dpareto='dpareto', thesis='thesis', deployment='deployment') | {
    'gpu-h200': 'gpu-scratch', 'gpu-h100': 'gpu-scratch', 'deployment-1e4': 'deployment', 'deployment-1e8': 'deployment'}
DIFFERS = {'gpu-h100': dict(warm='published/gpu-h200')} | {f'deployment-{n}': dict(predictions=float(n)) for n in ('1e4', '1e8')}
SMALL_FRONTS = {('deployment-1e8', 'digits'): 5} # points, where the front has fewer than are to be trained again
LATER_SETTINGS = dict(search='separate', data=None, energy='training', predictions=None, deployments=['float32'],
    components=None, watts=None, measured_share=.95, pretrained=None, keep=None,
    utility_range=1.) # that older records lack
DEFAULTS = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(FamilyStudy)}
STUDIES = sorted(p.parent.name for p in PUBLISHED.glob('*/trials.jsonl'))


def yaml_of(name): return yaml.safe_load((ROOT/f'nbs/studies/{WRITTEN_BY[name]}.yaml').read_text()) | DIFFERS.get(name, {})


def defaults_of(path):
    return {name: ast.literal_eval(p['default']) for name, p in papermill.inspect_notebook(path).items()}


@pytest.mark.parametrize('name', WRITTEN_BY)
def test_record_and_yaml_agree(name):
    record = LATER_SETTINGS | json.loads((PUBLISHED/name/'study.json').read_text())
    expected = DEFAULTS | yaml_of(name)
    assert record == {k: v for k, v in expected.items() if k != 'study'}


@pytest.mark.parametrize('path', sorted((ROOT/'nbs').glob('[0-9]*.ipynb')), ids=lambda p: p.stem)
def test_chapters_take_their_parameters_from_the_yaml(path):
    expected = yaml_of('quick') | dict(study='published/quick')
    named = {k: v for k, v in defaults_of(path).items() if k in {f.name for f in fields(FamilyStudy)}}
    assert named == {k: expected.get(k, DEFAULTS.get(k)) for k in named}


@pytest.mark.parametrize('path', sorted((ROOT/'nbs/studies').glob('*.yaml')), ids=lambda p: p.stem)
def test_a_study_is_the_same_for_papermill_and_the_command_line(path):
    "What a file leaves out, papermill takes from the chapters' cells, which are the quick study's."
    quick = yaml.safe_load((ROOT/'nbs/studies/quick.yaml').read_text())
    other_default = {name for name, value in quick.items() if value != DEFAULTS.get(name)} - {'study'}
    assert not other_default - set(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize('name', WRITTEN_BY)
def test_the_log_holds_what_the_record_says(name):
    trials, ref_points, record = read_study(f'published/{name}')
    searches = Counter(t.search for t in trials)
    assert set(searches.values()) == {record['trials']}
    assert {t.dataset for t in trials} == set(record['datasets']) == set(ref_points)
    assert {t.family for t in trials} == set(record['families'])
    assert {t.strategy.removeprefix(JOINT) for t in trials} == set(record['strategies'])
    assert {t.seed for t in trials} == set(record['seeds'])
    assert {len(t.run['utility']) <= record['epochs'] for t in trials if t.status == 'finished'} == {True}
    retrained = Counter(t.dataset for t in trials for _ in t.retrained)
    points = {d: SMALL_FRONTS.get((name, d), record['front_points']) for d in record['datasets']}
    assert retrained == {d: n*record['fresh_seeds'] for d, n in points.items()}


def snapshot(folder):
    "Every file with its content and time, every folder with its time."
    digest = lambda p: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None
    return {p.relative_to(folder): (p.stat().st_mtime_ns, digest(p)) for p in [folder, *folder.rglob('*')]}


@pytest.mark.parametrize('place', ['published', 'copies'])
@pytest.mark.parametrize('name', STUDIES)
def test_reading_writes_nothing(home, name, place):
    from typer.testing import CliRunner
    from pareto_energy.cli import app
    study = f'{place}/{name}'
    shutil.copytree(PUBLISHED/name, home/'data'/study)
    if name == 'gpu-h100': shutil.copytree(PUBLISHED/'gpu-h200', home/'data/published/gpu-h200', dirs_exist_ok=True)
    before = snapshot(home)
    trials, _, _ = read_study(study)
    if name in WRITTEN_BY and not name.startswith('gpu'):
        read = FamilyStudy(**yaml_of(name) | dict(study=study))
        assert len(run_study(read)) == len(trials)
        assert sum(d['trials'] for d in study_status(read)['datasets'].values()) == len(trials)
    if (PUBLISHED/name/'front.csv').exists(): assert CliRunner().invoke(app, ['front', study]).exit_code == 0
    assert snapshot(home) == before


def test_own_studies_are_read_without_writing(home):
    from pareto_energy import Study as OwnStudy
    def linear(configuration): yield 0.
    def perceptron(configuration): yield 0.
    spaces = dict(linear=dict(alpha=(1e-5, 1e-1, 'log'), loss=['hinge', 'log_loss']),
                  perceptron=dict(hidden_layer_sizes=(8, 256, 'log'), learning_rate_init=(1e-3, 1e-1, 'log'), batch_size=(16, 256, 'log')))
    for study in ('published/scikit-digits', 'copies/scikit-digits'):
        shutil.copytree(PUBLISHED/'scikit-digits', home/'data'/study)
        before = snapshot(home)
        own = OwnStudy(dict(linear=linear, perceptron=perceptron), spaces, study, trials=12, epochs=30, repeats=2).run()
        assert len(own.front) and own.chart and 'the best model found' in str(own)
        assert snapshot(home) == before


@pytest.mark.parametrize('path', sorted((PUBLISHED/'texts').iterdir()), ids=lambda p: p.name)
def test_searches_on_texts_agree_with_their_logs(path):
    import io
    from pareto_energy.api import load_study
    study, record = load_study(f'published/texts/{path.name}'), json.loads((path/'study.json').read_text())
    finished = [t for t in study.trials_so_far if t.status == 'finished']
    assert {t.strategy for t in finished} == {'joint trajectory'} and {t.family for t in finished} == {*record['families']} and len(finished) <= record['trials']
    assert path.name == f"{record['datasets'][0]}-{'training' if record['energy'] == 'training' else format(record['predictions'], '.0e').replace('+0', '')}"
    written = pd.read_csv(path/'front.csv')
    columns = [name for name in ('trial', 'epochs', 'deployment', 'test', 'joules') if name in written]
    assert pd.read_csv(io.StringIO(study.front.to_csv(index=False)))[columns].equals(written[columns])


def test_a_published_study_takes_no_trials(home):
    shutil.copytree(PUBLISHED/'quick', home/'data/published/quick')
    before = snapshot(home)
    with pytest.raises(OSError, match='published and only read: give the study another name'):
        run_study(FamilyStudy(**yaml_of('quick') | dict(study='published/quick', trials=13)))
    assert snapshot(home) == before


@pytest.mark.parametrize('name, label', [('gpu-h200', '97 % measured'), ('gpu-h100', '97 % measured'), ('quick', 'estimated')])
def test_published_logs_keep_their_label_and_tell_the_measured_share(name, label):
    from pareto_energy.api import load_study
    study = load_study(f'published/{name}')
    assert {t.label for t in study.trials_so_far} == {'estimated'} and study.label == label


def test_separate_searches_beside_joint_ones_are_those_of_the_thesis_study():
    kept = pd.read_csv(PUBLISHED/'search/joint/live.csv').query('search == "separate" and dataset == "digits"')
    trials, ref_points, _ = read_study('published/thesis')
    progress = progress_over_families([t for t in trials if t.strategy == 'trajectory' and t.dataset == 'digits'], ref_points)
    assert len(kept) == len(progress) and (kept.seed.to_numpy() == progress.seed.to_numpy()).all()
    for column in ('spent', 'hypervolume'): np.testing.assert_allclose(kept[column], progress[column], rtol=1e-4)
