"The source of the site: the README, the chapters and tutorials without what only nbdev needs, and a page of reference for each module."
import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import nbformat
from nbdev.showdoc import BasicMarkdownRenderer, show_doc

ROOT = Path(__file__).parents[1]
TUTORIALS = 'your_table', 'own_model', 'reading_a_front', 'deployment', 'any_program', 'cluster', 'pretrained_texts', 'language_model' # in this order
PARTS = dict(Tutorials='nbs/tutorials/*.ipynb', Doors='docs/*door*.md', Core='nbs/10_*.ipynb', Energy='nbs/1[1-9]_*.ipynb', Models='nbs/2*.ipynb', Front='nbs/3*.ipynb', Search='nbs/4*.ipynb',
    Running='nbs/5*.ipynb', Results='nbs/6*.ipynb', Use='nbs/7*.ipynb', Experiments='nbs/[89]*.ipynb', Reference='reference/*.md')


def readable(path, target):
    "A notebook without hidden cells and directives."
    notebook = nbformat.read(path, 4)
    shown = [c for c in notebook.cells if not c.source.startswith(('#| hide', '#| default_exp'))]
    for cell in shown:
        if cell.cell_type == 'code': cell.source = '\n'.join(line for line in cell.source.splitlines() if not line.startswith('#|'))
        elif cell.source.startswith('# ') and path.stem[:1].isdigit(): cell.source = f'# {path.stem[:2]} · {cell.source[2:]}'
    notebook.cells = [c for c in shown if c.source.strip()]
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def reference(name, chapter):
    "The public functions and classes of a module."
    module = import_module(f'pareto_energy.{name}')
    public = [getattr(module, n) for n in module.__all__]
    defined = [o for o in public if inspect.isfunction(o) or inspect.isclass(o)]
    shown = [f'{documented(thing)}\n\n{example(thing.__name__, chapter)}' for thing in defined]
    return f'# {name}\n\n{module.__doc__} Explained in [{chapter.stem}](../nbs/{chapter.name}).\n\n' + '\n\n'.join(shown) + '\n'


def example(name, chapter):
    "The first cell of the chapter that calls a function and shows what it gives; no text where there is none of a few lines."
    for cell in nbformat.read(chapter, 4).cells:
        source = cell.source.strip()
        calls = re.search(rf'(?<![.\w]){name}\(', source) and not source.startswith(('#|', '%', 'test_')) and 'raise' not in source
        if cell.cell_type != 'code' or not calls or len(source.splitlines()) > 12: continue
        texts = [o.get('text') or o.get('data', {}).get('text/plain', '') for o in cell.outputs]
        found = '\n'.join(t for t in texts if t and not t.startswith('<')).rstrip()
        if not found: continue
        lines = found.splitlines()
        output = '\n'.join([*(line[:120] for line in lines[:15]), *(['…'] if len(lines) > 15 else [])])
        return f'Example:\n\n```python\n{source}\n```\n\n```text\n{output}\n```'
    return ''


def pages(pattern, source):
    "The pages of a part of the site, tutorials in the order in which they are read."
    found = sorted(source.glob(pattern))
    if 'tutorials' not in pattern: return found
    unknown = [p.stem for p in found if p.stem not in TUTORIALS]
    if unknown: raise ValueError(f'The tutorial {unknown[0]} has no place in TUTORIALS of docs/prepare.py.')
    return sorted(found, key=lambda path: TUTORIALS.index(path.stem))


def documented(thing):
    "A heading, the signature with its comments, and the sentence."
    text = show_doc(thing, renderer=BasicMarkdownRenderer, title_level=2)._repr_markdown_()
    text = '\n'.join(line for line in text.splitlines() if line != '---' and not line.startswith('[source]'))
    return text.replace('```python\ndef ', '```python\nclass ').replace(')->None:', '):') if inspect.isclass(thing) else text


def exporting():
    "The chapter of each module."
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        names = [line.split()[-1] for c in nbformat.read(path, 4).cells for line in c.source.splitlines() if line.startswith('#| default_exp')]
        if names: yield names[0], path


def main(source):
    shutil.rmtree(source, ignore_errors=True)
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' not in path.parts: readable(path, source/path.relative_to(ROOT))
    shutil.copytree(ROOT/'figures/published', source/'figures/published')
    shutil.copytree(ROOT/'figures/published', source/'extra/figures/published', ignore=lambda folder, names: [n for n in names if '.' in n and not n.endswith('.html')])
    for name in ('CITATION.cff', 'LICENCES.md', 'CHANGELOG.md'): shutil.copy(ROOT/name, source)
    (source/'docs').mkdir()
    for path in (ROOT/'docs').glob('*.md'): shutil.copy(path, source/'docs')
    (source/'reference').mkdir()
    for name, chapter in exporting(): (source/f'reference/{name}.md').write_text(reference(name, chapter), encoding='utf-8')
    (source/'explorer.md').write_text('# The explorer\n\nThe front of the quick study, found anew as you move predictions, carbon intensity and price. <a href="figures/published/quick/explorer.html">Open it alone.</a>\n\n<iframe src="figures/published/quick/explorer.html" title="explorer" width="100%" height="900" style="border: 0"></iframe>\n', encoding='utf-8')
    trees = [f'```{{toctree}}\n:hidden:\n:caption: {part}\n\n' + '\n'.join(str(p.relative_to(source).with_suffix('')) for p in pages(pattern, source)) + '\n```' for part, pattern in PARTS.items()]
    (source/'index.md').write_text((ROOT/'README.md').read_text(encoding='utf-8') + '\n' + '\n\n'.join([*trees, '```{toctree}\n:hidden:\n:caption: More\n\nexplorer\ndocs/commands\ndocs/numbers\ndocs/developing\ndocs/versions\nCHANGELOG\nLICENCES\n```']) + '\n', encoding='utf-8')


if __name__ == '__main__': main(Path(sys.argv[1]))
