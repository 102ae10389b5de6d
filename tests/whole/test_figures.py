"""A figure that stands on a page is the one that its benchmark printed last: the table of ratios in the guide against
benchmarks/RESULTS.md, the README against the page "What it reaches"."""

import json, re
import pytest

NUMBER = r'(\d*\.?\d+)'
# How a row of the guide's table begins → where its figures stand in RESULTS.md
ROWS = {
    'heads, loss and backward, 14 tasks': rf'^14 tasks, binary and.* ratio {NUMBER}',
    'the same, the security flow': rf'^security flow .* ratio {NUMBER}',
    'the same, 18 tasks': rf'^(?:18 tasks, three|the same, with counts).* ratio {NUMBER}',
    'the same, 1000 tasks': rf'^1000 tasks .* ratio {NUMBER}',
    'a heavy branch': rf'of trunk \+ share of the branch {NUMBER}',
    'a step with balancing': rf'^  [a-z]+ +{NUMBER}  \(promised',
    'the target side of an item': rf'^flow of +\d+ tasks: .* ratio {NUMBER}',
    'an epoch of validation': rf'^validation epoch.* ratio {NUMBER}.* with all.* ratio {NUMBER}',
    'a training epoch, 800 files': rf'^training epoch, \d+ files.*; ours .* ratio {NUMBER} \(',
    'the same with a filled cache': rf'^training epoch.* with a cache .*?ratio {NUMBER}',
    'batches with points': rf'^batches of .* ratio {NUMBER}',
    '`learn.predict` of one picture': rf'^one picture.*; learn.predict .*?ratio {NUMBER}',
    '`predict_df` of 2,000': rf'^predict_df .* ratio {NUMBER}',
    'a training epoch, 14 tasks with metrics': rf'^training epoch.*plain fastai.* ratio {NUMBER}',
    'threshold search, 100,000 rows': rf'exact search .* ratio {NUMBER}',
    'the same, one label': rf'; {NUMBER} times as long',
    'what `DataParallel` gathers': rf'gathered .*?\(1/{NUMBER}\)',
    'encoding 1,000,000 rows': rf'tasks: {NUMBER} s \(of which.* = {NUMBER} x',
}


def source(root, page):
    "The text of a notebook"
    cells = json.loads((root / 'nbs' / f'{page}.ipynb').read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(cell['source']) for cell in cells)


def printed(results, row):
    "Figures of a row, as its benchmark printed them"
    found = re.findall(ROWS[row], results, re.M)
    return [float(number) for match in found for number in ([match] if isinstance(match, str) else match)]


def is_one_of(number, figures):
    "True if a number as a page writes it is one of the figures, rounded as it is (to a thousand from 10,000 on)"
    digits = len(number.partition('.')[2]) if '.' in number else -3 if len(number) > 4 else 0
    return any(round(figure, digits) == float(number) for figure in figures)


@pytest.fixture(scope='module')
def results(root):
    return (root / 'benchmarks' / 'RESULTS.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def guide(root):
    "The last cell of each row of the guide's table of ratios, by what the row begins with"
    lines = source(root, 'guide/overview').partition('| | promised | measured |')[2].splitlines()
    cells = [line.strip('| ').split(' | ') for line in lines if line.startswith('| ') and '---' not in line]
    return {cell[0]: cell[-1] for cell in cells}


def test_each_row_is_looked_up(guide):
    assert len(guide) == len(ROWS)
    assert [sum(name.startswith(row) for name in guide) for row in ROWS] == [1] * len(ROWS)


@pytest.mark.parametrize('row', ROWS)
def test_ratios_are_those_of_the_last_run(row, guide, results):
    (told,) = [told for name, told in guide.items() if name.startswith(row)]
    told = re.sub(
        r'\([^)]* (?:in another run|on idle cores)[^)]*\)|all \d+ metrics|on \d+ pictures|from 1 to 1000 tasks',
        '',
        told,
    )
    numbers, figures = re.findall(r'\d+(?:\.\d+)?', re.sub(r'1/|,(?=\d)', '', told)), printed(results, row)
    assert numbers and figures, (told, figures)
    assert not [number for number in numbers if not is_one_of(number, figures)], (told, figures)


def test_the_worst_is_told(guide, results):
    "Where a row tells a range, or how far it goes, no figure lies beyond"
    for row in ('a heavy branch', 'a training epoch, 800 files', 'a step with balancing', '`predict_df` of 2,000'):
        (told,) = [told for name, told in guide.items() if name.startswith(row)]
        worst = max(float(number) for number in re.findall(r'\d\.\d+', re.sub(r'\(\d\.\d+ to [^)]*\)', '', told)))
        assert round(max(printed(results, row)), 2) <= round(worst, 2), row


def test_what_the_scenes_reach(root, results):
    told = re.search(rf'mean error of {NUMBER} to {NUMBER} of the range', source(root, 'guide/overview'))
    errors = [float(e) for e in re.findall(rf'^  person\S+ +mae +{NUMBER}', results, re.M)]
    assert [float(number) for number in told.groups()] == [round(min(errors), 3), round(max(errors), 3)]


def test_the_readme_tells_what_the_page_tells(root, results):
    readme = (root / 'README.md').read_text(encoding='utf-8')
    page = source(root, 'tutorials/18_what_it_reaches')
    rows = re.findall(r'^\| (NHANES|AI4I|BRACOL|EDOS).*', readme, re.M)
    assert rows == ['NHANES', 'AI4I', 'BRACOL', 'EDOS']
    known = set(re.findall(r'(?<!\d)\.\d{3}', re.sub(r'\b0\.', '.', page)))
    table = readme.partition('## What it reaches')[2].partition('## Where to go')[0]
    assert not set(re.findall(r'(?<!\d)\.\d{3}', table)) - known
    ratio = re.search(rf'of 14 tasks take {NUMBER} times', readme)[1]
    assert is_one_of(ratio, printed(results, 'heads, loss and backward, 14 tasks'))


def test_the_tutorial_tells_what_the_ablation_printed(root, results):
    "Row by row: accuracy and error, each with its spread"
    figures = rf'{NUMBER} ± {NUMBER}'
    page = source(root, 'tutorials/13_branches_and_balance').partition('## What it brought, more carefully')[2]
    printed_rows = re.findall(figures, results.partition('## bench_ablation')[2].partition('\n## ')[0])
    assert len(printed_rows) == 2 * (10 + 5) and re.findall(figures, page) == printed_rows
