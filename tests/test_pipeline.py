"The whole book on the simulated meter, the study chapter alone, and the installed package."
import os
import subprocess
import sys
from pathlib import Path

ROOT, BIN = Path(__file__).parents[1], Path(sys.executable).parent


def said(*words, home, cwd=ROOT):
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=os.environ | {'PARETO_ENERGY_HOME': str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_book_runs_and_resumes(tmp_path):
    out = said(BIN/'pareto-energy', 'run', 'smoke', home=tmp_path)
    data, figures = tmp_path/'data/smoke', tmp_path/'figures/smoke'
    stages = ['energy.json', 'datasets.json', 'spaces.json', 'models.json', 'training.json', 'trials.jsonl', 'reference.json', 'designs.json', 'study.json',
              'searches.csv', 'comparison.csv', 'families.csv', 'indicators.csv', 'attainment.csv', 'importance.csv', 'agreement.csv',
              'front.csv', 'allowances.csv', 'ownership.csv', 'kinds.csv', 'lifetime.csv', 'optimism.csv', 'bill.csv', 'suggestions.csv']
    assert not [name for name in stages if not (data/name).stat().st_size]
    drawn = [f'{f}.{s}' for f in ('front', 'savings', 'attainment', 'trials', 'joules', 'importance-digits', 'importance-diabetes') for s in ('pdf', 'svg', 'png', 'tex')]
    printed = [f'table-{t}.{s}' for t in ('front', 'allowances', 'comparison', 'indicators') for s in ('tex', 'csv', 'md')]
    assert sorted(p.name for p in figures.iterdir()) == sorted([*drawn, *printed, 'explorer.html'])
    assert 'digits: test part' in out and 'diabetes: test part' in out and 'R² (%)' in out and 'a point more costs' in out and str(figures/'front.pdf') in out
    assert len(list((tmp_path/'runs/smoke').glob('*.ipynb'))) == 13
    assert 'simulated' in (figures/'front.svg').read_text()
    log = (data/'trials.jsonl').read_bytes()
    alone = ('papermill', 'nbs/53_run.study.ipynb', tmp_path/'out.ipynb', '-f', 'nbs/studies/smoke.yaml', '--no-progress-bar')
    said(BIN/alone[0], *alone[1:], '-p', 'trials', 5, home=tmp_path)
    assert (data/'trials.jsonl').read_bytes().startswith(log)
    assert (data/'trials.jsonl').read_text().count('"finished"') == log.count(b'"finished"') + 12


def test_no_network(home, smoke, monkeypatch):
    import socket
    from pareto_energy.energy.meter import measure, calibration_workload
    from pareto_energy.energy.counters import open_meter
    from pareto_energy.run.study import FamilyStudy, run_study

    tried = []

    def refuse(connection, *args):
        tried.append(args)
        raise OSError('no network')
    for name in ('connect', 'connect_ex', 'sendto'): monkeypatch.setattr(socket.socket, name, refuse)
    trials = run_study(FamilyStudy('offline', **smoke | dict(families=['logistic'], strategies=['random'], seeds=[0])))
    assert [t.status for t in trials] == ['finished']*4
    measure(calibration_workload, open_meter('codecarbon'), seconds=.1)
    assert not tried


def test_wheel_outside_the_checkout(tmp_path):
    said(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', tmp_path, ROOT, home=tmp_path)
    wheel, = tmp_path.glob('*.whl')
    said(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', tmp_path/'site', wheel, home=tmp_path)
    code = ("import sys; sys.path.insert(0, 'site'); import pareto_energy; from pareto_energy.models.space import Space; from pareto_energy.cli import app; "
            "assert 'torch' not in sys.modules; print(pareto_energy.__file__)")
    assert str(tmp_path/'site') in said(sys.executable, '-P', '-c', code, home=tmp_path, cwd=tmp_path).replace('site/', f'{tmp_path}/site/', 1)
    assert (tmp_path/'site/bin/pareto-energy').exists()
