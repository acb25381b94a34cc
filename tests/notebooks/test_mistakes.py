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
    ("1.2", "def region_on_disk(stored, region):\n    return np.isin(stored, {'WT': (1, 2, 3), 'TC': (1, 3), "
     "'ET': (3,)}[region])", "WT: voxels with the value 4"),
    ("1.3", "def voxel_volume(affine):\n    return np.linalg.det(affine[:3, :3]) / 1e6", "thousandth"),
    ("1.3", "def voxel_volume(affine):\n    return np.prod(np.abs(np.diag(affine)[:3])) / 1000", "tilting"),
    ("1.4", "def my_normalise(volume):\n    return (volume - volume.mean()) / volume.std()", "more air"),
    ("2.1", "def subsets_with(names):\n    return [s for s in SUBSETS if set(names) & set(s)]", "every name"),
    ("2.2", "def masked_mean(maps, present):\n    mask = present[..., None, None, None, None]\n"
     "    return (maps * mask).sum(1) / mask.sum(1)", "0 x NaN"),
    ("2.2", "def masked_mean(maps, present):\n    return torch.where(present[..., None, None, None, None], maps, 0)"
     ".mean(1)", "not by four"),
    ("2.2", "def masked_mean(maps, present):\n    return maps.nan_to_num().sum(1) / "
     "present[..., None, None, None, None].sum(1)", "hidden"),
    ("3.1", "def gates(c1, c2, w):\n    return w * (c1 <= c2), w * (c2 < c1)", "tie"),
    ("3.1", "def gates(c1, c2, w):\n    return w * (c1 > c2), w * (c2 > c1)", "*lower*"),
    ("3.2", "def divergence(teacher, learner):\n    p, q = learner.log_softmax(0), teacher.detach().log_softmax(0)\n"
     "    return (p.exp() * (p - q)).sum(0)", "KL(learner || teacher)"),
    ("3.2", "def divergence(teacher, learner):\n    p, q = teacher.log_softmax(0), learner.log_softmax(0)\n"
     "    return (p.exp() * (p - q)).sum(0)", "the teacher moves"),
    ("3.3", "def other_features(f):\n    return 2 * f", "up to a factor"),
    ("3.3", "def other_features(f):\n    return f + 1", "L_rel is"),
    ("4.1", "def entropy_gates(logits1, logits2):\n    h1, h2 = (-(z.softmax(0) * z.log_softmax(0)).sum(0) for z in "
     "(logits1, logits2))\n    return (h1 - h2).relu(), (h2 - h1).relu()", "swapped"),
    ("4.1", "def entropy_gates(logits1, logits2):\n    h1, h2 = (-(z.softmax(0) * z.log_softmax(0)).sum(0) for z in "
     "(logits1, logits2))\n    return h2 - h1, h1 - h2", "never negative"),
    ("4.2", "def linear_relation(f1, f2, w):\n    g1, g2 = (F.normalize(f @ f.T, dim=1) for f in (f1, f2))\n"
     "    return (w * ((g1 - g2) ** 2).sum(1)).sum()", "all pairs of tokens"),
    ("4.2", "def linear_relation(f1, f2, w):\n    s, a, b = (((x @ (x.T @ y)) * y).sum(1) for x, y in "
     "((f1, f2), (f1, f1), (f2, f2)))\n    return (2 - 2 * s / (a * b).sqrt()).mean()", "relation_loss(f1, f2, w)"),
    ("4.3", "def class_loss(tokens1, tokens2, occupancy):\n    r = []\n    for t in (tokens1, tokens2):\n"
     "        p = occupancy @ t / occupancy.sum(1, keepdim=True)\n        r.append(F.normalize(p) @ F.normalize(p).T)\n"
     "    return (r[0] - r[1]).square().mean()", "leave it out"),
    ("5.1", "def scale_shift_leaky(x, a, b):\n    return F.leaky_relu(a * x - b, 0.2)", "wrong for shape"),
    ("5.1", "def scale_shift_leaky(x, a, b):\n    return F.leaky_relu(a * x + b, 0.2).flatten()", "has the shape"),
    ("5.2", "def dice_traffic():\n    return 5, 2", "each operation"),
    ("5.2", "def dice_traffic():\n    return 6, 3", "single number"),
    ("5.3", "def break_even(channels, direct_rate=1.0, linear_rate=1.0):\n    return 3.4 * channels", "too large"),
    ("5.3", "def break_even(channels, direct_rate=1.0, linear_rate=1.0):\n"
     "    return 34 / 12 * channels * linear_rate / direct_rate", "the forms take"),
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
    ("7.3", "def split(names, shares, seed):\n    names = sorted(names)\n"
     "    np.random.default_rng(seed).shuffle(names)\n"
     "    ends = np.cumsum(np.multiply(shares, len(names))).round().astype(int)\n"
     "    return [names[a:b] for a, b in zip([0, *ends], ends)]", "in two parts"),
    ("7.3", "def split(names, shares, seed):\n    patients = list(dict.fromkeys(n[:-4] for n in names))\n"
     "    np.random.default_rng(seed).shuffle(patients)\n"
     "    ends = np.cumsum(np.multiply(shares, len(patients))).round().astype(int)\n"
     "    return [[n for n in names if n[:-4] in patients[a:b]] for a, b in zip([0, *ends], ends)]", "another order"),
    ("8.1", "def where_from(one, other):\n    d, there = other['dice'] - one['dice'], one['truth_ml'] > 0\n"
     "    return 100 * d[there].mean(), 100 * d[~there].mean()", "add up to 12.0"),
    ("8.1", "def where_from(one, other):\n    return 0.0, 100 * (other['dice'].mean() - one['dice'].mean())",
     "the eight cases"),
    ("8.2", "def my_hd95(a, b, spacing):\n    edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]\n"
     "    far = ndimage.distance_transform_edt(~edges[1], sampling=spacing)\n"
     "    return np.percentile(far[edges[0]], 95)", "*two* directions"),
    ("8.2", "def my_hd95(a, b, spacing):\n    edges = [m & ~ndimage.binary_erosion(m) for m in (a, b)]\n"
     "    return max(np.percentile(ndimage.distance_transform_edt(~q)[p], 95) for p, q in (edges, edges[::-1]))",
     "voxels of"),
    ("8.3", "def best_threshold(rows, thresholds):\n    return 0.0", "has a higher mean"),
    ("8.3", "def best_threshold(rows, thresholds):\n"
     "    means = [np.where(rows['predicted_ml'] < t, rows['truth_ml'] == 0, rows['dice']).mean()"
     " for t in thresholds]\n"
     "    return thresholds[max(range(len(means)), key=lambda i: (means[i], i))]", "the lowest"),
    ("9.1", "def volumes_of_file(path):\n    x = np.asanyarray(nib.load(path).dataobj)\n"
     "    return {r: np.isin(x, v).sum() / 1000 for r, v in (('WT', (1, 2, 4)), ('TC', (1, 4)), ('ET', (4,)))}",
     "512 voxels"),
    ("9.2", "def looks_stripped(volume):\n    return bool((volume == 0).mean() > 0.6)", "cropped"),
    ("9.2", "def looks_stripped(volume):\n    return bool((volume == 0).any())", "proves nothing"),
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
