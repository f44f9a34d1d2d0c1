"A model of one's own, from a script, a notebook and other libraries' loops."
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from pareto_energy.trials import read_trials

ROOT = Path(__file__).parents[1]
TOY = '''
import time
from pareto_energy import Study

def train(configuration):
    for epoch in range(1, 9):
        if configuration['lr'] > .6 and configuration['hangs']: time.sleep(60)
        yield 1 - configuration['lr']/epoch

study = Study(train, dict(lr=(.1, 1.), hangs=%s), 'toy', trials=6, initial=4, fresh_seeds=2, worth=0., meter='simulated', %s)
'''


def python(script, home):
    return subprocess.run([sys.executable, '-c', script], cwd=home, env=os.environ | {'PARETO_ENERGY_HOME': str(home)}, capture_output=True, text=True, timeout=600)


def ten_lines():
    return next(block for block in re.findall(r'```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S) if 'Study(' in block)


def test_the_ten_lines_of_the_readme(tmp_path):
    script, log = ten_lines(), tmp_path/'data/my-mlp/trials.jsonl'
    assert sum(bool(line.strip()) for line in script.splitlines()) <= 10
    first = python(script, tmp_path)
    assert first.returncode == 0 and 'On my-mlp the best model found' in first.stdout and 'accuracy (validation part) (%)' in first.stdout, first.stderr
    before = log.read_bytes()
    assert python(script, tmp_path).stdout == first.stdout and log.read_bytes() == before
    shown = subprocess.run([Path(sys.executable).parent/'pareto-energy', 'front', 'my-mlp'], cwd=ROOT, env=os.environ | {'PARETO_ENERGY_HOME': str(tmp_path)}, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0 and 'On my-mlp the best model found' in shown.stdout


def test_a_loop_that_hangs_is_a_failed_trial(tmp_path):
    done = python(TOY.replace('trials=6', 'trials=4') % (True, 'deadline=.5, cap=.5') + 'study.run()', tmp_path)
    assert done.returncode == 0, done.stderr
    trials = read_trials(tmp_path/'data/toy/trials.jsonl').values()
    assert len(trials) == 4 and all((t.configuration['lr'] > .6) == (t.status == 'failed') for t in trials)
    assert all('stopped in train' in t.reason for t in trials if t.status == 'failed') and any(t.status == 'failed' for t in trials)


def test_a_notebook_keeps_one_sentence_and_the_results(tmp_path):
    cells = [nbformat.v4.new_code_cell(TOY % (False, '') + source) for source in ('study.run();', 'study')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'mine.ipynb')
    subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', tmp_path/'mine.ipynb'], check=True, env=os.environ | {'PARETO_ENERGY_HOME': str(tmp_path)}, capture_output=True, timeout=600)
    (live,), results = (cell.outputs for cell in nbformat.read(tmp_path/'mine.ipynb', 4).cells)
    assert live.output_type == 'display_data' and live.data['text/markdown'].startswith('6 of 6 trials, ')
    assert [next(m for m in ('image/png', 'text/html', 'text/markdown') if m in o.data) for o in results] == ['image/png', 'text/html', 'text/markdown']


def data():
    import torch
    features = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    return features, (features[:, 0] > 0).long()


def with_lightning(configuration, report, epochs):
    import lightning
    import torch
    from pareto_energy.loops import lightning_callback

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 2)

        def training_step(self, batch, _): return torch.nn.functional.cross_entropy(self.linear(batch[0]), batch[1])
        def validation_step(self, batch, _): self.log('accuracy', (self.linear(batch[0]).argmax(1) == batch[1]).float().mean())
        def configure_optimizers(self): return torch.optim.Adam(self.parameters(), configuration['lr'])

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), 32)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator='cpu')
    lightning.Trainer(max_epochs=epochs, callbacks=[lightning_callback(report, 'accuracy')], **quiet).fit(Model(), loader, loader)


def with_transformers(configuration, report, epochs):
    import tempfile
    import torch
    from transformers import Trainer, TrainingArguments
    from pareto_energy.loops import transformers_callback

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 2)

        def forward(self, x=None, labels=None): return dict(loss=torch.nn.functional.cross_entropy(self.linear(x), labels), logits=self.linear(x))

    examples = [dict(x=x, labels=y) for x, y in zip(*data())]
    quiet = dict(eval_strategy='epoch', save_strategy='no', report_to=[], logging_strategy='no', disable_tqdm=True, use_cpu=True)
    arguments = TrainingArguments(tempfile.mkdtemp(), num_train_epochs=epochs, learning_rate=configuration['lr'], per_device_train_batch_size=32, **quiet)
    Trainer(Model(), arguments, train_dataset=examples, eval_dataset=examples, callbacks=[transformers_callback(report, 'eval_accuracy')],
            compute_metrics=lambda p: dict(accuracy=float((p.predictions.argmax(1) == p.label_ids).mean()))).train()


@pytest.mark.parametrize('library, loop', [('lightning', with_lightning), ('transformers', with_transformers)])
def test_loops_of_other_libraries(library, loop):
    pytest.importorskip(library, reason=f'{library} is not installed')
    from pareto_energy.energy import SimulatedMeter
    from pareto_energy.loops import train_loop
    run = train_loop(loop, dict(lr=.05), 4, 0, SimulatedMeter())
    assert len(run.utility) == len(run.joules) == 4 and run.utility[-1] > run.utility[0]
    assert len(train_loop(loop, dict(lr=.05), 9, 0, SimulatedMeter(), go_on=lambda utility, joules: len(utility) < 2).utility) == 2


def test_ax_takes_the_trials():
    pytest.importorskip('ax', reason='ax is not installed')
    from pareto_energy.export import to_ax
    from pareto_energy.space import family_space
    from pareto_energy.trials import read_study
    trials, _, parameters = read_study('published/quick')
    mine = [t for t in trials if (t.dataset, t.family) == ('digits', 'mlp')]
    summary = to_ax(mine, family_space('mlp', parameters['ranges'])).summarize()
    assert summary.joules.tolist() == [t.run['joules'][-1] for t in mine]
