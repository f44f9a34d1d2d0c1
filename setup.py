import json
import shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']


class BuildWithBook(build_py):
    "The package with its book: chapters without their outputs, studies, and the records that the chapters open with."
    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False): return
        book = Path(self.build_lib)/cfg['lib_name']/'book'
        shutil.rmtree(book, ignore_errors=True) # of an earlier build
        for pattern in cfg['book'].split():
            for path in sorted(Path().glob(pattern)): copy_page(path, book/path)


def copy_page(path, target):
    "Copy a file; a notebook loses its outputs, nine tenths of its size."
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != '.ipynb': return shutil.copyfile(path, target)
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code': cell['outputs'] = []
    target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


extras = ('nsga2', 'dev', 'integrations', 'zeus', 'onnx', 'keep', 'pretrained', 'language', 'bench', 'cluster', 'docs', 'audit')
setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    url=cfg['git_url'], license='Apache-2.0', keywords=cfg['keywords'], python_requires=f">={cfg['min_python']}",
    classifiers=[f'Programming Language :: Python :: {v}' for v in cfg['python_versions'].split()],
    packages=find_packages(include=['pareto_energy*']), package_data={'pareto_energy.models': ['*.txt'], 'pareto_energy.search': ['*.json'], 'pareto_energy.report': ['*.html']},
    install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in extras}, cmdclass=dict(build_py=BuildWithBook),
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown')
