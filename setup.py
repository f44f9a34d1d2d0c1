from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    url=cfg['git_url'], license='Apache-2.0', keywords=cfg['keywords'], python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=['pareto_energy*']), install_requires=cfg['requirements'].split(),
    extras_require={extra: cfg[f'{extra}_requirements'].split() for extra in ('dev', 'integrations', 'zeus', 'bench', 'cluster', 'docs', 'audit')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown')
