__version__ = "0.1.0"

def __getattr__(name):
    if name != 'Study': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .api import Study
    return Study
