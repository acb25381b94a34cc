"""The checks find the mistakes that the exercises are about, and their hints name them."""

import pytest
from course_pages import FOLDER, SCRIPTS, cells, exercises

from smml import course

ALL = {exercise.number: exercise for script in SCRIPTS for exercise in exercises(script)}

# Exercise, a plausible wrong answer, and words that the hint must hold.
MISTAKES = [
    ("0.1", "def most_missed(table, region):\n    return 'T1ce'", "in another table"),
    ("0.2", "def next_sequence(table, given, region):\n    return 't1ce'", "only the fourth is left"),
    ("1.1", "def nulling_time(t1, tr):\n    return t1 * np.log(2)", "of the magnetisation is left"),
    ("1.2", "def my_normalise(volume):\n    return (volume - volume.mean()) / volume.std()", "more air"),
    ("2.1", "def subsets_with(names):\n    return [s for s in SUBSETS if set(names) & set(s)]", "every name"),
    ("2.2", "def masked_mean(maps, present):\n    mask = present[..., None, None, None, None]\n"
     "    return (maps * mask).sum(1) / mask.sum(1)", "0 x NaN"),
    ("2.2", "def masked_mean(maps, present):\n    return torch.where(present[..., None, None, None, None], maps, 0)"
     ".mean(1)", "not by four"),
    ("2.2", "def masked_mean(maps, present):\n    return maps.nan_to_num().sum(1) / "
     "present[..., None, None, None, None].sum(1)", "hidden"),
    ("3.1", "def divergence(teacher, learner):\n    p, q = learner.log_softmax(0), teacher.detach().log_softmax(0)\n"
     "    return (p.exp() * (p - q)).sum(0)", "KL(learner || teacher)"),
    ("3.1", "def divergence(teacher, learner):\n    p, q = teacher.log_softmax(0), learner.log_softmax(0)\n"
     "    return (p.exp() * (p - q)).sum(0)", "the teacher moves"),
    ("3.2", "def gates_of_many(errors):\n    return (errors[:, None] < errors[None]).float()", "the best alone"),
    ("3.2", "def gates_of_many(errors):\n    best = errors == errors.min(0).values\n"
     "    return (best[:, None] & ~torch.eye(len(errors), dtype=bool)[..., None]).float()", "with two branches"),
    ("3.3", "def silent(step):\n    return {'teach_12'} if step < 100 else set()", "refine_1"),
    ("3.3", "def silent(step):\n    return {'teach_12', 'relation', 'refine_1'} if step < 100 else {'refine_1'}",
     "relation"),
    ("4.1", "def my_gate(log_p1, log_p2, y):\n    a, b = (p.gather(0, y[None])[0] for p in (log_p1, log_p2))\n"
     "    return (a > b).float(), (b > a).float()\nprediction = 'more'", "lower_ce again"),
    ("4.1", "def my_gate(log_p1, log_p2, y):\n    a, b = (p.gather(0, y[None])[0] for p in (log_p1, log_p2))\n"
     "    return a - b, b - a\nprediction = 'more'", "never negative"),
    ("4.1", "def my_gate(log_p1, log_p2, y):\n    return (y > 0).float(), (y > 0).float() * 0\nprediction = 'less'",
     "overlook"),
    ("4.2", "def shift_free_relation(f1, f2):\n    return relation_loss(f1, f2)", "a shift still changes it"),
    ("4.2", "def shift_free_relation(f1, f2):\n    return 0 * relation_loss(f1, f2)", "nothing in common"),
    ("5.1", "def where_from(one, other):\n    d, there = other['dice'] - one['dice'], one['truth_ml'] > 0\n"
     "    return 100 * d[there].mean(), 100 * d[~there].mean()", "add up to 12.0"),
    ("5.1", "def where_from(one, other):\n    return 0.0, 100 * (other['dice'].mean() - one['dice'].mean())",
     "the eight cases"),
    ("5.2", "def my_hd95(a, b, spacing):\n    edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]\n"
     "    far = ndimage.distance_transform_edt(~edges[1], sampling=spacing)\n"
     "    return np.percentile(far[edges[0]], 95)", "*two* directions"),
    ("5.2", "def my_hd95(a, b, spacing):\n    edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]\n"
     "    return max(np.percentile(ndimage.distance_transform_edt(~q)[p], 95) for p, q in (edges, edges[::-1]))",
     "voxels of"),
    ("5.3", "def best_threshold(rows, thresholds):\n    return 0.0", "has a higher mean"),
    ("5.3", "def best_threshold(rows, thresholds):\n"
     "    means = [np.where(rows['predicted_ml'] < t, rows['truth_ml'] == 0, rows['dice']).mean()"
     " for t in thresholds]\n"
     "    return thresholds[max(range(len(means)), key=lambda i: (means[i], i))]", "the lowest"),
    ("6.1", "def my_gate(p, s):\n    return torch.ones(len(s))", "maps alike"),
    ("6.1", "def my_gate(p, s):\n    return (p * s).sum(dim=(1, 2, 3))", "between 0 and 1"),
    ("6.2", "def verdict(changes):\n    i = bootstrap_mean(changes)\n"
     "    return 'not shown' if i.low < 0 < i.high else 'gain' if i.mean > 0 else 'loss'", "is 'one case'"),
    ("6.2", "def verdict(changes):\n    i = bootstrap_mean(np.delete(changes, changes.argmax()))\n"
     "    return 'one case' if i.mean < changes.mean() / 2 else 'not shown' if i.low < 0 < i.high else 'gain'",
     "is 'loss'"),
    ("6.3", "def sees_the_truth(gate, p, s, truth):\n"
     "    return not torch.equal(gate(p, s, truth), gate(p, s, 1 - truth))", "other sizes"),
    ("7.1", "def one_seed(study, arm, parent):\n    d = study.values(arm, 'mean') - study.values(parent, 'mean')\n"
     "    return {seed: bootstrap_mean(d.to_numpy()) for seed in d.index}", "of that seed"),
    ("7.1", "def one_seed(study, arm, parent):\n    return {0: bootstrap_mean((study.values(arm, 'mean') - "
     "study.values(parent, 'mean')).to_numpy())}", "the study has the seeds"),
    ("7.2", "def worth(changes, arm, measure):\n    r = changes[(changes['arm'] == arm) & (changes['parent'] == "
     "'single')].iloc[0]\n    low, high = r[f'{measure} low'], r[f'{measure} high']\n"
     "    return 'not shown' if low < 0 < high else 'gain' if low > 0 else 'loss'", "take (b)"),
    ("7.2", "def worth(changes, arm, measure):\n    r = changes[(changes['arm'] == arm) & (changes['parent'] == "
     "'pair')].iloc[0]\n    return 'gain' if r[measure] > 0 else 'loss'", "leave 0 out"),
    ("7.3", "def split(names, shares, seed):\n    names = sorted(names)\n"
     "    np.random.default_rng(seed).shuffle(names)\n"
     "    ends = np.cumsum(np.multiply(shares, len(names))).round().astype(int)\n"
     "    return [names[a:b] for a, b in zip([0, *ends], ends)]", "in two parts"),
    ("7.3", "def split(names, shares, seed):\n    patients = list(dict.fromkeys(n[:-4] for n in names))\n"
     "    np.random.default_rng(seed).shuffle(patients)\n"
     "    ends = np.cumsum(np.multiply(shares, len(patients))).round().astype(int)\n"
     "    return [[n for n in names if n[:-4] in patients[a:b]] for a, b in zip([0, *ends], ends)]", "another order"),
    ("8.1", "def verdict(before, after):\n    return 'larger' if after.ml > before.ml else 'smaller'", "is possible"),
    ("8.1", "def verdict(before, after):\n    if before.low <= after.high and after.low <= before.high:\n"
     "        return 'cannot tell'\n    return 'larger' if after.ml > before.ml else 'smaller'", "nothing is known"),
    ("8.2", "def contributions_of_two(nothing, first, second, both):\n    return first - nothing, second - nothing",
     "the whole way"),
    ("8.2", "def contributions_of_two(nothing, first, second, both):\n    return first - nothing, both - first",
     "expected"),
    ("9.1", "def scale_shift_leaky(x, a, b):\n    return F.leaky_relu(a * x - b, 0.2)", "wrong for shape"),
    ("9.1", "def scale_shift_leaky(x, a, b):\n    return F.leaky_relu(a * x + b, 0.2).flatten()", "has the shape"),
    ("9.2", "def speed_up(nbytes, operations):\n    return 16.0", "waits for memory"),
    ("9.2", "def speed_up(nbytes, operations):\n    return 16.0 if operations / nbytes > 50 else 1.0", "other ceiling"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "attempt", "hint"), MISTAKES, ids=[f"{m[0]} {m[2]}" for m in MISTAKES])
def test_the_hint_names_the_mistake(number, attempt, hint, monkeypatch, tmp_path):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("SMML_BUILD", str(tmp_path))
    monkeypatch.setattr(course, "outcomes", {})
    exercise, namespace = ALL[number], {"__name__": "__main__"}
    for source in (cells(exercise.script, "code")[0], attempt, exercise.check):
        exec(compile(source, number, "exec"), namespace)
    assert course.outcomes[number] is not None, "the mistake passes"
    assert hint in course.outcomes[number]
