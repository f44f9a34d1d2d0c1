"Files of every kind, made small, and the real ones where the cache has them."
import gzip
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest

from pareto_energy.models import data as datasets
from pareto_energy.models.data import RemoteFile, cache_folder, describe_data, load_dataset, fetch_file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('PARETO_ENERGY_CACHE', str(tmp_path))
    datasets._load.cache_clear()
    yield tmp_path
    datasets._load.cache_clear()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def tgz(**members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode='w:gz', compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def test_idx_files(cache):
    rng = np.random.default_rng(0)
    idx = lambda a: bytes([0, 0, 8, a.ndim]) + np.array(a.shape, '>u4').tobytes() + a.astype(np.uint8).tobytes()
    arrays = [rng.integers(0, 255, (60, 4, 4)), np.arange(60) % 3, rng.integers(0, 255, (12, 4, 4)), np.arange(12) % 3]
    names = ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz', 't10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz')
    downloads = [put(cache/'mnist'/n, gzip.compress(idx(a))) for n, a in zip(names, arrays)]
    load = datasets._mnist_like('mnist', 'http://127.0.0.1:9', [''] * 4, downloads)
    features, targets, how = load()
    assert features.shape == (72, 1, 4, 4) and (features[60:, 0] == arrays[2]).all() and how['official'].sum() == 12


def test_cifar10(cache, monkeypatch):
    rows = np.tile(np.random.default_rng(0).integers(0, 10, (100, 3073)).astype(np.uint8), (100, 1))
    names = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
    content = tgz(**{f'cifar-10-batches-bin/{n}.bin': rows.tobytes() for n in names})
    sha = put(cache/'cifar10/cifar-10-binary.tgz', content)
    monkeypatch.setattr(datasets, 'CIFAR', RemoteFile('cifar10/cifar-10-binary.tgz', 'http://127.0.0.1:9', sha))
    features, targets, how = datasets._cifar10()
    assert features.shape == (60_000, 3, 32, 32) and (targets[50_000:] == rows[:, 0]).all() and how['official'].sum() == 10_000


def test_california(cache, monkeypatch):
    rows = '\n'.join(','.join(map(str, [i, i % 7, 3, 4, 5, 6, 7, 8, 2*i])) for i in range(50)).encode()
    sha = put(cache/'california-housing/cal_housing.tgz', tgz(**{'CaliforniaHousing/cal_housing.data': rows}))
    monkeypatch.setattr(datasets, 'CALIFORNIA', RemoteFile('california-housing/cal_housing.tgz', 'http://127.0.0.1:9', sha))
    data = load_dataset('california-housing')
    assert (data.task, data.shape, data.outputs) == ('regression', (8,), 1) and abs(data.parts['train'][1].mean()) < 1e-6


def test_openml(cache, monkeypatch):
    from types import SimpleNamespace
    table = pd.DataFrame(dict(a=range(100), b=pd.Categorical(list('xyzw')*25)))
    answer = lambda target: SimpleNamespace(data=table, target=target, details=dict(name='toy', licence='Public'))
    monkeypatch.setattr('sklearn.datasets.fetch_openml', lambda **kw: answer(pd.Series(pd.Categorical(['no', 'yes']*50))))
    assert (load_dataset('openml:1').task, load_dataset('openml:1').outputs, load_dataset('openml:1').shape) == ('classification', 2, (5,))
    monkeypatch.setattr('sklearn.datasets.fetch_openml', lambda **kw: answer(pd.Series(np.linspace(0, 1, 100))))
    assert load_dataset('openml:2').task == 'regression'
    def no_network(**kw): raise OSError('Name or service not known')
    monkeypatch.setattr('sklearn.datasets.fetch_openml', no_network)
    with pytest.raises(OSError, match='openml:3 is not in .* and could not be downloaded'): load_dataset('openml:3')


def test_a_member_of_a_downloaded_archive(cache, monkeypatch):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, 'w') as archive: archive.writestr('inside.txt', b'hello')
    (cache/'elsewhere.zip').write_bytes(raw.getvalue())
    monkeypatch.setattr('pooch.retrieve', lambda url, known_hash, fname, path: cache/'elsewhere.zip')
    file = RemoteFile('letters/hello.txt', 'http://127.0.0.1:9', hashlib.sha256(b'hello').hexdigest(), 'ab', 'inside.txt')
    (cache/'letters').mkdir()
    assert fetch_file(file) == b'hello' and (cache/'letters/hello.txt').read_bytes() == b'hello'


def test_surnames_are_those_of_the_published_studies():
    "Name by name, and in their order, on which the split depends."
    names, languages, _ = datasets._surnames()
    rows = '\n'.join(f"{''.join(name)}\t{language}" for name, language in zip(names, languages))
    assert len(names) == 11_415
    assert hashlib.sha256(rows.encode()).hexdigest() == '401dbc2db0fc3bcef64383df95f2e0a722004963048a74a3641dde418665fc3b'


REAL = {'fashion-mnist': ((1, 28, 28), 10, 48_000, 10_000), 'adult': ((107,), 2, 26_048, 16_281),
        'sms-spam': ((43,), 2, 3_344, 1_115), 'spoken-digits': ((65, 61), 10, 2_000, 500)}


@pytest.mark.parametrize('name', REAL)
def test_real_files(name):
    folder = {'spoken-digits': 'fsdd'}.get(name, name)
    if not (cache_folder()/folder).exists(): pytest.skip(f'{cache_folder()} has no {folder}')
    data = load_dataset(name)
    assert (data.shape, data.outputs, len(data.parts['train'][1]), len(data.parts['test'][1])) == REAL[name]
    assert abs(data.parts['train'][0].mean()) < .1 or data.modality in ('text', 'table')
    assert describe_data(load_dataset(name, n=1000))['train'] < 800
