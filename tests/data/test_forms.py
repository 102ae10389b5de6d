"""Flows from forms: their conditions mean what the form's tool would show, on random forms and rows, against an
evaluation of the expression in plain Python; what does not translate is told with its row"""

import random
from xml.etree import ElementTree
import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.all import *
from fastai_condmtl.core.plan import Plan
from fastai_condmtl.data.form_logic import REDCAP, read_logic

LISTS = dict(
    yn=['no', 'yes'], state=['open', 'closed', 'ajar'], grade=['1', '2', '3', '4'], tags=['fog', 'rain', 'snow']
)
ASKED = dict(locked='yn', door='state', stars='grade', view='tags', age=None)


def random_condition(rng, redcap, depth=0):
    "A condition as text, and what it means: row -> bool"

    def ref(q):
        return f'[{q}]' if redcap else f'${{{q}}}'

    def flat():
        q = rng.choice(list(ASKED))
        if q == 'age':
            sign, n = rng.choice(['<', '<=', '>', '>=', '=', '!=']), rng.choice([0, 18, 30.5])
            holds = {'<': '<', '<=': '<=', '>': '>', '>=': '>=', '=': '==', '!=': '!='}[sign]
            sign = '<>' if sign == '!=' and redcap else sign
            text = f'{ref(q)} {sign} {n}'
            if rng.random() < 0.2 and holds in '<>':  # the number may come first
                text = f"{n} {'>' if sign == '<' else '<'} {ref(q)}"
            return text, lambda r, h=holds, n=n: eval(f'{r["age"]!r} {h} {n}')
        if q == 'view':
            code = rng.choice(LISTS['tags'])
            if redcap:
                box = rng.choice(['1', '0'])
                return f"[view({code})] = '{box}'", lambda r, c=code, b=box: (c in r['view']) == (b == '1')
            if rng.random() < 0.3:
                sign, n = rng.choice([('>', 0), ('=', 0), ('>=', 1), ('=', 3), ('<', 3), ('>=', 0)])
                return f'count-selected({ref(q)}) {sign} {n}', lambda r, s=sign, n=n: eval(
                    f"{len(r['view'])} {'==' if s == '=' else s} {n}"
                )
            return f"selected({ref(q)}, '{code}')", lambda r, c=code: c in r['view']
        code = rng.choice(LISTS[ASKED[q]])
        if q == 'stars' and rng.random() < 0.5:
            sign = rng.choice(['<', '<=', '>', '>='])
            return f'{ref(q)} {sign} {code}', lambda r, s=sign, c=code: eval(f"{r['stars']} {s} {c}")
        equal = rng.random() < 0.6
        sign = '=' if equal else '<>' if redcap else '!='
        return f"{ref(q)} {sign} '{code}'", lambda r, q=q, c=code, e=equal: (r[q] == c) == e

    if depth > 2 or rng.random() < 0.35:
        return flat()
    kind = rng.choice(['and', 'or'] if redcap else ['and', 'or', 'not'])
    if kind == 'not':
        text, means = random_condition(rng, redcap, depth + 1)
        return f'not({text})', lambda r: not means(r)
    parts = [random_condition(rng, redcap, depth + 1) for _ in range(rng.randint(2, 3))]
    means = [m for _, m in parts]
    whole = all if kind == 'and' else any
    return f' {kind} '.join(f'({t})' for t, _ in parts), lambda r: whole(m(r) for m in means)


def random_row(rng):
    row = {q: rng.choice(LISTS[name]) for q, name in ASKED.items() if name not in ('tags', None)}
    return row | dict(view=[t for t in LISTS['tags'] if rng.random() < 0.5], age=rng.choice([0, 5, 18, 30.5, 40]))


def xlsform(condition, where='child'):
    survey = [
        ('select_one yn', 'locked', ''),
        ('select_one state', 'door', ''),
        ('select_one grade', 'stars', ''),
        ('select_multiple tags', 'view', ''),
        ('decimal', 'age', ''),
        ('begin_group', 'g', condition if where == 'group' else ''),
        ('select_one yn', 'child', condition if where == 'child' else ''),
        ('end_group', '', ''),
    ]
    choices = [(name, code, code) for name, codes in LISTS.items() for code in codes]
    return dict(
        survey=pd.DataFrame(survey, columns=['type', 'name', 'relevant']),
        choices=pd.DataFrame(choices, columns=['list_name', 'name', 'label']),
    )


def applicable(flow, df):
    "Where the last task is asked"
    bound = flow.bind(df)
    path = bound.paths[-1]
    return bound.encode(df)[:, 1, bound.slices[path].targets.start].bool().tolist()


@pytest.mark.parametrize('seed', range(40))
def test_relevant_means_what_the_form_shows(seed):
    "On rows where all is answered, a label counts where the form would have shown the question"
    rng = random.Random(seed)
    text, means = random_condition(rng, False)
    rows = [random_row(rng) for _ in range(60)]
    # both answers of each choice occur, so that each kind can be set up
    df = pd.DataFrame(rows).assign(view=[' '.join(r['view']) for r in rows], stars=[int(r['stars']) for r in rows])
    df['child'] = ['no', 'yes'] * 30
    df.loc[df['view'] == '', 'view'] = ''
    for where in ('child', 'group'):
        flow = Flow.from_xlsform(xlsform(text, where))
        if 'never true' in ' '.join(flow.note):
            assert not any(map(means, rows))
            continue
        assert applicable(flow, df) == [bool(means(r)) for r in rows], (text, flow)


@pytest.mark.parametrize('seed', range(40))
def test_branching_logic_means_what_redcap_shows(seed):
    rng = random.Random(seed)
    text, means = random_condition(rng, True)
    rows = [random_row(rng) for _ in range(60)]
    options = {q: ' | '.join(f'{c}, {c}' for c in LISTS[name]) for q, name in ASKED.items() if name}
    lines = [(q, 'checkbox' if q == 'view' else 'radio', o, '', '') for q, o in options.items()]
    lines += [('age', 'text', '', 'number', ''), ('child', 'radio', options['locked'], '', text)]
    names = [
        'Variable / Field Name',
        'Field Type',
        'Choices, Calculations, OR Slider Labels',
        'Text Validation Type OR Show Slider Number',
        'Branching Logic (Show field only if...)',
    ]
    flow = Flow.from_redcap(pd.DataFrame(lines, columns=names))
    df = pd.DataFrame(rows).drop(columns='view').assign(child=['no', 'yes'] * 30)
    df['stars'] = df['stars'].astype(int)
    for tag in LISTS['tags']:
        df[f'view___{tag}'] = [int(tag in r['view']) for r in rows]
    if 'never true' in ' '.join(flow.note):
        assert not any(map(means, rows))
    else:
        assert applicable(flow, df) == [bool(means(r)) for r in rows], (text, flow)


def test_a_workbook(tmp_path):
    "Excel stores numbers as floats, and people write `begin group` and a label a language"
    pytest.importorskip('openpyxl')
    form = xlsform("${stars} > 2 and ${door} = 'ajar'")
    form['survey'].loc[5, 'type'] = 'begin group'
    form['choices'] = form['choices'].rename(columns={'label': 'label::English (en)'})
    form['choices']['name'] = [int(c) if c.isdigit() else c for c in form['choices']['name']]
    with pd.ExcelWriter(tmp_path / 'my form.xlsx') as writer:
        for sheet, table in form.items():
            table.to_excel(writer, sheet_name=sheet, index=False)
    flow = Flow.from_xlsform(tmp_path / 'my form.xlsx')
    assert flow.name == 'my form'
    assert str(flow.tasks[-1].tasks[0].given) == "stars.isin([3, 4]) & door.eq('ajar')"
    assert flow.tasks[2].vocab == [1, 2, 3, 4]


@pytest.mark.parametrize(
    'relevant, told',
    [
        ("${doo} = 'open'", "row 8, 'child'.*'doo', which the form does not have: did you mean 'door'"),
        ("selekted(${view}, 'fog')", "row 8, 'child'.*no function 'selekted': did you mean 'selected'"),
        ("${door} = 'open' and", "row 8, 'child'.*its end stands where a value is expected"),
        ("${door} = 'open')", r"row 8, 'child'.*'\)' stands where its end is expected"),
        ("${door} ~ 'open'", "row 8, 'child'.*is no part of it"),
        ("/data/door = 'open'", "row 8, 'child'.*"),
        ("(" * 300 + "1" + ")" * 300, "row 8, 'child'.*nested too deeply"),
    ],
)
def test_wrong_forms_are_told_with_their_row(relevant, told):
    with pytest.raises(FlowError, match=told):
        Flow.from_xlsform(xlsform(relevant))


def test_circles_are_told_with_their_rows():
    form = xlsform("${door} = 'open'")
    form['survey'].loc[1, 'relevant'] = "${child} = 'yes'"
    with pytest.raises(FlowError, match="circle.*'door' in row 3, 'child' in row 8"):
        Flow.from_xlsform(form)


@pytest.mark.parametrize(
    'relevant, why',
    [
        ("string-length(${door}) > 3", r'string-length\(...\) has no counterpart'),
        ("${age} + 1 > 3", 'something else than one answer with one value'),
        ("${age} > ${stars}", 'something else than one answer with one value'),
        ("${door} = ''", "whether 'door' is blank"),
        ("${door} = 'shut'", "'door' has no answer 'shut'"),
        ("${door} > 'open'", "the answers of 'door' have no order"),
        ("count-selected(${view}) = 2", "counts the answers of 'view'"),
        ("once(${age}) > 3", r'once\(...\) has no counterpart'),
    ],
)
def test_what_does_not_translate_is_listed_with_its_row(relevant, why):
    "The task stays, without the condition; the warning, and the notes of the flow, tell the row and why"
    with pytest.warns(FlowWarning, match=f"(?s)row 8, 'child'.*{why}"):
        flow = Flow.from_xlsform(xlsform(relevant))
    assert flow.tasks[-1].tasks[0].given is None
    assert len(flow.note) == 2 and "row 8, 'child'" in flow.note[1]
    assert Flow.from_json(flow.to_json()).note == flow.note  # a file keeps them


def test_what_a_repeat_asks_and_texts_are_no_tasks():
    form = xlsform('')
    form['survey'].loc[5, 'type'], form['survey'].loc[7, 'type'] = 'begin_repeat', 'end_repeat'
    form['survey'].loc[4, 'type'] = 'text'
    with pytest.warns(
        FlowWarning, match="(?s)row 6, 'age': no task, it is a text.*row 8, 'child'.*asked several times"
    ):
        flow = Flow.from_xlsform(form)
    assert Plan(flow).paths == ['locked', 'door', 'stars', 'view']


def test_a_form_without_a_question_for_a_flow():
    form = dict(survey=pd.DataFrame(dict(type=['text'], name=['who'])))
    with pytest.raises(FlowError, match=r"no question with choices or numbers \(row 2, 'who': .* a text\): add one$"):
        Flow.from_xlsform(form)


def test_columns_of_groups():
    flow = Flow.from_xlsform(xlsform(''), group_sep='/')
    assert flow.tasks[-1].tasks[0].cols == ['g/child'] and flow.tasks[0].cols == ['locked']


def test_precedence_is_that_of_the_languages():
    "`and` binds more tightly than `or`, comparisons more tightly than both; signs of REDCap are those of XLSForm"
    ors = read_logic('${a} = 1 or ${b} = 2 and ${c} = 3')
    assert (ors.word, ors.args[1].word) == ('or', 'and')
    assert read_logic('[a] <> 1', REDCAP) == read_logic('${a} != 1')


def test_no_configuration_runs_code_or_grows_without_end():
    "Entities of XML are not followed"
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + ''.join(
        f'<!ENTITY a{i} "{"&a" + (str(i - 1) if i else "") + ";"}{"&a" + (str(i - 1) if i else "") + ";"}">'
        for i in range(30)
    )
    with pytest.raises(FlowError):
        Flow.from_label_studio(bomb + ']><View><Choices name="&a29;" toName="x"/></View>')


def test_answers_of_a_nested_flow_come_back_from_label_studio():
    "What annotators answer to the questions of `to_label_studio` is read as the table that they had in mind"
    rng, person = np.random.default_rng(0), BinaryBlock('person')
    face = Flow(
        'face',
        SingleLabelBlock('look', 'mood', vocab=['calm', 'angry']),
        BinaryBlock('hat', 'has_hat'),
        MultiLabelBlock('wears', vocab=['scarf', 'glasses']),
    )
    flow = Flow('f', person, face | person, BinaryBlock('door', vocab=['shut', 'open']))
    n = 40
    told = pd.DataFrame(dict(person=rng.integers(0, 2, n), door=rng.choice(['shut', 'open'], n)))
    seen = told.person == 1
    told['mood'] = np.where(seen, rng.choice(['calm', 'angry'], n), None)
    told['has_hat'] = pd.Series(rng.integers(0, 2, n), dtype=object).where(seen)
    told['wears'] = [[w for w in ('scarf', 'glasses') if rng.random() < 0.5] if s else None for s in seen]
    bound = flow.bind(told)
    asked = {tag.get('name') for tag in ElementTree.fromstring(bound.to_label_studio()).iter('Choices')}
    assert asked == set(told)
    words = {0: 'no', 1: 'yes'}
    as_choices = lambda cell: cell if isinstance(cell, list) else [words.get(cell, cell)]
    export = [
        dict(
            data=dict(image=f'{i}.jpg'),
            annotations=[
                dict(
                    result=[
                        dict(from_name=name, to_name='image', type='choices', value=dict(choices=as_choices(cell)))
                        for name, cell in row.items()
                        if isinstance(cell, list) or pd.notna(cell)
                    ]
                )
            ],
        )
        for i, row in told.iterrows()
    ]
    back = read_label_studio(export, flow)
    assert torch.equal(bound.encode(back), bound.encode(told))


FULL = [['fog', 'rain', 'snow'], ['fog'], ['rain'], ['fog', 'snow'], []]


@pytest.mark.parametrize(
    'text, means',
    [
        ("${door} != ''", lambda r: True),  # all is answered
        ("${locked} != ''", lambda r: True),
        ("${age} != ''", lambda r: True),
        ("${stars} != ''", lambda r: True),
        ("${view} != ''", lambda r: bool(r['view'])),
        ("${view} = 'fog'", lambda r: r['view'] == ['fog']),
        ("${view} != 'fog'", lambda r: r['view'] != ['fog']),
        ("count-selected(${view}) > 0", lambda r: len(r['view']) > 0),
        ("count-selected(${view}) = 0", lambda r: not r['view']),
        ("count-selected(${view}) = 3", lambda r: len(r['view']) == 3),
        ("2 < count-selected(${view})", lambda r: len(r['view']) > 2),
        ("count-selected(${view}) < 3", lambda r: len(r['view']) < 3),
        ("count-selected(${view}) >= 0", lambda r: True),
        ("selected(${door}, 'open')", lambda r: r['door'] == 'open'),
        ("'open' = ${door}", lambda r: r['door'] == 'open'),
        ("${door} != 'open'", lambda r: r['door'] != 'open'),
        ("${locked} = 'no'", lambda r: r['locked'] == 'no'),
        ("(${age} > 5) = true()", lambda r: r['age'] > 5),
        ("(${age} > 5) = false()", lambda r: not r['age'] > 5),
        ("(${age} > 5) != true()", lambda r: not r['age'] > 5),
        ("boolean(${age} > 5)", lambda r: r['age'] > 5),
        ("true() and ${age} > 5", lambda r: r['age'] > 5),
        ("false() or ${age} > 5", lambda r: r['age'] > 5),
        ("true() or ${age} > 5", lambda r: True),
        ("1 = 1 and ${stars} <= 2", lambda r: int(r['stars']) <= 2),
        ("2 > 10 or ${stars} <= 2", lambda r: int(r['stars']) <= 2),
        ("'b' = 'a' or ${stars} < 4", lambda r: int(r['stars']) < 4),
        ("${age} = 18", lambda r: r['age'] == 18),
        ("not(${age} = 18) and ${age} <= 30.5", lambda r: r['age'] != 18 and r['age'] <= 30.5),
    ],
)
def test_each_way_to_ask_means_what_the_form_shows(text, means):
    rng = random.Random(text)
    rows = [random_row(rng) | dict(view=FULL[i % len(FULL)]) for i in range(60)]
    df = pd.DataFrame(rows).assign(view=[' '.join(r['view']) for r in rows], stars=[int(r['stars']) for r in rows])
    flow = Flow.from_xlsform(xlsform(text))
    assert applicable(flow, df.assign(child=['no', 'yes'] * 30)) == [means(r) for r in rows], flow


@pytest.mark.parametrize(
    'text, why',
    [
        ("${door} = ''", "a blank is unknown to a flow"),
        ("${age} = 'old'", "compares the number 'age' with the text 'old'"),
        ("count-selected(${door}) > 1", "has not several answers to count"),
        ("count-selected(${view}) = 1", "'child'"),
        ("${view} > 'fog'", "have no order"),
        ("${age} + 1", "'child'"),
        ("${door} = ${locked}", "compares something else than one answer with one value"),
        ("string-length(${door}) > 3", "'child'"),
        ("${age}", "stands where a comparison is expected"),
    ],
)
def test_what_a_flow_cannot_ask_is_told(text, why):
    with pytest.warns(FlowWarning, match=why):
        Flow.from_xlsform(xlsform(text))
