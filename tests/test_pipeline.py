"The whole book on the simulated meter, and the study chapter alone."
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
