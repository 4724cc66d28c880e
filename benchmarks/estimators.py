"""Bias, noise and end point of every estimator of `verl_ext.method`, exact in a world that can be enumerated.

`python -m benchmarks.estimators` prints the tables of docs/method.md; `--plot FILE` draws the first.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.arms.kl_direct import K, direct, support
from benchmarks.arms.kl_estimators import (
    ESTIMATORS,
    OFF_POLICY,
    REPLAY,
    full_baseline,
    grouped,
    off_policy,
    population_baseline,
    sampled,
    tool_gradient,
)
from benchmarks.arms.kl_laboratory import (
    Estimator,
    World,
    descend,
    make_world,
    sequence_gradient,
    sequence_kl,
    state_gradient,
    train,
    visits,
)
from benchmarks.arms.runs import report

STEPS, LONG_STEPS, LEARNING_RATE, ROWS, SEEDS = 200, 2000, 0.5, 8, 4
EXACT = 1e-12
"""What counts as 0, in units of the true gradient's length."""


def measure(world: World) -> list[dict]:
    """One row an estimator: distance of its expected gradient from the two true ones, its noise, its end points."""
    logits_SV = world.student_SV
    state_P, sequence_P = state_gradient(world, logits_SV), sequence_gradient(world, logits_SV)
    rows = []
    for entry in ESTIMATORS:
        draws = entry.estimator(world, logits_SV)
        row = {
            "name": entry.name,
            "gradient_of": entry.gradient_of,
            "length": float(draws.mean().norm() / state_P.norm()),
            "off_states": float((draws.mean() - state_P).norm() / state_P.norm()),
            "off_sequence": float((draws.mean() - sequence_P).norm() / sequence_P.norm()),
            "noise": draws.variance() ** 0.5 / float(state_P.norm()),
        }
        if draws.rows == 1:
            settings = {"steps": STEPS, "learning_rate": LEARNING_RATE}
            row["kl_exact"] = descend(world, entry.estimator, **settings)
            ends = [train(world, entry.estimator, rows=ROWS, seed=seed, **settings) for seed in range(SEEDS)]
            row["kl_sampled"] = sum(ends) / SEEDS
        rows.append(row)
    return rows


def variance_ratios(vocabulary: int, estimator: Estimator) -> list[float]:
    """Variance of a row over that of the plain sampled reverse KL, for six worlds, in order."""
    worlds = [make_world(vocabulary, 2, seed) for seed in range(6)]
    pairs = [(estimator(w, w.student_SV), sampled(w, w.student_SV)) for w in worlds]
    return sorted(found.variance() / plain.variance() for found, plain in pairs)


with_expected = partial(sampled, baseline=full_baseline)
with_population = partial(sampled, baseline=population_baseline)
with_group = partial(grouped, leave_one_out=True, tokens=True)


def mass_gap(world: World, **settings) -> float:
    """|student's - teacher's mass| outside the top-k, mean over visited tokens, after a long exact descent."""
    logits_SV = world.student_SV
    for _ in range(LONG_STEPS):
        step_P = direct(world, logits_SV, **settings).mean()
        logits_SV = logits_SV - LEARNING_RATE * step_P.reshape_as(logits_SV)
    ids_SK, teacher_SK = support(world)
    gap_S = (logits_SV.softmax(-1).gather(1, ids_SK).sum(-1) - teacher_SK.exp().sum(-1)).abs()
    visits_S = visits(world, logits_SV)
    return float(visits_S @ gap_S / visits_S.sum())


def claims(world: World, rows: list[dict]) -> list[tuple[str, float, float]]:
    """The bars: what is exact, and what a mistake costs."""
    row = {r["name"]: r for r in rows}
    distance = {"states": "off_states", "sequence": "off_sequence", "nothing": "length"}
    exact = [
        (f"{r['name']}: gradient off {r['gradient_of']}", r[distance[r["gradient_of"]]], EXACT)
        for r in rows
        if r["gradient_of"]
    ]
    logits_SV = world.student_SV
    mean = {e.name: e.estimator(world, logits_SV).mean() for e in ESTIMATORS}
    sequence_P = sequence_gradient(world, logits_SV)
    shrunk = float((mean["+ group baseline with itself, rows"] - sequence_P / 2).norm() / sequence_P.norm())
    swapped = float((mean["k3 as a loss"] - mean["direct forward KL"]).norm() / mean["direct forward KL"].norm())
    left = {name: r["kl_exact"] for name, r in row.items() if "kl_exact" in r}
    unlearned = left["top-k KL as an advantage"] / float(sequence_kl(world, logits_SV))
    gap = {tail: mass_gap(world, kind="forward_kl", tail=tail) for tail in (True, False)}
    noise = row["direct reverse KL"]["noise"] / row["sampled, discount 0 (Tinker)"]["noise"]
    tails = left["direct reverse KL, top-k and tail"] / left["direct reverse KL, top-k, no tail"]
    divided = left["+ samples in the tail, student's"] / left["direct reverse KL, top-k and tail"]
    return [
        *exact,
        ("group baseline with itself, 2 rows: gradient off half of the sequence's", shrunk, EXACT),
        ("k3 as a loss: gradient off the forward KL's", swapped, EXACT),
        ("top-k KL as an advantage: share of the KL that descent removes", 1 - unlearned, EXACT),
        ("direct forward KL: mass outside the top-k, error with tail / without", gap[True] / gap[False], 0.1),
        ("direct reverse KL over top-k: KL left with tail / without", tails, 0.5),
        ("reverse KL left, student's top-k and samples in the tail / teacher's top-k and tail", divided, 0.5),
        ("tool's token, discount 1: gradient of fixed / strict", tool_gradient("fixed") / tool_gradient("strict"), 0.0),
        ("expected reverse KL baseline, V = 16: largest variance ratio", max(variance_ratios(16, with_expected)), 1.0),
        ("direct / sampled reverse KL: noise of a row", noise, 1.0),
    ]


def print_tables(world: World, rows: list[dict]) -> list[dict]:
    """Markdown for docs/method.md; returns the off-policy rows."""
    print(f"reverse KL at the start: {float(sequence_kl(world, world.student_SV)):.2f} nats\n")
    print("| estimator | off KL in states | off sequence KL | noise of a row | KL, exact | KL, sampled |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        ends = [f"{row[key]:.2g}" if key in row else "" for key in ("kl_exact", "kl_sampled")]
        off = ["0" if row[key] < EXACT else f"{row[key]:.2f}" for key in ("off_states", "off_sequence")]
        print(f"| {row['name']} | {off[0]} | {off[1]} | {row['noise']:.2f} | {ends[0]} | {ends[1]} |")
    print("\n| off-policy loss | off | noise of a row |\n|---|---|---|")
    off_rows = []
    for name, loss in OFF_POLICY.items():
        draws, aim_P = off_policy(world, world.student_SV, loss)
        off = float((draws.mean() - aim_P).norm() / aim_P.norm())
        off_rows.append({"name": name, "off": off, "noise": draws.variance() ** 0.5 / float(aim_P.norm())})
        print(f"| {name} | {'0' if off < EXACT else f'{off:.2f}'} | {off_rows[-1]['noise']:.2f} |")
    off_rows += replay_rows(world)
    print_supports()
    print("\n| baseline | V | variance with / without, six worlds |\n|---|---|---|")
    arms = [("expected reverse KL", vocabulary, with_expected) for vocabulary in (4, 8, 16, 32)]
    arms += [(f"group of {size}, leave one out", 3, partial(with_group, size=size)) for size in (2, 3, 4, 5)]
    arms += [("group of all", vocabulary, with_population) for vocabulary in (3, 8, 32)]
    for name, vocabulary, estimator in arms:
        ratios = variance_ratios(vocabulary, estimator)
        print(f"| {name} | {vocabulary} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    return off_rows


def print_supports() -> None:
    """What exact descent leaves by support in other worlds too, and how much of itself the student has in its top-k."""
    print("\n| world | start | student's mass in its top-k | teacher's top-k and tail | student's | whole vocabulary |")
    print("|---|---|---|---|---|---|")
    for seed in range(5):
        world = make_world(8, 2, seed)
        mass = float(world.student_SV.softmax(-1).topk(K).values.sum(-1).mean())
        settings = {"kind": "reverse_kl", "tail": True}
        left = [
            descend(world, partial(direct, over=over, **settings), steps=STEPS, learning_rate=LEARNING_RATE)
            for over in ("teacher", "student", "vocabulary")
        ]
        cells = [float(sequence_kl(world, world.student_SV)), mass, *left]
        print(f"| {seed} | {' | '.join(f'{cell:.2g}' for cell in cells)} |")


def replay_rows(world: World) -> list[dict]:
    """Of replayed rows: how far the expected gradient is from the wanted one, and from that of fresh rows; printed."""
    print("\n| replayed rows | off, sampler's states | off, student's states | noise of a row |\n|---|---|---|---|")
    rows, own_P = [], state_gradient(world, world.student_SV)
    for name, (exact, estimator) in REPLAY.items():
        draws, aim_P = estimator(world, world.student_SV)
        mean_P = draws.mean()
        row = {
            "name": f"replay: {name}",
            "exact": exact,
            "off": float((mean_P - aim_P).norm() / aim_P.norm()),
            "off_own": float((mean_P - own_P).norm() / own_P.norm()),
            "noise": draws.variance() ** 0.5 / float(aim_P.norm()),
        }
        rows.append(row)
        off = "0" if row["off"] < EXACT else f"{row['off']:.2f}"
        print(f"| {name} | {off} | {row['off_own']:.2f} | {row['noise']:.2f} |")
    return rows


def plot(rows: list[dict], initial: float, file: Path) -> None:
    """The KL that exact descent leaves, and the noise of a row, for each estimator."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "estimators"}
    from matplotlib import pyplot

    shown = [row for row in rows if "kl_exact" in row][::-1]
    names = [row["name"] for row in shown]
    figure, (left, right) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 6))
    left.barh(names, [row["kl_exact"] for row in shown])
    left.axvline(initial, color="black", linewidth=0.8)
    left.set(xscale="log", xlabel=f"KL after {STEPS} exact steps, nats (line: start)")
    right.barh(names, [row["noise"] for row in shown])
    right.set_xlabel("noise of a row / |gradient|")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    parser.add_argument("--plot", type=Path, help="draw the table here (.svg or .png)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = make_world(8, 2, seed=0)
    rows = measure(world)
    off_rows = print_tables(world, rows)
    if arguments.plot is not None:
        plot(rows, float(sequence_kl(world, world.student_SV)), arguments.plot)
    exact = [(f"{row['name']}: gradient off the wanted one", row["off"], EXACT) for row in off_rows if row.get("exact")]
    report(rows + off_rows, claims(world, rows) + exact, arguments.json)


if __name__ == "__main__":
    main()
