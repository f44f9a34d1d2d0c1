"Measures of the code and of the chapters; `python tests/style.py [words in a path]` prints the worst."
import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
TUTORIALS = sorted((ROOT/'nbs/tutorials').glob('*.ipynb'))


@dataclass
class Cell:
    kind: str
    id: str
    source: str
    outputs: list
    tags: list

    @property
    def hidden(self): return bool(re.match(r'#\| *(hide|default_exp)', self.source)) or 'remove-cell' in self.tags

    @property
    def exported(self): return bool(re.match(r'#\| *export', self.source))

    @property
    def tree(self): return ast.parse(re.sub(r'^[ \t]*[%!].*$', '', self.source, flags=re.M))


def cells_of(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [Cell(c['cell_type'], c['id'], ''.join(c['source']), c.get('outputs', []), c['metadata'].get('tags', [])) for c in cells]


def code_of(path): return [c for c in cells_of(path) if c.kind == 'code']


def modules(): return [p for p in sorted((ROOT/'pareto_energy').rglob('*.py')) if p.name not in ('_modidx.py', '__init__.py')]


def code_lines():
    "(place, line) of the exported package and of the notebooks' code cells; parameters cells are generated."
    for path in modules():
        for n, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if line.strip() and not line.startswith('__all__') and not line.startswith("           '"): yield f'{path.relative_to(ROOT)}:{n}', line
    for path in [*NOTEBOOKS, *TUTORIALS]:
        for cell in code_of(path):
            if cell.exported or 'parameters' in cell.tags: continue
            for line in cell.source.splitlines():
                if line.strip(): yield f'{path.name} {cell.id}', line


def semicolons():
    "Lines with two statements joined by a semicolon."
    for path in [*NOTEBOOKS, *TUTORIALS]:
        for cell in code_of(path):
            starts = {}
            for node in ast.walk(cell.tree):
                if not isinstance(node, ast.stmt): continue
                line = cell.source.splitlines()[node.lineno - 1]
                before = line.encode()[:node.col_offset].decode().rstrip()
                if before.endswith(';'): starts[node.lineno] = line
            yield from ((f'{path.name} {cell.id}', line.strip()) for line in starts.values())


def functions():
    "(module, class or None, node) of every function of the package, methods too."
    for path in modules():
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef): yield path, None, node
            if isinstance(node, ast.ClassDef): yield from ((path, node, m) for m in node.body if isinstance(m, ast.FunctionDef))


def body_lines(node):
    "Lines of a function without its signature and docstring."
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(most=25):
    for path, owner, node in functions():
        n = body_lines(node)
        if n > most: yield f'{path.relative_to(ROOT)}:{node.lineno}', f'{owner.name + "." if owner else ""}{node.name}', n


def public_names(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    found = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
    return [e.value for e in found[0].elts] if found else []


def missing_raises():
    "Public functions that raise, and whose docstring does not say so."
    for path, owner, node in functions():
        if owner or node.name not in public_names(path) or _is_command(node): continue
        raised = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
        if raised and 'Raises' not in (ast.get_docstring(node) or ''): yield f'{path.relative_to(ROOT)}:{node.lineno}', node.name


def _is_command(node): return any('command(' in ast.unparse(d) or 'callback(' in ast.unparse(d) for d in node.decorator_list)


def undocumented():
    "Public functions and classes without a docstring."
    for path in modules():
        public = public_names(path)
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in public and not _is_command(node) and not ast.get_docstring(node):
                yield f'{path.relative_to(ROOT)}:{node.lineno}', node.name


def first_output(path):
    "Which cell, of those that a reader sees, shows the first output."
    seen = [c for c in cells_of(path) if not c.hidden and not (c.exported and _only_imports(c))]
    return next((n for n, c in enumerate(seen, 1) if c.outputs or '![' in c.source), None)


def _only_imports(cell): return cell.kind == 'code' and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.tree.body)


def longest_stretch(path):
    "The most lines of code that a reader meets without an output."
    worst = now = 0
    for cell in code_of(path):
        if cell.hidden or _only_imports(cell): continue
        now += sum(1 for line in cell.source.splitlines() if line.strip() and not line.startswith('#|'))
        if cell.outputs: worst, now = max(worst, now), 0
    return max(worst, now)


def not_shown(path):
    "Exported functions and classes that occur in no visible cell with an output."
    cells = code_of(path)
    shown = '\n'.join(c.source for c in cells if c.outputs and not c.exported and not c.hidden)
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for c in cells if c.exported for node in c.tree.body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith('_') and not re.search(rf'\b{name}\b', shown)]


def long_sentences(path, most=25):
    "Sentences of a chapter's prose with more words than that."
    for cell in cells_of(path):
        if cell.kind != 'markdown': continue
        prose = re.sub(r'```.*?```|\$\$.*?\$\$|^\|.*$|^#.*$|^> ', ' ', cell.source, flags=re.S | re.M)
        prose = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', prose)
        for sentence in re.split(r'(?<=[.!?])\s+|\n\n|\n- ', prose):
            words = re.findall(r"[A-Za-z][\w'’-]*", re.sub(r'`[^`]*`|\$[^$]*\$', 'x', sentence))
            if len(words) > most: yield cell.id, len(words), sentence.strip()


def opens_well(path):
    "H1, a one-line summary, and a question."
    first = cells_of(path)[0].source
    return bool(re.match(r'# [^\n]+\n\n> [^\n]+\n\n[^#]*\?', first))


def report(words=()):
    chosen = lambda place: not words or any(w in place for w in words)
    lengths = [(len(line), place, line) for place, line in code_lines()]
    mine = sorted((row for row in lengths if chosen(row[1])), reverse=True)
    every = sorted(n for n, *_ in mine)
    if every: print(f'{len(every)} lines of code, p99 {every[int(.99*len(every))]}, longest {every[-1]}, {sum(n > 120 for n in every)} above 120')
    for n, place, line in mine[:12]:
        if n > 120: print(f'  {n} {place}: {line.strip()[:100]}')
    for title, rows in (('semicolons', semicolons()), ('long functions', long_functions()), ('no Raises', missing_raises()), ('no docstring', undocumented())):
        rows = [r for r in rows if chosen(r[0]) or chosen(r[0].replace('/', '.'))]
        print(f'{title}: {len(rows)}', *(f'\n  {r}' for r in rows[:12]))
    for path in [*NOTEBOOKS, *TUTORIALS]:
        if not chosen(path.name): continue
        long = sorted(long_sentences(path), key=lambda s: -s[1])
        print(f'{path.name}: first output in cell {first_output(path)}, longest stretch {longest_stretch(path)}, opens well {opens_well(path)}, sentences over 25 words {len(long)}')
        for id, n, sentence in long[:3]: print(f'    {id} {n}: {sentence[:110]}')


if __name__ == '__main__': report(sys.argv[1:])
