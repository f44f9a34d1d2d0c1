"What the energy chapter takes for granted in CodeCarbon, and the meters that this machine doesn't have."
import sys
import time
import types
from pathlib import Path

import pytest

from pareto_energy.energy.counters import METERS, CodeCarbonMeter, NvmlCounter, _tracker, nvml_counter, rapl_counters, tracked_counters
from pareto_energy.energy.meter import MeterError, SimulatedMeter, measure


def relied_on():
    "Each private or undocumented name of CodeCarbon that is read, and whether it is there."
    from codecarbon.core import cpu, gpu, gpu_device, gpu_nvidia, rapl
    from codecarbon.external import hardware
    from codecarbon.input import DataSource
    cpu_object = next(h for h in _tracker()._hardware if type(h).__name__ == 'CPU')
    yield 'tracker._hardware is a list', isinstance(_tracker()._hardware, list)
    yield 'CPU._mode is a string', isinstance(cpu_object._mode, str)
    yield 'RAM.total_power().W is a number', next(h for h in _tracker()._hardware if type(h).__name__ == 'RAM').total_power().W > 0
    cpu_object.start()
    time.sleep(.01)
    yield 'CPU.measure_power_and_energy gives power and energy in kWh', 0 < cpu_object.measure_power_and_energy(1.)[1].kWh < 1
    yield 'AppleSiliconChip takes chip_part', 'chip_part' in hardware.AppleSiliconChip.__init__.__code__.co_varnames
    yield 'NvidiaGPUDevice._get_total_energy_consumption exists', callable(gpu_nvidia.NvidiaGPUDevice._get_total_energy_consumption)
    yield 'GPUDevice sets _gpu_name', '_gpu_name' in Path(gpu_device.__file__).read_text()
    yield 'GPUDevice has gpu_index', 'gpu_index' in gpu_device.GPUDevice.__dataclass_fields__
    yield 'AllGPUDevices().devices is a list', isinstance(gpu.AllGPUDevices().devices, list)
    yield 'cpu.DEFAULT_POWER_PER_CORE is watts', cpu.DEFAULT_POWER_PER_CORE > 0
    yield 'cpu.TDP().tdp exists', hasattr(cpu.TDP(), 'tdp')
    yield 'cpu.count_cpus counts', cpu.count_cpus() > 0
    yield 'rapl.find_mirrored_counters maps a mirror to its original', rapl.find_mirrored_counters([('a', 9.), ('b', 9.)]) == dict(b='a')
    yield 'the energy mix has carbon_intensity', DataSource().get_global_energy_mix_data()['GBR']['carbon_intensity'] > 0


def test_contract_with_codecarbon():
    missing = [name for name, holds in relied_on() if not holds]
    assert not missing, f"CodeCarbon has changed: {'; '.join(missing)} no longer holds. Pin the version in constraints.txt, or change 12_energy.counters."


def domain(powercap, name, kind, microjoules):
    folder = powercap/name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in dict(name=kind, energy_uj=microjoules, max_energy_range_uj=10**9).items(): (folder/file).write_text(f'{text}\n')
    return folder


def test_unreadable_rapl_names_the_command_that_grants_it(tmp_path, monkeypatch):
    domain(tmp_path, 'intel-rapl:0', 'package-0', 5)
    domain(tmp_path, 'intel-rapl:0:0', 'dram', 5)
    read = Path.read_text

    def refuse(path, *args, **kwargs):
        if path.name == 'energy_uj' and path.parent.name == 'intel-rapl:0': raise PermissionError(13, 'Permission denied')
        return read(path, *args, **kwargs)
    monkeypatch.setattr(Path, 'read_text', refuse)
    counters, missing = rapl_counters(tmp_path)
    assert [c.component for c in counters] == ['ram'] and 'sudo chmod -R a+r' in missing['cpu']
    assert CodeCarbonMeter(powercap=tmp_path).sources == dict(cpu='cpu_time', ram='rapl')
    assert CodeCarbonMeter(powercap=tmp_path).label == 'estimated'


def test_a_package_without_memory_domain(tmp_path):
    domain(tmp_path, 'intel-rapl:0', 'package-0', 5)
    assert CodeCarbonMeter(powercap=tmp_path).sources == dict(cpu='rapl', ram='constant')


def test_a_rapl_counter_that_stands_still_is_an_error(tmp_path):
    domain(tmp_path, 'intel-rapl:0', 'package-0', 5)
    with pytest.raises(RuntimeError, match='The rapl counter of the cpu stood still'):
        measure(lambda: None, CodeCarbonMeter(powercap=tmp_path), seconds=.05)


class FakeDevice:
    def __init__(self, index): self.gpu_index, self._gpu_name, self.millijoules = index, f'Fake {index}', 1000*index
    def _get_total_energy_consumption(self):
        self.millijoules += 5000
        return self.millijoules


def test_the_gpu_that_trains_is_the_one_that_counts(monkeypatch):
    monkeypatch.setattr('codecarbon.core.gpu.AllGPUDevices', lambda: types.SimpleNamespace(devices=[FakeDevice(0), FakeDevice(3)]))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    assert nvml_counter(0).device.gpu_index == 3
    meter = CodeCarbonMeter('cuda')
    meter.finish = lambda work: None
    with meter.window() as window: window.lap()
    assert window.laps[0].parts['gpu'].joules == 5. and meter.sources['gpu'] == 'nvml' and 'Fake 3' in meter.machine_id
    assert meter.label == 'estimated', 'the CPU beside a measured GPU is still an estimate'
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1')
    with pytest.raises(RuntimeError, match=r'NVML finds no GPU 1, only \[0, 3\]'): nvml_counter(0)


def test_a_gpu_that_disappears(monkeypatch):
    device = FakeDevice(0)
    gpu = NvmlCounter(device)
    device._get_total_energy_consumption = lambda: None
    with pytest.raises(RuntimeError, match='can no longer be read'): gpu.read()


def test_windows_and_apple_as_codecarbon_gives_them():
    energy = types.SimpleNamespace(kWh=1e-6)
    class CPU:
        _mode = 'windows_emi'
        def start(self): pass
        def measure_power_and_energy(self, seconds): return None, energy
    class AppleSiliconChip(CPU):
        chip_part = 'GPU'
    counters = tracked_counters([CPU(), AppleSiliconChip()])
    assert [(c.component, c.source) for c in counters] == [('cpu', 'emi'), ('gpu', 'powermetrics')]
    assert counters[0].read() == pytest.approx(3.6) and counters[0].read() == pytest.approx(7.2)


def test_a_meter_that_fails_stops_the_study_and_blames_no_trial(home, smoke, monkeypatch):
    from pareto_energy.energy.meter import MeterError, SimulatedMeter
    from pareto_energy.run.study import FamilyStudy, run_study
    from pareto_energy.front.log import read_trials
    study = FamilyStudy('broken', **smoke | dict(families=['logistic'], strategies=['random'], seeds=[0]))
    end, readings = SimulatedMeter.end, [] # of training epochs

    def broken(meter):
        if meter.work > 1000: readings.append(meter.work)
        return dict(cpu=-1.) if len(readings) == 10 else end(meter)
    monkeypatch.setattr(SimulatedMeter, 'end', broken)
    with pytest.raises(MeterError, match='The formula counter of the cpu went backwards'): run_study(study)
    assert [t.status for t in read_trials(study.log_path).values()][-1] == 'started'
    monkeypatch.setattr(SimulatedMeter, 'end', end)
    assert [t.status for t in run_study(study)] == ['finished']*4


class HalfMeasured(SimulatedMeter):
    "A GPU whose counter has 98 % of the joules, beside a CPU that is estimated; by formula."
    sources = dict(gpu='nvml', cpu='cpu_time')
    machine_id, update_period = 'simulated', 0.
    counters = [types.SimpleNamespace(source='nvml', device=types.SimpleNamespace(gpu_index=0, handle=0))]
    def end(self): return {c: share*1e-8*(self.work + 1.) for c, share in dict(gpu=.98, cpu=.02).items()} # never quite still


@pytest.fixture
def half_measured(home, smoke, monkeypatch):
    monkeypatch.setitem(METERS, 'half', lambda device: HalfMeasured())
    return smoke | dict(families=['logistic'], strategies=['random'], seeds=[0], meter='half', deadline=None)


def test_a_study_names_the_share_that_was_measured_and_keeps_its_label(half_measured):
    from pareto_energy.api import LoadedStudy
    from pareto_energy.run.study import FamilyStudy, run_study
    trials = run_study(FamilyStudy('shares', **half_measured))
    assert {t.label for t in trials} == {'estimated'} and {round(t.run['measured_share'], 6) for t in trials} == {.98}
    assert LoadedStudy('shares').label == '98 % measured' and 'nvml (gpu) measured 98 %' in ' '.join(LoadedStudy('shares').conclusions)
    run_study(FamilyStudy('shares', **half_measured | dict(measured_share=.99, trials=half_measured['trials'] + 1)))
    assert LoadedStudy('shares').label == 'estimated, 98 % measured'
    with pytest.raises(ValueError, match="components was None and is now \\['gpu'\\]"):
        run_study(FamilyStudy('shares', **half_measured | dict(components=['gpu'])))
    of_gpu = run_study(FamilyStudy('alone', **half_measured | dict(components=['gpu'])))
    assert {t.label for t in of_gpu} == {'measured'} and all(t.run['measured_share'] == 1 for t in of_gpu)
    assert of_gpu[0].run['joules'][0] == pytest.approx(.98*trials[0].run['joules'][0]) and set(of_gpu[0].run['parts']) == {'gpu', 'cpu'}
    with pytest.raises(MeterError, match='components names ram, which is not read here: this meter reads gpu and cpu'):
        run_study(FamilyStudy('memory', **half_measured | dict(components=['gpu', 'ram'])))


class LimitedDriver:
    "NVML on a card of 700 W, of which at least 200 W stay."
    class NVMLError(Exception): pass
    def __init__(self): self.watts, self.calls = 700., []
    def nvmlDeviceGetPowerManagementLimit(self, handle): return round(1000*self.watts)
    def nvmlDeviceSetPowerManagementLimit(self, handle, milliwatts):
        if milliwatts < 200_000: raise self.NVMLError('Invalid Argument')
        self.watts = milliwatts/1000
        self.calls.append(self.watts)


def test_a_power_limit_is_set_for_a_run_and_put_back_when_it_fails(half_measured, monkeypatch):
    from pareto_energy.models import training
    from pareto_energy.run import study as study_module
    from pareto_energy.run.study import FamilyStudy, run_study
    driver, seen = LimitedDriver(), []
    monkeypatch.setitem(sys.modules, 'pynvml', driver)
    train_once = training.TorchTrainer.run_once

    def watched(trainer, *args, **how):
        seen.append((trainer.configuration['gpu_power_limit'], driver.watts))
        if len(seen) == 3: raise RuntimeError('this run fails')
        return train_once(trainer, *args, **how)
    monkeypatch.setattr(training.TorchTrainer, 'run_once', watched)
    limited = half_measured | dict(ranges=dict(logistic=dict(gpu_power_limit=[300, 500])))
    with pytest.warns(UserWarning, match='this run fails'): trials = run_study(FamilyStudy('limits', **limited))
    assert [t.status for t in trials].count('failed') == 1 and len(seen) > 5
    assert all(asked == held for asked, held in seen) and driver.watts == 700. and len({held for _, held in seen}) == 2
    refused = limited | dict(ranges=dict(logistic=dict(gpu_power_limit=[100, 500])))
    with pytest.raises(MeterError, match=r'SetPowerManagementLimit\(100000\) on GPU 0 \(Invalid Argument\)'):
        run_study(FamilyStudy('refused', **refused))
    assert driver.watts == 700.
    driver.watts, study = 300., FamilyStudy('killed', **limited)
    study.limits = types.SimpleNamespace(restore=lambda: setattr(driver, 'watts', 700.))
    assert study_module._of_dead_worker(study, types.SimpleNamespace(reason='killed', spent=1.)) == dict(reason='killed', spent=1.)
    assert driver.watts == 700.


def test_the_simulated_meter_has_no_power_limit(home, smoke):
    from pareto_energy.run.study import FamilyStudy, run_study
    limited = smoke | dict(families=['logistic'], ranges=dict(all=dict(gpu_power_limit=[300, 500])))
    with pytest.raises(MeterError, match="settings of NVIDIA's GPUs, and cpu trains here"): run_study(FamilyStudy('none', **limited))
