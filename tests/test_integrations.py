"The doors to other libraries, each with the real package: the extra `integrations`. In CI a package that is missing is a failure."
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from conftest import CountingMeter, need, wait_until

from pareto_energy.energy.meter import MeterError, SimulatedMeter
from pareto_energy.energy.counters import open_meter
from pareto_energy.models.custom import train_loop
from pareto_energy.models.families import DEFAULTS, family_space
from pareto_energy.models.space import Categorical, Float, Int, Ordinal, Space
from pareto_energy.models.run import TrainingFailed
from pareto_energy.front.log import Origin, Trial

ROWS, BATCH, EPOCHS = 64, 16, 3


pytestmark = pytest.mark.usefixtures('offline')


@pytest.fixture
def meter(): return CountingMeter() # a joule for each batch of training, a thousand for each of validation


def examples():
    features = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    return features, (features[:, 0] > 0).long()


# Lightning and Hugging Face

def with_lightning(meter):
    import lightning
    from pareto_energy.models.custom import lightning_callback

    class Model(lightning.LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.linear, self.lr = torch.nn.Linear(4, 2), lr

        def training_step(self, batch, _):
            meter.joules += 1
            return torch.nn.functional.cross_entropy(self.linear(batch[0]), batch[1])

        def validation_step(self, batch, _):
            meter.joules += 1000
            self.log('accuracy', (self.linear(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), self.lr)

    def lightning_loop(configuration, report, epochs):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), BATCH)
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator='cpu')
        callback = lightning_callback(report, configuration.get('metric', 'accuracy'))
        trainer = lightning.Trainer(callbacks=[callback], **dict(max_epochs=epochs) | quiet | configuration.get('schedule', {}))
        model = Model(configuration['lr'])
        if configuration.get('validate'): trainer.validate(model, loader, verbose=False)
        trainer.fit(model, loader, loader, ckpt_path=configuration.get('checkpoint'))
        if configuration.get('save'): trainer.save_checkpoint(configuration['save'])
        if configuration.get('validate'): trainer.validate(model, loader, verbose=False)
    return lightning_loop


def with_transformers(meter):
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from pareto_energy.models.custom import transformers_callback
    tiny = dict(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=8)

    class Model(BertForSequenceClassification):
        def forward(self, input_ids=None, labels=None):
            meter.joules += 1 if self.training else 1000
            return super().forward(input_ids=input_ids, labels=labels)

    def transformers_loop(configuration, report, epochs, seed):
        first = torch.randint(0, 8, (ROWS,), generator=torch.Generator().manual_seed(0)).tolist()
        sentences = [dict(input_ids=[i]*4, labels=int(i > 3)) for i in first]
        schedule = dict(eval_strategy='epoch', save_strategy='no') | configuration.get('schedule', {})
        arguments = TrainingArguments(
            output_dir=configuration['folder'], num_train_epochs=epochs, learning_rate=configuration['lr'], seed=seed,
            per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
            logging_strategy='no', report_to=[], disable_tqdm=True, use_cpu=True, **schedule)
        metrics = lambda prediction: dict(accuracy=float((prediction.predictions.argmax(1) == prediction.label_ids).mean()))
        callback = transformers_callback(report, configuration.get('metric', 'eval_accuracy'))
        data = dict(train_dataset=sentences, eval_dataset=sentences)
        trainer = Trainer(Model(BertConfig(**tiny)), arguments, **data, callbacks=[callback], compute_metrics=metrics)
        trainer.train(resume_from_checkpoint=configuration.get('checkpoint'))
        if configuration.get('validate'): trainer.evaluate()
    return transformers_loop


LOOPS = dict(lightning=with_lightning, transformers=with_transformers)
PACKAGES = dict(lightning=['lightning'], transformers=['transformers', 'accelerate'])


@pytest.fixture(params=LOOPS)
def loop(request, meter):
    need(*PACKAGES[request.param])
    return LOOPS[request.param](meter)


@pytest.fixture
def configuration(tmp_path): return dict(lr=.05, folder=str(tmp_path))


def test_each_epoch_has_its_utility_and_the_joules_of_its_training_alone(loop, meter, configuration):
    run = train_loop(loop, configuration, EPOCHS, 0, meter, repeats=2)
    batches = ROWS/BATCH
    assert run.joules == pytest.approx([batches, 2*batches, 3*batches]) and run.repeats == 2
    assert len(run.utility) == EPOCHS and run.utility[-1] > max(run.utility[0], .6)
    assert train_loop(loop, configuration, EPOCHS, 0, meter).utility == run.utility


def test_a_run_of_another_library_ends_when_the_strategy_says_so(loop, meter, configuration):
    stopped = train_loop(loop, configuration, 9, 0, meter, should_continue=lambda utility, joules, epochs: len(epochs) < 2)
    assert len(stopped.utility) == len(stopped.joules) == 2


def test_a_metric_that_was_not_logged_is_named(loop, meter, configuration):
    with pytest.raises(TrainingFailed, match="The metric 'f1' was not logged; there are .*accuracy"):
        train_loop(loop, configuration | dict(metric='f1'), EPOCHS, 0, meter)


def is_metered_right(run, epochs):
    "Each report has the joules of the batches up to its epoch, and of nothing else."
    assert (run.epochs or [*range(1, len(run.utility) + 1)]) == pytest.approx(epochs)
    assert run.joules == pytest.approx([e*ROWS/BATCH for e in epochs])
    assert len(run.utility) == len(epochs)


@pytest.mark.parametrize('schedule, epochs', [
    (dict(eval_strategy='steps', eval_steps=1), [n/4 for n in range(1, 13)]),
    (dict(eval_strategy='steps', eval_steps=2), [.5, 1, 1.5, 2, 2.5, 3]),
    (dict(eval_strategy='steps', eval_steps=3), [.75, 1.5, 2.25, 3]),
    (dict(eval_strategy='steps', eval_steps=8), [2, 3]),
    (dict(eval_strategy='epoch', eval_delay=2), [2, 3]),
    (dict(eval_strategy='epoch', eval_on_start=True), [1, 2, 3]),
    (dict(eval_strategy='steps', eval_steps=1, gradient_accumulation_steps=2), [.5, 1, 1.5, 2, 2.5, 3]),
    (dict(eval_strategy='no', validate=True), [3]),
    (dict(eval_strategy='epoch', validate=True), [1, 2, 3]),
    (dict(eval_strategy='steps', eval_steps=2, save_strategy='steps', save_steps=2, load_best_model_at_end=True), [.5, 1, 1.5, 2, 2.5, 3])])
def test_every_schedule_of_hugging_faces_trainer_is_metered_right(schedule, epochs, meter, configuration):
    need(*PACKAGES['transformers'])
    validate = schedule.pop('validate', False)
    run = train_loop(with_transformers(meter), configuration | dict(schedule=schedule, validate=validate), EPOCHS, 0, meter)
    is_metered_right(run, epochs)


@pytest.mark.parametrize('schedule, epochs', [
    (dict(val_check_interval=.5), [.5, 1, 1.5, 2, 2.5, 3]),
    (dict(val_check_interval=1), [n/4 for n in range(1, 13)]),
    (dict(check_val_every_n_epoch=2), [2]),
    (dict(check_val_every_n_epoch=3), [3]),
    (dict(num_sanity_val_steps=2, accumulate_grad_batches=2), [1, 2, 3]),
    (dict(validate=True), [1, 2, 3])])
def test_every_schedule_of_lightning_is_metered_right(schedule, epochs, meter, configuration):
    need(*PACKAGES['lightning'])
    validate = schedule.pop('validate', False)
    run = train_loop(with_lightning(meter), configuration | dict(schedule=schedule, validate=validate), EPOCHS, 0, meter)
    is_metered_right(run, epochs)


def test_a_training_that_goes_on_from_a_checkpoint_is_refused(meter, configuration, tmp_path):
    need(*PACKAGES['lightning'], *PACKAGES['transformers'])
    saved = tmp_path/'saved.ckpt'
    train_loop(with_lightning(meter), configuration | dict(save=str(saved), schedule=dict(max_epochs=2)), 9, 0, meter)
    with pytest.raises(TrainingFailed, match='goes on from a checkpoint'):
        train_loop(with_lightning(meter), configuration | dict(checkpoint=str(saved)), 4, 0, meter)
    steps = dict(eval_strategy='steps', eval_steps=2, save_strategy='steps', save_steps=2)
    train_loop(with_transformers(meter), configuration | dict(schedule=steps), EPOCHS, 0, meter)
    with pytest.raises(TrainingFailed, match='goes on from a checkpoint'):
        train_loop(with_transformers(meter), configuration | dict(schedule=steps, checkpoint=True), EPOCHS + 1, 0, meter)


# Ax, Optuna, Parquet and model cards

SPACE = Space(
    lr=Float(1e-3, 1., log=True), width=Int(1, 8), batch=Ordinal([8, 16, 32]), kind=Categorical(['a', 'b']), deep=Categorical([False, True]))


def made_up_trials():
    "Five finished trials and a failed one."
    rows = [dict(lr=.01*(n + 1), width=n + 1, batch=(8, 16, 32)[n % 3], kind='ab'[n % 2], deep=n > 2) for n in range(6)]
    made = [Trial('toy', 'mine', 'random', 0, n, row, Origin('random'), 'simulated', 'simulated') for n, row in enumerate(rows)]
    same = dict(se=[.1, .1], seconds=1., parameters=10, sources=dict(cpu='formula'))
    run = lambda n: dict(utility=[.5, .6 + .01*n], joules=[1., 2. + n], **same)
    finished = [replace(t, status='finished', run=run(t.number), spent=9.) for t in made[:-1]]
    return [*finished, replace(made[-1], status='failed', reason='too wide')]


def test_ax_takes_the_trials_and_goes_on_from_them():
    need('ax')
    from pareto_energy.report.export import to_ax
    trials = made_up_trials()
    client = to_ax(trials, SPACE)
    table = client.summarize()
    assert table.trial_status.tolist() == ['COMPLETED']*5 + ['FAILED']
    assert table.joules.tolist()[:5] == [2., 3., 4., 5., 6.] and table.utility.tolist()[:5] == pytest.approx([.6, .61, .62, .63, .64])
    assert [{name: row[name] for name in SPACE} for row in table.to_dict('records')] == [t.configuration for t in trials]
    (suggested,) = client.get_next_trials(1).values()
    assert set(suggested) == set(SPACE) and suggested['batch'] in (8, 16, 32)


@pytest.mark.parametrize('family', DEFAULTS)
def test_ax_takes_the_space_of_a_family(family):
    need('ax')
    from pareto_energy.report.export import to_ax
    space, trial = family_space(family), made_up_trials()[0]
    table = to_ax([replace(trial, configuration=DEFAULTS[family])], space).summarize()
    assert {name: table[name].item() for name in space} == {name: DEFAULTS[family][name] for name in space}


def test_ax_searches_a_table(tmp_path):
    need('ax')
    from pareto_energy.bench.searches import INITIAL, search_table, zeus_table
    same, batches = dict(dataset='toy', optimizer='adam'), (8, 16, 32)
    epochs = [dict(batch_size=b, run=r, target_metric=m, target_epoch=m*(1 + b/64)) for b in batches for r in (1, 2) for m in (1, 2, 3)]
    power = [dict(batch_size=b, power_limit=p, time_per_epoch=80/b, average_power=p) for b in batches for p in (100, 150, 200)]
    pd.DataFrame(epochs).assign(**same).to_csv(tmp_path/'summary_train.csv')
    pd.DataFrame(power).assign(**same).to_csv(tmp_path/'summary_power_a40.csv')
    found = search_table(zeus_table(tmp_path, 'a40', 'toy'), 'ax', 0, INITIAL + 1)
    assert len(found['share']) == INITIAL + 1 and found['share'] == sorted(found['share']) and 0 < found['share'][-1] <= 1.00001


def test_optuna_takes_the_trials_and_gives_its_space_back():
    need('optuna')
    from pareto_energy.report.export import as_distributions, from_distributions, to_optuna
    trials = made_up_trials()
    study = to_optuna(trials, SPACE)
    assert [t.values for t in study.trials] == [[t.run['utility'][-1], t.run['joules'][-1]] for t in trials[:-1]] + [None]
    assert [t.params for t in study.trials] == [t.configuration for t in trials] and study.trials[-1].user_attrs['reason'] == 'too wide'
    assert list(from_distributions(as_distributions(SPACE))) == list(SPACE)
    assert set(study.ask(as_distributions(SPACE)).params) == set(SPACE)


def test_parquet_gives_the_table_back(tmp_path, monkeypatch):
    need('pyarrow')
    from pareto_energy.report import export
    also = lambda n: dict(depth=n if n % 2 else 'auto', only=None if n else 1.)
    mixed = [replace(t, configuration=t.configuration | also(t.number)) for t in made_up_trials()]
    monkeypatch.setattr(export, 'read_study', lambda study: (mixed, {}, {}))
    export.export('toy', 'parquet', tmp_path/'trials.parquet')
    table, back = export.trials_table(mixed), pd.read_parquet(tmp_path/'trials.parquet')
    assert back['configuration.depth'].tolist() == ['auto', '1', 'auto', '3', 'auto', '5']
    pd.testing.assert_frame_equal(back.drop(columns='configuration.depth'), table.drop(columns='configuration.depth'))


def test_mlflow_keeps_each_trial_with_its_trajectory(tmp_path, monkeypatch):
    need('mlflow')
    import mlflow
    from pareto_energy.report.export import log_to_mlflow
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f"sqlite:///{tmp_path/'mlflow.db'}")
    trials = made_up_trials()
    log_to_mlflow([*trials, replace(trials[-1], number=6, status='started', reason='')], 'energy')
    runs = {r.info.run_name: r for r in mlflow.search_runs(experiment_names=['energy'], output_format='list')}
    assert [runs[t.name].info.status for t in trials] == ['FINISHED']*5 + ['FAILED']
    assert runs['toy/mine/random/0/6'].info.status == 'KILLED'
    assert all(runs[t.name].data.params == {name: str(value) for name, value in t.configuration.items()} for t in trials)
    first = runs[trials[0].name]
    history = mlflow.MlflowClient().get_metric_history(first.info.run_id, 'joules')
    assert [(m.step, m.value) for m in history] == [(1, 1.), (2, 2.)] and first.data.metrics['utility'] == .6
    assert runs[trials[-1].name].data.tags['reason'] == 'too wide' and first.data.tags['label'] == 'simulated'
    assert mlflow.active_run() is None


def test_wandb_keeps_each_trial_in_files_of_its_own(tmp_path, monkeypatch):
    need('wandb')
    from pareto_energy.report.export import log_to_wandb
    monkeypatch.setenv('WANDB_MODE', 'offline')
    trials = made_up_trials()
    log_to_wandb([trials[0], trials[-1]], 'energy', folder=tmp_path)
    found = lambda: b''.join(run.read_bytes() for run in tmp_path.glob('wandb/offline-run-*/*.wandb')) # written in the background
    texts = [text.encode() for text in (trials[0].name, trials[-1].name, 'joules', 'utility', 'too wide', 'simulated')]
    wait_until(lambda: all(text in found() for text in texts), 'the runs of Weights & Biases')
    assert len([*tmp_path.glob('wandb/offline-run-*')]) == 2


def test_hugging_face_reads_the_emissions_of_a_card():
    need('huggingface_hub')
    from huggingface_hub import ModelCard
    from pareto_energy.report.export import emissions_block
    row = pd.Series(dict(joules=3.6e6, joules_ci=1e5, seeds=5))
    card = ModelCard(f"---\n{emissions_block(row, 'measured', 'EPYC · 2 threads', 'GBR')}---\n# A model")
    emissions = card.data.co2_eq_emissions
    assert emissions['emissions'] == pytest.approx(238, abs=1) and emissions['hardware_used'] == 'EPYC · 2 threads'
    assert emissions['training_type'] == 'pre-training' and emissions['geographical_location'] == 'GBR'


# Zeus: the package is real, the driver of a GPU is not

@pytest.fixture
def driver(monkeypatch):
    "NVIDIA's driver of one GPU, whose counter stands at `driver.millijoules`."
    need('zeus')
    from types import SimpleNamespace
    import pynvml
    import zeus.device.gpu
    import zeus.device.gpu.nvidia as nvidia
    import zeus.utils.framework as framework
    gpu = SimpleNamespace(millijoules=0, fails=False)

    def energy(handle):
        if gpu.fails: raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return gpu.millijoules
    answers = dict(nvmlInit=None, nvmlShutdown=None, nvmlDeviceGetCount=1, nvmlDeviceGetHandleByIndex='gpu',
                   nvmlDeviceGetName='GPU', nvmlDeviceGetArchitecture=pynvml.NVML_DEVICE_ARCH_HOPPER)
    for name, answer in answers.items(): monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(pynvml, 'nvmlDeviceGetTotalEnergyConsumption', energy)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    monkeypatch.setattr(zeus.device.gpu, '_gpus', None)
    for known in (nvidia.nvml_is_available, framework.torch_is_available): known.cache_clear()
    yield gpu
    for known in (nvidia.nvml_is_available, framework.torch_is_available): known.cache_clear()


def test_zeus_reads_the_counter_of_the_gpu(driver):
    meter = open_meter('zeus', 'cuda:0')
    assert meter.label == 'measured' and meter.sources['gpu'] == 'nvml'
    with meter.window() as window:
        driver.millijoules += 12_500
        window.lap()
    assert window.laps[0].parts['gpu'].joules == 12.5
    meter.begin()
    driver.millijoules += 1000
    meter.begin() # a stretch that nobody read, as of a subprocess that did its work
    driver.millijoules += 2000
    assert meter.end()['gpu'] == 2.


def test_a_gpu_that_zeus_loses_is_the_meters_fault(driver):
    meter = open_meter('zeus', 'cuda:0')
    with pytest.raises(MeterError, match='Zeus can no longer read the energy'), meter.window() as window:
        driver.fails = True
        window.lap()
        window.read()
    driver.fails = False
    with pytest.raises(MeterError, match='went backwards'), meter.window() as window:
        driver.millijoules -= 1000
        window.lap()
        window.read()


def test_codecarbon_prints_nothing_beside_zeus(tmp_path):
    need('zeus') # it brings AMD's library, which CodeCarbon imports
    script = "from pareto_energy.energy.counters import open_meter; open_meter('codecarbon')"
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_zeus_without_a_gpu_says_so():
    need('zeus')
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    with pytest.raises(MeterError, match="Zeus finds no GPU for the device 'cpu'.*use the meter codecarbon"): open_meter('zeus', 'cpu')


# onnxruntime

@pytest.mark.parametrize('family', ['mlp', 'resnet', 'transformer'])
def test_onnxruntime_answers_as_the_trained_network_does(family):
    need('onnx', 'onnxscript', 'onnxruntime')
    from pareto_energy.models.data import load_dataset
    from pareto_energy.models.deployment import parse_deployments
    from pareto_energy.models.training import train
    asked = parse_deployments(['float32', dict(name='onnx', batch=[1, 64])])
    run = train(family, DEFAULTS[family], load_dataset('digits'), epochs=2, seed=0, meter=SimulatedMeter(), repeats=1, deployments=asked, grid=(1, 2), test=True)
    float32, *exported = run.deployments
    for d in exported:
        assert d['epochs'] == [1, 2] and d['utility'] == pytest.approx(float32['utility'], abs=.003)
        assert d['test'] == pytest.approx(float32['test'], abs=.003)
