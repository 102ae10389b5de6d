"""Labelling configurations against a reader of our own, which shows and hides questions as Label Studio's manual says:
`visibleWhen` on a question or a `View`, and no answer to what is hidden"""

import json, warnings
from xml.etree import ElementTree
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="blocked" toName="image"><Choice value="no"/><Choice value="yes"/></Choices>
  <View visibleWhen="choice-selected" whenTagName="blocked" whenChoiceValue="no">
    <Choices name="door" toName="image">
      <Choice value="open"/><Choice value="closed" alias="shut"/><Choice value="ajar"/>
    </Choices>
    <Choices name="locked" toName="image" visibleWhen="choice-selected" whenTagName="door" whenChoiceValue="shut,ajar">
      <Choice value="no"/><Choice value="yes"/>
    </Choices>
    <Choices name="weather" toName="image" choice="multiple">
      <Choice value="fog"/><Choice value="rain"/><Choice value="sun"/>
    </Choices>
    <View visibleWhen="choice-unselected" whenTagName="weather" whenChoiceValue="fog,rain">
      <Rating name="light" toName="image" maxRating="3"/>
      <Choices name="glare" toName="image" visibleWhen="choice-unselected" whenTagName="door" whenChoiceValue="shut">
        <Choice value="no"/><Choice value="yes"/>
      </Choices>
    </View>
    <Number name="people" toName="image" min="0" max="20"/>
    <Choices name="kind" toName="image" visibleWhen="choice-unselected" whenTagName="door" whenChoiceValue="open">
      <Choice value="wood"/><Choice value="its 'steel'"/>
    </Choices>
    <Choices name="sure" toName="image" visibleWhen="choice-selected" whenTagName="kind" whenChoiceValue="its 'steel'">
      <Choice value="no"/><Choice value="yes"/>
    </Choices>
  </View>
</View>"""


def selected(tag, answers):
    "True where the question that `tag` names has one of the choices that it names, or any"
    given = answers.get(tag.get('whenTagName'), [])
    wanted = tag.get('whenChoiceValue')
    return bool(given) if wanted is None else any(choice in given for choice in wanted.split(','))


def visible(tag, answer, answers=None):
    "Answers to all questions that are shown, top down: `answer(tag)` gives a list of choices, or a number"
    answers = {} if answers is None else answers
    when = tag.get('visibleWhen')
    if when is not None and selected(tag, answers) != (when == 'choice-selected'):
        return answers
    if tag.tag in ('Choices', 'Rating', 'Number'):
        answers[tag.get('name')] = answer(tag)
        return answers
    for child in tag:
        visible(child, answer, answers)
    return answers


def draw(rng):
    "Random answers"

    def answer(tag):
        if tag.tag == 'Rating':
            return int(rng.integers(1, 4))
        if tag.tag == 'Number':
            return int(rng.integers(0, 21))
        choices = [choice.get('alias') or choice.get('value') for choice in tag]
        some = 1 if tag.get('choice') != 'multiple' else int(rng.integers(1, len(choices) + 1))
        return sorted(rng.choice(choices, some, replace=False).tolist())

    return answer


def exported(all_answers):
    "The long export of these answers"
    items = []
    for i, answers in enumerate(all_answers):
        result = []
        for name, value in answers.items():
            kind = 'choices' if isinstance(value, list) else 'rating' if name == 'light' else 'number'
            result.append(dict(from_name=name, to_name='image', type=kind, value={kind: value}))
        items.append(dict(data=dict(image=f'{i}.jpg'), annotations=[dict(result=result)]))
    return items


@pytest.fixture(scope='module')
def project():
    rng, root = np.random.default_rng(0), ElementTree.fromstring(CONFIG)
    answers = [visible(root, draw(rng)) for _ in range(300)]
    flow = Flow.from_label_studio(CONFIG, 'doors')
    return flow, answers, read_label_studio(exported(answers), flow)


def test_a_question_counts_where_it_is_shown(project):
    flow, answers, table = project
    bound = flow.bind(table)
    packed = bound.encode(table)
    for name, block in bound.tasks.items():
        counts = packed[:, 1, bound.slices[name].targets].bool().any(1).tolist()
        assert counts == [name in own for own in answers], name
    shown = [own['door'] == ['shut'] for own in answers if 'door' in own]
    at = packed[[i for i, own in enumerate(answers) if 'door' in own], 0, bound.slices['door'].targets][:, 0]
    assert [bound.tasks['door'].vocab[int(k)] == 'shut' for k in at] == shown


def test_the_configuration_of_a_flow_shows_what_counts(project):
    flow, answers, table = project
    bound = flow.bind(table)
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)  # all of it can be said
        root = ElementTree.fromstring(bound.to_label_studio())
    for own in answers:
        told = {name: value if isinstance(value, list) else [str(value)] for name, value in own.items()}
        assert set(visible(root, lambda tag: told.get(tag.get('name'), ['?']))) == set(own)


def test_a_file_an_export_in_short_and_a_table_without_a_flow(project, tmp_path):
    flow, answers, table = project
    (tmp_path / 'config.xml').write_text(CONFIG, encoding='utf-8')
    assert str(Flow.from_label_studio(tmp_path / 'config.xml', 'doors')) == str(flow)
    (tmp_path / 'export.json').write_text(json.dumps(exported(answers)), encoding='utf-8')
    assert read_label_studio(tmp_path / 'export.json', flow).equals(table)
    short = [
        dict(image=f'{i}.jpg') | {k: dict(choices=v) if k == 'weather' else v for k, v in own.items()}
        for i, own in enumerate(answers)
    ]
    again = read_label_studio(short, flow)
    assert flow.bind(table).encode(again[table.columns]).equal(flow.bind(table).encode(table))
    alone = read_label_studio(exported(answers))
    assert {type(cell) for cell in alone.weather.dropna()} == {list} and {type(c) for c in alone.door.dropna()} == {str}


def test_of_several_annotations_the_ground_truth_counts_or_the_last():
    one = lambda word, **kwargs: dict(
        result=[dict(from_name='door', to_name='image', type='choices', value=dict(choices=[word]))], **kwargs
    )
    items = [
        dict(data={}, annotations=[one('a', ground_truth=True), one('b', updated_at='2026-02-01')]),
        dict(data={}, annotations=[one('a', updated_at='2026-03-01'), one('b', updated_at='2026-02-01')]),
        dict(data={}, completions=[one('a'), one('b', was_cancelled=True)]),
        dict(data={}, annotations=[]),
    ]
    with pytest.warns(FlowWarning, match="annotations of one item disagree: 'door' in 2"):
        assert read_label_studio(items).door.fillna('-').tolist() == ['a', 'a', 'a', '-']
    box = dict(from_name='door', type='choices', value=dict(choices=['a'], x=1, y=2))  # belongs to a region
    assert 'door' not in read_label_studio([dict(data=dict(i=1), annotations=[dict(result=[box])])])


def test_a_question_that_hangs_on_any_answer_is_told():
    config = CONFIG.replace(
        'visibleWhen="choice-unselected" whenTagName="door" whenChoiceValue="open"',
        'visibleWhen="choice-selected" whenTagName="door"',
    )
    with pytest.warns(FlowWarning, match="'kind'"):
        Flow.from_label_studio(config)


@pytest.mark.parametrize(
    'question, told',
    [
        ('<TextArea name="q" toName="image"/>', 'it is a text'),
        ('<Taxonomy name="q" toName="image"/>', 'a taxonomy'),
        ('<RectangleLabels name="q" toName="image"/>', 'about regions'),
        ('<Choices name="q" toName="image" perRegion="true"><Choice value="a"/></Choices>', 'asked for each region'),
        ('<Choices name="q" toName="image" value="$options"/>', 'each item brings along'),
    ],
)
def test_what_has_no_counterpart_is_told(question, told):
    known = '<Choices name="k" toName="image"><Choice value="a"/><Choice value="b"/></Choices>'
    with pytest.warns(FlowWarning, match=told):
        flow = Flow.from_label_studio(f'<View>{known}{question}</View>')
    assert [block.name for block in flow.tasks] == ['k']


def test_wrong_configurations_and_exports_are_one_error(tmp_path):
    for config, told in [
        ('<View><Choices></View>', 'is no XML'),
        ('<View>\n<Choices toName="image"><Choice value="a"/></Choices></View>', 'line 2: <Choices> has no name'),
    ]:
        with pytest.raises(FlowError, match=told):
            Flow.from_label_studio(config)
    for export in ({'items': []}, [1]):
        (tmp_path / 'x.json').write_text(json.dumps(export), encoding='utf-8')
        with pytest.raises(FlowError, match='is a list of items'):
            read_label_studio(tmp_path / 'x.json')


def test_conditions_that_cannot_be_said_leave_the_question_visible():
    age, kind = UnboundedRegressionBlock('age'), SingleLabelBlock('kind', vocab=['a, b', 'c'])
    flow = Flow('f', age, kind, BinaryBlock('old') | (age > 60), BinaryBlock('x') | kind.eq('a, b'), CountBlock('n'))
    df = pd.DataFrame(dict(age=[50, 70.0], kind=['c', 'a, b'], old=[None, 1], x=[None, 1], n=[1, 2]))
    with pytest.warns(FlowWarning) as caught:
        xml = flow.bind(df).to_label_studio()
    (told,) = [str(w.message) for w in caught if 'not everything can be asked' in str(w.message)]
    assert "'old': its condition" in told and "'x': its condition" in told and 'visibleWhen' not in xml
