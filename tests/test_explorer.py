"The explorer in a real browser: controls move the front, its words agree with Python, and no request leaves the page."
import shutil

import pytest

from pareto_energy.energy.footprint import break_even
from pareto_energy.front.log import EnergyObjective, read_study
from pareto_energy.front.pareto import pareto_front
from pareto_energy.report.explorer import explorer_page, explorer_points
from pareto_energy.report.tables import Rule, format_rounded, front_table, has_clear_gain, has_clear_price, in_energy, marginal_costs
from pareto_energy.report.tables import retrained_points, savings

BROWSER = shutil.which('chromium-headless-shell') or shutil.which('chromium')
pytestmark = pytest.mark.skipif(BROWSER is None, reason='no Chromium on this machine')
KINDS = EnergyObjective('training'), EnergyObjective('inference'), EnergyObjective('lifetime', 1e4), EnergyObjective('lifetime', 1e8)


@pytest.fixture(scope='module')
def study(): return read_study('published/deployment')[:2]


@pytest.fixture(scope='module')
def points(study): return explorer_points(study[0])


@pytest.fixture(scope='module')
def path(study, tmp_path_factory):
    path = tmp_path_factory.mktemp('explorer')/'explorer.html'
    path.write_text(explorer_page(*study, 'published/deployment', 'estimated'), encoding='utf-8')
    return path


@pytest.fixture
def page(path):
    "The page, opened; what went wrong or out of it is in `page.seen`."
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=1300, height=1000))
        page.seen = []
        page.on('console', lambda message: page.seen.append(message.text))
        page.on('pageerror', lambda error: page.seen.append(str(error)))
        page.on('request', lambda request: request.url.startswith(('file:', 'data:', 'blob:')) or page.seen.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function('window.view')
        yield page
        assert page.seen == []
        browser.close()


def listed(page): return page.locator('#front tbody tr td:nth-child(2)').all_text_contents()


def expected(points, energy, name='digits', families=None):
    t = points[(points.dataset == name) & points.family.isin(families or points.family)]
    best = pareto_front(t.assign(joules=energy.joules(t.joules, t.inference)))
    return [f'{100*u:.1f} %' for u in best.utility]


def show(page, energy, dataset='digits'):
    page.locator('select[name=dataset]').select_option(dataset)
    page.locator(f'input[name=kind][value={energy.kind}]').check()
    if energy.kind != 'lifetime': return
    page.evaluate("n => {const s = document.getElementById('n'); s.value = n; s.dispatchEvent(new Event('input', {bubbles: true}))}",
        round(len(str(int(energy.predictions))) - 1))
    page.wait_for_timeout(100)


def test_front_follows_the_controls(page, points):
    assert page.locator('#n-text').text_content() == '10⁶ predictions'
    for energy in KINDS:
        show(page, energy)
        assert listed(page) == expected(points, energy)
    page.get_by_label('cost').check()
    page.get_by_role('checkbox', name='mlp').uncheck()
    families = [f for f in points.family.unique() if f != 'mlp']
    assert listed(page) == expected(points, KINDS[-1], families=families)


def test_models_agree_with_python(page, study):
    trials, ref_points = study
    for energy in KINDS:
        refs = in_energy(ref_points, trials, energy)
        table = front_table(retrained_points(trials, energy), refs)
        for name, rows in table.groupby('dataset', sort=False):
            show(page, energy, name)
            shown = page.evaluate("view.data('models')")
            assert [m['joules'] for m in shown] == pytest.approx(rows.joules.tolist())
            assert [m['joules_ci'] for m in shown] == pytest.approx(rows.joules_ci.tolist(), rel=1e-6)
            assert [m['on_front'] for m in shown] == rows.on_front.tolist()
            best = Rule().choose(rows)
            (marked,) = [m for m in shown if m['recommended']]
            assert marked['id'].split('@')[0] == best.trial and marked['epochs'] == best.epochs
            assert marked['model'] in page.locator('#recommendation').text_content()
            check_savings(page, rows)


def check_savings(page, rows):
    "The words on the cheapest and the best model of a front."
    s = savings(rows)
    if s.empty: return
    ids = page.evaluate("view.data('models').filter(m => m.on_front).map(m => m.id)")
    page.locator('#a').select_option(ids[0])
    page.locator('#b').select_option(ids[-1])
    assert f'{s.iloc[0].saved:.1f} ± {s.iloc[0].saved_ci:.1f} %' in page.locator('#comparison').text_content()


def price_in_words(rows, unit):
    "What a percentage point costs between two rows, as Python has it."
    cost = marginal_costs(rows)
    if not has_clear_gain(rows).iloc[1]: return 'The dearer one gains no more than chance, so a percentage point of accuracy has no price here.'
    if not has_clear_price(cost).iloc[1]: return 'What a percentage point of accuracy costs is unclear: the interval of its price holds zero.'
    price, low, high = map(format_rounded, cost.iloc[1][['price', 'price_low', 'price_high']])
    return f'Between them, a percentage point of accuracy more costs {price} {unit} ({low} to {high}).'


def test_the_price_of_a_point_is_pythons(page, study):
    trials, ref_points = study
    seen = set()
    for energy, unit in zip(KINDS[:3], ('J', 'J per 1,000 predictions', 'J over 10⁴ predictions')):
        show(page, energy, 'digits')
        table = front_table(retrained_points(trials, energy), in_energy(ref_points, trials, energy)).query("dataset == 'digits'")
        ids = page.evaluate("view.data('models').map(m => m.id)")
        order = [*table.index]
        for i in range(len(order) - 1):
            page.locator('#a').select_option(ids[i])
            page.locator('#b').select_option(ids[i + 1])
            expected = price_in_words(table.loc[order[i:i + 2]], unit)
            assert page.locator('#comparison p').nth(1).text_content() == expected
            seen.add(expected.split()[0])
    assert {'Between', 'The'} <= seen


def test_the_words_are_read_out_once(page):
    page.evaluate("""() => {window.said = 0; new MutationObserver(() => window.said++).observe(document.getElementById('comparison'), {childList: true})}""")
    page.get_by_label('grams').check()
    page.wait_for_timeout(100)
    once = page.evaluate('said')
    page.evaluate("document.querySelector('input[value=grams]').dispatchEvent(new Event('input', {bubbles: true}))")
    page.wait_for_timeout(100)
    assert once == page.evaluate('said') == 1
    tree = page.context.new_cdp_session(page).send('Accessibility.getFullAXTree')['nodes']
    roles = [node['role']['value'] for node in tree if not node['ignored']]
    assert roles.count('image') == 1 and 'graphics-object' not in roles and roles.count('heading') == 3


def test_break_even_is_pythons(page):
    from types import SimpleNamespace
    show(page, KINDS[2])
    models = page.evaluate("view.data('models')")
    read = lambda m: [SimpleNamespace(joules=m[k], se=m[f'{k}_ci']/2) for k in ('training', 'inference')]
    for other in models[1:]:
        page.locator('#a').select_option(models[0]['id'])
        page.locator('#b').select_option(other['id'])
        n, _ = break_even(read(models[0]), read(other))
        assert (' is the cheaper one from ' in page.locator('#comparison').text_content()) == (n == n)


def test_a_link_restores_the_state(page, path):
    show(page, KINDS[-1], 'digits')
    page.get_by_role('checkbox', name='mlp').uncheck()
    chosen = page.locator('#b option').last.get_attribute('value')
    page.locator('#b').select_option(chosen)
    before, link = listed(page), page.url
    page.goto('about:blank')
    page.goto(link)
    page.wait_for_function('window.view')
    assert listed(page) == before and page.locator('#b').input_value() == chosen and page.url == link
    assert page.locator('#n-text').text_content() == '10⁸ predictions' and not page.get_by_role('checkbox', name='mlp').is_checked()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_fits_both_widths(page, scheme):
    page.emulate_media(color_scheme=scheme)
    for width in (1300, 400):
        page.set_viewport_size(dict(width=width, height=900))
        page.wait_for_timeout(300)
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        assert page.evaluate("document.getElementById('front').scrollWidth <= document.getElementById('front').clientWidth")
        assert page.evaluate("getComputedStyle(document.querySelector('#front td:nth-child(3)')).whiteSpace") == 'nowrap' or width > 600
        assert .85*width < page.locator('#chart svg').bounding_box()['width'] <= width
    paper, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('#chart text')).fill]")
    assert paper != ink and (paper == 'rgb(255, 255, 255)') == (scheme == 'light')


def test_controls_are_reached_by_tab_and_labelled(page):
    reached = set()
    for _ in range(40):
        page.keyboard.press('Tab')
        reached.add(page.evaluate('document.activeElement.id || document.activeElement.name'))
    assert reached >= {'dataset', 'kind', 'n', 'families', 'deployments', 'unit', 'a', 'b', 'copy', 'front'}
    assert page.evaluate("[...document.querySelectorAll('input, select')].every(e => e.labels.length === 1)")
    page.locator('#n').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('#n').get_attribute('aria-valuetext') == '1,300,000 predictions'
    assert page.locator('#recommendation').get_attribute('aria-live') == 'polite'
