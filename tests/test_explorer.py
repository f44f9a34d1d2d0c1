"The explorer in a real browser: controls move the front, and no request leaves the page."
import shutil

import pytest

from pareto_energy.report.explorer import ROWS, explorer_chart, explorer_page, explorer_points
from pareto_energy.front.pareto import pareto_front
from pareto_energy.front.log import TRAINING, EnergyObjective, read_study

BROWSER = shutil.which('chromium-headless-shell') or shutil.which('chromium')


@pytest.fixture(scope='module')
def points(): return explorer_points(read_study('published/quick')[0])


@pytest.fixture
def energy(): return TRAINING # of the study


@pytest.fixture
def page(points, energy, tmp_path):
    "The published study's page, opened; what went wrong or out of it is in `page.seen`."
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    path = tmp_path/'explorer.html'
    path.write_text(explorer_page(explorer_chart(points, 'estimated', energy), 'published/quick', 'estimated'), encoding='utf-8')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=1000, height=1000))
        page.seen = []
        page.on('console', lambda message: page.seen.append(message.text))
        page.on('pageerror', lambda error: page.seen.append(str(error)))
        page.on('request', lambda request: request.url.startswith(('file:', 'data:', 'blob:')) or page.seen.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function('window.view')
        yield page
        assert page.seen == []
        browser.close()


def listed(page):
    "The utilities in the list of configurations, cheapest first."
    page.wait_for_timeout(300)
    rows = page.locator('svg text').evaluate_all("all => all.map(t => [t.textContent, t.getBoundingClientRect()]).filter(([text]) => /^[\\d.]+%$/.test(text) && text.includes('.')).map(([text, box]) => [box.y, text])")
    return [text for _, text in sorted(rows)]


def expected(points, name, predictions, families=None):
    t = points[(points.dataset == name) & (points.family.isin(families or points.family))]
    best = pareto_front(t.assign(joules=t.joules + predictions/1000*t.inference))
    return [f'{100*u:.1f}%' for u in best.utility[:ROWS]]


@pytest.mark.skipif(BROWSER is None, reason='no Chromium on this machine')
def test_front_follows_the_controls(page, points):
    assert listed(page) == expected(points, 'digits', 0)
    page.locator('input[name=predictions]').fill('6')
    assert listed(page) == expected(points, 'digits', 1e6)
    page.locator('select[name=dataset]').select_option('mnist1d')
    assert listed(page) == expected(points, 'mnist1d', 1e6)
    page.get_by_label('cost').check()
    assert listed(page) == expected(points, 'mnist1d', 1e6)


@pytest.mark.skipif(BROWSER is None, reason='no Chromium on this machine')
@pytest.mark.parametrize('energy', [EnergyObjective('lifetime', 1e6)])
def test_a_study_of_a_life_opens_with_its_predictions(page, points, energy):
    assert listed(page) == expected(points, 'digits', 1e6)
    page.locator('input[name=predictions]').fill('0')
    assert listed(page) == expected(points, 'digits', 0)


@pytest.mark.skipif(BROWSER is None, reason='no Chromium on this machine')
def test_families_are_picked_in_the_legend(page, points):
    legend = lambda name: page.locator('svg .mark-text.role-legend-label text', has_text=name)
    legend('cnn').click()
    assert listed(page) == expected(points, 'digits', 0, ['cnn'])
    legend('mlp').click()
    assert listed(page) == expected(points, 'digits', 0, ['cnn', 'mlp'])
    legend('cnn').click()
    assert listed(page) == expected(points, 'digits', 0, ['mlp'])


@pytest.mark.skipif(BROWSER is None, reason='no Chromium on this machine')
def test_rectangle_picks_configurations(page, points):
    box = page.locator('#chart svg').bounding_box()
    page.mouse.move(box['x'] + 350, box['y'] + 12)
    page.mouse.down()
    page.mouse.move(box['x'] + 640, box['y'] + 200, steps=5)
    page.mouse.up()
    dearest = [f'{100*u:.1f}%' for u in pareto_front(points[points.dataset == 'digits']).utility]
    inside = listed(page)
    assert 0 < len(inside) < len(dearest) and inside == dearest[-len(inside):]
