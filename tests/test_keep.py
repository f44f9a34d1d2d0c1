"The models that loops of one's own have trained, kept with the real packages: the extras `keep` and `integrations`."
import warnings

import numpy as np
import pytest
import torch
from conftest import CountingMeter, need
from typer.testing import CliRunner

from pareto_energy import Study, load_study
from pareto_energy.cli import app
from pareto_energy.front.models import ModelKeeper, load_model
from pareto_energy.models.custom import sklearn_loop, train_loop

FEW = dict(trials=2, n_initial=2, epochs=3, front_points=2, fresh_seeds=2, strategies=('random',), meter='simulated', min_gain_per_cost=0.)
LR = dict(lr=(.01, .1, 'log'))
ROWS = 64

pytestmark = pytest.mark.usefixtures('offline')


@pytest.fixture(autouse=True)
def packages(): need('safetensors', 'skops')


def examples():
    features = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    return features, (features[:, 0] + features[:, 1]**2 > .5).long()


def network(configuration): return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def accuracy(answers): return float((answers.argmax(1) == examples()[1]).float().mean())


def make_torch_loop(form=lambda model: model):
    "A loop that spoils its model when its run has ended."
    def own_net(configuration):
        (features, targets), model = examples(), network(configuration)
        optimiser = torch.optim.Adam(model.parameters(), configuration['lr'])
        try:
            while True:
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(features), targets).backward()
                optimiser.step()
                yield dict(utility=lambda: -float(torch.nn.functional.cross_entropy(model(features), targets).detach()), model=form(model))
        finally:
            for p in model.parameters(): p.data.zero_()
    return own_net


def loss_of(model):
    features, targets = examples()
    with torch.no_grad(): return float(torch.nn.functional.cross_entropy(model(features), targets))


def kept_folders(study): return sorted((study.folder/'models').iterdir())


def is_complete(study):
    "Each point of the front has its model, whose record agrees with the log; a resumed study leaves them alone."
    folders = kept_folders(study)
    assert len(folders) == len(study.front) > 0 and not any('not_kept' in r for t in study.trials_so_far for r in t.retrained)
    for folder in folders:
        record = load_model(folder).record
        trial = next(t for t in study.trials_so_far if t.name == record['trial'])
        [logged] = [r for r in trial.retrained if r['fresh_seed'] == record['seed'] and r['epoch'] == record['epoch']]
        assert (logged['utility'], logged['joules'], trial.configuration) == (record['utility'], record['joules'], record['configuration'])
        assert not {p.suffix for p in folder.iterdir()} & {'.bin', '.pt', '.ckpt', '.pkl'}
    times = {p: p.stat().st_mtime_ns for folder in folders for p in folder.iterdir()}
    study.run()
    assert times == {p: p.stat().st_mtime_ns for folder in folders for p in folder.iterdir()}
    listed = CliRunner().invoke(app, ['models', study.study]).stdout
    assert f'{study.study}: models of the front' in listed and listed.count(f'data/{study.study}/models/') == len(folders)


def is_of_its_epoch(record, answers, found):
    "What a kept model answers is what it answered at its epoch, and at no other."
    of_run = answers[round(record['configuration']['lr'], 12), record['seed']]
    at = record['epoch'] - 1
    np.testing.assert_allclose(found, of_run[at], atol=1e-6)
    assert all(np.abs(found - other).max() > 1e-4 for n, other in enumerate(of_run) if n != at)


# Lightning and Hugging Face

def test_a_study_of_lightning_leaves_the_module_of_each_point(home, monkeypatch):
    need('lightning')
    import lightning
    from pareto_energy.models.custom import lightning_callback
    monkeypatch.chdir(home)
    answers = {}

    class Net(lightning.LightningModule):
        def __init__(self, configuration):
            super().__init__()
            self.net, self.lr = network(configuration), configuration['lr']

        def training_step(self, batch, _): return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        def validation_step(self, batch, _): self.log('accuracy', (self.net(batch[0]).argmax(1) == batch[1]).float().mean())
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), self.lr)

    def lightning_net(configuration, report, seed, epochs):
        class Noting(lightning.Callback):
            def on_validation_end(self, trainer, module):
                answers[round(configuration['lr'], 12), seed].append(module.net(examples()[0]).detach().numpy())
        answers[round(configuration['lr'], 12), seed] = []
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), 16)
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator='cpu')
        callbacks, model = [Noting(), lightning_callback(report, 'accuracy')], Net(configuration)
        try: lightning.Trainer(callbacks=callbacks, max_epochs=epochs, num_sanity_val_steps=0, **quiet).fit(model, loader, loader)
        finally: model.net[0].weight.data.zero_() # what comes after the run is no matter

    study = Study(lightning_net, LR, 'lightning', keep='front', **FEW)
    study.run()
    is_complete(study)
    for folder in kept_folders(study):
        kept = load_model(folder, build=Net)
        is_of_its_epoch(kept.record, answers, kept.model.net(examples()[0]).detach().numpy())
        assert kept.record['made_by'].endswith('Net') and accuracy(kept.model.net(examples()[0])) == pytest.approx(kept.record['utility'])
    assert isinstance(study.best(build=Net).model, Net) and {*study.best().tensors} == {'net.0.weight', 'net.0.bias', 'net.2.weight', 'net.2.bias'}
    with pytest.raises(ValueError, match=r'kept by the loop lightning_net: load its weights with build, .*best\(build=network\)'): study.best().model


def test_under_weight_averaging_the_averaged_module_is_kept_since_validation_reads_it(tmp_path):
    need('lightning')
    import lightning
    from lightning.pytorch.callbacks import WeightAveraging
    from torch.optim.swa_utils import get_ema_multi_avg_fn
    from pareto_energy.models.custom import lightning_callback
    spread = []

    class Noting(lightning.Callback):
        def on_validation_end(self, trainer, module):
            average = trainer.callbacks[-1]._average_model.module
            spread.append(float((module.net[0].weight - average.net[0].weight).abs().max()))

    class Net(lightning.LightningModule):
        def __init__(self, configuration):
            super().__init__()
            self.net, self.lr = network(configuration), configuration['lr']

        def training_step(self, batch, _): return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        def validation_step(self, batch, _): self.log('fit', -torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), self.lr)

    def averaged_net(configuration, report, seed, epochs):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), ROWS)
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator='cpu')
        callbacks = [Noting(), lightning_callback(report, 'fit'), WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(.9))]
        lightning.Trainer(callbacks=callbacks, max_epochs=epochs, num_sanity_val_steps=0, **quiet).fit(Net(configuration), loader, loader)
    keeper = ModelKeeper(tmp_path/'kept', dict(dataset='toy', family='averaged_net', configuration=dict(lr=.05)))
    run = train_loop(averaged_net, dict(lr=.05), 4, 0, CountingOnce(), keep=keeper, stop_after=3)
    assert keeper.finish(epoch=3) == {} and max(spread) > .01
    assert -loss_of(load_model(tmp_path/'kept', build=Net).model.net) == pytest.approx(run.utility[-1], abs=1e-5)


def test_a_study_of_the_trainer_leaves_folders_that_from_pretrained_reads(home, monkeypatch):
    need('transformers', 'accelerate')
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
    from transformers import Trainer, TrainingArguments
    from pareto_energy.models.custom import transformers_callback
    monkeypatch.chdir(home)
    words = {word: n for n, word in enumerate(['[PAD]', '[UNK]', *'good bad film book a the'.split()])}
    texts = [f'{a} {b} {c}' for a in ('the', 'a') for b in ('good', 'bad') for c in ('film', 'book', 'film film', 'book film')]
    tiny = dict(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=8)
    answers = {}

    class Model(BertForSequenceClassification):
        "A class of one's own, which from_pretrained reads as that which it comes from."

    def make_tokenizer():
        whole = Tokenizer(models.WordLevel(words, unk_token='[UNK]'))
        whole.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token='[PAD]', unk_token='[UNK]')

    def transformers_net(configuration, report, seed, epochs):
        tokenizer, logits = make_tokenizer(), answers.setdefault((round(configuration['lr'], 12), seed), [])
        logits.clear()
        rows = [dict(tokenizer(text), labels=int('good' in text)) for text in texts]
        arguments = TrainingArguments(
            output_dir=str(home/'trainer'), num_train_epochs=epochs, learning_rate=configuration['lr'], seed=seed, eval_strategy='epoch', save_strategy='no',
            per_device_train_batch_size=8, per_device_eval_batch_size=len(texts), logging_strategy='no', report_to=[], disable_tqdm=True, use_cpu=True)

        def metrics(prediction):
            logits.append(prediction.predictions)
            return dict(accuracy=float((prediction.predictions.argmax(1) == prediction.label_ids).mean()))
        model = Model(BertConfig(**tiny))
        callbacks = [transformers_callback(report, 'eval_accuracy')]
        trainer = Trainer(
            model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer, compute_metrics=metrics, callbacks=callbacks)
        try: trainer.train()
        finally: model.classifier.weight.data.zero_()

    study = Study(transformers_net, LR, 'trainer', keep='front', **FEW)
    study.run()
    is_complete(study)
    for folder in kept_folders(study):
        inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors='pt')
        with torch.no_grad(): found = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits.numpy()
        kept = load_model(folder)
        is_of_its_epoch(kept.record, answers, found)
        with torch.no_grad(): assert np.array_equal(kept.model(**inputs).logits.numpy(), found)
    assert type(study.best().model) is BertForSequenceClassification
    with pytest.raises(ValueError, match='How .*Model is asked is known to its loop alone'): study.best().predict(texts)


# Plain loops

@pytest.mark.parametrize('how', [dict(), dict(deadline=300)], ids=['here', 'child'])
def test_a_study_of_a_plain_loop_leaves_its_modules(home, monkeypatch, how):
    monkeypatch.chdir(home)
    study = Study(make_torch_loop(), LR, 'plain', metric='fit', keep='front', **FEW | how)
    study.run()
    is_complete(study)
    for folder in kept_folders(study): # the utility tells the epochs apart
        kept = load_model(folder, build=network)
        assert -loss_of(kept.model) == pytest.approx(kept.record['utility'], abs=1e-6)
    assert load_study('plain').best(build=network).record == study.best().record


def test_estimators_are_kept_by_their_loop(home, monkeypatch):
    monkeypatch.chdir(home)
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.preprocessing import StandardScaler
    X, y = (part.numpy() for part in examples())
    parts = dict(train=(X[:40], y[:40]), validation=(X[40:], y[40:]), test=(X[:40], y[:40]))
    forest = lambda n: make_pipeline(StandardScaler(), RandomForestClassifier(n, random_state=0))
    loops = dict(sgd=sklearn_loop(SGDClassifier, **parts), forest=sklearn_loop(forest, **parts))
    study = Study(loops, dict(sgd=dict(alpha=(1e-4, 1., 'log')), forest=dict(n=(2, 6))), 'estimators', keep='front', **FEW)
    study.run()
    is_complete(study)
    families = set()
    for folder in kept_folders(study):
        kept = load_model(folder)
        families.add(kept.record['family'])
        assert sorted(p.name for p in folder.iterdir()) == ['model.json', 'model.skops']
        assert np.mean(kept.predict(X[40:]) == y[40:]) == pytest.approx(kept.record['utility'])
        assert np.mean(kept.predict(X[:40]) == y[:40]) == pytest.approx(kept.record['test'])
    with pytest.raises(ValueError, match='loaded without build'): load_model(folder, build=network)


def averaged(model):
    "A copy with the weights of the model, in torch's wrapper."
    from torch.optim.swa_utils import AveragedModel
    return AveragedModel(model)


FORMS = dict(
    module=lambda model: model, averaged=averaged, parallel=torch.nn.DataParallel, compiled=lambda model: torch.compile(model, backend='eager'), state=lambda model: model.state_dict(),
    function=lambda model: lambda folder: np.save(folder/'weights.npy', model[0].weight.detach().numpy()))


@pytest.mark.parametrize('form', FORMS)
def test_saving_takes_no_joules_and_serves_each_form(form, tmp_path):
    meter, keeper = CountingMeter(), ModelKeeper(tmp_path/'kept', dict(dataset='toy', family='own_net', configuration=dict(lr=.05)))

    def keep(trainer, model):
        keeper(trainer, model)
        meter.joules += 1000

    def costly(configuration):
        for report in make_torch_loop(FORMS[form])(configuration):
            meter.joules += 1
            yield report
    run = train_loop(costly, dict(lr=.05), 3, 0, meter, keep=keep, stop_after=2)
    assert run.joules == pytest.approx([1, 2]) and keeper.finish(epoch=2) == {}
    kept = load_model(tmp_path/'kept', build=None if form == 'function' else network)
    if form != 'function': assert -loss_of(kept.model) == pytest.approx(run.utility[1], abs=1e-6)
    else:
        assert np.abs(np.load(kept.folder/'weights.npy')).max() > 0
        with pytest.raises(ValueError, match='kept by the loop costly: load it as the loop has saved it'): kept.predict([])


def without_model(configuration):
    n = 0
    while n := n + 1: yield configuration['lr'] + n/10


def test_a_loop_that_gives_no_model_is_named_from_its_first_trial_on(home, monkeypatch):
    monkeypatch.chdir(home)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        study = Study(without_model, LR, 'silent', keep='front', **FEW)
        study.run()
    said = [str(w.message) for w in said]
    assert any("loop without_model gives no model with its reports, so keep='front' will keep none" in s for s in said)
    n = len(study.front)
    has = 'point of the front has' if n == 1 else 'points of the front have'
    assert f'{n} {has} no kept model (without_model: its loop gave no model with its reports' in str(study)
    assert 'no kept model' in str(load_study('silent'))
    assert not (study.folder/'models').exists() or not kept_folders(study)
    for find in (study.best, load_study('silent').best):
        with pytest.raises(FileNotFoundError, match='its loop gave no model with its reports'): find()
    listed = CliRunner().invoke(app, ['models', 'silent'])
    assert listed.exit_code == 2 and 'gave no model' in ' '.join(listed.output.split())


@pytest.fixture
def one_process():
    "A group of processes with this one alone."
    import torch.distributed as dist
    dist.init_process_group('gloo', rank=0, world_size=1, store=dist.HashStore())
    try: yield
    finally: dist.destroy_process_group()


@pytest.mark.parametrize('kind', ['module', 'state'])
def test_sharded_weights_are_not_kept_and_the_reason_says_how_they_are_made_whole(tmp_path, one_process, kind):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh

    def sharded(configuration):
        model = fully_shard(network(configuration), mesh=init_device_mesh('cpu', (1,)))
        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        yield dict(utility=.5, model=whole if configuration['whole'] else model if kind == 'module' else model.state_dict())
    for whole in (False, True):
        keeper = ModelKeeper(tmp_path/str(whole), dict(dataset='toy', family='sharded', configuration=dict(whole=whole)))
        train_loop(sharded, dict(whole=whole), 1, 0, CountingOnce(), keep=keeper)
        if whole: assert keeper.finish(epoch=1) == {} and load_model(tmp_path/'True', build=network).model[0].weight.shape == (8, 4)
        else:
            with pytest.warns(UserWarning, match='its weights are sharded, and this process holds a part of them: give a whole state dict'):
                assert 'get_model_state_dict' in keeper.finish(epoch=1)['not_kept']


def fails(folder): raise OSError('the disk is full')


def test_a_model_that_cannot_be_kept_fails_no_training(home, monkeypatch):
    monkeypatch.chdir(home)
    study = Study(make_torch_loop(lambda model: fails), LR, 'full', metric='fit', keep='front', **FEW)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        study.run()
    assert 'no kept model (own_net: OSError: the disk is full)' in str(study) and len(study.front) > 0


def test_what_cannot_be_kept_is_refused_before_any_training(home):
    with pytest.raises(ValueError, match='cannot keep the models of the command'):
        Study.command(['python', '-c', 'print(1)', '{lr}'], LR, 'command', keep='front', **FEW)


def test_an_untrusted_estimator_is_refused(tmp_path):
    from sklearn.linear_model import SGDClassifier

    class Own(SGDClassifier):
        def __init__(self): super().__init__()

    def own_estimator(configuration): yield dict(utility=.5, model=Own())
    keeper = ModelKeeper(tmp_path/'kept', dict(dataset='toy', family='own_estimator', configuration={}))
    train_loop(own_estimator, {}, 1, 0, CountingOnce(), keep=keeper)
    keeper.finish(epoch=1)
    with pytest.raises(ValueError, match='untrusted types, .*Own: if you trust its source'): load_model(tmp_path/'kept')


class CountingOnce(CountingMeter):
    "A joule for each reading."
    def end(self):
        self.joules += 1
        return super().end()
