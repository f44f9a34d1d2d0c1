"The wheel in an empty folder, where no checkout is: new, run, front, export, book."
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def done(words, cwd, **environment):
    "Run a command that ends well, and give its standard output."
    env = {name: value for name, value in os.environ.items() if name != 'PARETO_ENERGY_HOME'} | environment
    ended = subprocess.run([str(w) for w in words], cwd=cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, ended.stderr


def files_of(folder): return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if '__pycache__' not in path.parts}


def answers(commands, cwd, environment):
    "What several commands print, all in one process."
    code = ("import json, sys; from typer.testing import CliRunner; from pareto_energy.bench.commands import app; "
            "found = [CliRunner().invoke(app, words) for words in json.loads(sys.argv[1])]; "
            "assert not any(a.exit_code for a in found), [a.output for a in found]; print(json.dumps([a.stdout for a in found]))")
    return json.loads(done([sys.executable, '-P', '-c', code, json.dumps(commands)], cwd, **environment)[0])


def check_pages(wheel):
    "The wheel holds every chapter without its outputs, the studies, and what the chapters open with."
    with zipfile.ZipFile(wheel) as archive:
        pages = {name.removeprefix('pareto_energy/book/'): name for name in archive.namelist() if name.startswith('pareto_energy/book/')}
        wanted = [path.relative_to(ROOT).as_posix() for pattern in ('nbs/[0-9]*.ipynb', 'nbs/studies/*.yaml', 'data/published/quick/*')
                  for path in ROOT.glob(pattern)]
        assert not set(wanted) - set(pages) and len(wanted) > 50
        chapter = json.loads(archive.read(pages['nbs/64_report.figures.ipynb']))
        assert not any(cell.get('outputs') for cell in chapter['cells'])
        assert {'pareto_energy/models/surnames.txt', 'pareto_energy/search/published.json'} <= {*archive.namelist()}
    assert wheel.stat().st_size < 2e6


def test_the_wheel_works_in_an_empty_folder(tmp_path):
    done([sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp_path, ROOT], ROOT) # the wheel from the sdist
    wheel, = tmp_path.glob('*.whl')
    check_pages(wheel)
    site, here = tmp_path/'site', tmp_path/'empty'
    here.mkdir()
    done([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site, wheel], here)
    code = ("import sys, pareto_energy; from pareto_energy.models.space import Space; from pareto_energy.cli import app; "
            "assert 'torch' not in sys.modules; print(pareto_energy.__file__)")
    of_wheel = dict(PYTHONPATH=str(site))
    assert done([sys.executable, '-P', '-c', code], here, **of_wheel)[0].startswith(str(site))
    for page in (site/'pareto_energy/book/nbs').glob('[0-9]*.ipynb'): # test_pipeline runs the whole book
        if not page.name.startswith(('53', '60')): page.unlink()
    program, before = site/'bin/pareto-energy', files_of(site)

    early = answers([['front', 'published/quick', '--csv']], here, of_wheel)[0] # the wheel's own, before a book is copied
    assert early.startswith('dataset,family,') and not [*here.iterdir()]
    assert 'first.yaml is written' in done([program, 'new', 'first'], here, **of_wheel)[0]
    small = dict(meter='simulated', families='[logistic]', trials=3, n_initial=2, epochs=2, front_points=2, fresh_seeds=2)
    changes = [word for name, value in small.items() for word in ('-p', f'{name}={value}')]
    out, err = done([program, 'run', 'first.yaml', *changes], here, **of_wheel)
    assert 'digits: test part' in out and str(here/'runs/first') in out
    assert '53_run.study: 3 of 3 trials' in err and len(list((here/'runs/first').glob('*.ipynb'))) == 2
    assert json.loads((here/'data/first/study.json').read_text())['ranges'] == {} # the default, and not that of the published study
    assert files_of(site) == before # nothing is written beside the package

    several = [['front', 'first', '--json'], ['front', 'first.yaml', '--json'], ['front', 'data/first', '--json'], ['export', 'data/first'],
               ['book'], ['front', 'published/quick', '--csv']]
    *fronts, exported, copied, published = answers(several, here, of_wheel)
    assert json.loads(fronts[0])['digits']['front'] and len(set(fronts)) == 1
    assert (here/exported.strip()).exists() and copied.startswith('2 chapters are in nbs') and published.startswith('dataset,family,')
    assert (here/'nbs/53_run.study.ipynb').exists() and (here/'nbs/studies/quick.yaml').exists()
