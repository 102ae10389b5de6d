"""A second implementation of the conditional rule, row by row in plain Python, and random flows and tables to hold
the library to it.

A *spec* is plain data. A task is a dict with `kind` (binary, single, ordinal, multi, cols, bounded, unbounded,
count, votes), `name`, `given` and options; a flow is
`dict(kind='flow', name=..., items=[...], given=...)`. A condition is `('atom', name, op, arg)`, `('not', c)`,
`('and', c, c, ...)` or
`('any', c, c, ...)`. A *table* maps a task's path to one plain value a row: True/False, a class, a list of labels, a
list of True/False/None (cols), a list of votes, one an answer (votes), a number; None where missing. A binary task or
`cols` may have `uncertain` (value → probability or None) and `soft`: then such values, or shares, stand for True and
False. A task or flow may have `na`, values that stand for a blank: a table holds them as they are, as the cell of a
whole list, too. A single label task may be `within` another (its name), with `class_of` (sub-class → class; `told` to
the library or read off by it) and `decode`. A task may have `mirror` (pairs of labels, `reverse` or `negate`), a flow
pairs of names. Nothing here looks at fastai_condmtl but `build` (objects) and
`frame` (a DataFrame in many dtypes).
"""

import pandas as pd


# ---- spec
# -------------------------------------------------------------------------------------------------------------
def flow(name, *items, given=None, **opts):
    return dict(kind='flow', name=name, items=list(items), given=given, **opts)


def a_task(kind, name, given=None, **opts):
    return dict(kind=kind, name=name, given=given, **opts)


def atom(name, op='is', arg=None):
    return ('atom', name, op, arg)


def Not(c):
    return ('not', c)


def And(*cs):
    return ('and', *cs)


def Any(*cs):
    return ('any', *cs)


def walk(node, prefixes=('',), conds=()):
    "Yield (path, task, prefixes innermost first, [(condition, its prefixes)]) for each task in the order written."
    for item in node['items']:
        mine = conds + (((item['given'], prefixes),) if item['given'] else ())
        path = prefixes[0] + item['name']
        if item['kind'] == 'flow':
            yield from walk(item, (path + '.',) + prefixes, mine)
        else:
            yield path, item, prefixes, mine


def resolve(name, prefixes, paths):
    "The path a name stands for: from the innermost flow outwards, else the only leaf of that name."
    for prefix in prefixes:
        if prefix + name in paths:
            return prefix + name
    leaves = [p for p in paths if p.split('.')[-1] == name]
    if len(leaves) != 1:
        raise LookupError(name)
    return leaves[0]


def na_of(spec):
    "Path of each task → the values that stand for a blank: its own, else those of the innermost flow that has some."
    out = {}

    def look(node, prefix, na):
        for item in node['items']:
            path, own = prefix + item['name'], item['na'] if item.get('na') is not None else na
            if item['kind'] == 'flow':
                look(item, path + '.', own)
            else:
                out[path] = own

    look(spec, '', spec.get('na') or ())
    return out


def stands_for_blank(value, na):
    "Is a table value one of `na`? Texts without the blanks around them; True is no 1."
    if isinstance(value, list):
        return False
    alike = lambda v: isinstance(v, str) == isinstance(value, str) and isinstance(v, bool) == isinstance(value, bool)
    bare = lambda v: v.strip() if isinstance(v, str) else v
    return any(alike(v) and bare(v) == bare(value) for v in na)


def vocab_of(task):
    return list(task['vocab']) if task.get('vocab_given', True) else sorted(task['vocab'])


# ---- what a mirrored picture shows
# -------------------------------------------------------------------------------------------------------------
def mirrored_label(task, value):
    "A label of the mirrored picture, by the task's own `mirror`; a gap or an odd value stays"
    how, kind = task.get('mirror'), task['kind']
    if not how or value is None:
        return value
    if kind in ('multi', 'cols', 'votes'):
        if not isinstance(value, list):
            return value
        other = dict(how) | {b: a for a, b in how}
        if kind == 'multi':
            return [other.get(label, label) for label in value]
        at = task['vocab'].index
        return [value[at(other.get(label, label))] for label in task['vocab']]
    if how == 'negate':
        return -value if is_a_number(value) else value
    if how == 'reverse' and kind == 'bounded':
        lo, hi = task.get('y_range') or (-8, 8)
        return lo + hi - value if is_a_number(value) else value
    order = vocab_of(task) if kind != 'binary' else [False, True]
    if value not in order:
        return value
    if how == 'reverse':
        return order[len(order) - 1 - order.index(value)]
    if kind == 'binary':
        return not value
    return (dict(how) | {b: a for a, b in how}).get(value, value)


def is_a_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def mirrored_table(spec, table):
    "The table of the mirrored pictures: each task's labels, and those of tasks that change places"
    na, tasks, partner = na_of(spec), {}, {}
    for path, task, *_ in walk(spec):
        tasks[path] = task

    def pairs(node, prefix):
        for left, right in node.get('mirror') or ():
            partner[prefix + left], partner[prefix + right] = prefix + right, prefix + left
        for item in node['items']:
            if item['kind'] == 'flow':
                pairs(item, f"{prefix}{item['name']}.")

    pairs(spec, '')

    def label(path, value):
        is_blank = value is not None and stands_for_blank(value, na[path])
        return value if is_blank else mirrored_label(tasks[path], value)

    return {path: [label(path, value) for value in table[partner.get(path, path)]] for path in tasks}


# ---- answers that are not certain
# -------------------------------------------------------------------------------------------------------------
def is_code(task, value):
    "Is a table value one of those that are neither yes nor no?"
    return value is not None and not isinstance(value, bool) and value in task.get('uncertain', {})


def told(task, value):
    "What a label tells a condition: True or False of a share, None of a value that is uncertain."
    if value is None or is_code(task, value):
        return None
    return value > 0.5 if task.get('soft') else value


def trained(task, value):
    "What a label is trained towards."
    return task['uncertain'][value] if is_code(task, value) else value


class Votes:
    "What the votes of a row say: each answer's `total` and `share`, and the answers that they `gave`."

    def __init__(self, vocab, votes, gave):
        self.total = dict(zip(vocab, votes))
        everybody = sum(votes)
        self.share = {a: v / everybody for a, v in self.total.items()}
        self.gave = {a for a in vocab if gave(a, self)}

    @classmethod
    def of_label(cls, vocab, votes):
        "Somebody gave it."
        return cls(vocab, votes, lambda a, self: self.total[a] > 0)

    @classmethod
    def decided(cls, vocab, votes):
        "It has the plurality; of equals the first has it."
        return cls(vocab, votes, lambda a, self: a == max(vocab, key=lambda x: self.total[x]))

    @classmethod
    def drawn(cls, vocab, votes, answer):
        "One volunteer gave it; shares are those of all."
        return cls(vocab, votes, lambda a, self: a == answer)


# ---- the rule
# ---------------------------------------------------------------------------------------------------------
def k_not(a):
    return None if a is None else not a


def k_and(xs):
    xs = list(xs)
    return False if any(x is False for x in xs) else None if any(x is None for x in xs) else True


def k_or(xs):
    return k_not(k_and(k_not(x) for x in xs))


def equal(a, b):
    """Are two labels one? What refuses to be compared (a number of NumPy with one that no float holds or with a
    `Decimal`), and what compares item by item with `()`, is another one"""
    try:
        return a is b or type(a == b).__name__ in ('bool', 'bool_') and bool(a == b)
    except Exception:
        return False


def place_in(vocab):
    "A function label -> its place in the order of classes; `ValueError` where it is none of them"

    def place(label):
        found = [i for i, v in enumerate(vocab) if equal(v, label)]
        if not found:
            raise ValueError(f'{label!r} is not in list')
        return found[0]

    return place


def holds(op, value, arg):
    "What a label says of an atom. `value`: the label, or for multi label tasks a dict label -> True/False/None."
    if op == 'is':
        return bool(value)
    if op == 'has':
        return value[arg]
    if op == 'has_any':
        return k_or(value[x] for x in arg)
    if op == 'has_all':
        return k_and(value[x] for x in arg)
    if isinstance(value, Votes):
        if op == 'share':
            answer, comparison, number = arg
            return holds(comparison, value.share[answer], number)
        asked_for = set(arg) if op == 'isin' else {arg}
        return bool(value.gave - asked_for if op == 'ne' else value.gave & asked_for)  # ne: another answer was given
    return bool(
        {
            'eq': lambda: equal(value, arg),
            'ne': lambda: not equal(value, arg),
            'isin': lambda: any(equal(value, x) for x in arg),
            'gt': lambda: value > arg,
            'ge': lambda: value >= arg,
            'lt': lambda: value < arg,
            'le': lambda: value <= arg,
            'between': lambda: arg[0] <= value <= arg[1],
        }[op]()
    )  # NumPy's booleans are not `True`


class Oracle:
    "Evaluates `spec` on one row of labels at a time (`cells`: path -> value as `cell` gives it)."

    def __init__(self, spec):
        self.entries = {path: (task, prefixes, conds) for path, task, prefixes, conds in walk(spec)}
        self.paths, self.infer, self.na = list(self.entries), spec.get('infer_labels', False), na_of(spec)
        nested = [(p, t, pre) for p, (t, pre, _) in self.entries.items() if t.get('within')]
        self.over = {p: resolve(t['within'], pre, self.paths) for p, t, pre in nested}

    def cell(self, path, raw):
        "A table value as a label; multi label values as a dict label -> True/False/None."
        task, gap = self.entries[path][0], lambda v: stands_for_blank(v, self.na[path])
        left_out = lambda v: gap(v) or is_code(task, v) and task['uncertain'][v] is None
        if task['kind'] == 'cols':
            return {v: None if left_out(x) else x for v, x in zip(task['vocab'], raw)}
        if task['kind'] == 'votes':
            votes = [None if gap(v) else v for v in raw or []]
            return Votes.of_label(task['vocab'], votes) if any(votes) else None
        if task['kind'] == 'binary':
            return None if left_out(raw) else raw
        if task['kind'] != 'multi':
            return None if gap(raw) else raw
        if gap(raw):  # also where a blank is "none of them": nobody was asked
            return dict.fromkeys(vocab_of(task))
        if raw is None and task.get('nan_is_empty'):
            raw = []
        return {v: None if raw is None else v in raw for v in vocab_of(task)}

    def labelled(self, value):
        return any(v is not None for v in value.values()) if isinstance(value, dict) else value is not None

    def above(self, path, sub):
        "The class in which sub-class `sub` of `path` stands."
        return self.entries[path][0]['class_of'][sub]

    def seen(self, path, cells):
        "The label of a task; of a class that is blank what labelled sub-classes imply."
        if cells[path] is not None:
            return cells[path]
        subs = [(p, self.seen(p, cells)) for p, over in self.over.items() if over == path]
        implied = [self.above(p, v) for p, v in subs if v is not None]
        return implied[0] if implied else None

    def disagree(self, cells):
        "Do two sub-tasks of one blank class imply different classes?"
        asked = {}
        for p, over in self.over.items():
            v = self.seen(p, cells)
            if v is not None and cells[over] is None:
                asked.setdefault(over, []).append(self.above(p, v))
        return any(v != vs[0] for vs in asked.values() for v in vs)

    def in_class(self, path, value, cells):
        "Has a sub-task meaning, and does its label (None: blank) stand in the class that is labelled or implied?"
        over = self.over[path]
        of = self.seen(over, cells)
        stands = of in self.entries[path][0]['class_of'].values() if value is None else self.above(path, value) == of
        return of is not None and stands and self.counts(over, of, cells)

    def counts(self, path, value, cells):
        "Does label `value` of a task count: is the task applicable, and the label in its class?"
        told = (self.evaluate(c, prefixes, cells, self.classes_above(path)) for c, prefixes in self.entries[path][2])
        return all(x is True for x in told) and (path not in self.over or self.in_class(path, value, cells))

    def classes_above(self, path):
        over = self.over.get(path)
        return {over, *self.classes_above(over)} if over else set()

    def evaluate(self, cond, prefixes, cells, implied=()):
        "True, False or None (unknown); `implied`: the classes that are, where blank, what sub-classes imply."
        kind, *rest = cond
        if kind == 'not':
            return k_not(self.evaluate(rest[0], prefixes, cells, implied))
        if kind == 'and':
            return k_and([self.evaluate(c, prefixes, cells, implied) for c in rest])
        if kind == 'any':
            return k_or([self.evaluate(c, prefixes, cells, implied) for c in rest])
        name, op, arg = rest
        path = resolve(name, prefixes, self.paths)
        task, value = self.entries[path][0], self.seen(path, cells) if path in implied else cells[path]
        if not self.labelled(value) or not self.counts(path, value, cells):
            return None
        if task['kind'] in ('binary', 'cols'):
            is_dict = isinstance(value, dict)
            value = {k: told(task, v) for k, v in value.items()} if is_dict else told(task, value)
            if value is None:
                return None
        if task['kind'] == 'ordinal':  # compared by place in the order
            place = place_in(vocab_of(task))
            value, arg = place(value), tuple(map(place, arg)) if op in ('isin', 'between') else place(arg)
        return holds(op, value, arg)

    def applicable(self, path, cells):
        return self.counts(path, cells[path], cells)

    # -- infer_labels: the literal fixpoint
    def forced(self, cond, prefixes, sign=True):
        "Yield (path, label or None, value) for what must be so if `cond` is `sign`."
        kind, *rest = cond
        if kind == 'not':
            yield from self.forced(rest[0], prefixes, not sign)
        elif kind == 'and' and sign or kind == 'any' and not sign:
            for c in rest:
                yield from self.forced(c, prefixes, sign)
        elif kind == 'atom':
            name, op, arg = rest
            path = resolve(name, prefixes, self.paths)
            task = self.entries[path][0]
            if task['kind'] == 'binary':
                yield path, None, sign
            elif task['kind'] == 'single':
                left = [v for v in task['vocab'] if holds(op, v, arg) == sign]
                if len(left) == 1:
                    yield path, None, left[0]
            elif task['kind'] == 'ordinal':
                place = place_in(vocab_of(task))
                at = tuple(map(place, arg)) if op in ('isin', 'between') else place(arg)
                left = [v for v in task['vocab'] if holds(op, place(v), at) == sign]
                if len(left) == 1:
                    yield path, None, left[0]
            elif task['kind'] == 'count':
                left = [v for v in range(40) if holds(op, v, arg) == sign]
                if len(left) == 1:
                    yield path, None, left[0]
            elif op == 'has':
                yield path, arg, sign
            elif op == 'has_all' and sign or op == 'has_any' and not sign:
                for x in arg:
                    yield path, x, sign

    def fill(self, cells):
        "(cells with forced labels filled in, whether anything contradicts)"
        cells = {p: dict(v) if isinstance(v, dict) else v for p, v in cells.items()}
        while True:
            wanted = {}
            for path in self.paths:
                empty = self.entries[path][0].get('nan_is_empty') and True not in cells[path].values()  # or a blank
                if self.labelled(cells[path]) and not empty:
                    if path in self.over:
                        wanted.setdefault((self.over[path], None), []).append(self.above(path, cells[path]))
                    for cond, prefixes in self.entries[path][2]:
                        for p, label, v in self.forced(cond, prefixes):
                            wanted.setdefault((p, label), []).append(v)
            changed = clash = False
            for (p, label), vs in wanted.items():
                old = cells[p] if label is None else cells[p][label]
                if self.entries[p][0]['kind'] in ('binary', 'cols'):
                    old = told(self.entries[p][0], old)
                if any(v != vs[0] for v in vs) or old is not None and old != vs[0]:
                    clash = True
                elif old is None:
                    changed = True
                    if label is None:
                        cells[p] = vs[0]
                    else:
                        cells[p][label] = vs[0]
            if clash or not changed:
                return cells, clash

    def row(self, raw):
        """{path: dict(applicable, mask, scored, value, clash)} of one row, `raw`: path -> value. `mask`, `scored`,
        `value`: a list with one entry a target column."""
        cells = {p: self.cell(p, raw[p]) for p in self.paths}
        known, clash = self.fill(cells) if self.infer else (cells, self.disagree(cells))
        out = {}
        for p in self.paths:
            seen = known[p] if self.infer == 'train' else cells[p]
            values = list(seen.values()) if isinstance(seen, dict) else [seen]
            if self.entries[p][0]['kind'] == 'votes':
                values = list(seen.total.values()) if seen else [None] * len(self.entries[p][0]['vocab'])
            ok, task = self.applicable(p, known), self.entries[p][0]
            mask = [ok and v is not None for v in values]
            scored = [m and not is_code(task, v) for m, v in zip(mask, values)]
            values = [trained(task, v) for v in values]
            out[p] = dict(applicable=ok, value=values, mask=mask, scored=scored, clash=clash)
        return out

    def reached(self, cells):
        "{path: reached} on decoded predictions, where every task has a value."
        return {p: self.applicable(p, cells) for p in self.paths}


def vote_column(task, answer):
    return f"{task.get('stem', task['name'])}: {answer}"


# ---- the same spec as the library's objects
# ---------------------------------------------------------------------------
def block(task):
    "The library's block for `task`, without its condition."
    from fastai_condmtl.tasks import all as B

    kw = dict(task.get('kw', {})) | ({} if task.get('na') is None else dict(na=task['na']))
    if task.get('col'):
        kw['col'] = task['col']
    kind, name = task['kind'], task['name']
    kw |= {k: task[k] for k in ('uncertain', 'soft', 'decode', 'mirror') if k in task}
    if task.get('within'):
        over = task.get('class_block', task['within'])
        kw['within'] = (over, dict(task['class_of'])) if task['told'] else over
    if kind == 'votes':
        return B.VotesBlock(name, cols={a: vote_column(task, a) for a in task['vocab']}, **kw)
    if kind == 'cols':
        return B.MultiLabelBlock(name, cols=list(task['vocab']), **kw)
    if kind in ('single', 'ordinal', 'multi') and task.get('vocab_given', True):
        kw['vocab'] = list(task['vocab'])
    if kind == 'binary' and task.get('vocab'):
        kw['vocab'] = tuple(task['vocab'])
    if kind == 'bounded' and task.get('y_range'):
        kw['y_range'] = task['y_range']
    if kind == 'multi':
        kw |= dict(nan_is_empty=task.get('nan_is_empty', False), label_delim=task.get('label_delim', ','))
    return dict(
        binary=B.BinaryBlock,
        single=B.SingleLabelBlock,
        multi=B.MultiLabelBlock,
        bounded=B.BoundedRegressionBlock,
        unbounded=B.UnboundedRegressionBlock,
        ordinal=B.OrdinalBlock,
        count=B.CountBlock,
    )[kind](name, **kw)


def condition(cond, thing):
    "The library's condition for `cond`; `thing(name)` gives the block or `task(...)` to write in it."
    from fastai_condmtl.core.conditions import any_of

    kind, *rest = cond
    if kind == 'not':
        return ~condition(rest[0], thing)
    if kind == 'any':
        return any_of(*[condition(c, thing) for c in rest])
    if kind == 'and':
        out = condition(rest[0], thing)
        for c in rest[1:]:
            out = out & condition(c, thing)
        return out
    name, op, arg = rest
    x = thing(name)
    if op == 'is':
        return x
    if op == 'share':
        return condition(('atom', name, *arg[1:]), lambda name: x.share(arg[0]))
    if op == 'between':
        return x.between(*arg)
    signs = dict(gt=lambda: x > arg, ge=lambda: x >= arg, lt=lambda: x < arg, le=lambda: x <= arg)
    return (
        signs[op]()
        if op in signs and sum(map(ord, name)) % 2
        else getattr(x, op)(list(arg) if isinstance(arg, tuple) else arg)
    )


def build(spec, rng, order=lambda items: items):
    "The library's Flow for `spec`; `rng` picks between the forms that mean the same."
    from fastai_condmtl.core.conditions import task as by_path
    from fastai_condmtl.core.flow import Flow

    entries = {path: t for path, t, *_ in walk(spec)}
    done = {}

    def given(x, cond, prefixes, can_kw):
        if not cond:
            return x()

        def thing(name):
            path = resolve(name, prefixes, entries)
            if '.' in name or rng.random() < 0.3:
                return by_path(name)
            return done[path] if path in done and rng.random() < 0.5 else block(entries[path])

        if cond[0] == 'and' and rng.random() < 0.5:  # a | c1 | c2
            out = x()
            for c in cond[1:]:
                out = out | condition(c, thing)
            return out
        if can_kw and rng.random() < 0.3:
            return x(given=condition(cond, thing))
        return x() | condition(cond, thing)

    def make(node, prefixes):
        items = []
        for item in order(node['items']):
            path = prefixes[0] + item['name']
            if item['kind'] == 'flow':
                items.append(make(item, (path + '.',) + prefixes))
            else:
                over = item.get('within')
                if over and resolve(over, prefixes, entries) in done and '.' not in over and rng.random() < 0.5:
                    item = item | dict(class_block=done[resolve(over, prefixes, entries)])

                def one(given=None, item=item):
                    return block(item if given is None else item | dict(kw=dict(item.get('kw', {}), given=given)))

                done[path] = given(one, item['given'], prefixes, True)
                items.append(done[path])
        opts = {k: node[k] for k in ('infer_labels', 'na', 'mirror') if node.get(k)}
        return given(lambda: Flow(node['name'], *items, **opts), node['given'], prefixes[1:], False)

    return make(spec, ('',))


# ---- a table as a DataFrame
# -------------------------------------------------------------------------------------------
def series(values, rng, index):
    "One column in one of the dtypes in which such labels come, its gaps as any of the missing kinds."
    known = [v for v in values if v is not None]
    full = len(known) == len(values)
    gaps = [rng.choice([None, float('nan'), pd.NA, pd.NaT]) if v is None else v for v in values]
    ways = [lambda: pd.Series(gaps, index=index, dtype=object)]
    if known and not any(isinstance(v, list) for v in known):
        typed = lambda dtype: (
            lambda: pd.Series(
                [float('nan') if v is None and dtype == 'float64' else v for v in values], index=index, dtype=dtype
            )
        )
        if all(isinstance(v, str) for v in known):
            ways += [typed('str'), typed('string'), typed('category')]
        elif all(isinstance(v, (bool, int, float)) for v in known):
            ways += [typed('float64'), typed('Float64')]
            if all(v in (0, 1) for v in known):
                ways += [typed('boolean')] + [typed('bool')] * full
            if all(v == int(v) for v in known):
                ways += [typed('Int64')] + [typed('int64')] * full
    return rng.choice(ways)()


def as_numbers(values):
    "True and False as 1 and 0, where other numbers stand beside them."
    mixed = {type(v) for v in values} - {type(None)} > {bool}
    return [int(v) if isinstance(v, bool) else v for v in values] if mixed else values


def frame(spec, table, rng, index=None, series=series):
    "The table as a DataFrame, one column a task (one a label for `cols`, one an answer for `votes`)."
    cols, na = {}, na_of(spec)
    for path, task, *_ in walk(spec):
        kept = lambda v: v is None or stands_for_blank(v, na[path])  # noqa: B023
        values, name = table[path], task.get('col') or task['name']
        if task['kind'] == 'cols':
            cols |= {c: series(as_numbers([r[i] for r in values]), rng, index) for i, c in enumerate(task['vocab'])}
            continue
        if task['kind'] == 'votes':
            for i, answer in enumerate(task['vocab']):
                cols[vote_column(task, answer)] = series([r and r[i] for r in values], rng, index)
            continue
        if task['kind'] == 'binary' and task.get('vocab'):
            values = [task['vocab'][v] if isinstance(v, bool) else v for v in values]
        elif task['kind'] == 'binary' and rng.random() < 0.5:
            values = [int(v) if isinstance(v, bool) else v for v in values]
        elif task['kind'] == 'multi' and rng.random() < 0.5:
            values = [v if kept(v) else task.get('label_delim', ',').join(v) for v in values]
        cols[name] = series(as_numbers(values), rng, index)
    return pd.DataFrame(cols, index=index)


def n_rows(table):
    return len(next(iter(table.values())))


def raw_row(table, i):
    return {p: v[i] for p, v in table.items()}
