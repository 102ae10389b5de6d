"""Random specs and tables for `oracle`. Every function draws from `rng` (`random.Random`, or hypothesis'
`st.randoms()`, which shrinks)."""

from hypothesis import HealthCheck, settings, strategies as st
from oracle import flow, a_task, na_of, resolve, vocab_of, walk

rngs = st.randoms(use_true_random=False)


def checks(n):
    "Settings of a property test: `n` examples, the same ones each time."
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


VOCABS = [
    ['red', 'green', 'blue'],
    ['kite', 'a b', 'Zebra', 'ünï'],
    [0, 1, 2],
    [7, -3, 12, 5],
    ['yes', 'no'],
    [False, True],
    [1, 2],
]
WORDS = [('no', 'yes'), ('closed', 'open')]
NOT_ASKED = ['not asked', -9, -99.5]  # no kind has such an answer
ANSWERS = [['smooth', 'disk', 'star'], [1, 2], ['yes', 'no'], ['a', 'b', 'c', 'd', '"e"']]
KINDS = ['binary', 'single', 'ordinal', 'multi', 'cols', 'bounded', 'unbounded', 'count']
ALL_KINDS = [*KINDS, 'votes']


def make_unsure(rng, t):
    "Shares, or values that are neither yes nor no, for a binary task or `cols`."
    way = rng.choice(['sure', 'soft', 'uncertain', 'uncertain'])
    if way == 'soft':
        t['soft'] = True
        if t['kind'] == 'binary':
            t['vocab'] = None
    elif way == 'uncertain':
        codes = rng.sample([-1, 'maybe', 2, -8], rng.randint(1, 2))
        t['uncertain'] = {code: rng.choice([None, 0, 0.3, 0.6, 1]) for code in codes}


def random_task(rng, kind, name, col, losses=True, unsure=False):
    t = a_task(kind, name, col=col)
    kw = t['kw'] = {}
    if losses and rng.random() < 0.5:
        kw['weight'] = rng.choice([0.25, 2.0, 3.5])
    if kind == 'binary':
        t['vocab'] = rng.choice([None, None, *WORDS])
        if losses:
            kw |= rng.choice([{}, dict(pos_weight=2.5)])
    elif kind == 'single':
        t['vocab'], t['vocab_given'] = rng.sample(v := rng.choice(VOCABS), len(v)), rng.random() < 0.5
        if losses:
            weights = [0.5 + i for i in range(len(v))]
            kw |= rng.choice([{}, dict(label_smoothing=0.2)]) | rng.choice([{}, dict(class_weights=weights)])
    elif kind == 'ordinal':
        v = rng.choice(VOCABS)
        given = rng.random() < 0.5 or isinstance(v[0], str)  # words have no order of their own
        t['vocab'], t['vocab_given'] = rng.sample(v, len(v)) if given else sorted(v), given
    elif kind == 'multi':
        t['vocab'], t['vocab_given'] = rng.sample(['hat', 'scarf', 'big shoes'], rng.randint(1, 3)), rng.random() < 0.5
        t |= dict(label_delim=rng.choice([',', ';', '|']), nan_is_empty=rng.random() < 0.2)
    elif kind == 'votes':
        t |= dict(vocab=rng.choice(ANSWERS), votes=rng.choice(['counts', 'shares', 'any']), stem=col or name, col=None)
        if col:
            kw['loss'] = 'dirichlet'
    elif kind == 'cols':
        t |= dict(vocab=[f'{col or name}_{i}' for i in rng.sample('abc', rng.randint(1, 3))], col=None)
    elif kind != 'count':
        if kind == 'bounded' and rng.random() < 0.5:
            t['y_range'] = (-8, 8)
        if losses:
            kw['loss'] = rng.choice(['mse', 'l1', 'huber'])
    if unsure and kind in ('binary', 'cols'):
        make_unsure(rng, t)
        if losses and rng.random() < 0.3:
            kw |= dict(loss='focal', gamma=rng.choice([0.5, 2.0]), alpha=rng.choice([None, 0.3]))
    return t


def op_of(rng, task, forcing=False):
    """A random operator and argument that `task` has; `forcing`: one that a label can be inferred from, or a
    regression's."""
    kind = task['kind']
    vocab = None if kind in ('binary', 'bounded', 'unbounded', 'count') else vocab_of(task)
    if kind == 'binary':
        return 'is', None
    some = lambda least: tuple(rng.sample(vocab, rng.randint(min(least, len(vocab)), len(vocab))))
    if kind == 'single':
        op = rng.choice(['eq', 'eq', 'ne', 'isin']) if not forcing or len(vocab) == 2 else 'eq'
        if op != 'isin':
            return op, rng.choice(vocab)
        return op, (rng.choice(vocab),) if forcing else some(1)
    if kind == 'ordinal' and (rng.random() < 0.4 or forcing):
        op = rng.choice(['eq', 'ne', 'isin'])
        return op, some(1) if op == 'isin' else rng.choice(vocab)
    if kind == 'ordinal':
        op, i = rng.choice(['gt', 'ge', 'lt', 'le', 'between']), rng.randrange(len(vocab))
        if op == 'gt' and i == len(vocab) - 1 or op == 'lt' and i == 0:
            op = op[0] + 'e'  # above the last class is never true, which is an error
        return op, (vocab[i], vocab[rng.randrange(i, len(vocab))]) if op == 'between' else vocab[i]
    if kind == 'count' and rng.random() < 0.4:
        return rng.choice(['eq', 'ne']), rng.randrange(8)
    if kind in ('multi', 'cols'):
        op = 'has' if len(vocab) == 1 else rng.choice(['has', 'has', 'has_any', 'has_all'])
        return op, rng.choice(vocab) if op == 'has' else some(2)
    if kind == 'votes':
        op = rng.choice(['eq', 'eq', 'ne', 'isin', 'share', 'share'])
        if op == 'share':
            lo, hi = sorted(rng.sample([0.1, 0.2, 0.25, 0.3, 0.375, 0.5, 0.75, 0.9], 2))
            comparison = rng.choice(['gt', 'ge', 'lt', 'le', 'between'])
            return op, (rng.choice(vocab), comparison, (lo, hi) if comparison == 'between' else rng.choice([lo, hi]))
        return op, some(1) if op == 'isin' else rng.choice(vocab)
    op = rng.choice(['gt', 'ge', 'lt', 'le', 'between'])
    at = rng.randint(-8, 6) / 2
    if kind == 'count':
        at = max(at, dict(lt=0.5, le=0, between=-3).get(op, at))  # some count must answer yes
    return op, (at - 0.25, at + 3.25) if op == 'between' else at


def names_for(target, prefixes, paths, inside=''):
    """The ways to write `target` that every reading of 'innermost outwards' takes to be it; `inside`: the flow
    that is conditioned."""
    leaf, out = target.split('.')[-1], []
    taken = lambda under: any(p.startswith(under) and p.split('.')[-1] == leaf for p in paths)
    for i, prefix in enumerate(prefixes):
        rel = target[len(prefix) :]
        if not target.startswith(prefix) or resolve(rel, prefixes, paths) != target:
            continue
        if '.' in rel or not (inside and taken(inside)) and not any(taken(p) for p in prefixes[:i]):
            out.append(rel)
    if sum(p.split('.')[-1] == leaf for p in paths) == 1:
        out.append(leaf)
    return out


def random_cond(rng, targets, entries, prefixes, forcing=False, inside='', depth=2):
    def any_cond(depth):
        shape = rng.choice(['atom', 'atom', 'not', 'and', 'any']) if depth else 'atom'
        if shape == 'not':
            return ('not', any_cond(depth - 1))
        if shape in ('and', 'any'):
            return (shape, *[any_cond(depth - 1) for _ in range(rng.randint(2, 3))])
        path = rng.choice(targets)
        return ('atom', rng.choice(names_for(path, prefixes, entries, inside)), *op_of(rng, entries[path], forcing))

    targets = [p for p in targets if names_for(p, prefixes, entries, inside)]
    return any_cond(depth) if targets else None


# ---- classes that nest ---------------------------------------------------------------------------------------------
CLASSES = [['b', 'c', 'a'], [3, 1, 2], ['x'], ['yes', 'no'], [False, True], [7, -3, 12, 5], ['1', '2', '10']]


def random_classes(rng, name, col, over=None, losses=False):
    "A single label task, of classes or, within the task `over`, of sub-classes."
    t = a_task('single', name, col=col, kw={})
    t['vocab_given'] = rng.random() < 0.5
    if over is None:
        v = rng.choice(CLASSES)
        t['vocab'] = rng.sample(v, len(v))
    else:
        among = rng.sample(over['vocab'], rng.randint(1, len(over['vocab'])))
        per = [(c, i) for c in among for i in range(rng.choice([1, 2, 2, 3]))]
        make = rng.choice([lambda c, i, k: f'{c}.{i}', lambda c, i, k: k, lambda c, i, k: f'{c}' * (i + 1)])
        class_of = {make(c, i, k): c for k, (c, i) in enumerate(per)}
        t['vocab'] = rng.sample(list(class_of), len(class_of))
        t |= dict(class_of=class_of, told=rng.random() < 0.5, over=over)
    if losses:
        t['kw'] |= rng.choice([{}, dict(weight=2.5)]) | rng.choice([{}, dict(label_smoothing=0.2)])
    return t


def random_tree(rng, k, losses=False):
    "A class task and sub-tasks: one within the other, or several within one."
    tree = [random_classes(rng, f'k{k}', rng.choice([None, f'class {k}']), losses=losses)]
    for i in range(rng.choice([1, 1, 2, 2, 3])):
        over = rng.choice([tree[-1], tree[-1], tree[-1], rng.choice(tree)])
        tree.append(random_classes(rng, f'k{k}s{i}', rng.choice([None, f'sub {k} {i}']), over, losses))
    if rng.random() < 0.4:
        tree[rng.randrange(1, len(tree))]['decode'] = 'joint'
    return tree


def nest_table(rng, spec, table):
    """Fill the columns of trees: labels that mostly agree, gaps; where classes are read off the rows, labels never
    disagree, and each sub-class stands beside its class in some row."""
    paths = {id(t): p for p, t, *_ in walk(spec)}
    subs = [t for _, t, *_ in walk(spec) if t.get('over')]
    roots = {id(t['over']): t['over'] for t in subs if not t['over'].get('over')}
    na, n, told = na_of(spec), len(next(iter(table.values()))), all(t['told'] for t in subs)

    def draw(t, value, row):
        row[id(t)] = value
        for s in subs:
            if s['over'] is t:
                of = [v for v, c in s['class_of'].items() if value is not None and c == value]
                draw(s, rng.choice(of) if of else None, row)

    def up(t, value, row):
        row[id(t)] = value
        if t.get('over'):
            up(t['over'], t['class_of'][value], row)

    for root in roots.values():
        whole = []

        def below(t):
            for v in t['vocab']:
                up(t, v, row := {})
                whole.append(row)
            for s in subs:
                if s['over'] is t:
                    below(s)

        below(root)
        mine = [t for t in [root, *subs] if any(id(t) in r for r in whole)]
        rows = []
        gap = {id(t): rng.choice([0, 0.2, 0.5, 0.8]) for t in mine}
        wrong = rng.choice([0, 0.2]) if told else 0
        for _ in range(max(n, len(whole)) - len(whole)):
            draw(root, rng.choice(root['vocab']), row := {})
            for t in mine:
                if rng.random() < gap[id(t)]:
                    row[id(t)] = None
                elif rng.random() < wrong:
                    row[id(t)] = rng.choice(t['vocab'])
                p = paths[id(t)]
                if na[p] and rng.random() < 0.2:
                    row[id(t)] = rng.choice(na[p])
            rows.append(row)
        rows += whole
        rng.shuffle(rows)
        for t in mine:
            table[paths[id(t)]][:] = [r.get(id(t)) for r in rows[:n]]
    return table


def rows_for_trees(spec):
    "How many rows hold each class and sub-class of the largest tree."
    size = {}
    inner = {id(t['over']) for _, t, *_ in walk(spec) if t.get('over')}
    for _, t, *_ in walk(spec):
        root = t
        if not t.get('over') and id(t) not in inner:
            continue
        while root.get('over'):
            root = root['over']
        size[id(root)] = size.get(id(root), 0) + len(t.get('vocab') or [])
    return max(size.values(), default=0)


def random_spec(rng, max_tasks=10, infer=False, losses=False, kinds=KINDS, na=False, unsure=False, trees=0):
    """A flow of up to `max_tasks` tasks, flows in flows, conditions that may name tasks written later, and names
    used twice; with `na`, values that stand for a blank; `unsure`: also shares and uncertain answers;
    `trees`: how many class tasks have sub-tasks."""
    root = flow('root')
    nodes, depth = [root], {'root': 1}
    for i in range(rng.randint(0, 3)):
        parent = rng.choice([n for n in nodes if depth[n['name']] < 3])
        nodes.append(flow(f'f{i}'))
        depth[f'f{i}'] = depth[parent['name']] + 1
        parent['items'].append(nodes[-1])
    for i in range(rng.randint(1, max_tasks)):
        node, name, col = rng.choice(nodes), f't{i}', rng.choice([None, f'col {i}'])
        again = [
            x['name'] for n in nodes for x in n['items'] if x['kind'] not in ('flow', 'cols', 'votes') and x['col']
        ]
        if again and rng.random() < 0.25:
            other = rng.choice(again)
            if other not in [x['name'] for x in node['items']]:
                name, col = other, f'col {i}'
        node['items'].append(random_task(rng, rng.choice(kinds), name, col, losses, unsure))

    for k in range(trees):
        for t in random_tree(rng, k, losses):
            rng.choice(nodes)['items'].append(t)

    def prune(n):
        n['items'] = [x for x in n['items'] if x['kind'] != 'flow' or prune(x)]
        rng.shuffle(n['items'])
        return n['items']

    prune(root)
    if na:
        for node in [*nodes, *(x for n in nodes for x in n['items'] if x['kind'] != 'flow')]:
            if rng.random() < 0.4:
                node['na'] = tuple(rng.sample(NOT_ASKED, rng.randint(0, 2)))
    if infer:
        root['infer_labels'] = rng.choice([True, 'train'])
    entries = {p: t for p, t, *_ in walk(root)}
    # conditions name tasks of a lower rank: no cycle
    rank = {path: i for i, path in enumerate(rng.sample(list(entries), len(entries)))}
    at = {id(t): p for p, t in entries.items()}
    for p, t, prefixes, _ in walk(root):
        if t.get('over'):
            t['within'] = rng.choice(names_for(at[id(t['over'])], prefixes, entries))
    for k in range(trees):  # a sub-task hangs on its class task
        of_tree = sorted((t['name'], p) for p, t in entries.items() if t['name'].startswith(f'k{k}'))
        for (_, p), r in zip(of_tree, sorted(rank[p] for _, p in of_tree)):
            rank[p] = r

    def give(node, prefixes):
        for x in node['items']:
            inside = prefixes[0] + x['name'] + '.' if x['kind'] == 'flow' else ''
            least = min(r for p, r in rank.items() if p.startswith(inside)) if inside else rank[prefixes[0] + x['name']]
            if inside:
                give(x, (inside,) + prefixes)
            if rng.random() < 0.7:
                x['given'] = random_cond(
                    rng, [p for p in entries if rank[p] < least], entries, prefixes, bool(infer), inside
                )

    give(root, ('',))
    return root


# ---- mirrors -------------------------------------------------------------------------------------------------------
def random_mirror(rng, task):
    "What a mirror may do to a task; None where nothing changes"
    kind, vocab = task['kind'], task.get('vocab')
    if kind == 'ordinal' or kind == 'bounded':
        return 'reverse'
    if kind == 'unbounded':
        return 'negate'
    if kind == 'binary' and vocab and not task.get('uncertain'):
        return [list(vocab)]
    if kind in ('single', 'multi', 'cols', 'votes') and len(vocab) > 1:
        labels = rng.sample(vocab, 2 * rng.randint(1, len(vocab) // 2))
        return [[a, b] for a, b in zip(labels[::2], labels[1::2])]
    return None


def asked_tasks(spec):
    "Paths of the tasks that a condition asks"
    entries = {p: t for p, t, *_ in walk(spec)}

    def names(cond):
        return {cond[1]} if cond[0] == 'atom' else set().union(*map(names, cond[1:]))

    return {resolve(n, where, entries) for *_, conds in walk(spec) for cond, where in conds for n in names(cond)}


def add_mirrors(rng, spec, asked=False):
    """Draw `mirror` of tasks, and twins that change places with a task, in place; `asked`: also of tasks that
    conditions ask, which the library may have to refuse"""
    kept, entries = set() if asked else asked_tasks(spec), {p: t for p, t, *_ in walk(spec)}
    for path, t in entries.items():
        how = random_mirror(rng, t) if path not in kept and rng.random() < 0.6 else None
        if how is not None and not t.get('over'):
            t['mirror'] = how

    def give_twins(node, prefix):
        for t in list(node['items']):
            path = prefix + t['name']
            if t['kind'] == 'flow':
                give_twins(t, path + '.')
            elif path not in asked_tasks(spec) and t['kind'] != 'cols' and rng.random() < 0.4:  # columns name labels
                node['items'].append(twin_of(t))
                node.setdefault('mirror', []).append([t['name'], t['name'] + '_twin'])

    give_twins(spec, '')


def twin_of(task):
    "A task like another, with columns of its own"
    twin = task | dict(name=task['name'] + '_twin')
    if task['kind'] == 'votes':
        twin['stem'] = task['stem'] + '_twin'
    elif task.get('col'):
        twin['col'] = task['col'] + ' twin'
    return twin


# ---- tables --------------------------------------------------------------------------------------------------------
def random_answer(rng, task):
    "Yes or no; a share, or now and then an uncertain value, where the task has them."
    if task.get('soft'):
        return rng.choice([0.0, 0.2, 0.5, 0.51, 0.7, 1.0])
    if task.get('uncertain') and rng.random() < 0.3:
        return rng.choice(list(task['uncertain']))
    return rng.random() < 0.6


def random_votes(rng, task):
    "Counts, or shares in eighths; now and then nobody voted."
    votes = [0] * len(task['vocab'])
    if rng.random() < 0.1:
        return votes
    shares = task['votes'] == 'shares' or task['votes'] == 'any' and rng.random() < 0.5
    for _ in range(8 if shares else rng.choice([1, 2, 10, 40])):
        votes[rng.randrange(len(votes))] += 1
    return [v / 8 for v in votes] if shares else votes


def random_value(rng, task):
    kind = task['kind']
    if kind == 'binary':
        return random_answer(rng, task)
    if kind in ('single', 'ordinal'):
        return rng.choice(task['vocab'])
    if kind == 'count':
        return rng.randrange(8)
    if kind == 'multi':
        return [v for v in task['vocab'] if rng.random() < 0.6]
    if kind == 'votes':
        return random_votes(rng, task)
    if kind == 'cols':
        return [random_answer(rng, task) for _ in task['vocab']]
    return rng.randint(-16, 16) / rng.choice([2, 2, 4])


def blank(rng, task, value, p):
    "The value, or a gap with probability `p` (in `cols`: label by label)."
    if task['kind'] == 'cols':
        return [None if rng.random() < p else v for v in value]
    return None if rng.random() < p else value


def not_asked(rng, task, value, na):
    "The value, or now and then one that stands for a blank (in `cols`: label by label)."
    if task['kind'] == 'votes':  # of all answers: part of them blank is an error
        return value if rng.random() > 0.25 else [rng.choice(na) for _ in task['vocab']]
    if task['kind'] == 'cols':
        return [not_asked(rng, dict(kind='one'), v, na) for v in value]
    if rng.random() > 0.25:
        return value
    value = rng.choice(na)
    return f' {value} ' if isinstance(value, str) and rng.random() < 0.3 else value


def to_be_inferred(task):
    "Labels without which the vocabulary or the range of a task would be another."
    kind = task['kind']
    if kind == 'bounded':
        return [] if task.get('y_range') else [-8, 8]
    if kind not in ('single', 'ordinal', 'multi') or task['vocab_given']:
        return []
    return [task['vocab']] if kind == 'multi' else vocab_of(task)


def random_table(rng, spec, n=None, whole=True):
    """path -> values, with labels also where a condition is false; `whole`: each label of a vocabulary or range
    that is to be inferred occurs."""
    n, table, na = n or max(rng.randint(5, 9), rows_for_trees(spec) * 2), {}, na_of(spec)
    for path, t, *_ in walk(spec):
        p = rng.choice([0, 0.2, 0.2, 0.5, 1])
        vs = table[path] = [blank(rng, t, random_value(rng, t), p) for _ in range(n)]
        if na[path]:
            vs[:] = [not_asked(rng, t, v, na[path]) for v in vs]
        must = to_be_inferred(t) if whole else []
        if t.get('over') or any(x.get('over') is t for _, x, *_ in walk(spec)):
            continue
        for i, v in zip(rng.sample(range(n), len(must)), must):
            vs[i] = v
    return nest_table(rng, spec, table)
