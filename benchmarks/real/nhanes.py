"""NHANES 2009-2012: nine questions of the health survey, most of which are asked only after a yes

python benchmarks/real/nhanes.py [--quick]   reads nhanes/NHANES.csv out of FASTAI_CONDMTL_DATA

The rows were drawn with replacement, so the splits are by person. Smoke100n and HardDrugs are no inputs: one is
Smoke100 in words, the other a neighbour of the questions about marijuana."""

import pandas as pd
from common import DATA, Bench, Task, main
from fastai_condmtl.all import BinaryBlock, Flow, UnboundedRegressionBlock

YES_NO = ('Smoke100', 'SmokeNow', 'Diabetes', 'Marijua', 'RegularMarij')
NUMBERS = ('SmokeAge', 'DiabetesAge', 'AgeFirstMarij', 'AgeRegMarij')
GIVEN = dict(
    SmokeNow=('Smoke100',),
    SmokeAge=('Smoke100',),
    DiabetesAge=('Diabetes',),
    AgeFirstMarij=('Marijua',),
    RegularMarij=('Marijua',),
    AgeRegMarij=('Marijua', 'RegularMarij'),
)
NO_INPUTS = ('ID', 'SurveyYr', 'Smoke100n', 'HardDrugs', *YES_NO, *NUMBERS)
PUBLISHED = 'published: no figures that we know of for this flow and splits by person'


def read(path):
    "The table with 1 and 0 for yes and no"
    df = pd.read_csv(path, encoding='utf-8-sig')
    for name in YES_NO:
        df[name] = df[name].map({'Yes': 1.0, 'No': 0.0})
    return df


def health_flow():
    "Each question under the answer that leads to it"
    smoke, diabetes, marijuana, regular = map(BinaryBlock, ('Smoke100', 'Diabetes', 'Marijua', 'RegularMarij'))
    return Flow(
        'health',
        smoke,
        BinaryBlock('SmokeNow') | smoke,
        UnboundedRegressionBlock('SmokeAge') | smoke,
        diabetes,
        UnboundedRegressionBlock('DiabetesAge') | diabetes,
        marijuana,
        UnboundedRegressionBlock('AgeFirstMarij') | marijuana,
        regular | marijuana,
        UnboundedRegressionBlock('AgeRegMarij') | regular,
    )


def asked_after(parents):
    "Where all of these were answered by yes"
    return lambda df: (df[list(parents)] == 1).all(axis=1).to_numpy()


def bench():
    df = read(DATA / 'nhanes' / 'NHANES.csv')
    tasks = {}
    for path in (*YES_NO, *NUMBERS):
        tasks[path] = Task(path, 'binary' if path in YES_NO else 'number', asked_after(GIVEN.get(path, ())))
    inputs = df.drop(columns=list(NO_INPUTS))
    conts = [name for name in inputs if pd.api.types.is_numeric_dtype(inputs[name])]
    cats = [name for name in inputs if name not in conts]
    return Bench(df, health_flow, tasks, cats, conts, groups='ID')


if __name__ == '__main__':
    main(bench(), 'NHANES, split by person:', PUBLISHED)
