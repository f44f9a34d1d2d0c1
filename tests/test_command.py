"Programs in other languages: what they print, how they end, what they leave behind."
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest
from typer.testing import CliRunner

from conftest import wait_until
from pareto_energy.bench.commands import app
from pareto_energy.energy.counters import open_meter, watts_per_thread
from pareto_energy.energy.meter import SimulatedMeter
from pareto_energy.front.log import read_trials
from pareto_energy.models.command import command_loop
from pareto_energy.models.custom import train_loop
from pareto_energy.models.run import TrainingFailed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "The working folder of the test, in which a study keeps its data, too."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PARETO_ENERGY_HOME', str(tmp_path))
    return tmp_path


@pytest.fixture
def mark():
    "A word by which processes of the test are found."
    mark = f'mark-{uuid.uuid4().hex}'
    yield mark
    for p in processes_of(mark): p.kill()


def processes_of(mark):
    def has_mark(p):
        try: return p.status() != psutil.STATUS_ZOMBIE and any(mark in word for word in p.cmdline())
        except psutil.Error: return False
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and has_mark(p)]


def trained(command, configuration={}, epochs=5, meter=None, stop_after=None, **how):
    return train_loop(command_loop(command, **how), configuration, epochs, seed=3, meter=meter or SimulatedMeter(), stop_after=stop_after)


def reason(command, **how):
    with pytest.raises(TrainingFailed) as caught: trained(command, **how)
    return caught.value.reason


EPOCHS = 'for e in $(seq 1 $2); do echo "{\\"utility\\": 0.$e, \\"epoch\\": $e}"; done'


def test_a_shell_script_is_a_training(folder):
    (folder/'train.sh').write_text(f'echo loading $1 $3; echo noise >&2; {EPOCHS}')
    run = trained('sh train.sh {lr} {epochs} {seed}', dict(lr=.5))
    assert run.utility == [.1, .2, .3, .4, .5] and run.joules == [1., 2., 3., 4., 5.]


@pytest.mark.skipif(not shutil.which('node'), reason='needs node')
def test_a_script_for_node_is_a_training(folder):
    (folder/'train.js').write_text('''
const [lr, epochs, seed] = process.argv.slice(2).map(Number)
for (let epoch = 1; epoch <= epochs; epoch++) console.log(JSON.stringify({epoch, utility: epoch == 4 ? NaN : 1 - lr/epoch, seed}))
''')
    run = trained('node train.js {lr} {epochs} {seed}', dict(lr=.5), epochs=3)
    assert run.utility == pytest.approx([.5, .75, 1 - .5/3]) and run.diverged is None
    run = trained('node train.js {lr} {epochs} {seed}', dict(lr=.5), epochs=6) # JSON has null for what is no number
    assert len(run.utility) == 3 and 'the utility became nan in epoch 4' in run.diverged


def test_values_reach_the_command_as_they_are(folder):
    (folder/'echo.sh').write_text('for word in "$@"; do echo "$word" >> words; done; echo "{\\"utility\\": 1}"')
    trained(['sh', 'echo.sh', '{name}', '--lr={lr:.2g}', '{{x}}', '{seed}', '$HOME *'], dict(name='two words; echo', lr=.123456))
    assert (folder/'words').read_text().splitlines()[-5:] == ['two words; echo', '--lr=0.12', '{x}', '3', '$HOME *']


def test_progress_bars_and_noise_pass(folder):
    (folder/'noisy.py').write_text('''
import sys
for epoch in range(3):
    for step in range(5): print(f"\\r{step}/5 |###| utility: 0.{step}", end="")
    print(f"\\nepoch {epoch + 1} val_acc=0.{epoch + 5}")
    print("{'utility': 1}\\n{\\"utility\\"", "\\N{SNOWMAN}", "x"*100_000)
    sys.stdout.buffer.write(b"\\xff\\n")
''')
    run = trained([sys.executable, 'noisy.py'], pattern=r'epoch (?P<epoch>\d+) val_acc=(?P<utility>[\d.]+)')
    assert run.utility == [.5, .6, .7]


@pytest.mark.parametrize('write', ['print(line, file=open("metrics.jsonl", "a"))', 'open("metrics.jsonl", "w").write(line)'])
def test_a_file_is_read_while_it_grows_and_after_the_end(folder, write):
    (folder/'writes.py').write_text(f'''
import json, time
for epoch in (1, 2, 3):
    line = json.dumps(dict(utility=epoch/10, epoch=epoch))
    {write}
    if epoch < 3: time.sleep(.3)
''')
    for _ in range(2): # what the first run has left does not count
        assert trained([sys.executable, 'writes.py'], file='metrics.jsonl').utility == [.1, .2, .3]
    assert 'metrics.jsonl' not in str(command_loop('sh writes.py metrics.jsonl', file='metrics.jsonl').command.contents)


def test_a_file_that_is_something_else_is_kept(folder):
    (folder/'train.sh').write_text('echo')
    assert 'The file train.sh holds no utility' in reason('sh train.sh', file='train.sh')
    assert (folder/'train.sh').read_text() == 'echo'
    assert 'wrote no file metrics.jsonl' in reason('sh train.sh', file='metrics.jsonl')


def test_joules_of_a_script_are_those_of_what_it_starts(folder):
    (folder/'busy.sh').write_text('"$1" -c "import time\nwhile time.process_time() < .8: pass"; echo "{\\"utility\\": 1}"')
    run = trained(['sh', 'busy.sh', sys.executable], epochs=1, meter=open_meter())
    assert .76 < run.cpu_seconds < .96
    if run.sources['cpu'] == 'cpu_time': assert run.joules[0] == pytest.approx(.8*watts_per_thread(), rel=.2)


def test_nothing_goes_unread_while_a_utility_is_reported(folder):
    "The command stands still while a rule decides whether it goes on."
    (folder/'busy.py').write_text('import time\nfor e in range(3):\n while time.process_time() < .2*(e + 1): pass\n print(f"utility {e}")\n')
    loop = command_loop([sys.executable, 'busy.py'], pattern='utility (.+)')
    def slow(utilities, read_joules, epochs): return time.sleep(.3) or True
    run = train_loop(loop, {}, 3, seed=0, meter=open_meter(), should_continue=slow)
    assert run.cpu_seconds > .55


STUBBORN = {
    'ignores SIGTERM': 'trap "" TERM; echo "{\\"utility\\": 0.5}"; while :; do sleep .1; done; : $1',
    'has a background child': 'sh -c "while :; do sleep .1; done; : $1" & echo "{\\"utility\\": 0.5}"; wait',
    'has a child with a session of its own': 'setsid sh -c "trap : TERM; while :; do sleep .1; done; : $1" & echo "{\\"utility\\": 0.5}"; wait',
    'leaves a child behind': 'sh -c "while :; do sleep .1; done; : $1" & echo "{\\"utility\\": 0.5}"',
}


@pytest.mark.parametrize('what', STUBBORN)
def test_a_stopped_run_leaves_nothing_behind(folder, mark, what):
    (folder/'train.sh').write_text(STUBBORN[what])
    start = time.monotonic()
    run = trained(f'sh train.sh {mark}', stop_after=1, grace=.3)
    assert run.utility == [.5] and not processes_of(mark) and time.monotonic() - start < 10


def test_a_script_may_tidy_up_when_it_is_stopped(folder):
    (folder/'train.sh').write_text('trap "echo saved > model; exit" TERM; echo "{\\"utility\\": 0.5}"; while :; do sleep .05; done')
    trained('sh train.sh', stop_after=1)
    assert (folder/'model').read_text() == 'saved\n'


def test_an_error_ends_the_script(folder, mark):
    (folder/'train.sh').write_text('echo "{\\"utility\\": 0.5, \\"epoch\\": -1}"; while :; do sleep .1; done')
    assert 'from 0, which is before any training; found -1' in reason(f'sh train.sh {mark}')
    assert not processes_of(mark)


LOOP = '''
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler) # tests in the background may have it ignored
from pareto_energy.energy.meter import SimulatedMeter
from pareto_energy.models.command import command_loop
from pareto_energy.models.custom import train_loop
train_loop(command_loop(['sh', 'train.sh', sys.argv[1]]), {}, 5, seed=0, meter=SimulatedMeter())
'''


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_script_ends_with_the_program_that_trains(folder, mark, number):
    (folder/'train.sh').write_text('echo ready > ready; while :; do sleep .1; done')
    program = subprocess.Popen([sys.executable, '-c', LOOP, mark], stderr=subprocess.DEVNULL)
    wait_until((folder/'ready').exists, 'the script')
    assert len(processes_of(mark)) > 1
    wait_until(lambda: len(psutil.Process(program.pid).children()) > 1, 'the watchdog')
    program.send_signal(number)
    program.wait(30)
    wait_until(lambda: not processes_of(mark), 'the end of the script', seconds=10)


@pytest.mark.parametrize('script, parts', [
    ('echo one >&2; echo two >&2; exit 3', ['CommandFailed in epoch 1: fails ended with exit status 3', 'standard error are: one | two']),
    ('echo 1 && kill -SEGV $$', ['was ended by SIGSEGV', 'standard output are: 1']),
    ('kill -KILL $$', ['was ended by SIGKILL, perhaps because the memory was full; it wrote nothing']),
    ('sh -c "kill -KILL \\$\\$"; exit $?', ['exit status 137 (SIGKILL in a program that it ran, perhaps because the memory was full)']),
    ('no-such-program', ['exit status 127', 'no-such-program', 'not found']),
    ('echo accuracy 0.5', ['wrote no utility: no line of its output is a JSON object with "utility"', 'accuracy 0.5']),
    ('exit 0', ['wrote no utility', 'it wrote nothing']),
    ('printf "\\377\\n"', ['it is not in UTF-8', '\\udcff']),
    ('echo "{\\"utility\\": \\"good\\"}"', ["'good', found for the utility in the line", 'is no number']),
    ('for i in $(seq 1000); do echo a long line of standard error $i >&2; done; exit 1', ['standard error $i'.replace('$i', '1000')]),
])
def test_reasons_of_failure(folder, script, parts):
    (folder/'fails.sh').write_text(script)
    why = reason('sh fails.sh')
    assert all(part in why for part in parts) and '\n' not in why and len(why) < 1000, why


def test_a_program_that_cannot_be_started(folder):
    assert 'nowhere could not be started (No such file or directory)' in reason('./nowhere')
    (folder/'data.bin').write_bytes(b'\x7fnothing')
    (folder/'data.bin').chmod(0o755)
    assert 'Exec format error' in reason('./data.bin')


def test_lines_that_come_in_bursts_are_warned_of(folder):
    (folder/'late.sh').write_text('sleep .3; for e in 1 2 3 4; do echo "{\\"utility\\": 0.$e}"; done')
    with pytest.warns(UserWarning, match='utilities of late came at once'): trained('sh late.sh')


def tune(*words, space='lr: [0.1, 1, log]', **how):
    with open('space.yaml', 'w') as f: f.write(space)
    options = dict(meter='simulated', trials=4, epochs=3) | how
    words = ['tune', '--space', 'space.yaml', *(w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", str(value))), *words]
    return CliRunner().invoke(app, words)


FEW = ('-p', 'n_initial=3', '-p', 'fresh_seeds=2', '-p', 'min_gain_per_cost=0')


def test_tune_prints_the_front_and_goes_on(folder):
    (folder/'fit.sh').write_text('for e in $(seq $2); do echo "epoch $e: loss $(awk "BEGIN { print $1/$e }")"; done')
    words = [*FEW, '--metric', 'loss', '--minimise', '--pattern', r'epoch (?P<epoch>\d+): loss (?P<utility>\S+)', '--', 'sh', 'fit.sh', '{lr}', '{epochs}']
    first = tune(*words)
    assert first.exit_code == 0 and 'On fit the best model found is of family fit, with loss' in first.stdout, first.output
    log = (folder/'data/fit/trials.jsonl').read_bytes()
    assert tune(*words).stdout == first.stdout and (folder/'data/fit/trials.jsonl').read_bytes() == log
    (folder/'fit.sh').write_text((folder/'fit.sh').read_text() + '\n# corrected')
    changed = tune(*words)
    assert changed.exit_code == 2 and 'the loop fit has changed' in changed.stderr


def test_some_configurations_fail(folder):
    (folder/'fit.sh').write_text('[ "$1" = big ] && { echo "CUDA out of memory" >&2; exit 1; }; echo "{\\"utility\\": 0.5}"')
    done = tune(*FEW, '--', 'sh', 'fit.sh', '{size}', space='size: [small, medium, big]', trials=6)
    assert done.exit_code == 0 and 'trials failed (fit: CommandFailed in epoch 1: fit ended with exit status 1' in done.stdout, done.output
    trials = read_trials(folder/'data/fit/trials.jsonl').values()
    assert {t.status for t in trials if t.configuration['size'] == 'big'} == {'failed'}
    assert {t.status for t in trials if t.configuration['size'] != 'big'} == {'finished'}


def test_a_script_that_hangs_is_ended_by_the_deadline(folder, mark):
    (folder/'fit.sh').write_text('while :; do sleep .1; done')
    from pareto_energy.run import study
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, 'LOADING_SECONDS', 1.)
        done = tune(*FEW, '-p', 'max_seconds=0.1', '--', 'sh', 'fit.sh', '{lr}', mark, trials=1, deadline=.3)
    assert done.exit_code == 1 and 'took longer than' in done.stderr, done.output
    wait_until(lambda: not processes_of(mark), 'the end of the script', seconds=10)


@pytest.mark.parametrize('words, space, said', [
    (['--', 'sh', 'fit.sh', '{rl}'], 'lr: [0.1, 1]', "Unknown placeholder of the command 'rl'"),
    (['--', 'sh', 'fit.sh'], 'lr: [0.1, 1]', 'The command has no place for lr'),
    (['--', 'hs', 'fit.sh', '{lr}'], 'lr: [0.1, 1]', "There is no program 'hs'"),
    (['--', 'fit.sh', '{lr}'], 'lr: [0.1, 1]', "as in 'sh fit.sh'"),
    (['--pattern', 'accuracy', '--', 'sh', 'fit.sh', '{lr}'], 'lr: [0.1, 1]', 'has no group for the utility'),
    (['--metric', 'loss', '--', 'sh', 'fit.sh', '{lr}'], 'lr: [0.1, 1]', 'say --minimise'),
    (['-p', 'trails=3', '--', 'sh', 'fit.sh', '{lr}'], 'lr: [0.1, 1]', 'Did you mean trials?'),
    (['--', 'sh', 'fit.sh', '{lr}'], 'lr: [1, 0.1]', 'is inverted'),
    (['--', 'sh', 'fit.sh', '{lr}'], 'lr: 0.1', 'Every parameter is fixed'),
    (['--', 'sh', 'fit.sh', '{lr}'], 'lr: [1', 'is no YAML'),
    (['--', 'sh', 'fit.sh', '{seed}'], 'seed: [1, 2]', 'seed is given by the study'),
])
def test_mistakes_come_before_the_first_trial(folder, words, space, said):
    (folder/'fit.sh').write_text('touch ran')
    answer = tune(*words, space=space)
    assert answer.exit_code == 2 and said in answer.stderr and answer.stderr.count('\n') == 1, answer.output
    assert not (folder/'ran').exists() and not (folder/'data').exists()
