__version__ = "0.2.0"

_HOMES = dict(Study='api', load_study='api', load_trials='report.measurements', measure='energy.meter',
    open_meter='energy.counters', load_dataset='models.data', read_study='front.log', pareto_front='front.pareto',
    hypervolume='front.pareto', trajectory_points='front.pareto', run_study='run.study', FamilyStudy='run.study',
    sklearn_loop='models.custom', load_model='front.models')
__all__ = [*_HOMES]

def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)

def __dir__(): return [*globals(), *_HOMES]
