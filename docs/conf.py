"How Sphinx builds the site from what prepare.py has put into its source folder."
from configparser import ConfigParser
from pathlib import Path

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parents[1]/'settings.ini')
project, release, copyright = (config['DEFAULT'][k] for k in ('title', 'version', 'copyright'))
author = config['DEFAULT']['author']

extensions = ['myst_nb', 'sphinx.ext.githubpages']
exclude_patterns = ['nbs/index.ipynb', 'figures']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3

html_theme = 'furo'
html_title = f'{project} {release}'
html_extra_path = ['../_docs/source/extra']
html_show_sourcelink = False
html_theme_options = dict(light_css_variables={'color-brand-primary': '#0072B2', 'color-brand-content': '#0072B2'},
                          dark_css_variables={'color-brand-primary': '#56B4E9', 'color-brand-content': '#56B4E9'})
