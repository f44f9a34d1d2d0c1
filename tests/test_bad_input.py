"Bad input gives one clear sentence and a non-zero exit."
import pytest
from typer.testing import CliRunner

from pareto_energy.cli import app, execute
from pareto_energy.front.log import Origin, TrialLog, encode_line

KEY = ('digits', 'logistic', 'random', 0, 0)


def complaint(*words):
    answer = CliRunner().invoke(app, ['run', *words])
    assert answer.exit_code == 2, answer.output
    assert answer.stderr.startswith('Error: ') and answer.stderr.count('\n') == 1 and 'Traceback' not in answer.output
    return answer.stderr


@pytest.mark.parametrize('words, said', [
    (['smok'], "Unknown study 'smok': expected one of cheap, deployment, dpareto, gpu, gpu-scratch, quick, smoke, thesis. Did you mean smoke?"),
    (['smoke', '-p', 'datasets=[digts]'], "Unknown dataset 'digts'"),
    (['smoke', '-p', 'families=[mpl]'], 'Did you mean mlp?'),
    (['smoke', '-p', 'strategies=[randon]'], 'Did you mean random?'),
    (['smoke', '-p', 'meter=simulate'], 'Did you mean simulated?'),
    (['smoke', '-p', 'epoch=3'], 'Did you mean epochs?'),
    (['smoke', '-p', 'trials'], 'write name=value'),
    (['smoke', '-p', 'trials=0'], 'trials must be a whole number of at least 1, not 0'),
    (['smoke', '-p', 'epochs=-3'], 'epochs must be a whole number of at least 1, not -3'),
    (['smoke', '-p', 'trials=many'], "not 'many'"),
    (['smoke', '-p', 'ref_joules=0'], 'ref_joules must be a number above 0'),
    (['smoke', '-p', 'seeds=[]'], 'seeds must be a list of whole numbers'),
    (['smoke', '-p', 'datasets=digits'], 'datasets must be a list'),
    (['smoke', '-p', 'ranges={mlp: {width: [64, 8]}}'], 'The range [64, 8] is inverted'),
    (['smoke', '-p', 'ranges={mlp: {width: [8, 8]}}'], 'The range [8, 8] is empty'),
    (['smoke', '-p', 'ranges={mlp: {lr: [0, 1]}}'], 'must start above 0'),
    (['smoke', '-p', 'ranges={mlp: {activation: []}}'], 'at least two different options'),
    (['smoke', '-p', 'ranges=[1]'], 'ranges must be a mapping of families to ranges'),
    (['smoke', '-p', 'ranges={mlp: {width: wide}}'], 'width can be fixed at a whole number'),
    (['smoke', '-p', 'datasets=[diabetes]', '-p', 'families=[logistic]'], 'None of the families logistic serves diabetes'),
    (['smoke', '-p', 'device=gpu'], 'expected cpu, mps, cuda, cuda:1'),
    (['smoke', '-p', 'utility=f1'], 'Unknown utility'),
    (['smoke', '-p', 'utility=r2'], 'does not fit digits, a classification'),
    (['smoke', '-p', 'seeds=[0, 1'], 'is no YAML'),
    (['smoke', '-p', 'study=../outside'], 'no plain name'),
])
def test_parameters(home, words, said): assert said in complaint(*words)


def test_unwritable_folder(home, monkeypatch):
    (home/'file').write_text('')
    monkeypatch.setenv('PARETO_ENERGY_HOME', str(home/'file'))
    assert 'name a writable place in PARETO_ENERGY_HOME' in complaint('smoke')


def log_with(home, **changes):
    path = home/'data/smoke/trials.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    with TrialLog(path) as log:
        log.append('started', KEY, **dict(configuration={}, origin=Origin(), label='simulated', machine_id='simulated') | changes)
    return path


def test_other_schema(home):
    path = log_with(home)
    path.write_bytes(encode_line(dict(schema=99)) + b'\n')
    assert 'Line 1 of the log has schema version 99' in complaint('smoke')


def test_log_of_an_older_version(home):
    log_with(home).write_text('{"schema": 1, "event": "idle"}\n')
    assert 'has schema version 1, but this version of pareto_energy reads 3' in complaint('smoke')


def test_other_label(home):
    log_with(home, label='measured')
    assert 'digits/logistic/random/0/0 was measured on "simulated", but this meter is simulated' in complaint('smoke')


def test_other_machine(home):
    log_with(home, machine_id='another machine')
    assert 'was simulated on "another machine"' in complaint('smoke')


def test_changed_parameters(home):
    from pareto_energy.cli import chapters_folder, check_study, load_parameters
    from pareto_energy.run.settings import save_settings
    save_settings(check_study(load_parameters('smoke', [], chapters_folder())))
    log_with(home) # before its first trial, a setting may be corrected
    assert 'epochs was 6 and is now 5' in complaint('smoke', '-p', 'epochs=5')


def test_two_writers(home):
    path = log_with(home)
    with TrialLog(path), pytest.raises(RuntimeError, match='is under way in process'):
        TrialLog(path).__enter__()


def test_failing_chapter_names_its_notebook(tmp_path):
    import nbformat
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ZeroDivisionError('on purpose')")])
    nbformat.write(notebook, tmp_path/'chapter.ipynb')
    with pytest.raises(RuntimeError, match='Chapter chapter failed with ZeroDivisionError: on purpose') as e:
        execute(tmp_path/'chapter.ipynb', tmp_path/'out.ipynb', {})
    assert str(tmp_path/'out.ipynb') in str(e.value) and (tmp_path/'out.ipynb').exists()


def test_front_of_a_study_without_results(home):
    answer = CliRunner().invoke(app, ['front', 'nothing'])
    assert answer.exit_code == 2 and 'run the study first' in answer.stderr


def test_a_study_of_failures_says_so(home, smoke):
    from pareto_energy.report.tables import retrained_points
    from pareto_energy.run.study import FamilyStudy, run_study
    wild = dict(families=['mlp'], seeds=[0], ranges=dict(mlp=dict(lr=[1e37, 3e38], batch=[32, 512], fraction=1.)))
    trials = run_study(FamilyStudy('wild', **smoke | wild))
    assert {t.status for t in trials} == {'failed'} and all(t.spent > 0 and 'loss became nan' in t.reason for t in trials)
    assert [t.origin.source for t in trials if t.strategy == 'trajectory'] == ['centre', 'sobol', 'sobol', 'sobol: fewer than two finished trials']
    with pytest.raises(ValueError, match='8 of 8 trials failed, the first with "FloatingPointError in epoch 1'): retrained_points(trials)
