"The house: imports to lower numbers, names, lines, functions, docstrings, and chapters that open with their result."
import ast
import re
from collections import defaultdict
from importlib import import_module

import style
from style import NOTEBOOKS, ROOT, TUTORIALS

MAX_PUBLIC_NAMES = 150


def exporting():
    "(chapter, number, module) of each notebook that exports one."
    for path in NOTEBOOKS:
        module = next((m[1] for c in style.code_of(path) if (m := re.match(r'#\| *default_exp (\S+)', c.source))), None)
        if module: yield path, path.name[:2], module # 2a comes after 29


def imported_modules(cell):
    froms = [n for n in ast.walk(cell.tree) if isinstance(n, ast.ImportFrom) and (n.module or '').startswith('pareto_energy.')]
    names = [(n.module.removeprefix('pareto_energy.'), a.name) for n in froms for a in n.names]
    packages = ('energy', 'models', 'front', 'search', 'run', 'report', 'bench')
    return [f'{module}.{name}' if module in packages else module for module, name in names]


def test_chapters_have_numbers_of_their_own():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(numbers) == len(set(numbers))


def test_imports_go_to_lower_numbers():
    number = {module: n for _, n, module in exporting()}
    upwards = [(path.name, module) for path, n, _ in exporting() for cell in style.code_of(path) if cell.exported
               for module in imported_modules(cell) if number[module] >= n]
    assert not upwards


def test_reports_need_no_torch():
    import subprocess
    import sys
    script = ("import sys; from pareto_energy.report import comparison, explorer, export, figures, importance, sentences, tables; "
              "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_log_needs_only_core():
    path = next(path for path, _, module in exporting() if module == 'front.log')
    assert {m for cell in style.code_of(path) if cell.exported for m in imported_modules(cell)} == {'core'}


def public():
    "name -> the objects that bear it, with their modules."
    found = defaultdict(list)
    for path in style.modules():
        module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        for name in style.public_names(path): found[name].append((module, getattr(import_module(module), name)))
    return found


def test_a_public_name_means_one_thing():
    found = public()
    assert not {name: [m for m, _ in homes] for name, homes in found.items() if len({id(o) for _, o in homes}) > 1}
    assert sum(map(len, found.values())) <= MAX_PUBLIC_NAMES


def test_every_exported_name_is_used():
    "Each is public, or read somewhere beside its definition."
    texts = [c.source for path in [*NOTEBOOKS, *TUTORIALS, ROOT/'nbs/index.ipynb'] for c in style.cells_of(path)]
    texts += [p.read_text(encoding='utf-8') for p in [*(ROOT/'tests').glob('*.py'), ROOT/'README.md', ROOT/'Makefile', ROOT/'settings.ini']]
    counts = defaultdict(int)
    for text in texts:
        for word in re.findall(r'\w+', text): counts[word] += 1
    defined = [(path.name, node.name) for path in style.modules() for node in ast.parse(path.read_text(encoding='utf-8')).body
               if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert not [(path, name) for path, name in defined if counts[name] < 2]


def test_lines_are_short():
    lengths = sorted((len(line), place) for place, line in style.code_lines())
    assert lengths[-1][0] <= 140, lengths[-5:]
    assert lengths[int(.99*len(lengths))][0] <= 120, lengths[-20:]


def test_one_statement_a_line(): assert not list(style.semicolons())


def test_functions_fit_a_screen(): assert not list(style.long_functions(25))


def test_public_functions_are_documented():
    assert not list(style.undocumented())
    assert not list(style.missing_raises())


def test_chapters_open_with_their_result():
    assert not [p.name for p in NOTEBOOKS if not style.opens_well(p)]
    late = {p.name: style.first_output(p) for p in [*NOTEBOOKS, *TUTORIALS]}
    assert not {name: n for name, n in late.items() if n is None or n > 5}


def test_no_long_stretch_without_an_output():
    stretches = {p.name: style.longest_stretch(p) for p in [*NOTEBOOKS, *TUTORIALS]}
    assert not {name: n for name, n in stretches.items() if n > 70}


def test_each_exported_function_is_shown_with_a_value():
    hidden = {p.name: style.not_shown(p) for p in NOTEBOOKS}
    assert not {name: names for name, names in hidden.items() if names}


def test_parameters_cells_are_generated():
    from pareto_energy.run.settings import write_parameters_cells
    assert write_parameters_cells(ROOT/'nbs', check=True) == []


def test_a_parameter_is_declared_in_one_place(monkeypatch):
    "A new field of the settings is known to the table, the parameters cell of the study, the YAML's and the command line's check."
    from dataclasses import dataclass, fields
    from typer.testing import CliRunner
    import pytest
    from pareto_energy import cli
    from pareto_energy.run import settings

    @dataclass
    class Grown(settings.StudySettings):
        max_kelvin: float = settings.setting('of the processor', settings._positive, 350.)
    monkeypatch.setattr(settings, 'StudySettings', Grown)
    assert settings.settings_table().query("parameter == 'max_kelvin'").meaning.item() == 'of the processor'
    assert 'max_kelvin = 350.0 # of the processor' in settings.parameters_cell([f.name for f in fields(Grown)], dict.fromkeys(
        ('study', 'datasets', 'families', 'strategies', 'seeds', 'trials', 'n_initial', 'epochs')))
    assert '53_run.study' in settings.write_parameters_cells(ROOT/'nbs', check=True)
    cli.check_parameters(dict(max_kelvin=300.))
    with pytest.raises(ValueError, match='Did you mean max_kelvin'): cli.check_parameters(dict(max_kelvins=300.))
    assert 'max_kelvin (float, 350.0): of the processor' in CliRunner().invoke(cli.app, ['run', '--help-parameters']).stdout
    required = dict(study='x', datasets=['digits'], families=['mlp'], strategies=['random'], seeds=[0], trials=1, n_initial=1, epochs=1)
    with pytest.raises(ValueError, match='max_kelvin must be a number above 0, not -1'): settings.check_settings(Grown(**required, max_kelvin=-1))


def test_links_name_what_they_lead_to():
    texts = [(p.name, c.source) for p in [*NOTEBOOKS, *TUTORIALS, ROOT/'nbs/index.ipynb'] for c in style.cells_of(p)]
    assert not [(name, m) for name, text in texts for m in re.findall(r'\[[Cc]hapter \d+\]', text)]


def test_links_lead_somewhere():
    texts = [(p, c.source) for p in [*NOTEBOOKS, *TUTORIALS, ROOT/'nbs/index.ipynb'] for c in style.cells_of(p) if c.kind == 'markdown']
    texts += [(p, p.read_text(encoding='utf-8')) for p in [ROOT/'README.md', *(ROOT/'docs').glob('*.md')]]
    links = [(p, link.split('#')[0]) for p, text in texts for link in re.findall(r'\]\(([^)\s]+)\)', text) if not link.startswith(('http', '#', 'attachment:'))]
    assert len(links) > 50 and not [(p.name, link) for p, link in links if not (p.parent/link).exists()]


def test_logs_of_the_former_schema_open(tmp_path):
    from pareto_energy.front.log import read_log
    later = {'quick', 'income', 'deployment', 'deployment-1e4', 'deployment-1e8', 'language'}
    for path in sorted((ROOT/'data/published').glob('*/trials.jsonl')):
        lines = path.read_bytes().splitlines(keepends=True)[:40]
        copy = tmp_path/f'{path.parent.name}.jsonl'
        copy.write_bytes(b''.join(lines))
        state = read_log(copy)
        assert (path.parent.name in later or b'"schema": 2' in lines[0]) and not state.damage and state.lines == len(lines)
        first = next(iter(state.trials.values()))
        assert first.machine_id and 'precision' not in first.configuration
        assert not any('thought' in t.origin.source for t in state.trials.values())


def test_no_message_names_a_former_parameter():
    former = re.compile(r'\breference_(joules|utility|every)\b(?!=)')
    lines = [(path.name, line) for path in [*style.modules(), *TUTORIALS, ROOT/'README.md'] for line in path.read_text(encoding='utf-8').splitlines()]
    assert not [(name, line) for name, line in lines if former.search(line)]


def test_outputs_hold_no_paths_of_a_machine():
    assert not [path.name for path in [*NOTEBOOKS, *TUTORIALS] if 'site-packages' in path.read_text(encoding='utf-8')]
